// What a collection leaves, compared: the same objects, labels, leases and
// deletions on both, and then who is still there. Only what 1.6 knows; image
// references, back references and conditions are newer (model_test.cc).
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "absl/strings/str_join.h"
#include "lib/digest/digest.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "proto/containerd/services/images/v1/images.grpc.pb.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"
#include "tests/conformance/daemons.h"

namespace bulkhead::conformance {
namespace {

namespace containers_v1 = containerd::services::containers::v1;
namespace content_v1 = containerd::services::content::v1;
namespace images_v1 = containerd::services::images::v1;
namespace leases_v1 = containerd::services::leases::v1;
namespace snapshots_v1 = containerd::services::snapshots::v1;
using google::protobuf::Empty;
using Labels = std::map<std::string, std::string>;

constexpr char kSnapshotter[] = "native";

std::string BlobOf(const std::string& name) {
  return Digest::Of("blob " + name).str();
}

class Client {
 public:
  explicit Client(Transcript& t)
      : t_(t),
        containers_(t.channel()),
        content_(t.channel()),
        images_(t.channel()),
        leases_(t.channel()),
        snapshots_(t.channel()) {}

  void Lease(const std::string& id, const Labels& labels = {}) {
    leases_v1::CreateRequest request;
    request.set_id(id);
    request.mutable_labels()->insert(labels.begin(), labels.end());
    leases_v1::CreateResponse reply;
    t_.Say("lease " + id, leases_.Create(t_.Call().get(), request, &reply));
  }
  // Says nothing: a collection may take the lease away at any moment.
  void ExpiredLease(const std::string& id, const std::string& digest) {
    leases_v1::CreateRequest request;
    request.set_id(id);
    (*request.mutable_labels())["containerd.io/gc.expire"] =
        "2001-01-01T00:00:00Z";
    leases_v1::CreateResponse reply;
    (void)leases_.Create(t_.Call().get(), request, &reply);
    leases_v1::AddResourceRequest add;
    add.set_id(id);
    add.mutable_resource()->set_type("content");
    add.mutable_resource()->set_id(digest);
    Empty empty;
    (void)leases_.AddResource(t_.Call().get(), add, &empty);
  }
  // Deletes the lease and waits for a collection; then who is left.
  void Unlease(const std::string& id) {
    leases_v1::DeleteRequest request;
    request.set_id(id);
    request.set_sync(true);
    Empty empty;
    t_.Say("unlease " + id, leases_.Delete(t_.Call().get(), request, &empty));
    Left("left without lease " + id);
  }
  void Resource(const std::string& lease, const std::string& type,
                const std::string& id) {
    leases_v1::AddResourceRequest request;
    request.set_id(lease);
    request.mutable_resource()->set_type(type);
    request.mutable_resource()->set_id(id);
    Empty empty;
    t_.Say("resource " + lease + " " + type,
           leases_.AddResource(t_.Call().get(), request, &empty));
  }
  void Blob(const std::string& name, const std::string& lease,
            const Labels& labels = {}) {
    names_[BlobOf(name)] = name;
    content_v1::WriteContentRequest request;
    request.set_action(content_v1::COMMIT);
    request.set_ref("ref " + name);
    request.set_data("blob " + name);
    request.set_total(static_cast<int64_t>(request.data().size()));
    request.set_expected(BlobOf(name));
    request.mutable_labels()->insert(labels.begin(), labels.end());
    t_.Say("blob " + name, Send(request, lease));
  }
  // Begun and left.
  void Ingest(const std::string& ref, const std::string& lease) {
    content_v1::WriteContentRequest request;
    request.set_action(content_v1::WRITE);
    request.set_ref(ref);
    request.set_data("some");
    request.set_total(100);
    t_.Say("ingest " + ref, Send(request, lease));
  }
  void Prepare(const std::string& key, const std::string& parent,
               const std::string& lease, const Labels& labels = {}) {
    snapshots_v1::PrepareSnapshotRequest request;
    request.set_snapshotter(kSnapshotter);
    request.set_key(key);
    request.set_parent(parent);
    request.mutable_labels()->insert(labels.begin(), labels.end());
    snapshots_v1::PrepareSnapshotResponse reply;
    t_.Say("prepare " + key,
           snapshots_.Prepare(t_.Call(lease).get(), request, &reply));
  }
  void View(const std::string& key, const std::string& parent) {
    snapshots_v1::ViewSnapshotRequest request;
    request.set_snapshotter(kSnapshotter);
    request.set_key(key);
    request.set_parent(parent);
    snapshots_v1::ViewSnapshotResponse reply;
    t_.Say("view " + key, snapshots_.View(t_.Call().get(), request, &reply));
  }
  void Layer(const std::string& name, const std::string& parent,
             const std::string& lease, const Labels& labels = {}) {
    Prepare("tmp-" + name, parent, lease);
    snapshots_v1::CommitSnapshotRequest request;
    request.set_snapshotter(kSnapshotter);
    request.set_name(name);
    request.set_key("tmp-" + name);
    request.mutable_labels()->insert(labels.begin(), labels.end());
    Empty empty;
    t_.Say("commit " + name,
           snapshots_.Commit(t_.Call(lease).get(), request, &empty));
  }
  void Image(const std::string& name, const std::string& blob,
             const Labels& labels = {}) {
    images_v1::CreateImageRequest request;
    request.mutable_image()->set_name(name);
    request.mutable_image()->mutable_target()->set_digest(BlobOf(blob));
    request.mutable_image()->mutable_target()->set_size(5);
    request.mutable_image()->mutable_target()->set_media_type("m");
    request.mutable_image()->mutable_labels()->insert(labels.begin(),
                                                      labels.end());
    images_v1::CreateImageResponse reply;
    t_.Say("image " + name, images_.Create(t_.Call().get(), request, &reply));
  }
  void RemoveImage(const std::string& name) {
    images_v1::DeleteImageRequest request;
    request.set_name(name);
    request.set_sync(true);
    Empty empty;
    t_.Say("remove image " + name,
           images_.Delete(t_.Call().get(), request, &empty));
    Left("left without image " + name);
  }
  void Container(const std::string& id, const std::string& snapshot,
                 const Labels& labels = {}) {
    containers_v1::CreateContainerRequest request;
    auto* container = request.mutable_container();
    container->set_id(id);
    container->mutable_runtime()->set_name("r");
    container->mutable_spec()->set_type_url("t");
    container->set_snapshotter(kSnapshotter);
    container->set_snapshot_key(snapshot);
    container->mutable_labels()->insert(labels.begin(), labels.end());
    containers_v1::CreateContainerResponse reply;
    t_.Say("container " + id,
           containers_.Create(t_.Call().get(), request, &reply));
  }
  void RemoveContainer(const std::string& id) {
    containers_v1::DeleteContainerRequest request;
    request.set_id(id);
    Empty empty;
    t_.Say("remove container " + id,
           containers_.Delete(t_.Call().get(), request, &empty));
  }

