#include "services/metadata/fsck.h"

#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "absl/strings/match.h"
#include "lib/digest/digest.h"
#include "proto/containerd/services/containers/v1/containers.pb.h"
#include "proto/containerd/services/images/v1/images.pb.h"
#include "proto/containerd/services/leases/v1/leases.pb.h"
#include "proto/containerd/types/sandbox.pb.h"
#include "services/metadata/index.h"

namespace bulkhead::metadata {
namespace {

using containerd::services::containers::v1::Container;
using containerd::services::images::v1::Image;
using containerd::services::leases::v1::Lease;
using containerd::types::Sandbox;

constexpr char kContentLabel[] = "containerd.io/gc.ref.content";

class Checker {
 public:
  Checker(Store& store, Content& content, Snapshots& snapshots,
          const CheckOptions& options,
          const std::function<bool(const Finding&)>& report)
      : store_(store),
        content_(content),
        snapshots_(snapshots),
        options_(options),
        report_(report) {}

  absl::StatusOr<CheckTotals> Run() {
    RETURN_IF_ERROR(Records());
    RETURN_IF_ERROR(SetAsides());
    RETURN_IF_ERROR(MissingEntries());
    RETURN_IF_ERROR(StaleEntries());
    RETURN_IF_ERROR(Blobs());
    for (const std::string& name : snapshots_.names()) {
      RETURN_IF_ERROR(CheckSnapshotter(name));
    }
    RETURN_IF_ERROR(References());
    return totals_;
  }

 private:
  absl::Status Report(Severity severity, const std::string& key,
                      const std::string& text,
                      const std::string& repaired = "") {
    if (report_({severity, key, text, repaired})) return absl::OkStatus();
    return absl::CancelledError("nobody listens");
  }

  // Scanning sets aside what does not parse.
  template <typename Record>
  absl::Status Count(char kind) {
    return store_.Scan<Record>(
        Prefix(kind, {}), [this](const std::vector<std::string>&, Record&) {
          ++totals_.records;
          return true;
        });
  }
  absl::Status Records() {
    RETURN_IF_ERROR(Count<Image>(kind::kImage));
    RETURN_IF_ERROR(Count<Container>(kind::kContainer));
    RETURN_IF_ERROR(Count<Sandbox>(kind::kSandbox));
    RETURN_IF_ERROR(Count<Lease>(kind::kLease));
    RETURN_IF_ERROR(Count<IngestRecord>(kind::kIngest));
    RETURN_IF_ERROR(Count<content_v1::Info>(kind::kBlob));
    return Count<SnapshotRecord>(kind::kSnapshot);
  }

  absl::Status SetAsides() {
    std::vector<std::string> keys;
    RETURN_IF_ERROR(
        store_.db().Scan(Prefix(kind::kDamaged, {}),
                         [&](std::string_view key, std::string_view) {
                           keys.emplace_back(key);
                           return true;
                         }));
    Batch batch;
    for (const std::string& key : keys) {
      const std::string original = key.substr(2);
      batch.Delete(key);
      RETURN_IF_ERROR(Report(
          Severity::kDamaged, original,
          "the record was damaged and is set aside; collections spare its "
          "namespace",
          options_.repair ? "dropped: create, pull or tag it again" : ""));
    }
    if (!options_.repair || keys.empty()) return absl::OkStatus();
    return store_.db().Write(batch, /*sync=*/true);
  }

  // --- the index of fields ---

