// What is done with snapshots on both daemons.
#ifndef BULKHEAD_TESTS_CONFORMANCE_SNAPSHOTS_STEPS_H_
#define BULKHEAD_TESTS_CONFORMANCE_SNAPSHOTS_STEPS_H_

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"
#include "tests/conformance/daemons.h"

namespace bulkhead::conformance {

using Labels = std::map<std::string, std::string>;

constexpr char kRoot[] = "containerd.io/gc.root";

// Calls one snapshotter; the transcript says what it answers.
class SnapshotsClient {
 public:
  SnapshotsClient(Transcript& t, std::string snapshotter)
      : t_(t), stub_(t.channel()), snapshotter_(std::move(snapshotter)) {}

  void Prepare(const std::string& label, const std::string& key,
               const std::string& parent = "", Labels labels = {{kRoot, "x"}},
               const std::string& lease = "") {
    containerd::services::snapshots::v1::PrepareSnapshotRequest request;
    Fill(&request, key, parent, labels);
    containerd::services::snapshots::v1::PrepareSnapshotResponse reply;
    const grpc::Status s = stub_.Prepare(t_.Call(lease).get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void View(const std::string& label, const std::string& key,
            const std::string& parent = "", Labels labels = {{kRoot, "x"}},
            const std::string& lease = "") {
    containerd::services::snapshots::v1::ViewSnapshotRequest request;
    Fill(&request, key, parent, labels);
    containerd::services::snapshots::v1::ViewSnapshotResponse reply;
    const grpc::Status s = stub_.View(t_.Call(lease).get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void Commit(const std::string& label, const std::string& name,
              const std::string& key, Labels labels = {{kRoot, "x"}},
              const std::string& lease = "") {
    containerd::services::snapshots::v1::CommitSnapshotRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_name(name);
    request.set_key(key);
    request.mutable_labels()->insert(labels.begin(), labels.end());
    google::protobuf::Empty empty;
    t_.Say(label, stub_.Commit(t_.Call(lease).get(), request, &empty));
  }
  void Mounts(const std::string& label, const std::string& key) {
    containerd::services::snapshots::v1::MountsRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    containerd::services::snapshots::v1::MountsResponse reply;
    const grpc::Status s = stub_.Mounts(t_.Call().get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void Remove(const std::string& label, const std::string& key) {
    containerd::services::snapshots::v1::RemoveSnapshotRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    google::protobuf::Empty empty;
    t_.Say(label, stub_.Remove(t_.Call().get(), request, &empty));
  }
  void Stat(const std::string& label, const std::string& key) {
    containerd::services::snapshots::v1::StatSnapshotRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    containerd::services::snapshots::v1::StatSnapshotResponse reply;
    const grpc::Status s = stub_.Stat(t_.Call().get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void Usage(const std::string& label, const std::string& key) {
    containerd::services::snapshots::v1::UsageRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    containerd::services::snapshots::v1::UsageResponse reply;
    const grpc::Status s = stub_.Usage(t_.Call().get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void Update(const std::string& label, const std::string& key,
              const std::vector<std::string>& paths, Labels labels) {
    containerd::services::snapshots::v1::UpdateSnapshotRequest request;
    request.set_snapshotter(snapshotter_);
    request.mutable_info()->set_name(key);
    request.mutable_info()->mutable_labels()->insert(labels.begin(),
                                                     labels.end());
    for (const auto& path : paths)
      request.mutable_update_mask()->add_paths(path);
    containerd::services::snapshots::v1::UpdateSnapshotResponse reply;
    const grpc::Status s = stub_.Update(t_.Call().get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void List(const std::string& label, const std::vector<std::string>& filters,
            const std::string& ns = "") {
    containerd::services::snapshots::v1::ListSnapshotsRequest request;
    request.set_snapshotter(snapshotter_);
    for (const auto& filter : filters) request.add_filters(filter);
    const auto context = t_.Call("", ns);
    const auto stream = stub_.List(context.get(), request);
    containerd::services::snapshots::v1::ListSnapshotsResponse batch;
    std::vector<std::string> found;
    while (stream->Read(&batch)) {
      for (const auto& info : batch.info()) {
        found.push_back("{" + info.ShortDebugString() + "} ");
      }
    }
    std::sort(found.begin(), found.end());
    std::string text;
    for (const auto& one : found) text += one;
    const grpc::Status s = stream->Finish();
    t_.Say(label,
           text + std::to_string(s.error_code()) + " " + s.error_message());
  }
  void Cleanup(const std::string& label) {
    containerd::services::snapshots::v1::CleanupRequest request;
    request.set_snapshotter(snapshotter_);
    google::protobuf::Empty empty;
    t_.Say(label,
           std::to_string(
               stub_.Cleanup(t_.Call().get(), request, &empty).error_code()));
  }

 private:
  template <typename Request>
  void Fill(Request* request, const std::string& key, const std::string& parent,
            const Labels& labels) {
    request->set_snapshotter(snapshotter_);
    request->set_key(key);
    request->set_parent(parent);
    request->mutable_labels()->insert(labels.begin(), labels.end());
  }

  Transcript& t_;
  containerd::services::snapshots::v1::Snapshots::Stub stub_;
  const std::string snapshotter_;
};

// Every call on every kind of snapshot, right and wrong.
void SnapshotLifecycle(Transcript& t, const std::string& snapshotter);

}  // namespace bulkhead::conformance

#endif  // BULKHEAD_TESTS_CONFORMANCE_SNAPSHOTS_STEPS_H_
