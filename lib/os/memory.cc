#include "lib/os/memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "lib/os/fd.h"

namespace bulkhead::os {

void ReleaseIdleMemory() {
  ::malloc_trim(0);
  absl::StatusOr<std::string> smaps = ReadFile("/proc/self/smaps", 4 << 20);
  if (!smaps.ok()) return;  // Only a saving is lost.
  uintptr_t begin = 0;
  uintptr_t end = 0;
  for (const auto view : absl::StrSplit(*smaps, '\n', absl::SkipEmpty())) {
    const std::string line(view);
    uintptr_t first = 0;
    uintptr_t last = 0;
    char flags[5] = {};
    char path[8] = {};
    // Each mapping is "begin-end r-xp offset device inode path", then lines of
    // figures about it.
    const int fields = std::sscanf(
        line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %4s %*s %*s %*s %7s", &first,
        &last, flags, path);
    if (fields >= 3) {
      // Private, read-only and backed by a file...
      const bool candidate = fields == 4 && flags[0] == 'r' &&
                             flags[1] == '-' && flags[3] == 'p' &&
                             path[0] == '/';
      begin = candidate ? first : 0;
      end = last;
      continue;
    }
    // ...and without a page of its own: relocated constants (RELRO) were
    // written before they became read-only, and must stay.
    unsigned long anonymous_kib = 0;
    if (begin != 0 &&
        std::sscanf(line.c_str(), "Anonymous: %lu kB", &anonymous_kib) == 1) {
      if (anonymous_kib == 0) {
        ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
      }
      begin = 0;
    }
  }
}

}  // namespace bulkhead::os
