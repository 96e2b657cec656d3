#include "lib/os/memory.h"

#include <malloc.h>
#include <sys/mman.h>
#include <time.h>

#include <atomic>
#include <cinttypes>
#include <cstdint>
#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "lib/os/fd.h"

namespace bulkhead::os {
namespace {

constexpr int64_t kReleasePauseMillis = 200;

void ReleaseCode() {
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

}  // namespace

void ReleaseIdleMemory() {
  ::malloc_trim(0);
  ReleaseCode();
}

void ReleaseCodeNowAndThen() {
  static std::atomic<int64_t> next_millis{0};
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  const int64_t millis = now.tv_sec * 1000 + now.tv_nsec / 1000000;
  int64_t next = next_millis.load(std::memory_order_relaxed);
  if (millis < next || !next_millis.compare_exchange_strong(
                           next, millis + kReleasePauseMillis)) {
    return;
  }
  ReleaseCode();
}

}  // namespace bulkhead::os
