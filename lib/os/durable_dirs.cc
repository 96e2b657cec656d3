#include "lib/os/durable_dirs.h"

#include <sys/stat.h>

#include <vector>

#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::os {

absl::Status MakeDurableDirs(const std::string& path, mode_t mode) {
  std::vector<std::string> parents;  // Of those that are not there yet.
  std::string missing = path;
  struct stat info;
  while (!missing.empty() && ::stat(missing.c_str(), &info) != 0) {
    const size_t slash = missing.rfind('/');
    missing = slash == std::string::npos ? "" : missing.substr(0, slash);
    parents.push_back(!missing.empty()             ? missing
                      : slash == std::string::npos ? "."
                                                   : "/");
  }
  RETURN_IF_ERROR(MakeDirs(path, mode));
  for (const std::string& parent : parents) RETURN_IF_ERROR(SyncDir(parent));
  return absl::OkStatus();
}

}  // namespace bulkhead::os
