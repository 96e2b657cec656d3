// Child programs with few rights: what a service starts to have bytes worked
// on. (The shim, which links next to nothing, has its own.)
#ifndef BULKHEAD_LIB_OS_CHILD_H_
#define BULKHEAD_LIB_OS_CHILD_H_

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/fd.h"

namespace bulkhead::os {

struct ChildSpec {
  std::string path;               // Without a slash: looked up in kChildPath.
  std::vector<std::string> args;  // After the program's name.
  std::vector<std::string> env;   // All of it, as NAME=VALUE.
  // Descriptor here, and its number there. All others are closed.
  std::vector<std::pair<int, int>> fds;
};

inline constexpr char kChildPath[] =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

// A running program without capabilities, in a process group of its own. It is
// killed when the thread that started it ends. Not thread-safe but for Kill().
class Child {
 public:
  // Blocks until the program runs. Errors: kNotFound, kPermissionDenied: the
  // program; others: the system's.
  static absl::StatusOr<Child> Start(const ChildSpec& spec);

  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Child& operator=(Child&&) = delete;
  // Kills and reaps it if Wait() was not called.
  ~Child();

  pid_t pid() const { return pid_; }
  // SIGKILL to its process group; nothing once it was reaped.
  void Kill();
  // Blocks until it ends: the status as waitpid(2) gives it. Once only.
  int Wait();

 private:
  explicit Child(pid_t pid) : pid_(pid) {}
  pid_t pid_;
};

// A file in memory with these bytes, to be read from its start.
absl::StatusOr<UniqueFd> MemoryFile(const std::string& name,
                                    const std::string& bytes);
// One of `size_bytes` zeros that cannot grow: what is written past its end
// fails. For the output of programs that are not trusted to be brief.
absl::StatusOr<UniqueFd> FixedMemoryFile(const std::string& name,
                                         size_t size_bytes);

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_CHILD_H_
