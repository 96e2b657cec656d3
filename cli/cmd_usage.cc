// stats, top.
#include <fcntl.h>
#include <spawn.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/format.h"
#include "cli/metrics.h"
#include "cli/names.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "proto/containerd/services/tasks/v1/tasks.pb.h"

namespace bulkhead::cli {
namespace {

constexpr absl::Duration kStatsInterval = absl::Seconds(1);
constexpr size_t kProcFileBytesMax = 1 << 20;

struct StatsOptions {
  bool no_stream = false;
  bool no_trunc = false;
  bool all = false;
  std::string format;
  std::vector<std::string> names;
};

// Bytes received and sent by a container with a network of its own, over all
// interfaces but loopback.
std::string NetworkText(const std::string& id,
                        const std::map<std::string, TaskRecord>& tasks) {
  const auto task = tasks.find(id);
  double received = 0;
  double sent = 0;
  if (task != tasks.end() && task->second.pid() > 0) {
    const std::string text =
        os::ReadFile(absl::StrCat("/proc/", task->second.pid(), "/net/dev"),
                     kProcFileBytesMax)
            .value_or("");
    for (const std::string& line :
         std::vector<std::string>(absl::StrSplit(text, '\n'))) {
      const size_t colon = line.find(':');
      if (colon == std::string::npos) continue;
      const std::vector<std::string> words =
          absl::StrSplit(line.substr(colon + 1), ' ', absl::SkipEmpty());
      const std::string name(absl::StripAsciiWhitespace(line.substr(0, colon)));
      double in = 0;
      double out = 0;
      if (name == "lo" || words.size() < 9 ||
          !absl::SimpleAtod(words[0], &in) ||
          !absl::SimpleAtod(words[8], &out)) {
        continue;
      }
      received += in;
      sent += out;
    }
  }
  return absl::StrCat(HumanBytes(received), " / ", HumanBytes(sent));
}

absl::StatusOr<std::string> StatsTable(
    const std::vector<ContainerRecord>& records,
    const std::map<std::string, Usage>& before,
    const std::map<std::string, Usage>& now,
    const std::map<std::string, TaskRecord>& tasks,
    const StatsOptions& options) {
  Listing listing({{"CONTAINER ID", "ID"},
                   {"NAME", "Name"},
                   {"CPU %", "CPUPerc"},
                   {"MEM USAGE / LIMIT", "MemUsage"},
                   {"MEM %", "MemPerc"},
                   {"NET I/O", "NetIO"},
                   {"BLOCK I/O", "BlockIO"},
                   {"PIDS", "PIDs"}});
  const int64_t machine_bytes =
      static_cast<int64_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE);
  for (const ContainerRecord& record : records) {
    const std::string id =
        options.no_trunc ? record.id() : ShortId(record.id());
    const auto usage = now.find(record.id());
    const auto task = tasks.find(record.id());
    if (usage == now.end() || task == tasks.end() || !IsAlive(task->second)) {
      if (options.all || !options.names.empty()) {
        listing.Add(
            {id, NameOf(record), "--", "-- / --", "--", "--", "--", "--"});
      }
      continue;
    }
    const Usage& u = usage->second;
    const auto earlier = before.find(record.id());
    const double cpu =
        earlier == before.end() ? 0 : CpuPercent(earlier->second, u);
    const int64_t limit = u.memory_limit > 0
                              ? std::min(u.memory_limit, machine_bytes)
                              : machine_bytes;
    listing.Add(
        {id, NameOf(record), absl::StrFormat("%.2f%%", cpu),
         absl::StrCat(HumanBytes1024(static_cast<double>(u.memory_bytes)),
                      " / ", HumanBytes1024(static_cast<double>(limit))),
         absl::StrFormat("%.2f%%", 100.0 * static_cast<double>(u.memory_bytes) /
                                       static_cast<double>(limit)),
         NetworkText(record.id(), tasks),
         absl::StrCat(HumanBytes(static_cast<double>(u.read_bytes)), " / ",
                      HumanBytes(static_cast<double>(u.written_bytes))),
         absl::StrCat(u.pids)});
  }
  return listing.Render(options.format);
}

int Stats(Session& session, const StatsOptions& options) {
  Client& client = session.client();
  const bool live = !options.no_stream && ::isatty(STDOUT_FILENO);
  std::map<std::string, Usage> before;
  for (int round = 0;; ++round) {
    absl::StatusOr<std::map<std::string, Usage>> now = ReadUsage(client);
    if (!now.ok()) return Report(now.status());
    if (round > 0) {  // The first only gives the starting point.
      std::vector<ContainerRecord> records;
      if (options.names.empty()) {
        absl::StatusOr<std::vector<ContainerRecord>> all =
            ListContainers(client);
        if (!all.ok()) return Report(all.status());
        records = *std::move(all);
      }
      for (const std::string& name : options.names) {
        const absl::StatusOr<ContainerRecord> record =
            FindContainer(client, name);
        if (!record.ok()) return Report(record.status());
        records.push_back(*record);
      }
      const absl::StatusOr<std::map<std::string, TaskRecord>> tasks =
          ListTasks(client);
      if (!tasks.ok()) return Report(tasks.status());
      const absl::StatusOr<std::string> text =
          StatsTable(records, before, *now, *tasks, options);
      if (!text.ok()) return Report(text.status(), kExitUsage);
      std::printf("%s%s", live ? "\x1b[H\x1b[2J" : "", text->c_str());
      std::fflush(stdout);
      if (options.no_stream) return kExitOk;
    }
    before = *std::move(now);
    absl::SleepFor(kStatsInterval);
  }
}

struct ProcessRow {
  std::string user;
  std::string parent;
  std::string processor;  // Per cent of its life.
  std::string started;
  std::string terminal;
  std::string cpu_time;
  std::string command;
};

std::string UserName(const std::string& uid) {
  uid_t id = 0;
  if (!absl::SimpleAtoi(uid, &id)) return uid;
  // By hand: the C library's look-up does not work in a static program.
  const std::string passwd =
      os::ReadFile("/etc/passwd", kProcFileBytesMax).value_or("");
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(passwd, '\n'))) {
    const std::vector<std::string> parts = absl::StrSplit(line, ':');
    if (parts.size() > 2 && parts[2] == uid) return parts[0];
  }
  return uid;
}

