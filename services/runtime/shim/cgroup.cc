#include "services/runtime/shim/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"
#include "lib/ttrpc/wire.h"

namespace bulkhead::shim {
namespace {

using ttrpc::WireWriter;

constexpr int kCgroupDepthMax = 32;
constexpr size_t kPidsMax = 100000;
constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

std::string Read(const std::string& path) {
  absl::StatusOr<std::string> text = os::ReadFile(path);
  return text.ok() ? *std::move(text) : "";
}

uint64_t Number(absl::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
    text.remove_suffix(1);
  }
  if (text == "max") return kUnlimited;
  uint64_t value = 0;
  return absl::SimpleAtoi(text, &value) ? value : 0;
}

uint64_t ReadNumber(const std::string& path) { return Number(Read(path)); }

// "key value" lines.
std::map<std::string, uint64_t> ReadTable(const std::string& path) {
  std::map<std::string, uint64_t> table;
  const std::string text = Read(path);
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::pair<std::string, std::string> cell =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (!cell.first.empty()) table[cell.first] = Number(cell.second);
  }
  return table;
}

uint64_t Look(const std::map<std::string, uint64_t>& table,
              const std::string& key) {
  const auto found = table.find(key);
  return found == table.end() ? 0 : found->second;
}

// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the same for "full".
std::string Pressure(const std::string& path) {
  const std::string text = Read(path);
  WireWriter psi;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    WireWriter data;
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    if (words.size() < 5) continue;
    for (size_t i = 1; i < words.size(); ++i) {
      const std::pair<absl::string_view, absl::string_view> cell =
          absl::StrSplit(words[i], '=');
      double number = 0;
      if (cell.first == "total") {
        data.Uint(4, Number(cell.second));
      } else if (absl::SimpleAtod(cell.second, &number)) {
        data.Double(static_cast<uint32_t>(i), number);
      }
    }
    psi.Message(words[0] == "some" ? 1 : 2, data.str());
  }
  return psi.Take();
}

void AddTable(const std::map<std::string, uint64_t>& table,
              std::initializer_list<std::pair<uint32_t, const char*>> fields,
              WireWriter* out) {
  for (const auto& [field, key] : fields) out->Uint(field, Look(table, key));
}