  // Records that a listing by a field would not find.
  absl::Status MissingEntries() {
    std::set<std::string> suspects;
    for (const char kind : {kind::kImage, kind::kContainer, kind::kBlob}) {
      absl::Status error;
      RETURN_IF_ERROR(store_.db().Scan(
          Prefix(kind, {}), [&](std::string_view key, std::string_view value) {
            for (const std::string& entry : IndexEntries(key, value)) {
              const absl::StatusOr<bool> there = Exists(entry);
              error = there.status();
              if (!error.ok()) return false;
              if (!*there) suspects.emplace(key);
            }
            return true;
          }));
      RETURN_IF_ERROR(error);
    }
    for (const std::string& key : suspects) {
      Txn txn(store_, Split(key)[0], {key});
      ASSIGN_OR_RETURN(std::optional<std::string> now, store_.db().Get(key));
      bool missing = false;
      for (const std::string& entry : IndexEntries(key, now.value_or(""))) {
        ASSIGN_OR_RETURN(const bool there, Exists(entry));
        if (there) continue;
        missing = true;
        txn.PutEmpty(entry);
      }
      if (!missing) continue;  // It was being written.
      if (options_.repair) RETURN_IF_ERROR(txn.Commit());
      RETURN_IF_ERROR(Report(Severity::kDamaged, key,
                             "an index entry of a field is missing",
                             options_.repair ? "written again" : ""));
    }
    return absl::OkStatus();
  }

  // Entries that no record has: listings skip them.
  absl::Status StaleEntries() {
    const auto stale = [this](const std::string& entry) {
      const std::string key = IndexedRecord(entry);
      const auto record = store_.db().Get(key);
      return record.ok() && (!record->has_value() ||
                             !IndexEntries(key, **record).contains(entry));
    };
    std::vector<std::string> suspects;
    RETURN_IF_ERROR(
        store_.db().Scan(Prefix(kind::kIndex, {}),
                         [&](std::string_view entry, std::string_view) {
                           if (stale(std::string(entry)))
                             suspects.emplace_back(entry);
                           return true;
                         }));
    for (const std::string& entry : suspects) {
      const std::string key = IndexedRecord(entry);
      Txn txn(store_, "", {key});
      if (!stale(entry)) continue;
      if (options_.repair) {
        txn.Delete(entry);
        RETURN_IF_ERROR(txn.Commit());
      }
      RETURN_IF_ERROR(Report(Severity::kDamaged, key,
                             "an index entry names a value that it has not",
                             options_.repair ? "dropped" : ""));
    }
    return absl::OkStatus();
  }

  // --- blobs ---

  absl::Status Blobs() {
    std::unordered_map<std::string, int64_t> stored;
    RETURN_IF_ERROR(content_.backend().ListBlobs(
        [&stored](const std::string& digest, int64_t size_bytes) {
          stored[digest] = size_bytes;
        }));
    std::map<std::string, std::vector<std::string>> named;  // To namespaces.
    std::map<std::string, int64_t> sizes;
    RETURN_IF_ERROR(store_.Scan<content_v1::Info>(
        Prefix(kind::kBlob, {}),
        [&](const std::vector<std::string>& key, content_v1::Info& info) {
          named[key[1]].push_back(key[0]);
          sizes[key[1]] = info.size();
          return true;
        }));
    for (const auto& [digest, namespaces] : named) {
      const std::string fault = content_.FaultOf(
          digest, sizes[digest], options_.bytes, &totals_.bytes);
      ++totals_.blobs;
      if (fault.empty()) continue;
      std::string repaired;
      if (options_.repair) {
        const absl::Status status = content_.Forget(digest, namespaces);
        repaired = status.ok() ? "dropped with its records: pull it again"
                               : absl::StrCat("failed: ", MessageOf(status));
      }
      for (const std::string& ns : namespaces) {
        RETURN_IF_ERROR(Report(Severity::kDamaged,
                               Key(kind::kBlob, {ns, digest}), fault,
                               repaired));
      }
    }
    for (const auto& [digest, size] : stored) {
      if (named.contains(digest)) continue;
      unnamed_[digest] = size;
      RETURN_IF_ERROR(
          Report(Severity::kNote, Key(kind::kBlob, {"", digest}),
                 absl::StrCat("no namespace names this blob of ", size,
                              " bytes; a collection removes it")));
    }
    return absl::OkStatus();
  }

  // --- snapshots ---

