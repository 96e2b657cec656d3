#include "services/metadata/offline.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "services/metadata/db.h"

namespace bulkhead::metadata {
namespace {

namespace fs = std::filesystem;

// The lock that RocksDB takes.
absl::Status CheckNotRunning(const std::string& db) {
  const int fd = ::open((db + "/LOCK").c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return absl::OkStatus();
  struct flock lock {};
  lock.l_type = F_WRLCK;
  const bool taken = ::fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  ::close(fd);
  if (!taken) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("a metadata service (pid ", lock.l_pid, ") has ", db,
                   " open: stop the suite first"));
}

absl::Status Trouble(const std::string& what, const std::error_code& error) {
  return absl::InternalError(absl::StrCat(what, ": ", error.message()));
}

absl::Status SyncPath(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = fd >= 0 && ::fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (synced) return absl::OkStatus();
  return Trouble("fsync " + path,
                 std::error_code(error, std::generic_category()));
}

// Gives `path` and what is below it to the owner of ROOT/metadata.
absl::Status Own(const std::string& path, const struct stat& owner) {
  std::vector<std::string> paths = {path};
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(path, error)) {
    paths.push_back(entry.path());
  }
  if (error) return Trouble(path, error);
  for (const std::string& each : paths) {
    if (::lchown(each.c_str(), owner.st_uid, owner.st_gid) != 0 &&
        ::geteuid() == 0) {
      return Trouble("chown " + each,
                     std::error_code(errno, std::generic_category()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RepairDatabase(const std::string& root) {
  const std::string folder = root + "/metadata";
  const std::string db = folder + "/db";
  struct stat owner {};
  if (::stat(folder.c_str(), &owner) != 0 ||
      ::access(db.c_str(), R_OK | W_OK) != 0) {
    return absl::NotFoundError(absl::StrCat("no database at ", db));
  }
  RETURN_IF_ERROR(CheckNotRunning(db));
  RETURN_IF_ERROR(Db::Repair(db));
  RETURN_IF_ERROR(Db::Open(db).status());
  return Own(db, owner);
}

absl::Status RestoreDatabase(const std::string& directory,
                             const std::string& root) {
  std::error_code error;
  if (!fs::exists(directory + "/CURRENT", error)) {
    return absl::NotFoundError(
        absl::StrCat(directory, " is no backup: it has no file CURRENT"));
  }
  const std::string folder = root + "/metadata";
  const std::string db = folder + "/db";
  const std::string incoming = folder + "/db.restoring";
  RETURN_IF_ERROR(CheckNotRunning(db));
  fs::create_directories(folder, error);
  struct stat owner {};
  if (::stat(folder.c_str(), &owner) != 0) {
    return Trouble(folder, std::error_code(errno, std::generic_category()));
  }
  fs::remove_all(incoming, error);  // A restore that was cut short.
  fs::copy(directory, incoming, fs::copy_options::recursive, error);
  if (error) return Trouble("copy to " + incoming, error);
  RETURN_IF_ERROR(Db::Open(incoming).status());
  for (const auto& entry : fs::directory_iterator(incoming, error)) {
    RETURN_IF_ERROR(SyncPath(entry.path()));
  }
  RETURN_IF_ERROR(Own(incoming, owner));
  RETURN_IF_ERROR(SyncPath(incoming));
  if (fs::exists(db, error)) {
    const std::string old = absl::StrCat(folder, "/db.before-restore-",
                                         absl::ToUnixSeconds(absl::Now()));
    fs::rename(db, old, error);
    if (error) return Trouble("rename " + db, error);
  }
  fs::rename(incoming, db, error);
  if (error) return Trouble("rename " + incoming, error);
  return SyncPath(folder);
}

bool IsOfflineCommand(const std::string& word) {
  return word == "repair" || word == "restore";
}

int OfflineMain(int argc, char** argv) {
  const std::string command = argv[1];
  std::string root = "/var/lib/bulkhead";
  std::vector<std::string> rest;
  for (int i = 2; i < argc; ++i) {
    if (std::strcmp(argv[i], "--root") == 0 && i + 1 < argc) {
      root = argv[++i];
    } else {
      rest.push_back(argv[i]);
    }
  }
  const bool restore = command == "restore";
  if (rest.size() != (restore ? 1 : 0)) {
    std::fprintf(stderr,
                 "usage: metadata repair --root ROOT\n"
                 "       metadata restore DIR --root ROOT\n");
    return 2;
  }
  const absl::Status status =
      restore ? RestoreDatabase(rest[0], root) : RepairDatabase(root);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", MessageOf(status).c_str());
  return 1;
}

}  // namespace bulkhead::metadata