std::string MetricsV2(const std::string& folder) {
  const std::string at = folder + "/";
  WireWriter metrics;
  WireWriter pids;
  pids.Uint(1, ReadNumber(at + "pids.current"));
  pids.Uint(2, ReadNumber(at + "pids.max"));
  metrics.Message(1, pids.str());

  WireWriter cpu;
  AddTable(ReadTable(at + "cpu.stat"),
           {{1, "usage_usec"},
            {2, "user_usec"},
            {3, "system_usec"},
            {4, "nr_periods"},
            {5, "nr_throttled"},
            {6, "throttled_usec"},
            {8, "nr_bursts"},
            {9, "burst_usec"}},
           &cpu);
  const std::string cpu_pressure = Pressure(at + "cpu.pressure");
  if (!cpu_pressure.empty()) cpu.Message(7, cpu_pressure);
  metrics.Message(2, cpu.str());

  WireWriter memory;
  AddTable(ReadTable(at + "memory.stat"),
           {{1, "anon"},
            {2, "file"},
            {3, "kernel_stack"},
            {4, "slab"},
            {5, "sock"},
            {6, "shmem"},
            {7, "file_mapped"},
            {8, "file_dirty"},
            {9, "file_writeback"},
            {10, "anon_thp"},
            {11, "inactive_anon"},
            {12, "active_anon"},
            {13, "inactive_file"},
            {14, "active_file"},
            {15, "unevictable"},
            {16, "slab_reclaimable"},
            {17, "slab_unreclaimable"},
            {18, "pgfault"},
            {19, "pgmajfault"},
            {20, "workingset_refault"},
            {21, "workingset_activate"},
            {22, "workingset_nodereclaim"},
            {23, "pgrefill"},
            {24, "pgscan"},
            {25, "pgsteal"},
            {26, "pgactivate"},
            {27, "pgdeactivate"},
            {28, "pglazyfree"},
            {29, "pglazyfreed"},
            {30, "thp_fault_alloc"},
            {31, "thp_collapse_alloc"}},
           &memory);
  memory.Uint(32, ReadNumber(at + "memory.current"));
  memory.Uint(33, ReadNumber(at + "memory.max"));
  memory.Uint(34, ReadNumber(at + "memory.swap.current"));
  memory.Uint(35, ReadNumber(at + "memory.swap.max"));
  memory.Uint(36, ReadNumber(at + "memory.peak"));
  memory.Uint(37, ReadNumber(at + "memory.swap.peak"));
  const std::string memory_pressure = Pressure(at + "memory.pressure");
  if (!memory_pressure.empty()) memory.Message(38, memory_pressure);
  metrics.Message(4, memory.str());

  WireWriter io;
  const std::string io_text = Read(at + "io.stat");
  for (absl::string_view line : absl::StrSplit(io_text, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    const std::pair<absl::string_view, absl::string_view> device =
        absl::StrSplit(words[0], absl::MaxSplits(':', 1));
    if (words.size() < 2 || device.second.empty()) continue;
    WireWriter entry;
    entry.Uint(1, Number(device.first)).Uint(2, Number(device.second));
    std::map<std::string, uint64_t> cells;
    for (size_t i = 1; i < words.size(); ++i) {
      const std::pair<std::string, absl::string_view> cell =
          absl::StrSplit(words[i], absl::MaxSplits('=', 1));
      cells[cell.first] = Number(cell.second);
    }
    AddTable(cells, {{3, "rbytes"}, {4, "wbytes"}, {5, "rios"}, {6, "wios"}},
             &entry);
    io.Message(1, entry.str());
  }
  const std::string io_pressure = Pressure(at + "io.pressure");
  if (!io_pressure.empty()) io.Message(2, io_pressure);
  metrics.Message(6, io.str());

  WireWriter events;
  AddTable(ReadTable(at + "memory.events"),
           {{1, "low"},
            {2, "high"},
            {3, "max"},
            {4, "oom"},
            {5, "oom_kill"},
            {6, "oom_group_kill"}},
           &events);
  metrics.Message(8, events.str());
  return metrics.Take();
}

// A v1 memory counter family: limit, usage, max_usage, failcnt.
void AddMemoryEntry(uint32_t field, const std::string& prefix,
                    WireWriter* memory) {
  if (::access((prefix + ".usage_in_bytes").c_str(), F_OK) != 0) return;
  WireWriter entry;
  entry.Uint(1, ReadNumber(prefix + ".limit_in_bytes"));
  entry.Uint(2, ReadNumber(prefix + ".usage_in_bytes"));
  entry.Uint(3, ReadNumber(prefix + ".max_usage_in_bytes"));
  entry.Uint(4, ReadNumber(prefix + ".failcnt"));
  memory->Message(field, entry.str());
}

// "8:0 Read 4096" lines.
void AddBlkio(uint32_t field, const std::string& path, WireWriter* blkio) {
  const std::string text = Read(path);
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    if (words.size() < 2 || words[0] == "Total") continue;
    const std::pair<absl::string_view, absl::string_view> device =
        absl::StrSplit(words[0], absl::MaxSplits(':', 1));
    if (device.second.empty()) continue;
    WireWriter entry;
    const absl::string_view op = words.size() > 2 ? words[1] : "";
    entry.Str(1, std::string_view(op.data(), op.size()));
    entry.Uint(3, Number(device.first)).Uint(4, Number(device.second));
    entry.Uint(5, Number(words.back()));
    blkio->Message(field, entry.str());
  }
}

