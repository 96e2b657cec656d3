// Writes ustar headers, with PAX records where they do not suffice. The same
// fields always give the same bytes.
#ifndef BULKHEAD_LIB_TAR_WRITER_H_
#define BULKHEAD_LIB_TAR_WRITER_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace bulkhead::tar {

using ByteSink = std::function<absl::Status(absl::string_view)>;

struct Header {
  std::string name;  // Of folders with a slash at the end.
  std::string link;
  char type = '0';  // As in the header: '0' file, '1' hard link, ...
  mode_t mode = 0;
  uint64_t uid = 0;
  uint64_t gid = 0;
  uint64_t size = 0;  // Of the data that follows.
  int64_t mtime = 0;  // Seconds since 1970.
  unsigned major = 0;
  unsigned minor = 0;
  std::string capability;  // The xattr security.capability.
};

// Writes what goes before an entry's data. Errors: those of `sink`.
absl::Status WriteHeader(const Header& header, const ByteSink& sink);
// What goes after `size_bytes` of data.
std::string Padding(uint64_t size_bytes);
// The end of the archive.
absl::Status WriteEnd(const ByteSink& sink);

}  // namespace bulkhead::tar

#endif  // BULKHEAD_LIB_TAR_WRITER_H_
