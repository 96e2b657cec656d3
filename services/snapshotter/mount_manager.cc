#include "services/snapshotter/mount_manager.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/child.h"
#include "lib/os/fd.h"
#include "lib/os/loop.h"

namespace bulkhead::snapshotter {
namespace {

using nlohmann::json;

constexpr char kOwnOption[] = "X-containerd.";
constexpr char kMkfsOption[] = "X-containerd.mkfs.";
constexpr char kMkdirOption[] = "X-containerd.mkdir.path=";
constexpr size_t kRecordBytesMax = 16 << 20;
constexpr int64_t kMkfsBytesMin = 1 << 20;

// A mount with its type's prefixes taken off.
struct Plan {
  std::vector<std::string> steps;  // "format", "mkfs", "mkdir".
  os::MountSpec mount;
  bool loop = false;  // To be mounted from a loop device.
};

Plan PlanOf(const os::MountSpec& mount) {
  Plan plan;
  plan.mount = mount;
  for (bool found = true; found;) {
    found = false;
    for (const char* step : {"format", "mkfs", "mkdir"}) {
      const std::string prefix = absl::StrCat(step, "/");
      if (!absl::StartsWith(plan.mount.type, prefix)) continue;
      plan.steps.push_back(step);
      plan.mount.type.erase(0, prefix.size());
      found = true;
    }
  }
  plan.loop = std::erase(plan.mount.options, "loop") > 0;
  return plan;
}

bool IsFile(const std::string& path) {
  struct stat st;
  return ::stat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode);
}

bool IsHandled(const Plan& plan) {
  return plan.loop || plan.mount.type == "loop" ||
         (plan.mount.type == "erofs" &&
                  plan.mount.source.find("{{") == std::string::npos
              ? IsFile(plan.mount.source)
              : plan.mount.type == "erofs");
}

absl::Status BadTemplate(const std::string& text) {
  return absl::InvalidArgumentError(
      absl::StrCat("bad mount template \"", text.substr(0, 256), "\""));
}

// Calls `each` with the words of every {{ ... }} in `text` and puts what it
// returns in its place.
absl::StatusOr<std::string> Expand(
    const std::string& text,
    const std::function<absl::StatusOr<std::string>(
        const std::vector<std::string>& words)>& each) {
  std::string out;
  for (size_t at = 0;;) {
    const size_t open = text.find("{{", at);
    if (open == std::string::npos) return out + text.substr(at);
    const size_t close = text.find("}}", open);
    if (close == std::string::npos) return BadTemplate(text);
    out += text.substr(at, open - at);
    const std::vector<std::string> words = absl::StrSplit(
        text.substr(open + 2, close - open - 2), ' ', absl::SkipEmpty());
    absl::StatusOr<std::string> value = each(words);
    if (!value.ok()) return Annotate(value.status(), text.substr(0, 256));
    out += *value;
    at = close + 2;
  }
}

// The indices that {{ mount i }} and {{ overlay a b }} in `plan` mean.
std::set<size_t> Referred(const Plan& plan) {
  std::set<size_t> out;
  std::vector<std::string> texts = plan.mount.options;
  texts.push_back(plan.mount.source);
  texts.push_back(plan.mount.target);
  for (const std::string& text : texts) {
    (void)Expand(text,
                 [&](const std::vector<std::string>& words)
                     -> absl::StatusOr<std::string> {
                   size_t a = 0;
                   size_t b = 0;
                   if (words.size() == 2 && words[0] == "mount" &&
                       absl::SimpleAtoi(words[1], &a)) {
                     out.insert(a);
                   } else if (words.size() == 3 && words[0] == "overlay" &&
                              absl::SimpleAtoi(words[1], &a) &&
                              absl::SimpleAtoi(words[2], &b)) {
                     out.insert(std::max(a, b));
                   }
                   return std::string();
                 });  // What is wrong is said when it is worked.
  }
  return out;
}

json ToJson(const os::MountSpec& mount) {
  return {{"type", mount.type},
          {"source", mount.source},
          {"target", mount.target},
          {"options", mount.options}};
}

os::MountSpec MountFrom(const json& value) {
  return {value.value("type", ""), value.value("source", ""),
          value.value("target", ""),
          value.value("options", std::vector<std::string>{})};
}

std::string Encode(const Activation& activation) {
  json out = {{"name", activation.name},
              {"labels", activation.labels},
              {"lease", activation.lease},
              {"active", json::array()},
              {"system", json::array()}};
  for (const ActiveMount& one : activation.active) {
    json item = ToJson(one.mount);
    item["mounted_at"] = one.mounted_at_ns;
    item["mount_point"] = one.mount_point;
    item["data"] = one.data;
    out["active"].push_back(item);
  }
  for (const os::MountSpec& mount : activation.system) {
    out["system"].push_back(ToJson(mount));
  }
  return out.dump(1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<Activation> Decode(const std::string& text) {
  const absl::Status corrupt = absl::DataLossError("corrupt mount record");
  const json value = json::parse(text, nullptr, false);
  if (!value.is_object() || !value.contains("name")) return corrupt;
  Activation out;
  try {  // The library's accessors throw on what is not of the type asked for.
    out.name = value.at("name").get<std::string>();
    out.labels = value.at("labels").get<Labels>();
    out.lease = value.value("lease", "");  // Not in older records.
    for (const json& item : value.at("active")) {
      ActiveMount one;
      one.mount = MountFrom(item);
      one.mounted_at_ns = item.at("mounted_at").get<int64_t>();
      one.mount_point = item.at("mount_point").get<std::string>();
      one.data = item.at("data").get<std::map<std::string, std::string>>();
      out.active.push_back(std::move(one));
    }
    for (const json& item : value.at("system")) {
      out.system.push_back(MountFrom(item));
    }
  } catch (const json::exception&) {
    return corrupt;
  }
  return out;
}

absl::Status RunProgram(const std::string& program,
                        const std::vector<std::string>& args) {
  ASSIGN_OR_RETURN(const os::UniqueFd null, os::Open("/dev/null", O_RDWR));
  absl::StatusOr<os::Child> child =
      os::Child::Start({program,
                        args,
                        {absl::StrCat("PATH=", os::kChildPath)},
                        {{null.get(), 0}, {null.get(), 1}, {null.get(), 2}}});
  RETURN_IF_ERROR(Annotate(child.status(), program));
  const int status = child->Wait();
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(program, " failed with status ", status));
}

// X-containerd.mkfs.size=, .fs= and .uuid=. A file that is there stays.
absl::Status MakeFileSystem(const os::MountSpec& mount) {
  int64_t size = 0;
  std::string fs = "ext4";
  std::string uuid;
  for (const std::string& option : mount.options) {
    if (!absl::StartsWith(option, kMkfsOption)) continue;
    const std::vector<std::string> pair = absl::StrSplit(
        option.substr(sizeof(kMkfsOption) - 1), absl::MaxSplits('=', 1));
    const std::string value = pair.size() == 2 ? pair[1] : "";
    if (pair[0] == "fs" &&
        (value == "ext4" || value == "xfs" || value == "btrfs")) {
      fs = value;
    } else if (pair[0] == "uuid" && value.size() == 36) {
      uuid = value;
    } else if (pair[0] != "size" || !absl::SimpleAtoi(value, &size) ||
               size < kMkfsBytesMin) {
      return absl::InvalidArgumentError(
          absl::StrCat("bad mount option \"", option.substr(0, 256), "\""));
    }
  }
  if (IsFile(mount.source)) return absl::OkStatus();
  if (size == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("mkfs/ without ", kMkfsOption, "size="));
  }
  ASSIGN_OR_RETURN(os::UniqueFd file,
                   os::Open(mount.source, O_RDWR | O_CREAT | O_EXCL, 0600));
  absl::Status status;
  if (::ftruncate(file.get(), size) != 0) {
    status = os::ErrnoStatus(errno, mount.source);
  }
  std::vector<std::string> args = {"-q"};
  if (!uuid.empty()) {
    args.push_back(fs == "xfs" ? "-m" : "-U");
    args.push_back(fs == "xfs" ? absl::StrCat("uuid=", uuid) : uuid);
  }
  args.push_back(mount.source);
  if (status.ok()) status = RunProgram(absl::StrCat("mkfs.", fs), args);
  if (!status.ok()) ::unlink(mount.source.c_str());
  return status;
}

class Manager : public MountManager {
 public:
  Manager(std::string dir, std::vector<std::string> roots)
      : dir_(std::move(dir)), roots_(std::move(roots)) {}

