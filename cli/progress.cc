#include "cli/progress.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/format.h"

namespace bulkhead::cli {
namespace {

constexpr size_t kDigestDigits = 12;
constexpr size_t kBarMax = 30;
constexpr size_t kPartsShownMax = 40;
constexpr double kRateAfterSeconds = 0.2;

// "layer-sha256:0123456789ab..." -> "layer 0123456789ab".
std::string ShortName(const std::string& name) {
  const size_t dash = name.find('-');
  const size_t colon = name.find(':');
  if (dash == std::string::npos || colon == std::string::npos || colon < dash) {
    return Printable(name);
  }
  return Printable(absl::StrCat(name.substr(0, dash), " ",
                                name.substr(colon + 1, kDigestDigits)));
}

std::string Bar(int64_t done, int64_t total, size_t width) {
  const double part =
      total > 0
          ? std::clamp(static_cast<double>(done) / static_cast<double>(total),
                       0.0, 1.0)
          : 0;
  const auto filled = static_cast<size_t>(part * static_cast<double>(width));
  std::string bar = "[" + std::string(filled, '=');
  if (filled < width) bar += ">" + std::string(width - filled - 1, ' ');
  return bar + "]";
}

bool IsMoving(const std::string& event) {
  return event == "downloading" || event == "uploading" ||
         event == "extracting";
}

std::string Word(const std::string& event) {
  if (event == "complete") return "downloaded";
  if (event == "extracted") return "done";
  if (event == "already exists") return "exists";
  return Printable(event);
}

}  // namespace

void Progress::Update(const std::string& event, const std::string& name,
                      int64_t done_bytes, int64_t total_bytes, absl::Time now) {
  if (started_at_ == absl::InfinitePast()) started_at_ = now;
  if (name.empty() || !absl::StrContains(name, ':') ||
      !absl::StrContains(name, '-')) {
    const std::string text = Printable(event);
    if (!text.empty() && text != message_ && event != "saved") {
      news_.push_back(text);
      message_ = text;
    }
    return;
  }
  auto [found, added] = parts_.try_emplace(name);
  Part& part = found->second;
  if (added) order_.push_back(name);
  if (part.event != event) {
    news_.push_back(absl::StrCat(ShortName(name), ": ", Word(event)));
    part.since = now;
    part.since_bytes = std::max<int64_t>(0, done_bytes);
  }
  part.event = event;
  // Unpacking may be reported without sizes: keep what is known.
  if (total_bytes > 0) part.total_bytes = total_bytes;
  part.done_bytes = std::max<int64_t>(0, done_bytes);
  if (!IsMoving(event) && event != "waiting") {
    part.done_bytes = part.total_bytes;
  }
}

std::vector<std::string> Progress::Lines(size_t width, absl::Time now) const {
  std::vector<std::string> lines;
  int64_t done_bytes = 0;
  int64_t total_bytes = 0;
  size_t hidden = 0;
  for (const std::string& name : order_) {
    const Part& part = parts_.at(name);
    if (part.event != "already exists") {
      done_bytes += part.event == "waiting" ? 0 : part.done_bytes;
      total_bytes += part.total_bytes;
    }
    if (lines.size() >= kPartsShownMax) {
      ++hidden;
      continue;
    }
    std::string line =
        absl::StrFormat("%-23s %-12s", ShortName(name), Word(part.event));
    if (IsMoving(part.event) && part.total_bytes > 0) {
      const size_t bar = std::min(kBarMax, width > 70 ? width - 62 : size_t{8});
      absl::StrAppend(&line, " ", Bar(part.done_bytes, part.total_bytes, bar),
                      " ", HumanBytes(static_cast<double>(part.done_bytes)),
                      "/", HumanBytes(static_cast<double>(part.total_bytes)));
      const double seconds = absl::ToDoubleSeconds(now - part.since);
      if (seconds >= kRateAfterSeconds && part.done_bytes > part.since_bytes) {
        absl::StrAppend(
            &line, " ",
            HumanBytes(static_cast<double>(part.done_bytes - part.since_bytes) /
                       seconds),
            "/s");
      }
    } else if (part.total_bytes > 0) {
      absl::StrAppend(&line, " ",
                      HumanBytes(static_cast<double>(part.total_bytes)));
    }
    lines.push_back(Shorten(line, width));
  }
  if (hidden > 0) lines.push_back(absl::StrCat("... and ", hidden, " more"));
  const double seconds = absl::ToDoubleSeconds(now - started_at_);
  std::string summary = message_.empty() ? "pulling" : message_;
  if (total_bytes > 0 && seconds > 0.001) {
    absl::StrAppend(&summary, "  ", HumanBytes(static_cast<double>(done_bytes)),
                    " of ", HumanBytes(static_cast<double>(total_bytes)), "  ",
                    HumanBytes(static_cast<double>(done_bytes) / seconds),
                    "/s  ", absl::StrFormat("%.1fs", seconds));
  }
  lines.push_back(Shorten(summary, width));
  return lines;
}

std::vector<std::string> Progress::News() {
  std::vector<std::string> news;
  news.swap(news_);
  return news;
}

}  // namespace bulkhead::cli
