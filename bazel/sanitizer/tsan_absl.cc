// Tells ThreadSanitizer of absl::Mutex. Debian's Abseil is not instrumented, so
// without this every field that an absl::Mutex guards looks like a race. The
// linker's --wrap (bazel/system/BUILD) leads our calls here; waiting for a
// condition is done by polling, so that the condition is looked at with the
// lock held, as ThreadSanitizer sees it.
#include <sanitizer/tsan_interface.h>
#include <unistd.h>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace {

using absl::Condition;
using absl::Duration;
using absl::Mutex;
using absl::Time;

constexpr unsigned kRead = __tsan_mutex_read_lock;
constexpr useconds_t kPollMicros = 200;

}  // namespace

#define ABSL_MUTEX(name) _ZN4absl7debian35Mutex##name
#define REAL_(symbol) __real_##symbol
#define REAL(symbol) REAL_(symbol)
#define WRAP_(symbol) __wrap_##symbol
#define WRAP(symbol) WRAP_(symbol)

// Debian's RocksDB is not instrumented either: how one writer of a group hands
// the log to the next is not seen, and our file of it looks unguarded.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() {
  return "race:lib/rocks/log_files.cc\n";
}

extern "C" {

void REAL(ABSL_MUTEX(4LockEv))(Mutex*);
void REAL(ABSL_MUTEX(6UnlockEv))(Mutex*);
bool REAL(ABSL_MUTEX(7TryLockEv))(Mutex*);
void REAL(ABSL_MUTEX(10ReaderLockEv))(Mutex*);
void REAL(ABSL_MUTEX(12ReaderUnlockEv))(Mutex*);
void REAL(ABSL_MUTEX(D1Ev))(Mutex*);

void WRAP(ABSL_MUTEX(4LockEv))(Mutex* mutex) {
  __tsan_mutex_pre_lock(mutex, 0);
  REAL(ABSL_MUTEX(4LockEv))(mutex);
  __tsan_mutex_post_lock(mutex, 0, 0);
}

void WRAP(ABSL_MUTEX(6UnlockEv))(Mutex* mutex) {
  __tsan_mutex_pre_unlock(mutex, 0);
  REAL(ABSL_MUTEX(6UnlockEv))(mutex);
  __tsan_mutex_post_unlock(mutex, 0);
}

bool WRAP(ABSL_MUTEX(7TryLockEv))(Mutex* mutex) {
  __tsan_mutex_pre_lock(mutex, __tsan_mutex_try_lock);
  const bool locked = REAL(ABSL_MUTEX(7TryLockEv))(mutex);
  __tsan_mutex_post_lock(
      mutex,
      locked ? __tsan_mutex_try_lock
             : __tsan_mutex_try_lock | __tsan_mutex_try_lock_failed,
      0);
  return locked;
}

void WRAP(ABSL_MUTEX(10ReaderLockEv))(Mutex* mutex) {
  __tsan_mutex_pre_lock(mutex, kRead);
  REAL(ABSL_MUTEX(10ReaderLockEv))(mutex);
  __tsan_mutex_post_lock(mutex, kRead, 0);
}

void WRAP(ABSL_MUTEX(12ReaderUnlockEv))(Mutex* mutex) {
  __tsan_mutex_pre_unlock(mutex, kRead);
  REAL(ABSL_MUTEX(12ReaderUnlockEv))(mutex);
  __tsan_mutex_post_unlock(mutex, kRead);
}

void WRAP(ABSL_MUTEX(D1Ev))(Mutex* mutex) {
  __tsan_mutex_destroy(mutex, __tsan_mutex_linker_init);
  REAL(ABSL_MUTEX(D1Ev))(mutex);
}

void WRAP(ABSL_MUTEX(5AwaitERKNS0_9ConditionE))(Mutex* mutex,
                                                const Condition& condition) {
  while (!condition.Eval()) {
    WRAP(ABSL_MUTEX(6UnlockEv))(mutex);
    ::usleep(kPollMicros);
    WRAP(ABSL_MUTEX(4LockEv))(mutex);
  }
}

bool WRAP(ABSL_MUTEX(16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE))(
    Mutex* mutex, const Condition& condition, Duration timeout) {
  const Time deadline = absl::Now() + timeout;
  while (!condition.Eval()) {
    if (absl::Now() >= deadline) return false;
    WRAP(ABSL_MUTEX(6UnlockEv))(mutex);
    ::usleep(kPollMicros);
    WRAP(ABSL_MUTEX(4LockEv))(mutex);
  }
  return true;
}

void WRAP(ABSL_MUTEX(8LockWhenERKNS0_9ConditionE))(Mutex* mutex,
                                                   const Condition& condition) {
  WRAP(ABSL_MUTEX(4LockEv))(mutex);
  WRAP(ABSL_MUTEX(5AwaitERKNS0_9ConditionE))(mutex, condition);
}

}  // extern "C"
