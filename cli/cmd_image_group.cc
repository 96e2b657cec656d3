// history, and `image`: what Docker's users look for there.
#include <google/protobuf/empty.pb.h>

#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/format.h"
#include "cli/image.h"
#include "cli/spec/options.h"
#include "lib/base/status_macros.h"
#include "lib/oci/reference.h"

namespace bulkhead::cli {
namespace {

namespace images = containerd::services::images::v1;

constexpr size_t kCreatedByColumns = 45;

struct HistoryOptions {
  bool quiet = false;
  bool no_trunc = false;
  std::string format;
  std::string image;
};

int History(Session& session, const HistoryOptions& options) {
  Client& client = session.client();
  const absl::StatusOr<ImageRecord> image = FindImage(client, options.image);
  if (!image.ok()) return Report(image.status());
  const absl::StatusOr<ImageInfo> info =
      LoadImage(client, *image, oci::HostPlatform());
  if (!info.ok()) return Report(info.status());
  Listing listing({{"LAYER", "Layer"},
                   {"CREATED", "CreatedSince"},
                   {"CREATED BY", "CreatedBy"},
                   {"SIZE", "Size"},
                   {"COMMENT", "Comment"},
                   {"", "CreatedAt"}});
  // The newest first; layers belong to the steps that are not empty.
  struct Row {
    const oci::History* step;
    const oci::Descriptor* layer;
  };
  std::vector<Row> rows;
  size_t next = 0;
  const std::vector<oci::Descriptor>& layers = info->manifest.layers;
  for (const oci::History& step : info->config.history) {
    const bool has_layer = !step.empty_layer && next < layers.size();
    rows.push_back({&step, has_layer ? &layers[next++] : nullptr});
  }
  static const oci::History* const unknown = new oci::History();
  for (; next < layers.size(); ++next) rows.push_back({unknown, &layers[next]});
  for (auto row = rows.rbegin(); row != rows.rend(); ++row) {
    std::string id = "<none>";
    if (row->layer != nullptr) {
      id = row->layer->digest.str();
      if (!options.no_trunc) id = row->layer->digest.hex().substr(0, 12);
    }
    if (options.quiet) {
      std::printf("%s\n", id.c_str());
      continue;
    }
    std::string since = "N/A";
    absl::Time when;
    if (absl::ParseTime(absl::RFC3339_full, row->step->created, &when,
                        nullptr)) {
      since = HumanDuration(absl::Now() - when) + " ago";
    }
    std::string by = Printable(row->step->created_by);
    if (!options.no_trunc) by = Shorten(by, kCreatedByColumns);
    const int64_t bytes = row->layer == nullptr ? 0 : row->layer->size_bytes;
    listing.Add({id, since, by, HumanBytes(static_cast<double>(bytes)),
                 Printable(row->step->comment), row->step->created});
  }
  if (options.quiet) return kExitOk;
  const absl::StatusOr<std::string> text = listing.Render(options.format);
  if (!text.ok()) return Report(text.status(), kExitUsage);
  std::fputs(text->c_str(), stdout);
  return kExitOk;
}

struct PruneOptions {
  bool all = false;
  bool force = false;
  std::vector<std::string> filters;
};

// The filters of `image prune`: until=TIME, label=K[=V], label!=K[=V],
// dangling=false (the same as -a).
struct PruneRules {
  bool all = false;
  absl::Time until = absl::InfiniteFuture();
  std::vector<std::pair<std::string, bool>> labels;  // Wanted, or unwanted.

  static absl::StatusOr<PruneRules> Parse(const PruneOptions& options) {
    PruneRules rules;
    rules.all = options.all;
    for (const std::string& filter : options.filters) {
      const size_t at = filter.find('=');
      std::string key = filter.substr(0, at);
      const std::string value =
          at == std::string::npos ? "" : filter.substr(at + 1);
      const bool negated = absl::EndsWith(key, "!");
      if (negated) key.pop_back();
      if (key == "until" && !negated && !value.empty()) {
        ASSIGN_OR_RETURN(rules.until, ParseWhen(value, absl::Now()));
      } else if (key == "label" && !value.empty()) {
        rules.labels.emplace_back(value, !negated);
      } else if (key == "dangling" && !negated &&
                 (value == "true" || value == "1")) {
        rules.all = false;
      } else if (key == "dangling" && !negated &&
                 (value == "false" || value == "0")) {
        rules.all = true;
      } else {
        return absl::InvalidArgumentError(absl::StrCat(
            "--filter '", filter,
            "': until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE] or "
            "dangling=BOOL"));
      }
    }
    return rules;
  }