std::string TerminalName(int64_t device) {
  const unsigned major_number = ::major(static_cast<dev_t>(device));
  const unsigned minor_number = ::minor(static_cast<dev_t>(device));
  constexpr unsigned kPtsMajor = 136;
  constexpr unsigned kPtsMajors = 8;
  if (device == 0) return "?";
  if (major_number >= kPtsMajor && major_number < kPtsMajor + kPtsMajors) {
    return absl::StrCat("pts/",
                        (major_number - kPtsMajor) * 256 + minor_number);
  }
  return absl::StrCat("tty", minor_number);
}

// What /proc says about a process of this machine; empty if it is gone.
ProcessRow ReadProcess(uint32_t pid) {
  ProcessRow row;
  const std::string folder = absl::StrCat("/proc/", pid);
  const absl::StatusOr<std::string> status =
      os::ReadFile(folder + "/status", kProcFileBytesMax);
  const absl::StatusOr<std::string> stat =
      os::ReadFile(folder + "/stat", kProcFileBytesMax);
  std::string command =
      os::ReadFile(folder + "/cmdline", kProcFileBytesMax).value_or("");
  while (!command.empty() && command.back() == '\0') command.pop_back();
  std::replace(command.begin(), command.end(), '\0', ' ');
  if (!status.ok() || !stat.ok()) return row;
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(*status, '\n'))) {
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.size() < 2) continue;
    if (words[0] == "Uid:") row.user = UserName(words[1]);
    if (words[0] == "Name:" && command.empty()) command = "[" + words[1] + "]";
  }
  row.command = command;
  // Behind the name: state, parent, ... (proc(5), from field 3).
  const size_t paren = stat->rfind(')');
  if (paren == std::string::npos) return row;
  const std::vector<std::string> fields =
      absl::StrSplit(stat->substr(paren + 2), ' ');
  constexpr size_t kParent = 1, kTerminal = 4, kUser = 11, kSystem = 12,
                   kStart = 19;
  int64_t user = 0;
  int64_t system = 0;
  int64_t start = 0;
  int64_t terminal = 0;
  if (fields.size() <= kStart || !absl::SimpleAtoi(fields[kUser], &user) ||
      !absl::SimpleAtoi(fields[kSystem], &system) ||
      !absl::SimpleAtoi(fields[kStart], &start) ||
      !absl::SimpleAtoi(fields[kTerminal], &terminal)) {
    return row;
  }
  row.parent = fields[kParent];
  row.terminal = TerminalName(terminal);
  const int64_t ticks = ::sysconf(_SC_CLK_TCK);
  const int64_t seconds = (user + system) / ticks;
  row.cpu_time = absl::StrFormat("%02d:%02d:%02d", seconds / 3600,
                                 seconds / 60 % 60, seconds % 60);
  timespec up{};
  ::clock_gettime(CLOCK_BOOTTIME, &up);
  const int64_t age = std::max<int64_t>(0, up.tv_sec - start / ticks);
  row.processor = absl::StrCat(age > 0 ? 100 * seconds / age : 0);
  const absl::Time now = absl::Now();
  row.started =
      absl::FormatTime(age < 24 * 3600 ? "%H:%M" : "%b%d",
                       now - absl::Seconds(age), absl::LocalTimeZone());
  return row;
}

