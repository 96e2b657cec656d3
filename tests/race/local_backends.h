// Metadata's backends as plain objects in this process: the real content store
// and the real snapshotter, without sockets, so that sanitizers see all of it.
#ifndef BULKHEAD_TESTS_RACE_LOCAL_BACKENDS_H_
#define BULKHEAD_TESTS_RACE_LOCAL_BACKENDS_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/status_macros.h"
#include "services/content/fs_store.h"
#include "services/metadata/content_backend.h"
#include "services/metadata/snapshot_backend.h"
#include "services/snapshotter/snapshotter.h"

namespace bulkhead::race {

// Borrows the store.
class LocalContent final : public metadata::ContentBackend {
 public:
  explicit LocalContent(content::FsStore* store) : store_(*store) {}

  absl::StatusOr<int64_t> Size(const std::string& digest) override {
    ASSIGN_OR_RETURN(const Digest parsed, Digest::Parse(digest));
    ASSIGN_OR_RETURN(const content::BlobInfo info, store_.Info(parsed));
    return info.size_bytes;
  }
  absl::StatusOr<std::unique_ptr<metadata::BackendBlob>> Open(
      const std::string& digest) override {
    ASSIGN_OR_RETURN(const Digest parsed, Digest::Parse(digest));
    ASSIGN_OR_RETURN(std::unique_ptr<content::BlobReader> blob,
                     store_.OpenBlob(parsed));
    return std::unique_ptr<metadata::BackendBlob>(
        std::make_unique<Blob>(std::move(blob)));
  }
  absl::Status ListBlobs(const std::function<void(const std::string&, int64_t)>&
                             visitor) override {
    return store_.List([&](const content::BlobInfo& info) {
      visitor(info.digest.str(), info.size_bytes);
      return absl::OkStatus();
    });
  }
  absl::Status Delete(const std::string& digest) override {
    ASSIGN_OR_RETURN(const Digest parsed, Digest::Parse(digest));
    return store_.Delete(parsed);
  }
  absl::StatusOr<metadata::BackendIngest> Status(
      const std::string& ref) override {
    ASSIGN_OR_RETURN(const content::IngestInfo info, store_.Status(ref));
    return FromInfo(info);
  }
  absl::StatusOr<std::vector<metadata::BackendIngest>> ListIngests() override {
    ASSIGN_OR_RETURN(const std::vector<content::IngestInfo> infos,
                     store_.ListStatuses());
    std::vector<metadata::BackendIngest> all;
    for (const content::IngestInfo& info : infos) all.push_back(FromInfo(info));
    return all;
  }
  absl::Status Abort(const std::string& ref) override {
    return store_.Abort(ref);
  }
  absl::StatusOr<std::unique_ptr<metadata::BackendWriter>> OpenWriter(
      const std::string& ref, int64_t total_bytes) override {
    ASSIGN_OR_RETURN(std::unique_ptr<content::FsWriter> writer,
                     store_.OpenFsWriter({ref, total_bytes, {}}));
    ASSIGN_OR_RETURN(const content::IngestInfo info, writer->Info());
    return std::unique_ptr<metadata::BackendWriter>(
        std::make_unique<Writer>(std::move(writer), info));
  }

 private:
  static metadata::BackendIngest FromInfo(const content::IngestInfo& info) {
    return {info.ref, info.offset_bytes, info.total_bytes, info.started_at,
            info.updated_at};
  }

  class Blob final : public metadata::BackendBlob {
   public:
    explicit Blob(std::unique_ptr<content::BlobReader> blob)
        : blob_(std::move(blob)) {}
    int64_t size_bytes() const override { return blob_->size_bytes(); }
    int fd() const override { return -1; }
    absl::Status Read(
        int64_t offset_bytes, int64_t size_bytes, size_t piece_bytes_max,
        const std::function<bool(std::string& piece)>& sink) override {
      std::string piece;
      while (size_bytes > 0) {
        RETURN_IF_ERROR(blob_->ReadAt(
            offset_bytes,
            std::min(size_bytes, static_cast<int64_t>(piece_bytes_max)),
            &piece));
        if (piece.empty()) return absl::DataLossError("short");
        const auto n = static_cast<int64_t>(piece.size());
        if (!sink(piece)) return absl::OkStatus();
        offset_bytes += n;
        size_bytes -= n;
      }
      return absl::OkStatus();
    }

   private:
    const std::unique_ptr<content::BlobReader> blob_;
  };