  static bool HasLabel(const std::map<std::string, std::string>& have,
                       const std::string& wanted) {
    const size_t at = wanted.find('=');
    const auto found = have.find(wanted.substr(0, at));
    return found != have.end() &&
           (at == std::string::npos || found->second == wanted.substr(at + 1));
  }

  bool Matches(const ImageRecord& record,
               const oci::ImageConfig& config) const {
    const absl::Time made =
        absl::FromUnixSeconds(record.created_at().seconds());
    if (made > until) return false;
    std::map<std::string, std::string> have(record.labels().begin(),
                                            record.labels().end());
    have.insert(config.config.labels.begin(), config.config.labels.end());
    for (const auto& [label, wanted] : labels) {
      if (HasLabel(have, label) != wanted) return false;
    }
    if (all) return true;
    // Without a tag nobody finds it by name.
    const absl::StatusOr<oci::Reference> name = oci::ParseFull(record.name());
    return !name.ok() || name->tag.empty();
  }
};

int Prune(Session& session, const PruneOptions& options) {
  const absl::StatusOr<PruneRules> rules = PruneRules::Parse(options);
  if (!rules.ok()) return Report(rules.status(), kExitUsage);
  if (!options.force) {
    return Report(absl::InvalidArgumentError(absl::StrCat(
                      "this removes every image that no container uses and ",
                      rules->all ? "that the filters match" : "that has no tag",
                      " — give -f to do it")),
                  kExitUsage);
  }
  Client& client = session.client();
  const absl::StatusOr<std::vector<ImageRecord>> all = ListImages(client);
  if (!all.ok()) return Report(all.status());
  const absl::StatusOr<std::vector<ContainerRecord>> containers =
      ListContainers(client);
  if (!containers.ok()) return Report(containers.status());
  std::set<std::string> used;
  for (const ContainerRecord& container : *containers) {
    used.insert(container.image());
  }
  int code = kExitOk;
  for (const ImageRecord& image : *all) {
    if (used.count(image.name()) > 0) continue;
    const absl::StatusOr<ImageInfo> info =
        LoadImage(client, image, oci::HostPlatform());
    if (!rules->Matches(image, info.ok() ? info->config : oci::ImageConfig())) {
      continue;
    }
    images::DeleteImageRequest request;
    request.set_name(image.name());
    // A tag that was moved meanwhile stays.
    *request.mutable_target() = image.target();
    google::protobuf::Empty empty;
    const absl::Status status =
        client.Call(std::string(kImages) + "Delete", request, &empty);
    if (absl::IsNotFound(status)) continue;
    if (!status.ok()) {
      code = Report(status);
      continue;
    }
    std::printf("Untagged: %s\n",
                Printable(oci::FamiliarName(image.name())).c_str());
  }
  return code;
}

void DeclareHistory(Command& parent) {
  auto options = std::make_shared<HistoryOptions>();
  parent.Sub("history", "Show the steps an image was made in")
      .Flag("-q,--quiet", &options->quiet, "Only the layers' ids")
      .Flag("--no-trunc", &options->no_trunc, "Cut nothing")
      .Option("--format", &options->format, "json, or a template", "FORMAT")
      .Argument("IMAGE", &options->image, "Name or digest")
      .Complete(Completes::kImages)
      .Examples("  bulkhead history debian:12")
      .Does([options](Session& session) { return History(session, *options); });
}

}  // namespace

void AddImageGroup(Command& root) {
  DeclareHistory(root);
  Command group = root.Sub("image", "Manage images");
  DeclareImages(group, "ls");
  DeclarePull(group);
  DeclarePush(group);
  DeclareTag(group);
  DeclareRemoveImages(group, "rm");
  DeclareSave(group);
  DeclareLoad(group);
  DeclareHistory(group);
  DeclareInspect(group, Completes::kImages, "image");
  auto prune = std::make_shared<PruneOptions>();
  group.Sub("prune", "Remove images that no container uses")
      .Flag("-a,--all", &prune->all, "Those with a tag, too")
      .Flag("-f,--force", &prune->force, "Do it")
      .Option("--filter", &prune->filters,
              "until=TIME, label=KEY[=VALUE], label!=..., dangling=BOOL",
              "FILTER")
      .Examples(
          "  bulkhead image prune -f\n"
          "  bulkhead image prune -a -f --filter until=24h")
      .Does([prune](Session& session) { return Prune(session, *prune); });
}

}  // namespace bulkhead::cli
