#include "cli/volumes.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/names.h"
#include "cli/rootfs_view.h"
#include "cli/spec/options.h"
#include "cli/tree_copy.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {
namespace {

using ::nlohmann::json;

constexpr size_t kMetaBytesMax = 1 << 20;

std::string TextOf(const json& object, const char* key) {
  return object.contains(key) && object[key].is_string()
             ? object[key].get<std::string>()
             : "";
}

}  // namespace

Volumes::Volumes(Client& client) {
  const std::string logs = ContainerDir(client, "x");  // <root>/logs/<ns>/x
  const std::string root = logs.substr(0, logs.rfind("/logs/"));
  folder_ = absl::StrCat(root, "/volumes/", client.ns());
}

absl::StatusOr<std::vector<Volume>> Volumes::List() const {
  std::vector<Volume> volumes;
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(folder_.c_str()),
                                          ::closedir);
  if (dir == nullptr) {
    if (errno == ENOENT) return volumes;
    return os::ErrnoStatus(errno, "listing " + folder_);
  }
  while (const dirent* entry = ::readdir(dir.get())) {
    if (entry->d_name[0] == '.') continue;
    absl::StatusOr<Volume> volume = Find(entry->d_name);
    if (volume.ok()) volumes.push_back(*std::move(volume));
  }
  std::sort(volumes.begin(), volumes.end(),
            [](const Volume& a, const Volume& b) { return a.name < b.name; });
  return volumes;
}

absl::StatusOr<Volume> Volumes::Find(const std::string& name) const {
  RETURN_IF_ERROR(ValidateVolumeName(name));
  Volume volume;
  volume.name = name;
  volume.path = absl::StrCat(folder_, "/", name, "/_data");
  struct stat info {};
  if (::lstat(volume.path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return absl::NotFoundError(absl::StrCat(
        "No such volume: ", name, " — `bulkhead volume ls` lists them"));
  }
  const absl::StatusOr<std::string> text = os::ReadFile(
      absl::StrCat(folder_, "/", name, "/meta.json"), kMetaBytesMax);
  const json meta = json::parse(text.value_or(""), nullptr, false);
  if (!meta.is_object()) return volume;
  volume.created_at = TextOf(meta, "created_at");
  volume.anonymous = meta.contains("anonymous") && meta["anonymous"] == true;
  if (meta.contains("labels") && meta["labels"].is_object()) {
    for (const auto& [key, value] : meta["labels"].items()) {
      if (value.is_string()) volume.labels[key] = value.get<std::string>();
    }
  }
  return volume;
}

absl::StatusOr<Volume> Volumes::Create(
    const std::string& wanted, const std::map<std::string, std::string>& labels,
    bool* made) const {
  *made = false;
  const std::string name = wanted.empty() ? NewId() : wanted;
  absl::StatusOr<Volume> there = Find(name);
  if (there.ok() || !absl::IsNotFound(there.status())) return there;
  const json meta = {
      {"created_at",
       absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone())},
      {"anonymous", wanted.empty()},
      {"labels", labels}};
  RETURN_IF_ERROR(os::MakeDirs(folder_, 0711));
  const std::string part = absl::StrCat(folder_, "/.", NewId().substr(0, 16));
  RETURN_IF_ERROR(os::MakeDirs(part + "/_data", 0755));
  absl::Status status =
      os::WriteFileAtomic(part + "/meta.json", meta.dump(), 0600);
  if (status.ok()) {
    if (::rename(part.c_str(), absl::StrCat(folder_, "/", name).c_str()) == 0) {
      *made = true;
    } else if (errno != EEXIST && errno != ENOTEMPTY) {
      status = os::ErrnoStatus(errno, "making volume " + name);
    }
  }
  if (!*made) (void)os::RemoveAll(part);  // Somebody was quicker, or an error.
  RETURN_IF_ERROR(status);
  return Find(name);
}

absl::Status Volumes::Remove(const std::string& name) const {
  RETURN_IF_ERROR(Find(name).status());
  // Gone at once, whatever happens while its files are removed.
  const std::string gone = absl::StrCat(folder_, "/.", NewId().substr(0, 16));
  if (::rename(absl::StrCat(folder_, "/", name).c_str(), gone.c_str()) != 0) {
    return os::ErrnoStatus(errno, "removing volume " + name);
  }
  return os::RemoveAll(gone);
}

absl::Status FillVolume(const Volume& volume,
                        const std::vector<os::MountSpec>& image,
                        const std::string& target) {
  return WithMounted(image, false, [&](int root) -> absl::Status {
    const absl::StatusOr<os::UniqueFd> from =
        os::OpenInRoot(root, target, O_PATH | O_DIRECTORY);
    if (!from.ok()) return absl::OkStatus();  // The image has no such folder.
    ASSIGN_OR_RETURN(const os::UniqueFd to,
                     os::Open(volume.path, O_PATH | O_DIRECTORY | O_NOFOLLOW));
    return Annotate(CopyContents(from->get(), to.get(), {.owners = true}),
                    "filling the volume for " + target);
  });
}

std::vector<std::string> VolumesOf(const ContainerRecord& record) {
  return absl::StrSplit(LabelOf(record, kLabelVolumes), ',', absl::SkipEmpty());
}

absl::Status RemoveAnonymousVolumes(Client& client,
                                    const ContainerRecord& record) {
  const std::vector<std::string> names = VolumesOf(record);
  if (names.empty()) return absl::OkStatus();
  const Volumes volumes(client);
  for (const std::string& name : names) {
    const absl::StatusOr<Volume> volume = volumes.Find(name);
    if (volume.ok() && volume->anonymous) {
      RETURN_IF_ERROR(volumes.Remove(name));
    }
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::cli
