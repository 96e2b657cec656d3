#include "services/metrics/status_page.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/metrics/exposition.h"

namespace bulkhead::metrics {
namespace {

constexpr int kContainersShownMax = 500;
constexpr char kHead[] =
    "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">"
    "<meta http-equiv=\"refresh\" content=\"2\">"
    "<meta name=\"viewport\" content=\"width=device-width\">"
    "<title>Bulkhead</title><style>"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem;color:#1b2733;background:#f6f8fa}"
    "h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}"
    "table{border-collapse:collapse;width:100%;background:#fff;"
    "border-radius:6px;box-shadow:0 1px 3px #0002}"
    "th,td{text-align:left;padding:.4rem .7rem;border-bottom:1px solid #e3e8ee}"
    "th{font-weight:600;color:#55657a}td.n,th.n{text-align:right;"
    "font-variant-numeric:tabular-nums}"
    ".up{color:#0a7d38}.down{color:#c22;font-weight:600}.dim{color:#6b7a8c}"
    "@media(prefers-color-scheme:dark){body{background:#12181f;color:#dbe3ec}"
    "table{background:#1a222c}th,td{border-color:#2b3643}.up{color:#4cc97e}"
    ".down{color:#ff7b72}}"
    "</style></head><body><h1>Bulkhead</h1>";

std::string Escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string Bytes(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  const char* const units[] = {"KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes) / 1024;
  int unit = 0;
  while (value >= 1024 && unit < 3) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, units[unit]);
}

std::string Key(const ContainerFigures& figures) {
  return absl::StrCat(figures.ns, "/", figures.id);
}

}  // namespace

std::string StatusPage::Render(std::shared_ptr<const Snapshot> now) {
  std::shared_ptr<const Snapshot> before;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (current_ != now) {
      before_ = std::move(current_);
      current_ = now;
    }
    before = before_;
  }
  const double seconds =
      before == nullptr
          ? 0
          : absl::ToDoubleSeconds(now->taken_at - before->taken_at);

  std::map<std::string, CallTotals> old_calls;
  std::map<std::string, uint64_t> old_cpu;
  if (before != nullptr) {
    for (const auto& service : before->services) {
      if (service.up) old_calls[service.name] = SumCalls(service.text);
    }
    for (const auto& container : before->containers) {
      old_cpu[Key(container)] = Summarise(container).cpu_ns;
    }
  }

  std::string out = kHead;
  absl::StrAppend(&out, "<p class=\"dim\">",
                  absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", now->taken_at,
                                   absl::UTCTimeZone()),
                  " &middot; <a href=\"/metrics\">metrics</a></p>");
  absl::StrAppend(&out,
                  "<h2>Services</h2><table><tr><th>Service</th><th>State</th>"
                  "<th class=\"n\">Calls</th><th class=\"n\">Failed</th>"
                  "<th class=\"n\">Calls/s</th></tr>");
  for (const auto& service : now->services) {
    const CallTotals totals = SumCalls(service.text);
    const auto old = old_calls.find(service.name);
    std::string rate = "&ndash;";
    if (seconds > 0 && old != old_calls.end() &&
        totals.calls >= old->second.calls) {
      rate =
          absl::StrFormat("%.1f", (totals.calls - old->second.calls) / seconds);
    }
    absl::StrAppend(&out, "<tr><td>", Escape(service.name), "</td><td class=\"",
                    service.up ? "up\">up" : "down\">down",
                    "</td><td class=\"n\">",
                    absl::StrFormat("%.0f</td><td class=\"n\">%.0f",
                                    totals.calls, totals.failed),
                    "</td><td class=\"n\">", rate, "</td></tr>");
  }
  absl::StrAppend(&out, "</table><h2>Containers (", now->containers.size(),
                  " running)</h2>");
  if (!now->containers_error.empty()) {
    absl::StrAppend(&out, "<p class=\"down\">", Escape(now->containers_error),
                    "</p>");
  }
  absl::StrAppend(&out,
                  "<table><tr><th>Namespace</th><th>Container</th>"
                  "<th>Runtime</th><th class=\"n\">CPU</th>"
                  "<th class=\"n\">Memory</th><th class=\"n\">Limit</th>"
                  "<th class=\"n\">Processes</th></tr>");
  int shown = 0;
  for (const auto& container : now->containers) {
    if (++shown > kContainersShownMax) break;
    const Summary summary = Summarise(container);
    const auto old = old_cpu.find(Key(container));
    std::string cpu = "&ndash;";
    if (seconds > 0 && old != old_cpu.end() && summary.cpu_ns >= old->second) {
      cpu = absl::StrFormat(
          "%.1f %%",
          static_cast<double>(summary.cpu_ns - old->second) / 1e7 / seconds);
    }
    absl::StrAppend(
        &out, "<tr><td>", Escape(container.ns), "</td><td>",
        Escape(container.id), "</td><td>", Escape(container.runtime),
        "</td><td class=\"n\">", cpu, "</td><td class=\"n\">",
        Bytes(summary.memory_bytes), "</td><td class=\"n\">",
        summary.memory_limit_bytes == 0 ? "&ndash;"
                                        : Bytes(summary.memory_limit_bytes),
        "</td><td class=\"n\">", summary.pids, "</td></tr>");
  }
  absl::StrAppend(&out, "</table></body></html>\n");
  return out;
}

}  // namespace bulkhead::metrics