 private:
  grpc::Status Send(const content_v1::WriteContentRequest& request,
                    const std::string& lease) {
    const auto context = t_.Call(lease);
    const auto stream = content_.Write(context.get());
    stream->Write(request);
    stream->WritesDone();
    content_v1::WriteContentResponse reply;
    while (stream->Read(&reply)) {
    }
    return stream->Finish();
  }

  void Left(const std::string& label) {
    std::set<std::string> left;
    {
      const auto context = t_.Call();
      const auto reader = content_.List(context.get(), {});
      content_v1::ListContentResponse reply;
      while (reader->Read(&reply)) {
        for (const auto& info : reply.info()) {
          left.insert("blob " + names_[info.digest()]);
        }
      }
      t_.Say(label + ": content", reader->Finish());
    }
    {
      snapshots_v1::ListSnapshotsRequest request;
      request.set_snapshotter(kSnapshotter);
      const auto context = t_.Call();
      const auto reader = snapshots_.List(context.get(), request);
      snapshots_v1::ListSnapshotsResponse reply;
      while (reader->Read(&reply)) {
        for (const auto& info : reply.info()) {
          left.insert("snapshot " + info.name());
        }
      }
      t_.Say(label + ": snapshots", reader->Finish());
    }
    content_v1::ListStatusesResponse ingests;
    t_.Say(label + ": ingests",
           content_.ListStatuses(t_.Call().get(), {}, &ingests));
    for (const auto& one : ingests.statuses())
      left.insert("ingest " + one.ref());
    images_v1::ListImagesResponse images;
    t_.Say(label + ": images", images_.List(t_.Call().get(), {}, &images));
    for (const auto& one : images.images()) left.insert("image " + one.name());
    leases_v1::ListResponse leases;
    t_.Say(label + ": leases", leases_.List(t_.Call().get(), {}, &leases));
    for (const auto& one : leases.leases()) left.insert("lease " + one.id());
    t_.Say(label, absl::StrJoin(left, ", "));
  }