std::string MetricsV1(const Cgroup& cgroup) {
  WireWriter metrics;
  const std::string pids_at = cgroup.Folder("pids");
  if (!pids_at.empty()) {
    WireWriter pids;
    const uint64_t limit = ReadNumber(pids_at + "/pids.max");
    pids.Uint(1, ReadNumber(pids_at + "/pids.current"));
    pids.Uint(2, limit == kUnlimited ? 0 : limit);
    metrics.Message(2, pids.str());
  }
  WireWriter cpu;
  const std::string acct_at = cgroup.Folder("cpuacct");
  if (!acct_at.empty()) {
    constexpr uint64_t kNanosecondsPerTick = 10000000;
    const auto ticks = ReadTable(acct_at + "/cpuacct.stat");
    WireWriter usage;
    usage.Uint(1, ReadNumber(acct_at + "/cpuacct.usage"));
    usage.Uint(2, Look(ticks, "system") * kNanosecondsPerTick);
    usage.Uint(3, Look(ticks, "user") * kNanosecondsPerTick);
    const std::string each = Read(acct_at + "/cpuacct.usage_percpu");
    WireWriter packed;
    std::string numbers;
    for (absl::string_view word :
         absl::StrSplit(each, absl::ByAnyChar(" \n"), absl::SkipEmpty())) {
      for (uint64_t value = Number(word);; value >>= 7) {
        numbers.push_back(
            static_cast<char>(value >= 0x80 ? value | 0x80 : value));
        if (value < 0x80) break;
      }
    }
    usage.Str(4, numbers);
    cpu.Message(1, usage.str());
  }
  const std::string cpu_at = cgroup.Folder("cpu");
  if (!cpu_at.empty()) {
    WireWriter throttling;
    AddTable(ReadTable(cpu_at + "/cpu.stat"),
             {{1, "nr_periods"}, {2, "nr_throttled"}, {3, "throttled_time"}},
             &throttling);
    cpu.Message(2, throttling.str());
  }
  metrics.Message(3, cpu.str());

  const std::string memory_at = cgroup.Folder("memory");
  if (!memory_at.empty()) {
    WireWriter memory;
    const auto stat = ReadTable(memory_at + "/memory.stat");
    constexpr const char* kNames[] = {
        "cache",         "rss",         "rss_huge",      "mapped_file",
        "dirty",         "writeback",   "pgpgin",        "pgpgout",
        "pgfault",       "pgmajfault",  "inactive_anon", "active_anon",
        "inactive_file", "active_file", "unevictable"};
    for (uint32_t i = 0; i < 15; ++i) memory.Uint(i + 1, Look(stat, kNames[i]));
    memory.Uint(16, Look(stat, "hierarchical_memory_limit"));
    memory.Uint(17, Look(stat, "hierarchical_memsw_limit"));
    for (uint32_t i = 0; i < 15; ++i) {
      memory.Uint(i + 18, Look(stat, absl::StrCat("total_", kNames[i])));
    }
    const std::string at = memory_at + "/memory";
    AddMemoryEntry(33, at, &memory);
    AddMemoryEntry(34, at + ".memsw", &memory);
    AddMemoryEntry(35, at + ".kmem", &memory);
    AddMemoryEntry(36, at + ".kmem.tcp", &memory);
    metrics.Message(4, memory.str());
    WireWriter oom;
    AddTable(ReadTable(at + ".oom_control"),
             {{1, "oom_kill_disable"}, {2, "under_oom"}, {3, "oom_kill"}},
             &oom);
    metrics.Message(9, oom.str());
  }
  const std::string blkio_at = cgroup.Folder("blkio");
  if (!blkio_at.empty()) {
    WireWriter blkio;
    const std::string at = blkio_at + "/blkio.throttle.io_";
    AddBlkio(1, at + "service_bytes_recursive", &blkio);
    AddBlkio(2, at + "serviced_recursive", &blkio);
    metrics.Message(5, blkio.str());
  }
  return metrics.Take();
}

