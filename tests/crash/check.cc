// What is true afterwards: the second half of Client.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/rpc/status.h"
#include "lib/testing/temp_dir.h"
#include "tests/crash/client.h"

namespace bulkhead::crash {
namespace {

namespace containers_v1 = containerd::services::containers::v1;
namespace content_v1 = containerd::services::content::v1;
namespace images_v1 = containerd::services::images::v1;
namespace leases_v1 = containerd::services::leases::v1;
namespace snapshots_v1 = containerd::services::snapshots::v1;
using google::protobuf::Empty;

constexpr absl::Duration kSlow = absl::Seconds(1);  // Worth a line.

}  // namespace

std::vector<std::string> Client::Check() {
  std::vector<std::string> wrong;
  const auto timed = [&](const char* what,
                         void (Client::*check)(std::vector<std::string>*)) {
    const absl::Time began = absl::Now();
    (this->*check)(&wrong);
    const absl::Duration took = absl::Now() - began;
    if (took > kSlow) {
      std::printf("  %s: checking %s took %.1f s\n", ns_.c_str(), what,
                  absl::ToDoubleSeconds(took));
    }
  };
  timed("containers", &Client::CheckContainers);
  timed("leases", &Client::CheckLeases);
  timed("images", &Client::CheckImages);
  timed("blobs", &Client::CheckBlobs);
  timed("snapshots", &Client::CheckSnapshots);
  timed("ingests", &Client::CheckIngests);
  for (std::string& complaint : wrong) complaint = ns_ + ": " + complaint;
  return wrong;
}

void Client::CheckContainers(std::vector<std::string>* wrong) {
  containers_v1::ListContainersResponse all;
  const absl::Status listed = Ask([&](grpc::ClientContext* context) {
    return containers_stub_->List(context, {}, &all);
  });
  if (!listed.ok()) {
    wrong->push_back(absl::StrCat("list of containers: ", listed.ToString()));
    return;
  }
  std::map<std::string, const containers_v1::Container*> there;
  for (const auto& container : all.containers()) {
    there[container.id()] = &container;
    if (containers_.count(container.id()) == 0) {
      wrong->push_back(absl::StrCat("container ", container.id(),
                                    " was never created or is deleted"));
    }
  }
  for (auto it = containers_.begin(); it != containers_.end();) {
    auto& [id, container] = *it;
    const auto found = there.find(id);
    const bool is_there = found != there.end();
    if (container.known != Known::kUnknown &&
        is_there != (container.known == Known::kThere)) {
      wrong->push_back(
          absl::StrCat("container ", id, is_there ? " is back" : " is lost"));
    }
    if (!is_there) {
      it = containers_.erase(it);
      continue;
    }
    if (found->second->spec().value() != SpecOf(id) ||
        found->second->runtime().name() != "r") {
      wrong->push_back(absl::StrCat("container ", id, " is not whole"));
    }
    const auto label = found->second->labels().find("revision");
    const std::string revision =
        label == found->second->labels().end() ? "none" : label->second;
    if (revision != absl::StrCat(container.revision) &&
        revision != absl::StrCat(container.maybe_revision)) {
      wrong->push_back(absl::StrCat("container ", id, " has revision ",
                                    revision, " instead of ",
                                    container.revision));
    }
    container.known = Known::kThere;
    container.busy = false;
    container.revision = container.maybe_revision =
        std::max(0, std::atoi(revision.c_str()));
    ++it;
  }
}

void Client::CheckLeases(std::vector<std::string>* wrong) {
  leases_v1::ListResponse all;
  const absl::Status listed = Ask([&](grpc::ClientContext* context) {
    return leases_stub_->List(context, {}, &all);
  });
  if (!listed.ok()) {
    wrong->push_back(absl::StrCat("list of leases: ", listed.ToString()));
    return;
  }
  std::set<std::string> there;
  for (const auto& lease : all.leases()) there.insert(lease.id());
  for (auto it = leases_.begin(); it != leases_.end();) {
    auto& [id, known] = *it;
    const bool is_there = there.count(id) > 0;
    if (known != Known::kUnknown && is_there != (known == Known::kThere)) {
      wrong->push_back(absl::StrCat(id, is_there ? " is back" : " is lost"));
    }
    known = Known::kThere;
    it = is_there ? std::next(it) : leases_.erase(it);
  }
}

absl::Status Client::Read(const std::string& digest, std::string* data) const {
  return Ask([&](grpc::ClientContext* context) {
    content_v1::ReadContentRequest request;
    request.set_digest(digest);
    const auto stream = content_stub_->Read(context, request);
    content_v1::ReadContentResponse piece;
    data->clear();
    while (stream->Read(&piece)) *data += piece.data();
    return stream->Finish();
  });
}

void Client::CheckBlobs(std::vector<std::string>* wrong) {
  for (auto it = blobs_.begin(); it != blobs_.end();) {
    auto& [seed, blob] = *it;
    const Digest digest = DigestOf(seed);
    const std::string name =
        absl::StrCat("blob ", digest.str(), " (", seed, ", lease \"",
                     blob.lease, "\", image \"", blob.image, "\")");
    std::string data;
    const absl::Status read = Read(digest.str(), &data);
    if (!read.ok() && !absl::IsNotFound(read)) {
      wrong->push_back(absl::StrCat(name, ": ", read.ToString()));
      ++it;
      continue;
    }
    if (blob.known != Known::kUnknown &&
        read.ok() != (blob.known == Known::kThere)) {
      wrong->push_back(absl::StrCat(name, read.ok() ? " is back" : " is lost"));
    }
    if (read.ok() && data != DataOf(seed)) {
      wrong->push_back(absl::StrCat(name, " is damaged: ", data.size(),
                                    " bytes instead of ", DataOf(seed).size()));
    }
    // Was it this commit, or what a lease or an image had left?
    bool keep = read.ok();
    if (keep && blob.known == Known::kUnknown && blob.rooted) {
      const absl::StatusOr<bool> rooted = IsRooted(digest.str());
      if (!rooted.ok()) {
        wrong->push_back(absl::StrCat(name, ": ", rooted.status().ToString()));
      }
      keep = rooted.ok() && *rooted;
    }
    blob.known = Known::kThere;
    it = keep ? std::next(it) : blobs_.erase(it);
  }
}

absl::StatusOr<bool> Client::IsRooted(const std::string& digest) const {
  content_v1::InfoRequest request;
  request.set_digest(digest);
  content_v1::InfoResponse response;
  RETURN_IF_ERROR(Ask([&](grpc::ClientContext* context) {
    return content_stub_->Info(context, request, &response);
  }));
  return response.info().labels().count("containerd.io/gc.root") > 0;
}

absl::StatusOr<int> Client::KindOf(const std::string& snapshot) const {
  snapshots_v1::StatSnapshotRequest request;
  request.set_snapshotter("overlayfs");
  request.set_key(snapshot);
  snapshots_v1::StatSnapshotResponse response;
  RETURN_IF_ERROR(Ask([&](grpc::ClientContext* context) {
    return snapshots_stub_->Stat(context, request, &response);
  }));
  return response.info().kind();
}

void Client::CheckSnapshots(std::vector<std::string>* wrong) {
  std::map<std::string, bool> there;
  for (auto& [key, snapshot] : snapshots_) {
    const absl::StatusOr<int> kind = KindOf(key);
    if (!kind.ok() && !absl::IsNotFound(kind.status())) {
      wrong->push_back(
          absl::StrCat("snapshot ", key, ": ", kind.status().ToString()));
      return;
    }
    there[key] = kind.ok();
    if (snapshot.known != Known::kUnknown &&
        kind.ok() != (snapshot.known == Known::kThere)) {
      wrong->push_back(absl::StrCat("snapshot \"", key, "\"",
                                    kind.ok() ? " is back" : " is lost"));
    }
    if (!kind.ok()) continue;
    if (*kind != snapshot.kind) {
      wrong->push_back(
          absl::StrCat("snapshot \"", key, "\" has the kind ", *kind));
    }
    if (*kind == snapshots_v1::COMMITTED) continue;
    snapshots_v1::MountsRequest request;
    request.set_snapshotter("overlayfs");
    request.set_key(key);
    snapshots_v1::MountsResponse response;
    const absl::Status mounts = Ask([&](grpc::ClientContext* context) {
      return snapshots_stub_->Mounts(context, request, &response);
    });
    if (!mounts.ok()) {
      wrong->push_back(absl::StrCat("snapshot \"", key,
                                    "\" has no mounts: ", mounts.ToString()));
    }
  }
  for (auto it = snapshots_.begin(); it != snapshots_.end();) {
    const std::string& twin = it->second.twin;
    if (!twin.empty() && it->second.known == Known::kUnknown &&
        there[it->first] == there[twin]) {
      wrong->push_back(absl::StrCat("of the snapshots \"", it->first,
                                    "\" and \"", twin, "\" ",
                                    there[twin] ? "both are" : "neither is",
                                    " there after a commit without answer"));
      there[twin] = !there[twin];  // Said once.
    }
    ++it;
  }
  for (auto it = snapshots_.begin(); it != snapshots_.end();) {
    it->second.known = Known::kThere;
    it->second.twin.clear();
    it = there[it->first] ? std::next(it) : snapshots_.erase(it);
  }
}

absl::Status Client::Closure(const std::string& image,
                             std::set<std::string>* blobs,
                             std::set<std::string>* snapshots) const {
  images_v1::GetImageRequest request;
  request.set_name(image);
  images_v1::GetImageResponse response;
  RETURN_IF_ERROR(Ask([&](grpc::ClientContext* context) {
    return images_stub_->Get(context, request, &response);
  }));
  const auto read =
      [&](const std::string& digest) -> absl::StatusOr<std::string> {
    std::string data;
    const absl::Status status = Annotate(Read(digest, &data), digest);
    // Not kNotFound, which means that there is no such image.
    if (!status.ok()) return absl::DataLossError(status.ToString());
    if (Digest::Of(data).str() != digest) {
      return absl::DataLossError(absl::StrCat(digest, " is damaged"));
    }
    blobs->insert(digest);
    return data;
  };
  ASSIGN_OR_RETURN(const std::string manifest_text,
                   read(response.image().target().digest()));
  const auto manifest = nlohmann::json::parse(manifest_text, nullptr, false);
  ASSIGN_OR_RETURN(const std::string config_text,
                   read(manifest["config"]["digest"].get<std::string>()));
  for (const auto& layer : manifest["layers"]) {
    RETURN_IF_ERROR(read(layer["digest"].get<std::string>()).status());
  }
  const auto config = nlohmann::json::parse(config_text, nullptr, false);
  std::string chain;
  for (const auto& diff : config["rootfs"]["diff_ids"]) {
    const std::string id = diff.get<std::string>();
    chain = chain.empty() ? id : Digest::Of(absl::StrCat(chain, " ", id)).str();
    const absl::StatusOr<int> kind = KindOf(chain);
    if (!kind.ok() || *kind != snapshots_v1::COMMITTED) {
      return absl::DataLossError(
          absl::StrCat("snapshot ", chain, ": ", kind.status().ToString()));
    }
    snapshots->insert(chain);
  }
  return absl::OkStatus();
}

void Client::CheckImages(std::vector<std::string>* wrong) {
  images_v1::ListImagesResponse all;
  const absl::Status listed = Ask([&](grpc::ClientContext* context) {
    return images_stub_->List(context, {}, &all);
  });
  if (!listed.ok()) {
    wrong->push_back(absl::StrCat("list of images: ", listed.ToString()));
    return;
  }
  std::map<std::string, std::string> there;
  for (const auto& image : all.images()) {
    there[image.name()] = image.target().digest();
    if (image_records_.count(image.name()) == 0) {
      wrong->push_back(absl::StrCat("image ", image.name(),
                                    " was never created or is deleted"));
    }
  }
  for (auto it = image_records_.begin(); it != image_records_.end();) {
    auto& [name, image] = *it;
    const auto found = there.find(name);
    const bool is_there = found != there.end();
    if (image.known != Known::kUnknown &&
        is_there != (image.known == Known::kThere)) {
      wrong->push_back(
          absl::StrCat("image ", name, is_there ? " is back" : " is lost"));
    }
    if (!is_there) {
      Forget("", name);
      it = image_records_.erase(it);
      continue;
    }
    if (image.digest.empty()) {
      // Its record is written last, so all below it must be there.
      std::set<std::string> blobs, snapshots;
      const absl::Status whole = Closure(name, &blobs, &snapshots);
      if (!whole.ok()) {
        wrong->push_back(absl::StrCat("image ", name, ": ", whole.ToString()));
      }
    } else if (found->second != image.digest) {
      wrong->push_back(absl::StrCat("image ", name, " has another target"));
    }
    image.known = Known::kThere;
    image.busy = false;
    ++it;
  }
}

void Client::CheckIngests(std::vector<std::string>* wrong) {
  content_v1::ListStatusesResponse all;
  const absl::Status listed = Ask([&](grpc::ClientContext* context) {
    return content_stub_->ListStatuses(context, {}, &all);
  });
  if (!listed.ok()) {
    wrong->push_back(absl::StrCat("list of ingests: ", listed.ToString()));
    return;
  }
  for (const content_v1::Status& ingest : all.statuses()) {
    if (ingest.ref().rfind("ref ", 0) != 0) continue;  // A pull's.
    const std::string data =
        DataOf(std::strtoull(ingest.ref().c_str() + 4, nullptr, 10));
    content_v1::WriteContentResponse response;
    const absl::Status status = Ask([&](grpc::ClientContext* context) {
      const auto stream = content_stub_->Write(context);
      content_v1::WriteContentRequest request;
      request.set_action(content_v1::STAT);
      request.set_ref(ingest.ref());
      if (!stream->Write(request) || !stream->Read(&response)) {
        return stream->Finish();
      }
      stream->WritesDone();
      content_v1::WriteContentResponse last;
      while (stream->Read(&last)) {
      }
      return stream->Finish();
    });
    if (!status.ok()) {
      wrong->push_back(
          absl::StrCat("ingest \"", ingest.ref(), "\": ", status.ToString()));
    } else if (response.offset() > static_cast<int64_t>(data.size()) ||
               (response.digest() !=
                    Digest::Of(data.substr(0, response.offset())).str() &&
                response.offset() != static_cast<int64_t>(data.size()))) {
      wrong->push_back(absl::StrCat("ingest \"", ingest.ref(), "\" at ",
                                    response.offset(), " has the digest ",
                                    response.digest()));
    }
  }
}

absl::Status Client::DropTemporary() {
  leases_v1::ListResponse leases;
  RETURN_IF_ERROR(Ask([&](grpc::ClientContext* context) {
    return leases_stub_->List(context, {}, &leases);
  }));
  Empty empty;
  for (const auto& lease : leases.leases()) {
    Forget(lease.id(), "");
    leases_.erase(lease.id());
    leases_v1::DeleteRequest request;
    request.set_id(lease.id());
    const absl::Status deleted = Ask([&](grpc::ClientContext* context) {
      return leases_stub_->Delete(context, request, &empty);
    });
    if (!absl::IsNotFound(deleted)) RETURN_IF_ERROR(deleted);
  }
  content_v1::ListStatusesResponse ingests;
  RETURN_IF_ERROR(Ask([&](grpc::ClientContext* context) {
    return content_stub_->ListStatuses(context, {}, &ingests);
  }));
  for (const auto& ingest : ingests.statuses()) {
    content_v1::AbortRequest request;
    request.set_ref(ingest.ref());
    const absl::Status aborted = Ask([&](grpc::ClientContext* context) {
      return content_stub_->Abort(context, request, &empty);
    });
    if (!absl::IsNotFound(aborted)) RETURN_IF_ERROR(aborted);
  }
  return absl::OkStatus();
}

std::vector<std::string> Client::CheckExact(
    std::map<std::string, int64_t>* blobs, int* snapshots) {
  std::vector<std::string> wrong = Check();
  std::set<std::string> wanted, allowed, chains;
  for (const auto& [seed, blob] : blobs_) wanted.insert(DigestOf(seed).str());
  allowed = wanted;
  for (const auto& [name, image] : image_records_) {
    if (!image.digest.empty()) {
      allowed.insert(image.digest);  // Its blob may have been deleted.
      continue;
    }
    std::set<std::string> below;
    const absl::Status whole = Closure(name, &below, &chains);
    if (!whole.ok())
      wrong.push_back(absl::StrCat(name, ": ", whole.ToString()));
    wanted.insert(below.begin(), below.end());
    allowed.insert(below.begin(), below.end());
  }
  std::set<std::string> there;
  const absl::Status listed = Ask([&](grpc::ClientContext* context) {
    there.clear();
    const auto stream = content_stub_->List(context, {});
    content_v1::ListContentResponse batch;
    while (stream->Read(&batch)) {
      for (const content_v1::Info& info : batch.info()) {
        there.insert(info.digest());
        (*blobs)[info.digest()] = info.size();
      }
    }
    return stream->Finish();
  });
  if (!listed.ok()) wrong.push_back(listed.ToString());
  for (const std::string& digest : there) {
    if (allowed.count(digest) == 0) {
      wrong.push_back(absl::StrCat(ns_, ": blob ", digest, " leaks"));
    }
  }
  for (const std::string& digest : wanted) {
    if (there.count(digest) == 0) {
      wrong.push_back(absl::StrCat(ns_, ": blob ", digest, " is not listed"));
    }
  }

  std::set<std::string> keys;
  const absl::Status walked = Ask([&](grpc::ClientContext* context) {
    keys.clear();
    snapshots_v1::ListSnapshotsRequest request;
    request.set_snapshotter("overlayfs");
    const auto stream = snapshots_stub_->List(context, request);
    snapshots_v1::ListSnapshotsResponse batch;
    while (stream->Read(&batch)) {
      for (const auto& info : batch.info()) keys.insert(info.name());
    }
    return stream->Finish();
  });
  if (!walked.ok()) wrong.push_back(walked.ToString());
  *snapshots += static_cast<int>(keys.size());
  for (const std::string& key : keys) {
    if (snapshots_.count(key) == 0 && chains.count(key) == 0) {
      wrong.push_back(absl::StrCat(ns_, ": snapshot \"", key, "\" leaks"));
    }
  }
  return wrong;
}

}  // namespace bulkhead::crash
