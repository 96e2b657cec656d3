// Snapshots as clients see them, compared: nothing here mounts.
#include <gtest/gtest.h>

#include <algorithm>

#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"
#include "tests/conformance/daemons.h"

namespace bulkhead::conformance {
namespace {

namespace v1 = containerd::services::snapshots::v1;
namespace leases_v1 = containerd::services::leases::v1;
using google::protobuf::Empty;
using Labels = std::map<std::string, std::string>;

constexpr char kRoot[] = "containerd.io/gc.root";

class Client {
 public:
  Client(Transcript& t, std::string snapshotter)
      : t_(t), stub_(t.channel()), snapshotter_(std::move(snapshotter)) {}

  void Prepare(const std::string& label, const std::string& key,
               const std::string& parent = "", Labels labels = {{kRoot, "x"}},
               const std::string& lease = "") {
    v1::PrepareSnapshotRequest request;
    Fill(&request, key, parent, labels);
    v1::PrepareSnapshotResponse reply;
    const grpc::Status s = stub_.Prepare(t_.Call(lease).get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void View(const std::string& label, const std::string& key,
            const std::string& parent = "", Labels labels = {{kRoot, "x"}},
            const std::string& lease = "") {
    v1::ViewSnapshotRequest request;
    Fill(&request, key, parent, labels);
    v1::ViewSnapshotResponse reply;
    const grpc::Status s = stub_.View(t_.Call(lease).get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void Commit(const std::string& label, const std::string& name,
              const std::string& key, Labels labels = {{kRoot, "x"}},
              const std::string& lease = "") {
    v1::CommitSnapshotRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_name(name);
    request.set_key(key);
    request.mutable_labels()->insert(labels.begin(), labels.end());
    Empty empty;
    t_.Say(label, stub_.Commit(t_.Call(lease).get(), request, &empty));
  }
  void Mounts(const std::string& label, const std::string& key) {
    v1::MountsRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    v1::MountsResponse reply;
    const grpc::Status s = stub_.Mounts(t_.Call().get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void Remove(const std::string& label, const std::string& key) {
    v1::RemoveSnapshotRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    Empty empty;
    t_.Say(label, stub_.Remove(t_.Call().get(), request, &empty));
  }
  void Stat(const std::string& label, const std::string& key) {
    v1::StatSnapshotRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    v1::StatSnapshotResponse reply;
    const grpc::Status s = stub_.Stat(t_.Call().get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void Usage(const std::string& label, const std::string& key) {
    v1::UsageRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    v1::UsageResponse reply;
    const grpc::Status s = stub_.Usage(t_.Call().get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void Update(const std::string& label, const std::string& key,
              const std::vector<std::string>& paths, Labels labels) {
    v1::UpdateSnapshotRequest request;
    request.set_snapshotter(snapshotter_);
    request.mutable_info()->set_name(key);
    request.mutable_info()->mutable_labels()->insert(labels.begin(),
                                                     labels.end());
    for (const auto& path : paths)
      request.mutable_update_mask()->add_paths(path);
    v1::UpdateSnapshotResponse reply;
    const grpc::Status s = stub_.Update(t_.Call().get(), request, &reply);
    t_.Say(label, s, reply);
  }
  void List(const std::string& label, const std::vector<std::string>& filters,
            const std::string& ns = "") {
    v1::ListSnapshotsRequest request;
    request.set_snapshotter(snapshotter_);
    for (const auto& filter : filters) request.add_filters(filter);
    const auto context = t_.Call("", ns);
    const auto stream = stub_.List(context.get(), request);
    v1::ListSnapshotsResponse batch;
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
    v1::CleanupRequest request;
    request.set_snapshotter(snapshotter_);
    Empty empty;
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
  v1::Snapshots::Stub stub_;
  const std::string snapshotter_;
};

void Lifecycle(Transcript& t, const std::string& snapshotter) {
  Client c(t, snapshotter);
  c.Prepare("prepare", "a", "",
            {{kRoot, "x"},
             {"user", "u"},
             {"empty", ""},
             {"containerd.io/snapshot/overlay.x", "kept"}});
  c.Prepare("prepare-again", "a");
  c.View("view-again", "a");
  c.Stat("stat-active", "a");
  c.Mounts("mounts-active", "a");
  c.Prepare("on-active", "b", "a");
  c.View("view-on-active", "b", "a");
  c.Prepare("no-parent", "b", "none");
  c.View("view-no-parent", "b", "none");
  c.Prepare("no-key", "");
  c.Commit("commit-none", "n", "none");
  c.Commit("commit-no-name", "", "a");
  c.Commit("commit", "layer 1", "a");
  c.Stat("stat-gone", "a");
  c.Stat("stat-committed", "layer 1");
  c.Mounts("mounts-committed", "layer 1");
  c.Mounts("mounts-none", "none");
  c.Commit("commit-committed", "n", "layer 1");
  c.Prepare("a-again", "a", "layer 1");
  c.Commit("commit-name-taken", "layer 1", "a");
  c.View("view", "v", "layer 1");
  c.Stat("stat-view", "v");
  c.Mounts("mounts-view", "v");
  c.Commit("commit-view", "n", "v");
  c.View("view-empty", "ve");
  c.Mounts("mounts-view-empty", "ve");
  c.Remove("remove-parent", "layer 1");
  c.Commit("commit-2", "layer/2", "a", {{kRoot, "x"}, {"l", "2"}});
  c.Prepare("prepare-3", "c", "layer/2");
  c.Mounts("mounts-3", "c");
  c.View("view-3", "v3", "layer/2");
  c.Mounts("mounts-view-3", "v3");
  for (const char* key : {"c", "layer 1", "layer/2", "v", "none"}) {
    c.Usage(std::string("usage-") + key, key);
  }
  c.Update("update-one", "c", {"labels.x.y"}, {{"x.y", "z"}, {"no", "n"}});
  c.Update("update-delete", "c", {"labels.x.y"}, {});
  c.Update("update-labels", "c", {"labels"}, {{kRoot, "1"}, {"e", ""}});
  c.Update("update-nomask", "c", {}, {{kRoot, "2"}, {"l", "3"}});
  c.Update("update-kind", "c", {"kind"}, {});
  c.Update("update-parent", "c", {"parent"}, {});
  c.Update("update-none", "none", {"labels.x"}, {{"x", "y"}});
  c.Update("update-long", "c", {"labels.x"}, {{"x", std::string(5000, 'y')}});
  c.Prepare("label-too-long", "long", "", {{"x", std::string(5000, 'y')}});
  c.List("list", {});
  c.List("list-empty-filter", {""});
  c.List("list-kind", {"kind==committed"});
  c.List("list-two", {"kind==view", "name==c"});
  c.List("list-parent", {"parent==\"layer 1\",kind!=view"});
  c.List("list-label", {"labels.l"});
  c.List("list-bad", {"kind="});
  c.List("list-no-ns", {}, "-");
  c.List("list-other-ns", {}, t.ns() + "x");
  c.Remove("remove-none", "none");
  c.Remove("remove-mid", "layer/2");
  for (const char* key : {"c", "v3", "v", "ve", "layer/2", "layer 1"}) {
    c.Remove(std::string("remove-") + key, key);
  }
  c.List("list-end", {});
  c.Cleanup("cleanup");
}

void Leases(Transcript& t) {
  Client c(t, "overlayfs");
  leases_v1::Leases::Stub leases(t.channel());
  leases_v1::CreateRequest create;
  create.set_id("l");
  leases_v1::CreateResponse created;
  t.Say("lease", leases.Create(t.Call().get(), create, &created));
  const auto held = [&](const std::string& label) {
    leases_v1::ListResourcesRequest request;
    request.set_id("l");
    leases_v1::ListResourcesResponse reply;
    const grpc::Status s =
        leases.ListResources(t.Call().get(), request, &reply);
    t.Say(label, s, reply);
  };
  c.Prepare("no-lease", "a", "", {}, "none");
  c.Prepare("leased", "a", "", {}, "l");
  held("held-active");
  c.Commit("commit-no-lease", "n", "a", {}, "none");
  c.Commit("commit-leased", "n", "a", {}, "l");
  held("held-committed");
  c.Prepare("target-there", "t", "", {{"containerd.io/snapshot.ref", "n"}},
            "l");
  c.View("view-leased", "v", "n", {}, "l");
  held("held-view");
  c.Prepare("exists-joins", "v", "", {}, "l");
  leases_v1::DeleteRequest remove;
  remove.set_id("l");
  remove.set_sync(true);
  Empty empty;
  t.Say("delete-sync", leases.Delete(t.Call().get(), remove, &empty));
  c.List("collected", {});
}

TEST(SnapshotsCompared, Overlayfs) {
  Compare("snapshots", [](Transcript& t) { Lifecycle(t, "overlayfs"); });
}
TEST(SnapshotsCompared, Native) {
  Compare("native", [](Transcript& t) { Lifecycle(t, "native"); });
}
TEST(SnapshotsCompared, Leases) { Compare("snapshot-leases", Leases); }
TEST(SnapshotsCompared, NoSuchSnapshotter) {
  Compare("no-snapshotter", [](Transcript& t) {
    for (const char* name : {"", "nope"}) {
      Client c(t, name);
      c.Prepare(std::string("prepare-") + name, "a");
      c.Stat(std::string("stat-") + name, "a");
      c.Remove(std::string("remove-") + name, "a");
      c.List(std::string("list-") + name, {});
      c.Usage(std::string("usage-") + name, "a");
    }
  });
}

}  // namespace
}  // namespace bulkhead::conformance
