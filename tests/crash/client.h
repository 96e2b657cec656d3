// One client of the suite under crashes: what it does, what it was told, and
// whether that is true afterwards.
#ifndef BULKHEAD_TESTS_CRASH_CLIENT_H_
#define BULKHEAD_TESTS_CRASH_CLIENT_H_

#include <grpcpp/channel.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "lib/digest/digest.h"
#include "proto/bulkhead/admin/v1/admin.grpc.pb.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "proto/containerd/services/images/v1/images.grpc.pb.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"
#include "proto/containerd/services/transfer/v1/transfer.grpc.pb.h"

namespace bulkhead::crash {

// What is known of an object: acknowledged to be there, acknowledged to be
// gone, or neither.
enum class Known { kThere, kGone, kUnknown };

// Works in a namespace of its own, but on digests that other clients use too.
// One thread at a time.
class Client {
 public:
  // The contents of the pool that all clients write, and their digests.
  static std::string DataOf(uint64_t seed);
  static Digest DigestOf(uint64_t seed);
  static std::string SpecOf(const std::string& container);

  // `images`: references in a registry that can be pulled; may be empty.
  Client(int number, uint64_t seed, std::vector<std::string> images);

  const std::string& ns() const { return ns_; }
  void Connect(const std::string& socket);

  // Random operations until `stop`; remembers what was acknowledged.
  void Work(const std::atomic<bool>& stop);

  // Compares what was acknowledged with what is there, reading every byte;
  // what was unknown is known afterwards. Returns complaints.
  std::vector<std::string> Check();

  // Deletes this namespace's leases and ingests, so that only what is rooted
  // may stay.
  absl::Status DropTemporary();
  // After a collection that followed DropTemporary(): there is exactly what was
  // acknowledged. Adds this namespace's blobs (digest, size) and the number of
  // its snapshots.
  std::vector<std::string> CheckExact(std::map<std::string, int64_t>* blobs,
                                      int* snapshots);

  int64_t acknowledged() const { return acknowledged_; }
  int64_t pulls() const { return pulls_; }
  std::string Census() const;
  // Whether fsck may find this: an image whose creation had no answer may name
  // a blob that was let go meanwhile. `name` is an image's or a digest.
  bool IsDoubtful(const std::string& name) const;

 private:
  struct Container {
    Known known = Known::kUnknown;
    int revision = 0;        // Acknowledged.
    int maybe_revision = 0;  // Sent last.
    bool busy = false;       // An update without an answer may still come.
  };
  struct Blob {
    Known known = Known::kUnknown;
    bool rooted = false;  // Its own label holds it; else ...
    std::string lease;    // ... this lease, or ...
    std::string image;    // ... this image.
  };
  struct Snapshot {
    Known known = Known::kUnknown;
    int kind = 0;
    std::string parent;
    // Of a commit without an answer, the other name: exactly one is there.
    std::string twin;
  };
  struct Image {
    Known known = Known::kUnknown;
    std::string digest;  // Empty: pulled.
    bool busy = false;   // A pull without an answer may still come to an end.
    // Its creation had no answer: it may have come to pass when the blob it
    // names had already been let go.
    bool doubtful = false;
  };

  std::unique_ptr<grpc::ClientContext> Call(
      const std::string& lease = "") const;
  int Dice(int sides) { return static_cast<int>(random_() % sides); }
  // A call that changes nothing, repeated until the suite is up.
  absl::Status Ask(
      const std::function<grpc::Status(grpc::ClientContext*)>& call) const;
  bool Acknowledge(const grpc::Status& status);

  void CreateContainer();
  void UpdateContainer();
  void DeleteContainer();
  void WriteBlob(const std::string& lease);
  absl::Status Write(const std::string& ref, const std::string& data,
                     const Digest& digest, const std::string& lease,
                     bool leave_early);
  void DeleteBlob();
  void CreateLease();
  void DeleteLease();
  void PrepareSnapshot();
  void CommitSnapshot();
  void RemoveSnapshot();
  void CreateImage();
  void DeleteImage();
  void Pull();
  void Collect();
  // What a lease or image that goes held: nothing is known of it any more.
  void Forget(const std::string& lease, const std::string& image);

  absl::Status Read(const std::string& digest, std::string* data) const;
  absl::StatusOr<bool> IsRooted(const std::string& digest) const;
  absl::StatusOr<int> KindOf(const std::string& snapshot) const;
  void CheckContainers(std::vector<std::string>* wrong);
  void CheckBlobs(std::vector<std::string>* wrong);
  void CheckSnapshots(std::vector<std::string>* wrong);
  void CheckImages(std::vector<std::string>* wrong);
  void CheckLeases(std::vector<std::string>* wrong);
  void CheckIngests(std::vector<std::string>* wrong);
  // The blobs and snapshots below a pulled image, each read and compared.
  absl::Status Closure(const std::string& image, std::set<std::string>* blobs,
                       std::set<std::string>* snapshots) const;

  const int number_;
  const std::string ns_;
  const std::vector<std::string> images_;
  std::mt19937_64 random_;
  uint64_t next_ = 0;
  int64_t acknowledged_ = 0;
  int64_t pulls_ = 0;

  std::map<std::string, Container> containers_;
  std::map<uint64_t, Blob> blobs_;  // By the seed of their bytes.
  std::map<std::string, Known> leases_;
  std::map<std::string, Snapshot> snapshots_;
  std::map<std::string, Image> image_records_;

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<containerd::services::containers::v1::Containers::Stub>
      containers_stub_;
  std::unique_ptr<containerd::services::content::v1::Content::Stub>
      content_stub_;
  std::unique_ptr<containerd::services::images::v1::Images::Stub> images_stub_;
  std::unique_ptr<containerd::services::leases::v1::Leases::Stub> leases_stub_;
  std::unique_ptr<containerd::services::snapshots::v1::Snapshots::Stub>
      snapshots_stub_;
  std::unique_ptr<containerd::services::transfer::v1::Transfer::Stub>
      transfer_stub_;
  std::unique_ptr<bulkhead::admin::v1::Admin::Stub> admin_stub_;
};

}  // namespace bulkhead::crash

#endif  // BULKHEAD_TESTS_CRASH_CLIENT_H_