void CollectPids(const std::string& folder, int depth,
                 std::vector<pid_t>* pids) {
  const std::string text = Read(folder + "/cgroup.procs");
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    if (pids->size() < kPidsMax) {
      pids->push_back(static_cast<pid_t>(Number(line)));
    }
  }
  if (depth >= kCgroupDepthMax) return;
  DIR* dir = ::opendir(folder.c_str());
  if (dir == nullptr) return;
  while (const dirent* entry = ::readdir(dir)) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.') {
      CollectPids(absl::StrCat(folder, "/", entry->d_name), depth + 1, pids);
    }
  }
  ::closedir(dir);
}

}  // namespace

Cgroup Cgroup::Parse(const std::string& root, bool unified,
                     const std::string& text) {
  Cgroup cgroup;
  cgroup.root_ = root;
  cgroup.unified_ = unified;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<std::string> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    if (unified) {
      if (parts[1].empty()) cgroup.paths_[""] = parts[2];
      continue;
    }
    for (absl::string_view controller : absl::StrSplit(parts[1], ',')) {
      if (controller.empty()) continue;
      cgroup.paths_[std::string(controller)] = parts[2];
    }
  }
  return cgroup;
}

bool IsUnified() {
  struct statfs info {};
  return ::statfs(kCgroupRoot, &info) == 0 &&
         info.f_type == CGROUP2_SUPER_MAGIC;
}

absl::StatusOr<Cgroup> Cgroup::OfPid(pid_t pid) {
  absl::StatusOr<std::string> text =
      os::ReadFile(absl::StrCat("/proc/", pid, "/cgroup"));
  if (!text.ok()) return absl::NotFoundError("no such process");
  return Parse(kCgroupRoot, IsUnified(), *text);
}

std::string Cgroup::Folder(const std::string& controller) const {
  const auto found = paths_.find(unified_ ? "" : controller);
  if (found == paths_.end() || found->second == "/") return "";
  return absl::StrCat(root_, unified_ ? "" : "/", unified_ ? "" : controller,
                      found->second);
}

absl::StatusOr<std::string> Cgroup::Metrics() const {
  std::string folder = Folder("memory");
  if (folder.empty()) folder = Folder("pids");
  if (folder.empty() || ::access(folder.c_str(), F_OK) != 0) {
    return absl::NotFoundError("cgroup does not exist");
  }
  WireWriter any;
  any.Str(1, unified_ ? "io.containerd.cgroups.v2.Metrics"
                      : "io.containerd.cgroups.v1.Metrics");
  any.Str(2, unified_ ? MetricsV2(folder) : MetricsV1(*this));
  return any.Take();
}

absl::StatusOr<std::vector<pid_t>> Cgroup::Pids() const {
  for (const char* controller : {"devices", "pids", "memory", "freezer"}) {
    const std::string folder = Folder(controller);
    if (folder.empty()) continue;
    std::vector<pid_t> pids;
    CollectPids(folder, 0, &pids);
    return pids;
  }
  return absl::NotFoundError("cgroup does not exist");
}

void Cgroup::EnableControllers() const {
  const std::string folder = unified_ ? Folder("") : "";
  if (folder.empty()) return;
  std::string names = Read(root_ + "/cgroup.controllers");
  while (!names.empty() && names.back() == '\n') names.pop_back();
  for (size_t slash = root_.size(); slash != std::string::npos;
       slash = folder.find('/', slash + 1)) {
    const absl::StatusOr<os::UniqueFd> control =
        os::Open(folder.substr(0, slash) + "/cgroup.subtree_control", O_WRONLY);
    if (!control.ok()) return;
    // One at a time: one that is refused does not keep the others out.
    for (absl::string_view name :
         absl::StrSplit(names, ' ', absl::SkipEmpty())) {
      const std::string text = absl::StrCat("+", name);
      (void)os::WriteFull(control->get(), text.data(), text.size());
    }
  }
}

