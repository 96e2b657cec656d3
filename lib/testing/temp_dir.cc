#include "lib/testing/temp_dir.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>

#include <cstdio>
#include <fstream>
#include <random>
#include <sstream>

#include "lib/os/fd.h"

namespace bulkhead::testing {

TempDir::TempDir() {
  char name[] = "/tmp/bh-XXXXXX";
  if (::mkdtemp(name) == nullptr) {
    perror("mkdtemp /tmp/bh-XXXXXX");
    abort();
  }
  path_ = name;
}

TempDir::~TempDir() {
  const absl::Status removed = os::RemoveAll(path_);
  EXPECT_TRUE(removed.ok()) << removed.ToString();
}

std::string ReadFileOrDie(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path << ": " << strerror(errno);
  std::ostringstream data;
  data << in.rdbuf();
  return data.str();
}

void WriteFileOrDie(const std::string& path, const std::string& data) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << data;
  out.close();
  EXPECT_TRUE(out.good()) << path << ": " << strerror(errno);
}

std::string RandomBytes(size_t size_bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string bytes(size_bytes, '\0');
  size_t at = 0;
  while (at < size_bytes) {
    const uint64_t word = random();
    const size_t n = std::min(sizeof(word), size_bytes - at);
    memcpy(&bytes[at], &word, n);
    at += n;
  }
  return bytes;
}

int OpenFdCount() {
  DIR* dir = ::opendir("/proc/self/fd");
  if (dir == nullptr) return -1;
  int count = 0;
  while (const dirent* entry = ::readdir(dir)) {
    if (entry->d_name[0] != '.') ++count;
  }
  ::closedir(dir);
  return count - 1;  // Without the folder's own.
}

}  // namespace bulkhead::testing