  absl::Status Load() {
    RETURN_IF_ERROR(os::MakeDirs(dir_, 0711));
    DIR* stream = ::opendir(dir_.c_str());
    if (stream == nullptr) return os::ErrnoStatus(errno, dir_);
    std::vector<std::string> names;
    while (const dirent* entry = ::readdir(stream)) {
      if (entry->d_name[0] != '.') names.push_back(entry->d_name);
    }
    ::closedir(stream);
    for (const std::string& name : names) {
      const std::string folder = absl::StrCat(dir_, "/", name);
      uint64_t id = 0;
      if (absl::SimpleAtoi(name, &id)) next_id_ = std::max(next_id_, id + 1);
      const absl::StatusOr<std::string> text =
          os::ReadFile(folder + "/record.json", kRecordBytesMax);
      absl::StatusOr<Activation> activation = absl::NotFoundError("none");
      if (text.ok()) activation = Decode(*text);
      if (id != 0 && activation.ok() && StillThere(*activation)) {
        ids_[activation->name] = id;
        activations_[activation->name] = *std::move(activation);
      } else {
        log::Info("undoing mounts without a record", {{"path", folder}});
        RETURN_IF_ERROR(Undo(folder));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Activation> Activate(const std::string& name,
                                      const std::vector<os::MountSpec>& mounts,
                                      const Labels& labels, bool temporary,
                                      const std::string& lease) override {
    if (name.empty() || name.size() > kKeyBytesMax) {
      return absl::InvalidArgumentError("bad name of an activation");
    }
    if (mounts.size() > kActivationMountsMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat("more than ", kActivationMountsMax, " mounts"));
    }
    std::vector<Plan> plans;
    bool needed = false;
    size_t mine = 0;  // Mounts below this index are made here.
    for (size_t i = 0; i < mounts.size(); ++i) {
      plans.push_back(PlanOf(mounts[i]));
      needed = needed || !plans[i].steps.empty();
      if (IsHandled(plans[i])) mine = i + 1;
      for (const size_t other : Referred(plans[i])) {
        if (other < i) mine = std::max(mine, other + 1);
      }
    }
    if (!needed && mine == 0) {
      return absl::UnimplementedError("no mount needs activation");
    }
    if (temporary) mine = mounts.size();
    uint64_t id = 0;
    {
      std::lock_guard lock(mutex_);
      if (ids_.contains(name)) {
        return absl::AlreadyExistsError(absl::StrCat("mount ", name));
      }
      if (ids_.size() >= kActivationsMax) {
        return absl::ResourceExhaustedError(
            absl::StrCat("more than ", kActivationsMax, " activations"));
      }
      ids_[name] = id = next_id_++;  // Taken; shown once it is complete.
    }
    const std::string folder = absl::StrCat(dir_, "/", id);
    Activation activation;
    activation.name = name;
    activation.labels = labels;
    activation.lease = lease;
    const absl::Status status =
        Work(folder, plans, mine, temporary, &activation);
    if (!status.ok()) {
      const absl::Status undone = Undo(folder);
      if (!undone.ok()) {
        log::Error("failed activation not undone",
                   {{"path", folder}, {"error", MessageOf(undone)}});
      }
    }
    std::lock_guard lock(mutex_);
    if (!status.ok()) {
      ids_.erase(name);
      return status;
    }
    activations_[name] = activation;
    return activation;
  }

  absl::Status Deactivate(const std::string& name) override {
    uint64_t id = 0;
    Activation activation;
    {
      std::lock_guard lock(mutex_);
      const auto it = activations_.find(name);
      if (it == activations_.end()) return Unknown(name);
      activation = std::move(it->second);
      activations_.erase(it);
      id = ids_[name];
    }
    const absl::Status status = Undo(absl::StrCat(dir_, "/", id));
    std::lock_guard lock(mutex_);
    if (status.ok()) {
      ids_.erase(name);
    } else {
      activations_[name] = std::move(activation);
    }
    return status;
  }

  absl::StatusOr<Activation> Info(const std::string& name) override {
    std::lock_guard lock(mutex_);
    const auto it = activations_.find(name);
    if (it == activations_.end()) return Unknown(name);
    return it->second;
  }

  std::vector<Activation> List() override {
    std::lock_guard lock(mutex_);
    std::vector<Activation> out;
    for (const auto& [name, activation] : activations_) {
      out.push_back(activation);
    }
    return out;
  }

 private:
  static absl::Status Unknown(const std::string& name) {
    return absl::NotFoundError(absl::StrCat("mount ", name));
  }

  // Whether its mount points are mounted, as they are not after a reboot.
  static bool StillThere(const Activation& activation) {
    for (const ActiveMount& one : activation.active) {
      struct stat inner;
      struct stat outer;
      const std::string& point = one.mount_point;
      if (::stat(point.c_str(), &inner) != 0) return false;
      if (one.mount.type == "loop" || one.mount.type == "bind") continue;
      if (::stat(absl::StrCat(point, "/..").c_str(), &outer) != 0 ||
          inner.st_dev == outer.st_dev) {
        return false;
      }
    }
    return true;
  }

  // Unmounts and deletes all of a folder.
  static absl::Status Undo(const std::string& folder) {
    // The last is on top of others.
    RETURN_IF_ERROR(os::UnmountTree(folder));
    DIR* stream = ::opendir(folder.c_str());
    if (stream == nullptr) return absl::OkStatus();
    std::vector<std::string> devices;
    while (const dirent* entry = ::readdir(stream)) {
      char to[64];
      const ssize_t n =
          ::readlinkat(::dirfd(stream), entry->d_name, to, sizeof(to));
      const std::string device(to, n > 0 ? n : 0);
      if (absl::StartsWith(device, "/dev/loop")) devices.push_back(device);
    }
    ::closedir(stream);
    for (const std::string& device : devices) {
      RETURN_IF_ERROR(os::DetachLoop(device));
    }
    return os::RemoveAll(folder);
  }

  absl::StatusOr<std::string> Value(const std::vector<std::string>& words,
                                    const std::vector<Plan>& plans, size_t self,
                                    const Activation& so_far) {
    const auto point = [&](size_t i) { return so_far.active[i].mount_point; };
    size_t a = 0;
    size_t b = 0;
    if (words.size() == 2 && absl::SimpleAtoi(words[1], &a) && a < self) {
      if (words[0] == "source") return plans[a].mount.source;
      if (words[0] == "target") return plans[a].mount.target;
      if (words[0] == "mount" && a < so_far.active.size()) return point(a);
    }
    if (words.size() == 3 && words[0] == "overlay" &&
        absl::SimpleAtoi(words[1], &a) && absl::SimpleAtoi(words[2], &b) &&
        std::max(a, b) < so_far.active.size()) {
      std::string out = point(a);
      while (a != b) {
        a += a < b ? 1 : -1;
        absl::StrAppend(&out, ":", point(a));
      }
      return out;
    }
    return absl::InvalidArgumentError("bad mount template");
  }

  absl::Status MakeDirectories(const os::MountSpec& mount,
                               const Activation& so_far) {
    for (const std::string& option : mount.options) {
      if (!absl::StartsWith(option, kMkdirOption)) continue;
      const std::vector<std::string> fields = absl::StrSplit(
          option.substr(sizeof(kMkdirOption) - 1), absl::ByChar(':'));
      const absl::Status bad = absl::InvalidArgumentError(
          absl::StrCat("bad mount option \"", option.substr(0, 256), "\""));
      uint32_t mode = 0755;
      uint32_t uid = 0;
      uint32_t gid = 0;
      if ((fields.size() != 1 && fields.size() != 2 && fields.size() != 4) ||
          (fields.size() >= 2 &&
           (fields[1].empty() ||
            fields[1].find_first_not_of("01234567") != std::string::npos ||
            fields[1].size() > 5)) ||
          (fields.size() == 4 && (!absl::SimpleAtoi(fields[2], &uid) ||
                                  !absl::SimpleAtoi(fields[3], &gid)))) {
        return bad;
      }
      if (fields.size() >= 2) mode = std::stoul(fields[1], nullptr, 8);
      std::vector<std::string> tops = roots_;
      for (const ActiveMount& one : so_far.active) {
        tops.push_back(one.mount_point);
      }
      const auto top =
          std::find_if(tops.begin(), tops.end(), [&](const std::string& path) {
            return absl::StartsWith(fields[0], path + "/");
          });
      if (top == tops.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat(fields[0], " is below no mount of this activation"));
      }
      ASSIGN_OR_RETURN(os::UniqueFd at, os::Open(*top, O_RDONLY | O_DIRECTORY));
      const std::string rest = fields[0].substr(top->size() + 1);
      for (absl::string_view part :
           absl::StrSplit(rest, '/', absl::SkipEmpty())) {
        const std::string name(part);
        if (name == "." || name == "..") return bad;
        const bool made = ::mkdirat(at.get(), name.c_str(), 0755) == 0;
        if (!made && errno != EEXIST) return os::ErrnoStatus(errno, fields[0]);
        ASSIGN_OR_RETURN(
            os::UniqueFd next,
            os::OpenAt(at.get(), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
        at = std::move(next);
        if (made && (::fchown(at.get(), uid, gid) != 0 ||
                     ::fchmod(at.get(), mode) != 0)) {
          return os::ErrnoStatus(errno, fields[0]);
        }
      }
    }
    return absl::OkStatus();
  }

  // Mounts one on `point`.
  absl::Status MountOne(const Plan& plan, const std::string& point,
                        ActiveMount* active) {
    const bool read_only = std::count(plan.mount.options.begin(),
                                      plan.mount.options.end(), "ro") > 0;
    if (plan.mount.type == "loop") {
      ASSIGN_OR_RETURN(const os::LoopDevice device,
                       os::AttachLoop(plan.mount.source, read_only, false));
      active->data["loop"] = device.path;
      if (::symlink(device.path.c_str(), point.c_str()) != 0) {
        const absl::Status status = os::ErrnoStatus(errno, point);
        (void)os::DetachLoop(device.path);  // The first error counts.
        return status;
      }
      return absl::OkStatus();
    }
    if (::mkdir(point.c_str(), 0755) != 0) return os::ErrnoStatus(errno, point);
    os::MountSpec mount = plan.mount;
    mount.target.clear();
    // The kernel takes an EROFS image as it is.
    if (!plan.loop || mount.type == "erofs") return os::Mount(mount, point);
    ASSIGN_OR_RETURN(const os::LoopDevice device,
                     os::AttachLoop(plan.mount.source, read_only, true));
    active->data["loop"] = device.path;
    mount.source = device.path;
    return os::Mount(mount, point);
  }

  absl::Status Work(const std::string& folder, std::vector<Plan>& plans,
                    size_t mine, bool temporary, Activation* out) {
    if (::mkdir(folder.c_str(), 0711) != 0) {
      return os::ErrnoStatus(errno, folder);
    }
    for (size_t i = 0; i < plans.size(); ++i) {
      Plan& plan = plans[i];
      for (const std::string& step : plan.steps) {
        if (step == "mkfs") RETURN_IF_ERROR(MakeFileSystem(plan.mount));
        if (step == "mkdir") {
          RETURN_IF_ERROR(MakeDirectories(plan.mount, *out));
        }
        if (step != "format") continue;
        const auto value = [&](const std::vector<std::string>& words) {
          return Value(words, plans, i, *out);
        };
        ASSIGN_OR_RETURN(plan.mount.source, Expand(plan.mount.source, value));
        ASSIGN_OR_RETURN(plan.mount.target, Expand(plan.mount.target, value));
        for (std::string& option : plan.mount.options) {
          ASSIGN_OR_RETURN(option, Expand(option, value));
        }
      }
      std::erase_if(plan.mount.options, [](const std::string& option) {
        return absl::StartsWith(option, kOwnOption);
      });
      if (i >= mine || (temporary && i + 1 == plans.size())) {
        out->system.push_back(plan.mount);
        if (plan.loop && !temporary) {
          out->system.back().options.push_back("loop");
        }
        continue;
      }
      ActiveMount active;
      active.mount = plan.mount;
      active.mount_point = absl::StrCat(folder, "/", i);
      RETURN_IF_ERROR(MountOne(plan, active.mount_point, &active));
      active.mounted_at_ns = absl::ToUnixNanos(absl::Now());
      out->active.push_back(std::move(active));
    }
    if (temporary) {
      ActiveMount last;
      last.mount = plans.back().mount;
      last.mount_point = folder + "/all";
      RETURN_IF_ERROR(MountOne(plans.back(), last.mount_point, &last));
      last.mounted_at_ns = absl::ToUnixNanos(absl::Now());
      out->system = {{"bind", last.mount_point, "", {"rbind"}}};
      out->active.push_back(std::move(last));
    }
    return os::WriteFileAtomic(folder + "/record.json", Encode(*out), 0600);
  }

  const std::string dir_;
  const std::vector<std::string> roots_;
  std::mutex mutex_;
  std::map<std::string, uint64_t> ids_;  // Also of those being made.
  std::map<std::string, Activation> activations_;
  uint64_t next_id_ = 1;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MountManager>> MountManager::Open(
    const std::string& dir, const std::vector<std::string>& roots) {
  auto manager = std::make_unique<Manager>(dir, roots);
  RETURN_IF_ERROR(manager->Load());
  return std::unique_ptr<MountManager>(std::move(manager));
}

}  // namespace bulkhead::snapshotter
