#include "services/runtime/bundle.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "lib/os/mount.h"

namespace bulkhead::runtime {
namespace {

using Json = nlohmann::json;
constexpr size_t kFileBytesMax = 1 << 20;

std::vector<std::string> Folders(const std::string& path) {
  std::vector<std::string> out;
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  if (dir == nullptr) return out;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") out.push_back(name);
  }
  return out;
}

// The host's group for the container's root, when the spec maps groups.
std::optional<gid_t> MappedRootGid(const std::string& spec) {
  const Json parsed = Json::parse(spec, nullptr, false);
  if (!parsed.is_object() || !parsed.contains("linux")) return std::nullopt;
  const Json& linux_part = parsed["linux"];
  if (!linux_part.is_object() || !linux_part.contains("gidMappings") ||
      !linux_part["gidMappings"].is_array()) {
    return std::nullopt;
  }
  for (const Json& map : linux_part["gidMappings"]) {
    if (map.is_object() && map.contains("containerID") &&
        map.contains("hostID") && map["containerID"].is_number_unsigned() &&
        map["hostID"].is_number_unsigned() && map["containerID"] == 0) {
      return map["hostID"].get<gid_t>();
    }
  }
  return std::nullopt;
}

absl::Status MakeDir(const std::string& path, mode_t mode) {
  if (::mkdir(path.c_str(), mode) != 0 || ::chmod(path.c_str(), mode) != 0) {
    return os::ErrnoStatus(errno, absl::StrCat("mkdir '", path, "'"));
  }
  return absl::OkStatus();
}

absl::Status WritePlain(const std::string& path, const std::string& data,
                        mode_t mode) {
  ASSIGN_OR_RETURN(
      os::UniqueFd fd,
      os::Open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, mode));
  return os::WriteFull(fd.get(), data.data(), data.size());
}

}  // namespace

absl::Status Bundles::Init() const {
  RETURN_IF_ERROR(os::MakeDirs(state_, 0711));
  return os::MakeDirs(root_, 0711);
}

std::string Bundles::Path(const std::string& ns, const std::string& id) const {
  return absl::StrCat(state_, "/", ns, "/", id);
}

std::string Bundles::WorkPath(const std::string& ns,
                              const std::string& id) const {
  return absl::StrCat(root_, "/", ns, "/", id);
}

absl::Status Bundles::Create(const std::string& ns, const std::string& id,
                             const std::string& spec) const {
  const std::string path = Path(ns, id);
  const std::string work = WorkPath(ns, id);
  RETURN_IF_ERROR(Remove(ns, id));
  RETURN_IF_ERROR(os::MakeDirs(absl::StrCat(state_, "/", ns), 0711));
  RETURN_IF_ERROR(os::MakeDirs(absl::StrCat(root_, "/", ns), 0711));
  RETURN_IF_ERROR(MakeDir(path, 0700));
  if (std::optional<gid_t> gid = MappedRootGid(spec)) {
    if (::chown(path.c_str(), -1, *gid) != 0 ||
        ::chmod(path.c_str(), 0710) != 0) {
      return os::ErrnoStatus(errno, absl::StrCat("chown '", path, "'"));
    }
  }
  RETURN_IF_ERROR(MakeDir(path + "/rootfs", 0711));
  RETURN_IF_ERROR(MakeDir(work, 0711));
  if (::symlink(work.c_str(), (path + "/work").c_str()) != 0) {
    return os::ErrnoStatus(errno, "symlink work");
  }
  if (::mkfifo(absl::StrCat(path, "/", kLogFifo).c_str(), 0700) != 0) {
    return os::ErrnoStatus(errno, "mkfifo log");
  }
  return WritePlain(path + "/config.json", spec, 0644);
}

absl::Status Bundles::Hide(const std::string& ns, const std::string& id,
                           std::vector<std::string>* left) const {
  static std::atomic<uint64_t> count = 0;
  // Never one of before: those of an earlier life went at its end or at our
  // start, and no process has our number meanwhile.
  const std::string hidden =
      absl::StrCat(".", id, ".", ::getpid(), ".", ++count);
  const std::string path = Path(ns, id);
  if (::access(path.c_str(), F_OK) == 0) {
    RETURN_IF_ERROR(os::UnmountTree(path + "/rootfs"));
    // A root file system with something left in it is not ours to empty.
    if (::rmdir((path + "/rootfs").c_str()) != 0 && errno != ENOENT) {
      return os::ErrnoStatus(errno, absl::StrCat("rmdir '", path, "/rootfs'"));
    }
    const std::string to = absl::StrCat(state_, "/", ns, "/", hidden);
    if (::rename(path.c_str(), to.c_str()) != 0) {
      return os::ErrnoStatus(errno, absl::StrCat("rename '", path, "'"));
    }
    left->push_back(to);
  }
  const std::string work = WorkPath(ns, id);
  const std::string to = absl::StrCat(root_, "/", ns, "/", hidden);
  if (::rename(work.c_str(), to.c_str()) == 0) {
    left->push_back(to);
  } else if (errno != ENOENT) {
    return os::ErrnoStatus(errno, absl::StrCat("rename '", work, "'"));
  }
  return absl::OkStatus();
}

absl::Status Bundles::Remove(const std::string& ns,
                             const std::string& id) const {
  std::vector<std::string> left;
  absl::Status status = Hide(ns, id, &left);
  for (const std::string& path : left) status.Update(os::RemoveAll(path));
  return status;
}

std::vector<std::pair<std::string, std::string>> Bundles::List() const {
  std::vector<std::pair<std::string, std::string>> out;
  for (const std::string& ns : Folders(state_)) {
    const std::string folder = absl::StrCat(state_, "/", ns);
    for (const std::string& id : Folders(folder)) {
      if (id[0] != '.') {
        out.emplace_back(ns, id);
        continue;
      }
      const absl::Status removed = os::RemoveAll(absl::StrCat(folder, "/", id));
      if (!removed.ok()) {
        log::Warn("half-removed bundle stays",
                  {{"path", absl::StrCat(folder, "/", id)},
                   {"error", MessageOf(removed)}});
      }
    }
  }
  return out;
}

void Bundles::RemoveOrphanedWork() const {
  for (const std::string& ns : Folders(root_)) {
    for (const std::string& id : Folders(absl::StrCat(root_, "/", ns))) {
      if (::access(Path(ns, id).c_str(), F_OK) == 0) continue;
      (void)os::RemoveAll(WorkPath(ns, id));  // The next start tries again.
    }
  }
}

absl::StatusOr<std::string> Bundles::Read(const std::string& ns,
                                          const std::string& id,
                                          const std::string& file) const {
  return os::ReadFile(absl::StrCat(Path(ns, id), "/", file), kFileBytesMax);
}

absl::Status Bundles::Write(const std::string& ns, const std::string& id,
                            const std::string& file,
                            const std::string& data) const {
  const std::string path = absl::StrCat(Path(ns, id), "/", file);
  const std::string temporary = absl::StrCat(path, ".tmp");
  RETURN_IF_ERROR(WritePlain(temporary, data, 0600));
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    return os::ErrnoStatus(errno, absl::StrCat("rename '", path, "'"));
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::runtime
