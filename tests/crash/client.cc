#include "tests/crash/client.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "lib/testing/temp_dir.h"
#include "proto/containerd/types/transfer/imagestore.pb.h"
#include "proto/containerd/types/transfer/registry.pb.h"

namespace bulkhead::crash {
namespace {

namespace containers_v1 = containerd::services::containers::v1;
namespace content_v1 = containerd::services::content::v1;
namespace images_v1 = containerd::services::images::v1;
namespace leases_v1 = containerd::services::leases::v1;
namespace snapshots_v1 = containerd::services::snapshots::v1;
namespace transfer_v1 = containerd::services::transfer::v1;
namespace transfer_types = containerd::types::transfer;
using google::protobuf::Empty;

constexpr absl::Duration kCallTimeout = absl::Seconds(20);
constexpr char kSnapshotter[] = "overlayfs";
constexpr char kRootLabel[] = "containerd.io/gc.root";
constexpr char kRevisionLabel[] = "revision";
// Clients share this pool of contents, so that one blob is committed, deleted
// and collected in several namespaces at once.
constexpr uint64_t kContents = 160;
constexpr size_t kContentBytesMax = 48 << 10;
constexpr size_t kObjectsMax = 24;  // Of each kind and client.

template <typename Map, typename Accept>
typename Map::iterator Pick(Map& map, std::mt19937_64& random, Accept accept) {
  if (map.empty()) return map.end();
  auto it = std::next(map.begin(), random() % map.size());
  for (size_t i = 0; i < map.size(); ++i) {
    if (accept(it->second)) return it;
    if (++it == map.end()) it = map.begin();
  }
  return map.end();
}

const auto kIsThere = [](const auto& item) {
  return item.known == Known::kThere;
};

// And no answer is outstanding that could still change it.
const auto kIsIdle = [](const auto& item) {
  return item.known == Known::kThere && !item.busy;
};

}  // namespace

// A few blobs go by another algorithm; one is empty.
std::string Client::DataOf(uint64_t seed) {
  if (seed == 0) return "";
  return testing::RandomBytes(1 + (seed * 7919) % kContentBytesMax,
                              seed + 1000);
}

Digest Client::DigestOf(uint64_t seed) {
  static auto* const digests = [] {
    auto* made = new std::vector<Digest>;
    for (uint64_t i = 0; i < kContents; ++i) {
      made->push_back(Digest::Of(DataOf(i), i % 10 == 7
                                                ? DigestAlgorithm::kSha512
                                                : DigestAlgorithm::kSha256));
    }
    return made;
  }();
  return (*digests)[seed];
}

std::string Client::SpecOf(const std::string& id) {
  return testing::RandomBytes(300, std::hash<std::string>()(id));
}

Client::Client(int number, uint64_t seed, std::vector<std::string> images)
    : number_(number),
      ns_(absl::StrCat("c", number)),
      images_(std::move(images)),
      random_(seed * 1000 + number) {
  DigestOf(0);  // Before there are threads.
}

void Client::Connect(const std::string& socket) {
  channel_ = rpc::Connect(socket);
  containers_stub_ = containers_v1::Containers::NewStub(channel_);
  content_stub_ = content_v1::Content::NewStub(channel_);
  images_stub_ = images_v1::Images::NewStub(channel_);
  leases_stub_ = leases_v1::Leases::NewStub(channel_);
  snapshots_stub_ = snapshots_v1::Snapshots::NewStub(channel_);
  transfer_stub_ = transfer_v1::Transfer::NewStub(channel_);
  admin_stub_ = bulkhead::admin::v1::Admin::NewStub(channel_);
}

std::unique_ptr<grpc::ClientContext> Client::Call(
    const std::string& lease) const {
  return rpc::MakeClientContext({ns_, lease}, kCallTimeout);
}

absl::Status Client::Ask(
    const std::function<grpc::Status(grpc::ClientContext*)>& call) const {
  return rpc::RetryUnavailable(
      kCallTimeout, [&] { return rpc::FromGrpc(call(Call().get())); });
}

bool Client::Acknowledge(const grpc::Status& status) {
  acknowledged_ += status.ok();
  return status.ok();
}

void Client::Work(const std::atomic<bool>& stop) {
  while (!stop) {
    switch (Dice(20)) {
      case 0:
      case 1:
      case 2:
        CreateContainer();
        break;
      case 3:
        UpdateContainer();
        break;
      case 4:
        DeleteContainer();
        break;
      case 5:
      case 6:
      case 7:
        WriteBlob("");
        break;
      case 8: {
        const auto lease = Pick(leases_, random_, [](Known known) {
          return known == Known::kThere;
        });
        if (lease != leases_.end()) WriteBlob(lease->first);
        break;
      }
      case 9:
        DeleteBlob();
        break;
      case 10:
        CreateLease();
        break;
      case 11:
        DeleteLease();
        break;
      case 12:
      case 13:
        PrepareSnapshot();
        break;
      case 14:
        CommitSnapshot();
        break;
      case 15:
        RemoveSnapshot();
        break;
      case 16:
        CreateImage();
        break;
      case 17:
        DeleteImage();
        break;
      case 18:
        Pull();
        break;
      case 19:
        if (Dice(3) == 0) Collect();
        break;
    }
  }
}

void Client::CreateContainer() {
  if (containers_.size() >= kObjectsMax) return DeleteContainer();
  const std::string id = absl::StrCat("c-", number_, "-", next_++);
  containers_v1::CreateContainerRequest request;
  request.mutable_container()->set_id(id);
  request.mutable_container()->mutable_runtime()->set_name("r");
  request.mutable_container()->mutable_spec()->set_type_url("t");
  request.mutable_container()->mutable_spec()->set_value(SpecOf(id));
  (*request.mutable_container()->mutable_labels())[kRevisionLabel] = "0";
  containers_v1::CreateContainerResponse response;
  Container& container = containers_[id];
  if (Acknowledge(containers_stub_->Create(Call().get(), request, &response))) {
    container.known = Known::kThere;
  }
}

void Client::UpdateContainer() {
  const auto it = Pick(containers_, random_, kIsIdle);
  if (it == containers_.end()) return;
  containers_v1::UpdateContainerRequest request;
  request.mutable_container()->set_id(it->first);
  request.mutable_update_mask()->add_paths(
      absl::StrCat("labels.", kRevisionLabel));
  it->second.maybe_revision =
      std::max(it->second.revision, it->second.maybe_revision) + 1;
  (*request.mutable_container()->mutable_labels())[kRevisionLabel] =
      absl::StrCat(it->second.maybe_revision);
  containers_v1::UpdateContainerResponse response;
  if (Acknowledge(containers_stub_->Update(Call().get(), request, &response))) {
    it->second.revision = it->second.maybe_revision;
  } else {
    it->second.busy = true;
  }
}

void Client::DeleteContainer() {
  const auto it = Pick(containers_, random_, kIsIdle);
  if (it == containers_.end()) return;
  containers_v1::DeleteContainerRequest request;
  request.set_id(it->first);
  Empty empty;
  it->second.known =
      Acknowledge(containers_stub_->Delete(Call().get(), request, &empty))
          ? Known::kGone
          : Known::kUnknown;
}

absl::Status Client::Write(const std::string& ref, const std::string& data,
                           const Digest& digest, const std::string& lease,
                           bool leave_early) {
  const auto context = Call(lease);
  const auto stream = content_stub_->Write(context.get());
  content_v1::WriteContentRequest request;
  content_v1::WriteContentResponse response;
  const auto exchange = [&]() -> absl::Status {
    if (stream->Write(request) && stream->Read(&response)) {
      return absl::OkStatus();
    }
    const absl::Status status = rpc::FromGrpc(stream->Finish());
    return status.ok() ? absl::UnknownError("the stream ended") : status;
  };
  request.set_action(content_v1::STAT);
  request.set_ref(ref);
  request.set_total(static_cast<int64_t>(data.size()));
  if (Dice(2) == 0) request.set_expected(digest.str());
  RETURN_IF_ERROR(exchange());
  const size_t step = data.size() / (1 + Dice(3)) + 1;
  for (size_t at = response.offset(); at < data.size(); at += step) {
    request.Clear();
    request.set_action(content_v1::WRITE);
    request.set_offset(static_cast<int64_t>(at));
    request.set_data(data.substr(at, step));
    RETURN_IF_ERROR(exchange());
    if (leave_early) return absl::CancelledError("left behind");
  }
  request.Clear();
  request.set_action(content_v1::COMMIT);
  request.set_offset(static_cast<int64_t>(data.size()));
  request.set_total(static_cast<int64_t>(data.size()));
  request.set_expected(digest.str());
  if (lease.empty()) (*request.mutable_labels())[kRootLabel] = "x";
  RETURN_IF_ERROR(exchange());
  stream->WritesDone();
  while (stream->Read(&response)) {
  }
  return rpc::FromGrpc(stream->Finish());
}

void Client::WriteBlob(const std::string& lease) {
  const uint64_t seed = random_() % kContents;
  const auto known = blobs_.find(seed);
  if (known != blobs_.end() && known->second.known != Known::kGone) return;
  Blob& blob = blobs_[seed];
  blob = {Known::kUnknown, lease.empty(), lease, ""};
  const absl::Status status = Write(absl::StrCat("ref ", seed), DataOf(seed),
                                    DigestOf(seed), lease, Dice(5) == 0);
  if (status.ok()) {
    ++acknowledged_;
    blob.known = Known::kThere;
  } else if (absl::IsAlreadyExists(status)) {
    // What a lease or image held before; a collection may come any time.
    blobs_.erase(seed);
  }
}

void Client::DeleteBlob() {
  const auto it = Pick(blobs_, random_, kIsThere);
  if (it == blobs_.end() || !it->second.image.empty()) return;
  for (const auto& [name, image] : image_records_) {
    // Nor what an image may name that nobody answered for.
    if (image.known != Known::kGone &&
        image.digest == DigestOf(it->first).str()) {
      return;
    }
  }
  content_v1::DeleteContentRequest request;
  request.set_digest(DigestOf(it->first).str());
  Empty empty;
  it->second.known =
      Acknowledge(content_stub_->Delete(Call().get(), request, &empty))
          ? Known::kGone
          : Known::kUnknown;
}

void Client::CreateLease() {
  if (leases_.size() >= kObjectsMax) return DeleteLease();
  const std::string id = absl::StrCat("lease ", next_++);
  leases_v1::CreateRequest request;
  request.set_id(id);
  const bool expires = Dice(4) == 0;
  if (expires) {
    (*request.mutable_labels())["containerd.io/gc.expire"] = absl::FormatTime(
        absl::RFC3339_full, absl::Now() + absl::Milliseconds(Dice(2000)),
        absl::UTCTimeZone());
  }
  leases_v1::CreateResponse response;
  const bool made =
      Acknowledge(leases_stub_->Create(Call().get(), request, &response));
  // One that expires is made for the collector only.
  if (!expires) leases_[id] = made ? Known::kThere : Known::kUnknown;
}

void Client::DeleteLease() {
  const auto it = Pick(leases_, random_,
                       [](Known known) { return known == Known::kThere; });
  if (it == leases_.end()) return;
  leases_v1::DeleteRequest request;
  request.set_id(it->first);
  request.set_sync(Dice(3) == 0);
  Empty empty;
  Forget(it->first, "");
  it->second = Acknowledge(leases_stub_->Delete(Call().get(), request, &empty))
                   ? Known::kGone
                   : Known::kUnknown;
}

void Client::Forget(const std::string& lease, const std::string& image) {
  for (auto it = blobs_.begin(); it != blobs_.end();) {
    Blob& blob = it->second;
    std::string& holder = lease.empty() ? blob.image : blob.lease;
    const bool held = holder == (lease.empty() ? image : lease);
    if (held) holder.clear();
    const bool lost = held && !blob.rooted && blob.image.empty();
    it = lost ? blobs_.erase(it) : std::next(it);
  }
}

void Client::PrepareSnapshot() {
  if (snapshots_.size() >= kObjectsMax) return RemoveSnapshot();
  const std::string key = absl::StrCat("active ", next_++);
  const auto parent = Pick(snapshots_, random_, [](const Snapshot& snapshot) {
    return snapshot.known == Known::kThere &&
           snapshot.kind == snapshots_v1::COMMITTED;
  });
  Snapshot snapshot;
  snapshot.kind = snapshots_v1::ACTIVE;
  if (parent != snapshots_.end() && Dice(2) == 0) {
    snapshot.parent = parent->first;
  }
  bool done = false;
  snapshots_[key] = snapshot;
  if (Dice(5) == 0) {
    snapshots_v1::ViewSnapshotRequest request;
    request.set_snapshotter(kSnapshotter);
    request.set_key(key);
    request.set_parent(snapshot.parent);
    (*request.mutable_labels())[kRootLabel] = "x";
    snapshots_v1::ViewSnapshotResponse response;
    snapshots_[key].kind = snapshots_v1::VIEW;
    done = Acknowledge(snapshots_stub_->View(Call().get(), request, &response));
  } else {
    snapshots_v1::PrepareSnapshotRequest request;
    request.set_snapshotter(kSnapshotter);
    request.set_key(key);
    request.set_parent(snapshot.parent);
    (*request.mutable_labels())[kRootLabel] = "x";
    snapshots_v1::PrepareSnapshotResponse response;
    done =
        Acknowledge(snapshots_stub_->Prepare(Call().get(), request, &response));
  }
  if (done) snapshots_[key].known = Known::kThere;
}

void Client::CommitSnapshot() {
  const auto it = Pick(snapshots_, random_, [](const Snapshot& snapshot) {
    return snapshot.known == Known::kThere &&
           snapshot.kind == snapshots_v1::ACTIVE;
  });
  if (it == snapshots_.end()) return;
  const std::string name = absl::StrCat("committed ", next_++);
  snapshots_v1::CommitSnapshotRequest request;
  request.set_snapshotter(kSnapshotter);
  request.set_key(it->first);
  request.set_name(name);
  (*request.mutable_labels())[kRootLabel] = "x";
  Empty empty;
  Snapshot committed = it->second;
  committed.kind = snapshots_v1::COMMITTED;
  committed.known = it->second.known = Known::kUnknown;
  committed.twin = it->first;
  it->second.twin = name;
  if (Acknowledge(snapshots_stub_->Commit(Call().get(), request, &empty))) {
    committed.known = Known::kThere;
    it->second.known = Known::kGone;
    // A later removal without an answer is no doubt about this commit.
    committed.twin.clear();
    it->second.twin.clear();
  }
  snapshots_[name] = committed;
}

void Client::RemoveSnapshot() {
  const auto it = Pick(snapshots_, random_, kIsThere);
  if (it == snapshots_.end()) return;
  for (const auto& [key, snapshot] : snapshots_) {
    if (snapshot.parent == it->first && snapshot.known != Known::kGone) return;
  }
  snapshots_v1::RemoveSnapshotRequest request;
  request.set_snapshotter(kSnapshotter);
  request.set_key(it->first);
  Empty empty;
  it->second.known =
      Acknowledge(snapshots_stub_->Remove(Call().get(), request, &empty))
          ? Known::kGone
          : Known::kUnknown;
}

void Client::CreateImage() {
  if (image_records_.size() >= kObjectsMax) return DeleteImage();
  const auto blob = Pick(blobs_, random_, [](const Blob& blob) {
    return blob.known == Known::kThere && blob.image.empty();
  });
  if (blob == blobs_.end() || blob->first == 0) return;
  const std::string name = absl::StrCat("image-", number_, "-", next_++);
  images_v1::CreateImageRequest request;
  request.mutable_image()->set_name(name);
  containerd::types::Descriptor* target =
      request.mutable_image()->mutable_target();
  target->set_digest(DigestOf(blob->first).str());
  target->set_media_type("application/octet-stream");
  target->set_size(static_cast<int64_t>(DataOf(blob->first).size()));
  images_v1::CreateImageResponse response;
  Image& image = image_records_[name];
  image.digest = target->digest();
  image.doubtful = true;
  if (!Acknowledge(images_stub_->Create(Call().get(), request, &response))) {
    return;
  }
  image.known = Known::kThere;
  image.doubtful = false;
  blob->second.image = name;
}

bool Client::IsDoubtful(const std::string& name) const {
  for (const auto& [image, record] : image_records_) {
    if (record.doubtful && (image == name || record.digest == name))
      return true;
  }
  return false;
}

void Client::DeleteImage() {
  const auto it = Pick(image_records_, random_, kIsIdle);
  if (it == image_records_.end()) return;
  images_v1::DeleteImageRequest request;
  request.set_name(it->first);
  request.set_sync(Dice(3) == 0);
  Empty empty;
  Forget("", it->first);
  it->second.known =
      Acknowledge(images_stub_->Delete(Call().get(), request, &empty))
          ? Known::kGone
          : Known::kUnknown;
}

void Client::Pull() {
  if (images_.empty()) return;
  const std::string& name = images_[random_() % images_.size()];
  transfer_types::OCIRegistry source;
  source.set_reference(name);
  source.mutable_resolver()->set_default_scheme("http");
  transfer_types::ImageStore destination;
  destination.set_name(name);
  transfer_types::UnpackConfiguration* unpack = destination.add_unpacks();
  unpack->mutable_platform()->set_os("linux");
  unpack->mutable_platform()->set_architecture("amd64");
  unpack->set_snapshotter(kSnapshotter);
  transfer_v1::TransferRequest request;
  // Type URLs without a prefix, as containerd's.
  request.mutable_source()->set_type_url(source.GetTypeName());
  request.mutable_source()->set_value(source.SerializeAsString());
  request.mutable_destination()->set_type_url(destination.GetTypeName());
  request.mutable_destination()->set_value(destination.SerializeAsString());
  Empty empty;
  const auto known = image_records_.find(name);
  if (known != image_records_.end() &&
      (known->second.known == Known::kUnknown || known->second.busy)) {
    return;
  }
  Image& image = image_records_[name];
  // Pulling what is there does not make it less there.
  if (image.known == Known::kGone) image.known = Known::kUnknown;
  if (Acknowledge(transfer_stub_->Transfer(Call().get(), request, &empty))) {
    image.known = Known::kThere;
    ++pulls_;
  } else {
    image.busy = true;
  }
}

void Client::Collect() {
  const auto context = Call();
  const auto stream = admin_stub_->Collect(context.get(), {});
  bulkhead::admin::v1::CollectResponse response;
  while (stream->Read(&response)) {
  }
  (void)stream->Finish();  // Whether it was killed does not matter.
}

std::string Client::Census() const {
  return absl::StrCat(containers_.size(), " containers, ", blobs_.size(),
                      " blobs, ", snapshots_.size(), " snapshots, ",
                      image_records_.size(), " images, ", leases_.size(),
                      " leases");
}

}  // namespace bulkhead::crash