  absl::Status CheckSnapshotter(const std::string& name) {
    std::unordered_set<std::string> stored;
    RETURN_IF_ERROR(snapshots_.Settle(name));
    absl::StatusOr<SnapshotBackend*> backend = snapshots_.Find(name);
    RETURN_IF_ERROR(backend.status());
    // Records first: what is made meanwhile is in the backend then.
    std::unordered_map<std::string, std::string> records;  // Backend key: key.
    std::vector<std::pair<std::string, SnapshotRecord>> all;
    RETURN_IF_ERROR(store_.Scan<SnapshotRecord>(
        Prefix(kind::kSnapshot, {}),
        [&](const std::vector<std::string>& parts, SnapshotRecord& record) {
          if (parts[1] != name) return true;
          const std::string key =
              Key(kind::kSnapshot, {parts[0], parts[1], parts[2]});
          records[record.backend_key()] = key;
          all.emplace_back(key, std::move(record));
          return true;
        }));
    const absl::Status listed =
        (*backend)->List({}, [&stored](const snapshots_v1::Info& info) {
          stored.insert(info.name());
        });
    if (!listed.ok()) {
      return Report(Severity::kNote, "",
                    absl::StrCat("snapshotter ", name,
                                 " was not checked: ", MessageOf(listed)));
    }
    for (const auto& [key, record] : all) {
      ++totals_.snapshots;
      RETURN_IF_ERROR(CheckIndex(key, record));
      if (stored.contains(record.backend_key())) continue;
      RETURN_IF_ERROR(LostSnapshot(name, key, record));
    }
    for (const std::string& backend_key : stored) {
      if (records.contains(backend_key)) continue;
      ASSIGN_OR_RETURN(
          const bool used,
          store_.Any(Prefix(kind::kSnapshotBackend, {name, backend_key})));
      if (used) continue;  // Made meanwhile.
      RETURN_IF_ERROR(Report(
          Severity::kNote, "",
          absl::StrCat("snapshotter ", name, " has ", backend_key,
                       ", which no record names; a collection removes it")));
    }
    return absl::OkStatus();
  }

  absl::Status CheckIndex(const std::string& key,
                          const SnapshotRecord& record) {
    const std::vector<std::string> parts = Split(key);
    std::vector<std::string> wanted = {
        Key(kind::kSnapshotBackend,
            {parts[1], record.backend_key(), parts[0], parts[2]})};
    if (!record.parent().empty()) {
      wanted.push_back(Key(kind::kSnapshotChild,
                           {parts[0], parts[1], record.parent(), parts[2]}));
    }
    for (const std::string& index : wanted) {
      Txn txn(store_, parts[0], {key});
      ASSIGN_OR_RETURN(const bool there, txn.Has(index));
      ASSIGN_OR_RETURN(const bool still, txn.Has(key));
      if (there || !still) continue;
      if (options_.repair) {
        txn.PutEmpty(index);
        RETURN_IF_ERROR(txn.Commit());
      }
      RETURN_IF_ERROR(Report(Severity::kDamaged, key,
                             "an index entry of the snapshot is missing",
                             options_.repair ? "written again" : ""));
    }
    return absl::OkStatus();
  }

  absl::Status LostSnapshot(const std::string& name, const std::string& key,
                            const SnapshotRecord& record) {
    const std::vector<std::string> parts = Split(key);
    ASSIGN_OR_RETURN(std::optional<SnapshotRecord> now,
                     store_.Get<SnapshotRecord>(key));
    if (!now.has_value() || now->backend_key() != record.backend_key()) {
      return absl::OkStatus();  // Removed meanwhile.
    }
    bool used = false;
    RETURN_IF_ERROR(store_.Scan<Container>(
        Prefix(kind::kContainer, {parts[0]}),
        [&](const std::vector<std::string>&, Container& container) {
          used = container.snapshotter() == name &&
                 container.snapshot_key() == parts[2];
          return !used;
        }));
    std::string repaired;
    if (options_.repair && !used) {
      const absl::Status status =
          snapshots_.Remove({parts[0], "", name}, parts[2]);
      if (status.ok()) repaired = "record dropped: unpack the image again";
    }
    return Report(used ? Severity::kLost : Severity::kDamaged, key,
                  used ? "the snapshotter has lost it, and a container uses it"
                       : "the snapshotter has lost it",
                  repaired);
  }

  // --- references ---