absl::Status JoinCgroup(const std::string& root, bool unified,
                        const std::string& path, pid_t pid) {
  std::vector<std::string> hierarchies = {""};
  if (!unified) {
    hierarchies.clear();
    DIR* dir = ::opendir(root.c_str());
    if (dir == nullptr) return os::ErrnoStatus(errno, root);
    while (const dirent* entry = ::readdir(dir)) {
      const std::string name = entry->d_name;
      // Links are second names of a hierarchy.
      if (entry->d_type != DT_DIR || name[0] == '.' || name == "unified") {
        continue;
      }
      hierarchies.push_back("/" + name);
    }
    ::closedir(dir);
  }
  bool found = false;
  const std::string text = absl::StrCat(pid);
  for (const std::string& hierarchy : hierarchies) {
    const std::string folder = absl::StrCat(root, hierarchy, "/", path);
    if (::access(folder.c_str(), F_OK) != 0) continue;
    ASSIGN_OR_RETURN(const os::UniqueFd procs,
                     os::Open(folder + "/cgroup.procs", O_WRONLY));
    RETURN_IF_ERROR(os::WriteFull(procs.get(), text.data(), text.size()));
    found = true;
  }
  if (!found) return absl::NotFoundError(absl::StrCat("cgroup ", path));
  return absl::OkStatus();
}

uint64_t Cgroup::OomKills() const {
  if (!unified_) return 0;
  return Look(ReadTable(Folder("memory") + "/memory.events"), "oom_kill");
}

OomWatcher::OomWatcher(Loop* loop, Cgroup cgroup, std::function<void()> on_oom)
    : loop_(loop), cgroup_(std::move(cgroup)), on_oom_(std::move(on_oom)) {
  const std::string folder = cgroup_.Folder("memory");
  if (folder.empty()) return;
  if (cgroup_.unified()) {
    kills_ = cgroup_.OomKills();
    fd_ = os::UniqueFd(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    if (!fd_.valid() ||
        ::inotify_add_watch(fd_.get(), (folder + "/memory.events").c_str(),
                            IN_MODIFY) < 0) {
      fd_.Reset();
      return;
    }
    (void)loop_->Watch(fd_.get(), EPOLLIN, [this](uint32_t) {
      char buffer[4096];
      while (::read(fd_.get(), buffer, sizeof(buffer)) > 0) {
      }
      Check();
    });
    return;
  }
  fd_ = os::UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  absl::StatusOr<os::UniqueFd> control =
      os::Open(folder + "/memory.oom_control", O_RDONLY);
  absl::StatusOr<os::UniqueFd> event_control =
      os::Open(folder + "/cgroup.event_control", O_WRONLY);
  if (!fd_.valid() || !control.ok() || !event_control.ok()) {
    fd_.Reset();
    return;
  }
  const std::string line = absl::StrCat(fd_.get(), " ", control->get());
  if (!os::WriteFull(event_control->get(), line.data(), line.size()).ok()) {
    fd_.Reset();
    return;
  }
  (void)loop_->Watch(fd_.get(), EPOLLIN, [this](uint32_t) { Check(); });
}

OomWatcher::~OomWatcher() {
  if (fd_.valid()) loop_->Unwatch(fd_.get());
}

void OomWatcher::Check() {
  if (!fd_.valid()) return;
  if (cgroup_.unified()) {
    const uint64_t kills = cgroup_.OomKills();
    const bool grown = kills > kills_;
    kills_ = kills;
    if (grown) on_oom_();
    return;
  }
  uint64_t count = 0;
  if (::read(fd_.get(), &count, sizeof(count)) != sizeof(count)) return;
  // Removing the group also signals; that is no OOM.
  if (::access(cgroup_.Folder("memory").c_str(), F_OK) != 0) {
    loop_->Unwatch(fd_.get());
    fd_.Reset();
    return;
  }
  on_oom_();
}

}  // namespace bulkhead::shim
