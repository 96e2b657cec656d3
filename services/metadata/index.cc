#include "services/metadata/index.h"

#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "proto/containerd/services/containers/v1/containers.pb.h"
#include "proto/containerd/services/content/v1/content.pb.h"
#include "proto/containerd/services/images/v1/images.pb.h"

namespace bulkhead::metadata {
namespace {

using containerd::services::containers::v1::Container;
using containerd::services::content::v1::Info;
using containerd::services::images::v1::Image;

constexpr char kIndexed[] = {kind::kImage, kind::kContainer, kind::kBlob};
// Nobody looks for these, and manifests have many.
constexpr char kUnindexedLabels[] = "containerd.io/gc.";
constexpr size_t kBuildStepMax = 10000;

bool IsIndexed(char kind) {
  for (const char each : kIndexed) {
    if (each == kind) return true;
  }
  return false;
}

// FNV-1a. What is stored depends on it: it must never change.
std::string Hash(std::string_view field, std::string_view value) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&hash](char c) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  };
  for (const char c : field) add(c);
  add('\0');
  for (const char c : value) add(c);
  return absl::StrFormat("%016x", hash);
}

std::string Entry(const std::string& ns, char kind, const std::string& field,
                  const std::string& value, const std::string& id) {
  return Key(kind::kIndex,
             {ns, std::string_view(&kind, 1), Hash(field, value), id});
}

// The name of the index that has the field at `path`; empty: none has.
std::string IndexOf(char kind, const filters::FieldPath& path) {
  if (path[0] == "labels" && path.size() > 1) {
    std::string label = absl::StrJoin(path.begin() + 1, path.end(), ".");
    if (absl::StartsWith(label, kUnindexedLabels)) return "";
    return "labels." + label;
  }
  if (kind == kind::kImage && path.size() == 2 && path[0] == "target" &&
      path[1] == "digest") {
    return "target.digest";
  }
  if (kind == kind::kContainer && path.size() == 1 && path[0] == "image") {
    return "image";
  }
  return "";
}

// The field that is the last component of a record's key.
const char* IdField(char kind) {
  switch (kind) {
    case kind::kImage:
      return "name";
    case kind::kBlob:
      return "digest";
    default:
      return "id";
  }
}

}  // namespace

std::set<std::string> IndexEntries(std::string_view key,
                                   std::string_view record) {
  std::set<std::string> entries;
  if (key.empty() || !IsIndexed(key[0])) return entries;
  const std::vector<std::string> parts = Split(key);
  const int size = static_cast<int>(record.size());
  const auto add = [&](const std::string& field, const std::string& value) {
    if (!value.empty()) {
      entries.insert(Entry(parts[0], key[0], field, value, parts[1]));
    }
  };
  const auto add_labels = [&](const auto& labels) {
    for (const auto& [label, value] : labels) {
      if (!absl::StartsWith(label, kUnindexedLabels)) {
        add("labels." + label, value);
      }
    }
  };
  if (key[0] == kind::kImage) {
    Image image;
    if (!image.ParseFromArray(record.data(), size)) return entries;
    add("target.digest", image.target().digest());
    add_labels(image.labels());
  } else if (key[0] == kind::kContainer) {
    Container container;
    if (!container.ParseFromArray(record.data(), size)) return entries;
    add("image", container.image());
    add_labels(container.labels());
  } else {
    Info info;
    if (!info.ParseFromArray(record.data(), size)) return entries;
    add_labels(info.labels());
  }
  return entries;
}

absl::Status AddIndexChanges(const Db& db, Batch* batch) {
  const size_t changes = batch->changes.size();
  for (size_t i = 0; i < changes; ++i) {
    const std::string key = batch->changes[i].first;
    if (!IsIndexed(key[0])) continue;
    ASSIGN_OR_RETURN(std::optional<std::string> before, db.Get(key));
    std::set<std::string> entries;
    const std::optional<std::string>& now = batch->changes[i].second;
    if (now.has_value()) entries = IndexEntries(key, *now);
    if (before.has_value()) {
      for (const std::string& entry : IndexEntries(key, *before)) {
        if (entries.erase(entry) == 0) batch->Delete(entry);
      }
    }
    for (const std::string& entry : entries) batch->Put(entry, "");
  }
  return absl::OkStatus();
}

std::string IndexedRecord(std::string_view entry) {
  const std::vector<std::string> parts = Split(entry);
  if (parts.size() != 4 || parts[1].size() != 1) return "";
  return Key(parts[1][0], {parts[0], parts[3]});
}

absl::StatusOr<std::optional<std::vector<std::string>>> Candidates(
    const Db& db, const Db::View* view, char kind, const std::string& ns,
    const filters::Filter& filter) {
  const std::optional<std::vector<std::string>> all;
  if (filter.matches_all()) return all;
  std::set<std::string> keys;
  for (const std::vector<filters::Filter::Equal>& row : filter.Equals()) {
    std::optional<std::set<std::string>> found;
    for (const filters::Filter::Equal& equal : row) {
      if (equal.path.size() != 1 || equal.path[0] != IdField(kind)) continue;
      found.emplace();
      if (equal.value.find('\0') == std::string::npos) {
        found->insert(Key(kind, {ns, equal.value}));
      }
      break;
    }
    // The first of its fields that not too many records share.
    for (size_t i = 0; i < row.size() && !found.has_value(); ++i) {
      const std::string index =
          IsIndexed(kind) ? IndexOf(kind, row[i].path) : "";
      if (index.empty()) continue;
      found.emplace();
      RETURN_IF_ERROR(db.Scan(
          Prefix(kind::kIndex,
                 {ns, std::string_view(&kind, 1), Hash(index, row[i].value)}),
          [&found](std::string_view entry, std::string_view) {
            found->insert(IndexedRecord(entry));
            return found->size() <= kCandidatesMax;
          },
          view));
      if (found->size() > kCandidatesMax) found.reset();
    }
    if (!found.has_value()) return all;
    keys.merge(*found);
    if (keys.size() > kCandidatesMax) return all;
  }
  return std::make_optional(std::vector<std::string>(keys.begin(), keys.end()));
}

absl::Status BuildIndex(Db& db) {
  Batch step;
  absl::Status written;
  for (const char kind : kIndexed) {
    RETURN_IF_ERROR(db.Scan(
        Prefix(kind, {}), [&](std::string_view key, std::string_view record) {
          for (const std::string& entry : IndexEntries(key, record)) {
            step.Put(entry, "");
          }
          if (step.changes.size() < kBuildStepMax) return true;
          written = db.Write(step, /*sync=*/false);
          step.changes.clear();
          return written.ok();
        }));
    RETURN_IF_ERROR(written);
  }
  // The write of the new version number syncs what was written here.
  return db.Write(step, /*sync=*/false);
}

std::vector<Migration> Migrations() {
  std::vector<Migration> all;
  all.push_back({1, [](Db& db, Batch*) { return BuildIndex(db); }});
  return all;
}

}  // namespace bulkhead::metadata
