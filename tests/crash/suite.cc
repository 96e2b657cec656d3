#include "tests/crash/suite.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <utility>

namespace bulkhead::crash {

Suite::Suite(std::string bin, std::string dir, std::vector<std::string> names)
    : bin_(std::move(bin)), dir_(std::move(dir)), names_(std::move(names)) {
  for (const char* folder : {"/r", "/s"}) {
    ::mkdir((dir_ + folder).c_str(), 0755);
  }
  for (const std::string& name : names_) {
    ::mkdir((dir_ + "/s/" + name).c_str(), 0700);
  }
  std::ofstream(dir_ + "/c.toml") << "";
}

Suite::~Suite() {
  for (const std::string& name : names_) Kill(name);
}

void Suite::StartAll() {
  for (const std::string& name : names_) {
    if (running_.count(name) > 0) continue;
    const std::string program = bin_ + "/bulkhead-" + name;
    const std::string root = dir_ + "/r", state = dir_ + "/s",
                      config = dir_ + "/c.toml", log = dir_ + "/log";
    const char* const argv[] = {program.c_str(), "--root",      root.c_str(),
                                "--state",       state.c_str(), "--config",
                                config.c_str(),  "--log-level", "warn",
                                nullptr};
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(127);
      const int fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      ::dup2(fd, 1);
      ::dup2(fd, 2);
      ::execv(program.c_str(), const_cast<char* const*>(argv));
      ::_exit(127);
    }
    running_[name] = pid;
  }
}

void Suite::Kill(const std::string& name) {
  const auto found = running_.find(name);
  if (found == running_.end()) return;
  ::kill(found->second, SIGKILL);
  ::waitpid(found->second, nullptr, 0);
  running_.erase(found);
}

std::string Suite::Ended() {
  for (const auto& [name, pid] : running_) {
    int status = 0;
    if (::waitpid(pid, &status, WNOHANG) != pid) continue;
    const std::string text =
        name + " (wait status " + std::to_string(status) + ")";
    running_.erase(name);
    return text;
  }
  return "";
}

}  // namespace bulkhead::crash