// The lines of `ps OPTIONS` about `pids`, and its heading.
absl::Status PrintPs(const std::vector<std::string>& options,
                     const std::set<std::string>& pids) {
  std::vector<char*> argv = {const_cast<char*>("ps")};
  for (const std::string& option : options) {
    argv.push_back(const_cast<char*>(option.c_str()));
  }
  argv.push_back(nullptr);
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) != 0) return os::ErrnoStatus(errno, "pipe");
  os::UniqueFd from(pipe[0]);
  os::UniqueFd to(pipe[1]);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, to.get(), STDOUT_FILENO);
  pid_t child = 0;
  const int error =
      ::posix_spawnp(&child, "ps", &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return os::ErrnoStatus(error, "ps");
  to.Reset();
  std::string text(kProcFileBytesMax, '\0');
  const absl::StatusOr<size_t> size =
      os::ReadFull(from.get(), text.data(), text.size());
  from.Reset();
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  RETURN_IF_ERROR(size.status());
  text.resize(*size);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("ps ", absl::StrJoin(options, " "), " failed"));
  }
  const std::vector<std::string> lines =
      absl::StrSplit(text, '\n', absl::SkipEmpty());
  size_t column = std::string::npos;
  for (const std::string& line : lines) {
    const std::vector<std::string> words =
        absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (column == std::string::npos) {
      column = static_cast<size_t>(
          std::find(words.begin(), words.end(), "PID") - words.begin());
      if (column == words.size()) {
        return absl::InvalidArgumentError(
            "these ps options print no PID column");
      }
    } else if (column >= words.size() || !pids.contains(words[column])) {
      continue;
    }
    std::printf("%s\n", Printable(line).c_str());
  }
  return absl::OkStatus();
}

// CONTAINER [PS OPTION...]
int Top(Session& session, const std::vector<std::string>& words) {
  Client& client = session.client();
  const std::string& name = words[0];
  const absl::StatusOr<ContainerRecord> record = FindContainer(client, name);
  if (!record.ok()) return Report(record.status());
  containerd::services::tasks::v1::ListPidsRequest request;
  request.set_container_id(record->id());
  containerd::services::tasks::v1::ListPidsResponse response;
  const absl::Status status =
      client.Call(std::string(kTasks) + "ListPids", request, &response);
  if (absl::IsNotFound(status)) {
    return Report(absl::FailedPreconditionError(
        absl::StrCat("container ", name, " is not running")));
  }
  if (!status.ok()) return Report(status);
  if (words.size() > 1) {
    std::set<std::string> pids;
    for (const auto& process : response.processes()) {
      pids.insert(absl::StrCat(process.pid()));
    }
    const absl::Status printed =
        PrintPs({words.begin() + 1, words.end()}, pids);
    return printed.ok() ? kExitOk : Report(printed);
  }
  std::vector<std::vector<std::string>> rows = {
      {"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}};
  for (const auto& process : response.processes()) {
    const ProcessRow row = ReadProcess(process.pid());
    if (row.user.empty()) continue;  // Ended meanwhile.
    rows.push_back({row.user, absl::StrCat(process.pid()), row.parent,
                    row.processor, row.started, row.terminal, row.cpu_time,
                    Printable(row.command)});
  }
  std::fputs(RenderTable(rows).c_str(), stdout);
  return kExitOk;
}

}  // namespace

void AddUsageCommands(Command& root) {
  auto stats = std::make_shared<StatsOptions>();
  root.Sub("stats", "Show what containers use, live")
      .Flag("--no-stream", &stats->no_stream, "Once")
      .Flag("--no-trunc", &stats->no_trunc, "Whole ids")
      .Flag("-a,--all", &stats->all, "Those that are not running, too")
      .Option("--format", &stats->format, "json, or a template", "FORMAT")
      .Arguments("CONTAINER", &stats->names, "Names or ids", false)
      .Complete(Completes::kContainers)
      .Examples("  bulkhead stats\n  bulkhead stats --no-stream web")
      .Does([stats](Session& session) { return Stats(session, *stats); });

  auto top = std::make_shared<std::vector<std::string>>();
  root.Sub("top", "List a container's processes")
      .Rest("CONTAINER [PS-OPTION...]", top.get(), 1)
      .Complete(Completes::kContainers)
      .Examples(
          "  bulkhead top web\n"
          "  bulkhead top web -eo pid,pcpu,comm   (as this machine's ps prints "
          "it)")
      .Does([top](Session& session) { return Top(session, *top); });
}

}  // namespace bulkhead::cli
