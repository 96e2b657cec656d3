// The services of one suite as child processes, to be killed and started again.
#ifndef BULKHEAD_TESTS_CRASH_SUITE_H_
#define BULKHEAD_TESTS_CRASH_SUITE_H_

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

namespace bulkhead::crash {

// Each service runs with root DIR/r, state DIR/s, config DIR/c.toml and logs to
// DIR/log. They die with this process. Not thread-safe.
class Suite {
 public:
  // `bin`: the folder with bulkhead-content and the rest.
  Suite(std::string bin, std::string dir, std::vector<std::string> names);
  ~Suite();
  Suite(const Suite&) = delete;
  Suite& operator=(const Suite&) = delete;

  const std::vector<std::string>& names() const { return names_; }
  const std::string& dir() const { return dir_; }
  std::string gateway() const { return dir_ + "/s/bulkhead.sock"; }

  // Starts those that do not run.
  void StartAll();
  // SIGKILL; returns when the process is gone.
  void Kill(const std::string& name);
  // A service that ended without being killed: "name (wait status N)"; empty:
  // none has.
  std::string Ended();

 private:
  const std::string bin_;
  const std::string dir_;
  const std::vector<std::string> names_;
  std::map<std::string, pid_t> running_;
};

}  // namespace bulkhead::crash

#endif  // BULKHEAD_TESTS_CRASH_SUITE_H_