  class Writer final : public metadata::BackendWriter {
   public:
    Writer(std::unique_ptr<content::FsWriter> writer,
           const content::IngestInfo& info)
        : writer_(std::move(writer)) {
      opened_.offset_bytes = info.offset_bytes;
      opened_.total_bytes = info.total_bytes;
      opened_.started_at_ns = absl::ToUnixNanos(info.started_at);
      opened_.updated_at_ns = absl::ToUnixNanos(info.updated_at);
    }
    const dataplane::IngestState& opened() const override { return opened_; }
    int fd() const override { return -1; }
    absl::Status Append(int64_t, const std::string& data) override {
      return writer_->Append(data);
    }
    absl::Status Advance(int64_t offset_bytes) override {
      return writer_->Advance(offset_bytes);
    }
    absl::Status Truncate(int64_t offset_bytes) override {
      return writer_->Truncate(offset_bytes);
    }
    absl::StatusOr<std::string> DigestSoFar() override {
      ASSIGN_OR_RETURN(const Digest digest, writer_->DigestSoFar());
      return digest.str();
    }
    absl::StatusOr<dataplane::CommitResult> Commit(
        int64_t size_bytes, const std::string& expected) override {
      content::CommitOptions options;
      options.size_bytes = std::max<int64_t>(size_bytes, 0);
      options.exact_size = size_bytes >= 0;
      if (!expected.empty()) {
        ASSIGN_OR_RETURN(options.expected, Digest::Parse(expected));
      }
      ASSIGN_OR_RETURN(const content::BlobInfo info, writer_->Commit(options));
      return dataplane::CommitResult{info.digest.str(), info.size_bytes};
    }
    absl::Status Abort() override { return writer_->Abort(); }

   private:
    const std::unique_ptr<content::FsWriter> writer_;
    dataplane::IngestState opened_;
  };

  content::FsStore& store_;
};

// Borrows the snapshotter.
class LocalSnapshots final : public metadata::SnapshotBackend {
 public:
  explicit LocalSnapshots(snapshotter::Snapshotter* trees) : trees_(*trees) {}

  absl::StatusOr<metadata::Mounts> Prepare(
      const std::string& key, const std::string& parent,
      const metadata::LabelMap& labels) override {
    return Mounted(trees_.Prepare(key, parent, ToLabels(labels)));
  }
  absl::StatusOr<metadata::Mounts> View(
      const std::string& key, const std::string& parent,
      const metadata::LabelMap& labels) override {
    return Mounted(trees_.View(key, parent, ToLabels(labels)));
  }
  absl::StatusOr<metadata::Mounts> MountsOf(const std::string& key) override {
    return Mounted(trees_.Mounts(key));
  }
  absl::Status Commit(const std::string& name, const std::string& key,
                      const std::string& parent,
                      const metadata::LabelMap& labels) override {
    return trees_.Commit(name, key, ToLabels(labels), parent);
  }
  absl::Status Remove(const std::string& key) override {
    return trees_.Remove(key);
  }
  absl::StatusOr<metadata::snapshots_v1::Info> Stat(
      const std::string& key) override {
    ASSIGN_OR_RETURN(const snapshotter::SnapshotInfo info, trees_.Stat(key));
    return FromInfo(info);
  }
  absl::Status Update(const metadata::snapshots_v1::Info& info,
                      const std::vector<std::string>& mask) override {
    return trees_.Update(info.name(), ToLabels(info.labels()), mask).status();
  }
  absl::Status List(
      const std::vector<std::string>&,
      const std::function<void(const metadata::snapshots_v1::Info&)>& visitor)
      override {
    return trees_.Walk([&](const snapshotter::SnapshotInfo& info) {
      visitor(FromInfo(info));
      return absl::OkStatus();
    });
  }
  absl::StatusOr<metadata::snapshots_v1::UsageResponse> Usage(
      const std::string&) override {
    return absl::UnimplementedError("nobody asks here");
  }
  absl::Status Cleanup() override { return trees_.Cleanup(); }

 private:
  static snapshotter::Labels ToLabels(const metadata::LabelMap& labels) {
    return {labels.begin(), labels.end()};
  }
  static metadata::snapshots_v1::Info FromInfo(
      const snapshotter::SnapshotInfo& info) {
    metadata::snapshots_v1::Info out;
    out.set_name(info.name);
    out.set_parent(info.parent);
    out.set_kind(static_cast<metadata::snapshots_v1::Kind>(info.kind));
    out.mutable_labels()->insert(info.labels.begin(), info.labels.end());
    return out;
  }
  static absl::StatusOr<metadata::Mounts> Mounted(
      const absl::StatusOr<std::vector<os::MountSpec>>& mounts) {
    RETURN_IF_ERROR(mounts.status());
    return metadata::Mounts(mounts->size());
  }

  snapshotter::Snapshotter& trees_;
};

}  // namespace bulkhead::race

#endif  // BULKHEAD_TESTS_RACE_LOCAL_BACKENDS_H_
