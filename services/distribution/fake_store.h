// A Store in memory, for tests: blobs, their labels, image records.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_FAKE_STORE_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_FAKE_STORE_H_

#include <sys/mman.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "services/distribution/store.h"

namespace bulkhead::distribution {

// Not thread-safe. Ingests are not resumed; nothing is ever locked.
class FakeStore : public Store {
 public:
  struct Blob {
    std::string bytes;
    Labels labels;
  };
  std::map<std::string, Blob> blobs;  // By digest.
  std::map<std::string, ImageRecord> images;

  std::string Add(const std::string& bytes, const Labels& labels = {}) {
    const std::string digest = Digest::Of(bytes).str();
    blobs[digest] = {bytes, labels};
    return digest;
  }

  absl::StatusOr<std::unique_ptr<dataplane::Ingest>> OpenIngest(
      const std::string&, int64_t, const std::string& expected) override {
    if (blobs.count(expected) > 0) return absl::AlreadyExistsError(expected);
    return std::make_unique<FakeIngest>(this);
  }

  absl::StatusOr<dataplane::OpenedBlob> Open(
      const std::string& digest) override {
    const auto found = blobs.find(digest);
    if (found == blobs.end()) return absl::NotFoundError(digest);
    const std::string& bytes = found->second.bytes;
    dataplane::OpenedBlob out{os::UniqueFd(memfd_create("blob", MFD_CLOEXEC)),
                              static_cast<int64_t>(bytes.size())};
    RETURN_IF_ERROR(
        os::PWriteFull(out.fd.get(), bytes.data(), bytes.size(), 0));
    return out;
  }

  absl::StatusOr<Labels> BlobLabels(const std::string& digest) override {
    const auto found = blobs.find(digest);
    if (found == blobs.end()) return absl::NotFoundError(digest);
    return found->second.labels;
  }

  absl::StatusOr<std::map<std::string, Digest>> FindByLabel(
      const std::string& key, const std::vector<std::string>& values) override {
    std::map<std::string, Digest> out;
    for (const auto& [digest, blob] : blobs) {
      const auto label = blob.labels.find(key);
      if (label == blob.labels.end()) continue;
      for (const std::string& value : values) {
        if (label->second == value) out.emplace(value, *Digest::Parse(digest));
      }
    }
    return out;
  }

  absl::Status SetBlobLabels(const std::string& digest,
                             const Labels& labels) override {
    const auto found = blobs.find(digest);
    if (found == blobs.end()) return absl::NotFoundError(digest);
    for (const auto& [key, value] : labels) found->second.labels[key] = value;
    return absl::OkStatus();
  }

  absl::StatusOr<ImageRecord> GetImage(const std::string& name) override {
    const auto found = images.find(name);
    if (found == images.end()) return absl::NotFoundError(name);
    return found->second;
  }

  absl::StatusOr<std::vector<ImageRecord>> ListImages(
      const std::string& prefix) override {
    std::vector<ImageRecord> out;
    for (const auto& [name, image] : images) {
      if (HasNamePrefix(name, prefix)) out.push_back(image);
    }
    return out;
  }

  absl::Status PutImage(const ImageRecord& image) override {
    images[image.name] = image;
    return absl::OkStatus();
  }

  // Without a snapshotter.
  absl::Status StatSnapshot(const std::string&, const std::string&) override {
    return absl::UnimplementedError("snapshots");
  }
  absl::StatusOr<std::vector<dataplane::Mount>> Prepare(
      const std::string&, const std::string&, const std::string&,
      const Labels&) override {
    return absl::UnimplementedError("snapshots");
  }
  absl::Status Commit(const std::string&, const std::string&,
                      const std::string&, const std::string&,
                      const Labels&) override {
    return absl::UnimplementedError("snapshots");
  }
  absl::Status RemoveSnapshot(const std::string&, const std::string&) override {
    return absl::UnimplementedError("snapshots");
  }
  absl::StatusOr<std::unique_ptr<dataplane::ApplySession>> StartApply(
      const dataplane::ApplyRequest&, int) override {
    return absl::UnimplementedError("diff");
  }
  absl::StatusOr<dataplane::Applied> Apply(
      const oci::Descriptor&, const std::vector<dataplane::Mount>&) override {
    return absl::UnimplementedError("diff");
  }

 private:
  class FakeIngest : public dataplane::Ingest {
   public:
    explicit FakeIngest(FakeStore* store)
        : store_(store), fd_(memfd_create("ingest", MFD_CLOEXEC)) {}
    int fd() const override { return fd_.get(); }
    const dataplane::IngestState& opened() const override { return state_; }
    absl::Status Advance(int64_t) override { return absl::OkStatus(); }
    absl::Status Truncate(int64_t) override { return absl::OkStatus(); }
    absl::StatusOr<std::string> DigestSoFar() override { return ""; }
    absl::Status Abort() override { return absl::OkStatus(); }
    absl::StatusOr<dataplane::CommitResult> Commit(
        int64_t size, const std::string& expected,
        const std::map<std::string, std::string>& labels) override {
      std::string bytes(static_cast<size_t>(size), '\0');
      ASSIGN_OR_RETURN(const size_t got,
                       os::PReadFull(fd_.get(), bytes.data(), bytes.size(), 0));
      const std::string digest = Digest::Of(bytes).str();
      if (got != bytes.size() || (!expected.empty() && digest != expected)) {
        return absl::FailedPreconditionError("wrong size or digest");
      }
      if (store_->blobs.count(digest) > 0) {
        return absl::AlreadyExistsError(digest);
      }
      store_->Add(bytes, labels);
      return dataplane::CommitResult{digest, size};
    }

   private:
    FakeStore* const store_;
    os::UniqueFd fd_;
    dataplane::IngestState state_;
  };
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_FAKE_STORE_H_
