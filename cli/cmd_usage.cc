// stats, top.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
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

absl::StatusOr<std::string> StatsTable(
    const std::vector<ContainerRecord>& records,
    const std::map<std::string, Usage>& before,
    const std::map<std::string, Usage>& now, const StatsOptions& options) {
  Listing listing({{"CONTAINER ID", "ID"},
                   {"NAME", "Name"},
                   {"CPU %", "CPUPerc"},
                   {"MEM USAGE / LIMIT", "MemUsage"},
                   {"MEM %", "MemPerc"},
                   {"BLOCK I/O", "BlockIO"},
                   {"PIDS", "PIDs"}});
  const int64_t machine_bytes =
      static_cast<int64_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE);
  for (const ContainerRecord& record : records) {
    const std::string id =
        options.no_trunc ? record.id() : ShortId(record.id());
    const auto usage = now.find(record.id());
    if (usage == now.end()) {
      if (options.all || !options.names.empty()) {
        listing.Add(
            {id, NameOf(record), "--", "-- / --", "--", "-- / --", "--"});
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
      const absl::StatusOr<std::string> text =
          StatsTable(records, before, *now, options);
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
  std::string cpu_time;
  std::string resident;
  std::string command;
};

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
    if (words[0] == "Uid:") row.user = words[1];
    if (words[0] == "PPid:") row.parent = words[1];
    if (words[0] == "VmRSS:") row.resident = words[1] + "k";
    if (words[0] == "Name:" && command.empty()) command = "[" + words[1] + "]";
  }
  const size_t paren = stat->rfind(')');
  if (paren != std::string::npos) {
    const std::vector<std::string> fields =
        absl::StrSplit(stat->substr(paren + 2), ' ');
    int64_t user = 0;
    int64_t system = 0;
    if (fields.size() > 12 && absl::SimpleAtoi(fields[11], &user) &&
        absl::SimpleAtoi(fields[12], &system)) {
      const int64_t seconds = (user + system) / ::sysconf(_SC_CLK_TCK);
      row.cpu_time = absl::StrFormat("%02d:%02d:%02d", seconds / 3600,
                                     seconds / 60 % 60, seconds % 60);
    }
  }
  row.command = command;
  return row;
}

int Top(Session& session, const std::string& name) {
  Client& client = session.client();
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
  std::vector<std::vector<std::string>> rows = {
      {"UID", "PID", "PPID", "TIME", "RSS", "CMD"}};
  for (const auto& process : response.processes()) {
    const ProcessRow row = ReadProcess(process.pid());
    if (row.user.empty()) continue;  // Ended meanwhile.
    rows.push_back({row.user, absl::StrCat(process.pid()), row.parent,
                    row.cpu_time, row.resident, Printable(row.command)});
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

  auto top = std::make_shared<std::string>();
  root.Sub("top", "List a container's processes")
      .Argument("CONTAINER", top.get(), "Name or id")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead top web")
      .Does([top](Session& session) { return Top(session, *top); });
}

}  // namespace bulkhead::cli