  absl::StatusOr<bool> Exists(const std::string& key) {
    ASSIGN_OR_RETURN(std::optional<std::string> value, store_.db().Get(key));
    return value.has_value();
  }

  absl::Status References() {
    std::vector<std::pair<std::string, std::string>> targets;  // Image, blob.
    std::vector<std::pair<std::string, std::string>> snapshots;
    RETURN_IF_ERROR(store_.Scan<Image>(
        Prefix(kind::kImage, {}),
        [&](const std::vector<std::string>& key, Image& image) {
          targets.emplace_back(
              Key(kind::kImage, {key[0], key[1]}),
              Key(kind::kBlob, {key[0], image.target().digest()}));
          return true;
        }));
    RETURN_IF_ERROR(store_.Scan<Container>(
        Prefix(kind::kContainer, {}),
        [&](const std::vector<std::string>& key, Container& container) {
          if (!container.snapshot_key().empty()) {
            snapshots.emplace_back(
                Key(kind::kContainer, {key[0], key[1]}),
                Key(kind::kSnapshot, {key[0], container.snapshotter(),
                                      container.snapshot_key()}));
          }
          return true;
        }));
    // Blobs that only labels refer to: as after a transfer that was cut short
    // between the blob and its record, so no damage in itself.
    std::set<std::string> labelled;
    std::vector<std::string> rebuild;
    RETURN_IF_ERROR(store_.Scan<content_v1::Info>(
        Prefix(kind::kBlob, {}),
        [&](const std::vector<std::string>& key, content_v1::Info& info) {
          for (const auto& [label, value] : info.labels()) {
            if (absl::StartsWith(label, kContentLabel) &&
                unnamed_.contains(value)) {
              labelled.insert(Key(kind::kBlob, {key[0], value}));
            }
          }
          return true;
        }));
    for (const auto& [image, blob] : targets) {
      ASSIGN_OR_RETURN(const bool there, Exists(blob));
      if (there) continue;
      ASSIGN_OR_RETURN(const bool still, Exists(image));
      if (!still) continue;
      if (unnamed_.contains(Split(blob)[1])) {
        rebuild.push_back(blob);
        labelled.erase(blob);
        continue;
      }
      RETURN_IF_ERROR(Report(Severity::kLost, image,
                             absl::StrCat("its target ", Split(blob)[1],
                                          " is missing: pull it again")));
    }
    for (const std::string& blob : rebuild) {
      RETURN_IF_ERROR(RebuildBlob(blob, Severity::kDamaged));
    }
    for (const std::string& blob : labelled) {
      RETURN_IF_ERROR(RebuildBlob(blob, Severity::kNote));
    }
    for (const auto& [container, snapshot] : snapshots) {
      ASSIGN_OR_RETURN(const bool there, Exists(snapshot));
      ASSIGN_OR_RETURN(const bool still, Exists(container));
      if (there || !still) continue;
      RETURN_IF_ERROR(Report(
          Severity::kLost, container,
          absl::StrCat("its snapshot ", Split(snapshot)[2], " is missing")));
    }
    return absl::OkStatus();
  }

  absl::Status RebuildBlob(const std::string& key, Severity severity) {
    const std::vector<std::string> parts = Split(key);
    std::string repaired;
    if (options_.repair) {
      const absl::Status status = content_.Rebuild(parts[0], parts[1]);
      repaired = status.ok() ? "record written again"
                             : absl::StrCat("failed: ", MessageOf(status));
    }
    return Report(severity, key,
                  "the blob is there and referred to, but has no record",
                  repaired);
  }

  Store& store_;
  Content& content_;
  Snapshots& snapshots_;
  const CheckOptions options_;
  const std::function<bool(const Finding&)>& report_;
  CheckTotals totals_;
  std::unordered_map<std::string, int64_t> unnamed_;  // Blobs without records.
};

}  // namespace

absl::StatusOr<CheckTotals> CheckAll(
    Store& store, Content& content, Snapshots& snapshots,
    const CheckOptions& options,
    const std::function<bool(const Finding&)>& report) {
  return Checker(store, content, snapshots, options, report).Run();
}

}  // namespace bulkhead::metadata
