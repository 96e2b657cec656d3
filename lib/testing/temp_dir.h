// A private folder for one test, removed at the end.
#ifndef BULKHEAD_LIB_TESTING_TEMP_DIR_H_
#define BULKHEAD_LIB_TESTING_TEMP_DIR_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace bulkhead::testing {

// /tmp/bh-XXXXXX, mode 0700: short, so that Unix socket paths below it fit.
// Crashes the test if the folder cannot be made; removal follows no symlink
// and leaves mounts alone (and reports what stays as a test failure).
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  // path() + "/" + `name`.
  std::string Path(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Reads a whole file, or fails the test and returns "".
std::string ReadFileOrDie(const std::string& path);
// Writes a whole file (no fsync), or fails the test.
void WriteFileOrDie(const std::string& path, const std::string& data);

// `size_bytes` bytes that depend on `seed` and do not compress.
std::string RandomBytes(size_t size_bytes, uint64_t seed = 1);

// How many descriptors this process has open: to find leaks.
int OpenFdCount();

}  // namespace bulkhead::testing

#endif  // BULKHEAD_LIB_TESTING_TEMP_DIR_H_
