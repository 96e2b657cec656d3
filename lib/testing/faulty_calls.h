// System calls that fail on command, or end the process.
//
// A test that links this gets definitions of the C library's functions that
// change files or mounts; whatever else is linked into it, RocksDB included,
// calls those. They count while armed, and hand on to the C library.
#ifndef BULKHEAD_LIB_TESTING_FAULTY_CALLS_H_
#define BULKHEAD_LIB_TESTING_FAULTY_CALLS_H_

#include <string>

namespace bulkhead::testing {

struct CallFault {
  int fail_at = -1;  // The call with this number fails; -1: none.
  int error = 0;     // With this errno value.
  // Instead of failing, the call ends the process as SIGKILL does: none of its
  // code runs any more. Its exit status is kDiedAtCall.
  bool die = false;
  // Every call from then on fails too, but those that let go of something
  // (unlink, rmdir, umount) and those that open what is there: a full disk
  // refuses neither.
  bool for_ever = false;
  // Count calls of this function only, as other threads call others when they
  // like. "": all.
  const char* only = "";
};

constexpr int kDiedAtCall = 77;

// Of this process; thread-safe but for Arm(). A write that is to fail has
// written half of its bytes.
class FaultyCalls {
 public:
  // Counting begins anew. From the first Arm() on, fsync, fdatasync and syncfs
  // reach no disk: with a real one no test can tell, and each takes
  // milliseconds.
  static void Arm(const CallFault& fault);
  // Calls are neither counted nor fail.
  static void Disarm();
  static int calls();
  // The function that failed (first); "": none.
  static std::string fired();
};

}  // namespace bulkhead::testing

#endif  // BULKHEAD_LIB_TESTING_FAULTY_CALLS_H_
