// Snapshots as clients see them, compared: nothing here mounts.
#include <gtest/gtest.h>

#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "tests/conformance/snapshots_steps.h"

namespace bulkhead::conformance {
namespace {

namespace leases_v1 = containerd::services::leases::v1;
using google::protobuf::Empty;

void Leases(Transcript& t) {
  SnapshotsClient c(t, "overlayfs");
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
  Compare("snapshots",
          [](Transcript& t) { SnapshotLifecycle(t, "overlayfs"); });
}
TEST(SnapshotsCompared, Native) {
  Compare("native", [](Transcript& t) { SnapshotLifecycle(t, "native"); });
}
TEST(SnapshotsCompared, Leases) { Compare("snapshot-leases", Leases); }
TEST(SnapshotsCompared, NoSuchSnapshotter) {
  Compare("no-snapshotter", [](Transcript& t) {
    for (const char* name : {"", "nope"}) {
      SnapshotsClient c(t, name);
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