  Transcript& t_;
  containers_v1::Containers::Stub containers_;
  content_v1::Content::Stub content_;
  images_v1::Images::Stub images_;
  leases_v1::Leases::Stub leases_;
  snapshots_v1::Snapshots::Stub snapshots_;
  std::map<std::string, std::string> names_;
};

std::string Ref(const std::string& tail) {
  return "containerd.io/gc.ref." + tail;
}

void Labelled(Transcript& t) {
  Client c(t);
  c.Lease("hold");
  // An image: manifest, configuration (with its snapshots), two layers.
  c.Layer("base", "", "hold");
  c.Layer("top", "base", "hold");
  c.Layer("stray", "base", "hold");
  c.Blob("layer0", "hold");
  c.Blob("layer1", "hold");
  c.Blob("config", "hold", {{Ref("snapshot.native"), "top"}});
  c.Blob("manifest", "hold",
         {{Ref("content.config"), BlobOf("config")},
          {Ref("content.l.0"), BlobOf("layer0")},
          {Ref("content.l.1"), BlobOf("layer1")}});
  c.Image("i", "manifest");
  // Roots by label, and what hangs on them.
  c.Blob("rooted", "hold",
         {{"containerd.io/gc.root", "x"}, {Ref("content"), BlobOf("kept")}});
  c.Blob("kept", "hold");
  c.Layer("rooted", "", "hold",
          {{"containerd.io/gc.root.x", ""},
           {"containerd.io/gc.root", "2001-01-01T00:00:00Z"},
           {Ref("content.a"), BlobOf("by-snapshot")}});
  c.Blob("by-snapshot", "hold");
  // What looks like a reference and is none.
  c.Blob("not-a-ref", "hold");
  c.Blob("odd", "hold",
         {{"containerd.io/gc.root", "x"},
          {"containerd.io/gc.ref.contents", BlobOf("not-a-ref")},
          {Ref("content.empty"), BlobOf("nobody")}});
  c.Blob("garbage", "hold");
  c.Blob("expire-is-for-leases", "",
         {{"containerd.io/gc.expire", "2999-01-01T00:00:00Z"}});
  // A container keeps its snapshot, and what its labels name.
  c.Prepare("rw", "top", "hold");
  c.Blob("by-container", "hold");
  c.Container("c", "rw", {{Ref("content.x"), BlobOf("by-container")}});
  c.Prepare("lost", "top", "hold");
  c.View("view", "base");
  c.Ingest("leased", "hold");
  c.Ingest("unleased", "");
  c.Unlease("hold");
  c.RemoveImage("i");
  c.RemoveContainer("c");
  c.Lease("again");
  c.Unlease("again");
}

void Leased(Transcript& t) {
  Client c(t);
  c.Lease("hold");
  c.Lease("flat", {{"containerd.io/gc.flat", "x"}});
  c.Lease("soon", {{"containerd.io/gc.expire", "2999-01-01T00:00:00Z"}});
  c.Lease("rubbish", {{"containerd.io/gc.expire", "soon"}});
  c.Blob("below", "hold");
  c.Blob("flat", "flat", {{Ref("content"), BlobOf("below")}});
  c.Blob("late", "hold");
  c.ExpiredLease("late", BlobOf("late"));
  c.Blob("soon", "soon", {{Ref("content.0"), BlobOf("below-soon")}});
  c.Blob("below-soon", "hold");
  c.Blob("rubbish", "rubbish");
  c.Blob("named", "hold");
  c.Resource("soon", "content", BlobOf("named"));
  c.Layer("base", "", "hold");
  c.Layer("mid", "base", "hold", {{Ref("content"), BlobOf("by-flat")}});
  c.Blob("by-flat", "hold");
  c.Resource("flat", "snapshots/native", "mid");
  c.Ingest("in", "hold");
  c.Resource("soon", "ingests", "in");
  c.Unlease("hold");
  c.Unlease("flat");
  c.Unlease("soon");
  c.Unlease("rubbish");
}

TEST(CollectionCompared, Labels) { Compare("collection", Labelled); }
TEST(CollectionCompared, Leases) { Compare("collection-leases", Leased); }

}  // namespace
}  // namespace bulkhead::conformance
