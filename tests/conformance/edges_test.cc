// Rules that hold for all services, and what one kind of record does to
// another, compared: the namespace header, empty and full namespaces, the
// lease header, the grammar of filters.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "lib/digest/digest.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "proto/containerd/services/images/v1/images.grpc.pb.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "proto/containerd/services/namespaces/v1/namespaces.grpc.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"
#include "tests/conformance/daemons.h"

namespace bulkhead::conformance {
namespace {

namespace containers_v1 = containerd::services::containers::v1;
namespace content_v1 = containerd::services::content::v1;
namespace images_v1 = containerd::services::images::v1;
namespace leases_v1 = containerd::services::leases::v1;
namespace namespaces_v1 = containerd::services::namespaces::v1;
namespace snapshots_v1 = containerd::services::snapshots::v1;
using google::protobuf::Empty;
using Labels = std::map<std::string, std::string>;

constexpr char kSnapshotter[] = "native";
constexpr char kExpire[] = "containerd.io/gc.expire";
constexpr char kRoot[] = "containerd.io/gc.root";

class Client {
 public:
  explicit Client(Transcript& t)
      : containers(t.channel()),
        content(t.channel()),
        images(t.channel()),
        leases(t.channel()),
        namespaces(t.channel()),
        snapshots(t.channel()),
        t_(t) {}

  // `data` with the digest it has, or an ingest that is left (`total` more).
  grpc::Status Write(const std::string& ref, const std::string& data,
                     const std::string& lease, int64_t total = 0) {
    content_v1::WriteContentRequest request;
    request.set_action(total == 0 ? content_v1::COMMIT : content_v1::WRITE);
    request.set_ref(ref);
    request.set_data(data);
    request.set_total(total == 0 ? static_cast<int64_t>(data.size()) : total);
    if (total == 0) request.set_expected(Digest::Of(data).str());
    (*request.mutable_labels())[kRoot] = "x";
    const auto context = t_.Call(lease);
    const auto stream = content.Write(context.get());
    stream->Write(request);
    stream->WritesDone();
    content_v1::WriteContentResponse reply;
    while (stream->Read(&reply)) {
    }
    return stream->Finish();
  }
  grpc::Status DeleteBlob(const std::string& data, const std::string& lease) {
    content_v1::DeleteContentRequest request;
    request.set_digest(Digest::Of(data).str());
    Empty empty;
    return content.Delete(t_.Call(lease).get(), request, &empty);
  }
  grpc::Status Abort(const std::string& ref, const std::string& lease) {
    content_v1::AbortRequest request;
    request.set_ref(ref);
    Empty empty;
    return content.Abort(t_.Call(lease).get(), request, &empty);
  }
  grpc::Status CreateImage(const std::string& name, const std::string& lease,
                           const Labels& labels) {
    images_v1::CreateImageRequest request;
    Fill(request.mutable_image(), name, labels);
    images_v1::CreateImageResponse reply;
    return images.Create(t_.Call(lease).get(), request, &reply);
  }
  grpc::Status UpdateImage(const std::string& name, const std::string& lease,
                           const Labels& labels) {
    images_v1::UpdateImageRequest request;
    Fill(request.mutable_image(), name, labels);
    images_v1::UpdateImageResponse reply;
    return images.Update(t_.Call(lease).get(), request, &reply);
  }
  grpc::Status DeleteImage(const std::string& name, const std::string& lease) {
    images_v1::DeleteImageRequest request;
    request.set_name(name);
    Empty empty;
    return images.Delete(t_.Call(lease).get(), request, &empty);
  }
  grpc::Status CreateContainer(const std::string& id,
                               const std::string& lease = "") {
    containers_v1::CreateContainerRequest request;
    request.mutable_container()->set_id(id);
    request.mutable_container()->mutable_runtime()->set_name("r");
    request.mutable_container()->mutable_spec()->set_type_url("t");
    containers_v1::CreateContainerResponse reply;
    return containers.Create(t_.Call(lease).get(), request, &reply);
  }
  grpc::Status DeleteContainer(const std::string& id) {
    containers_v1::DeleteContainerRequest request;
    request.set_id(id);
    Empty empty;
    return containers.Delete(t_.Call().get(), request, &empty);
  }
  grpc::Status Prepare(const std::string& key, const std::string& parent,
                       const std::string& lease) {
    snapshots_v1::PrepareSnapshotRequest request;
    request.set_snapshotter(kSnapshotter);
    request.set_key(key);
    request.set_parent(parent);
    (*request.mutable_labels())[kRoot] = "x";
    snapshots_v1::PrepareSnapshotResponse reply;
    return snapshots.Prepare(t_.Call(lease).get(), request, &reply);
  }
  grpc::Status View(const std::string& key, const std::string& parent,
                    const std::string& lease) {
    snapshots_v1::ViewSnapshotRequest request;
    request.set_snapshotter(kSnapshotter);
    request.set_key(key);
    request.set_parent(parent);
    (*request.mutable_labels())[kRoot] = "x";
    snapshots_v1::ViewSnapshotResponse reply;
    return snapshots.View(t_.Call(lease).get(), request, &reply);
  }
  grpc::Status Commit(const std::string& name, const std::string& key,
                      const std::string& lease) {
    snapshots_v1::CommitSnapshotRequest request;
    request.set_snapshotter(kSnapshotter);
    request.set_name(name);
    request.set_key(key);
    (*request.mutable_labels())[kRoot] = "x";
    Empty empty;
    return snapshots.Commit(t_.Call(lease).get(), request, &empty);
  }
  grpc::Status Remove(const std::string& key, const std::string& lease) {
    snapshots_v1::RemoveSnapshotRequest request;
    request.set_snapshotter(kSnapshotter);
    request.set_key(key);
    Empty empty;
    return snapshots.Remove(t_.Call(lease).get(), request, &empty);
  }
  grpc::Status Lease(const std::string& id) {
    leases_v1::CreateRequest request;
    request.set_id(id);
    leases_v1::CreateResponse reply;
    return leases.Create(t_.Call().get(), request, &reply);
  }
  // What the lease holds, in the order of the answer.
  std::string Held(const std::string& id) {
    leases_v1::ListResourcesRequest request;
    request.set_id(id);
    leases_v1::ListResourcesResponse reply;
    const grpc::Status s =
        leases.ListResources(t_.Call().get(), request, &reply);
    if (!s.ok()) return s.error_message();
    std::vector<std::string> held;
    for (const auto& one : reply.resources()) {
      held.push_back(one.type() + " " + one.id());
    }
    return absl::StrJoin(held, ", ");
  }
  grpc::Status DeleteNamespace() {
    namespaces_v1::DeleteNamespaceRequest request;
    request.set_name(t_.ns());
    Empty empty;
    return namespaces.Delete(t_.Call().get(), request, &empty);
  }
  // Whether a namespace of that name is listed.
  std::string Listed(const std::string& name) {
    namespaces_v1::ListNamespacesResponse reply;
    const grpc::Status s = namespaces.List(t_.Call("", "-").get(), {}, &reply);
    if (!s.ok()) return s.error_message();
    for (const auto& one : reply.namespaces()) {
      if (one.name() == name) return "listed";
    }
    return "not listed";
  }

  containers_v1::Containers::Stub containers;
  content_v1::Content::Stub content;
  images_v1::Images::Stub images;
  leases_v1::Leases::Stub leases;
  namespaces_v1::Namespaces::Stub namespaces;
  snapshots_v1::Snapshots::Stub snapshots;

 private:
  static void Fill(images_v1::Image* image, const std::string& name,
                   const Labels& labels) {
    image->set_name(name);
    image->mutable_target()->set_digest(Digest::Of("target").str());
    image->mutable_target()->set_size(5);
    image->mutable_target()->set_media_type("m");
    image->mutable_labels()->insert(labels.begin(), labels.end());
  }

  Transcript& t_;
};

// A call of each service whose header is missing, empty, bad or there twice.
void Headers(Transcript& t) {
  Client c(t);
  using Make = std::function<std::unique_ptr<grpc::ClientContext>()>;
  const auto with = [](const std::vector<std::string>& values) {
    return [values] {
      auto context = std::make_unique<grpc::ClientContext>();
      for (const std::string& value : values) {
        context->AddMetadata("containerd-namespace", value);
      }
      return context;
    };
  };
  const std::string absent = Digest::Of("nobody wrote this").str();
  for (const auto& [label, make] : std::vector<std::pair<std::string, Make>>{
           {"none", with({})},
           {"empty", with({""})},
           {"bad", with({"a b"})},
           {"long", with({std::string(77, 'n')})},
           {"first-wins", with({t.ns(), t.ns() + "-second"})},
           {"bad-second", with({t.ns(), "a b"})}}) {
    images_v1::GetImageRequest image;
    image.set_name("none");
    images_v1::GetImageResponse image_reply;
    t.Say(label + "-image", c.images.Get(make().get(), image, &image_reply));
    containers_v1::GetContainerRequest container;
    container.set_id("none");
    containers_v1::GetContainerResponse container_reply;
    t.Say(label + "-container",
          c.containers.Get(make().get(), container, &container_reply));
    leases_v1::ListRequest list;
    leases_v1::ListResponse leases;
    t.Say(label + "-leases", c.leases.List(make().get(), list, &leases));
    content_v1::InfoRequest info;
    info.set_digest(absent);
    content_v1::InfoResponse info_reply;
    t.Say(label + "-info", c.content.Info(make().get(), info, &info_reply));
    snapshots_v1::StatSnapshotRequest stat;
    stat.set_snapshotter(kSnapshotter);
    stat.set_key("none");
    snapshots_v1::StatSnapshotResponse stat_reply;
    t.Say(label + "-stat", c.snapshots.Stat(make().get(), stat, &stat_reply));
    snapshots_v1::ListSnapshotsRequest walk;
    walk.set_snapshotter(kSnapshotter);
    const auto context = make();
    const auto reader = c.snapshots.List(context.get(), walk);
    snapshots_v1::ListSnapshotsResponse some;
    while (reader->Read(&some)) {
    }
    t.Say(label + "-walk", reader->Finish());
    // Needs no header.
    namespaces_v1::GetNamespaceRequest ns;
    ns.set_name(t.ns());
    namespaces_v1::GetNamespaceResponse ns_reply;
    const grpc::Status s = c.namespaces.Get(make().get(), ns, &ns_reply);
    t.Say(label + "-namespace", s, ns_reply);
  }
  t.Say("reads-create-nothing", c.Listed(t.ns()));
  const auto write = with({t.ns(), t.ns() + "-second"})();
  leases_v1::CreateRequest lease;
  lease.set_id("l");
  leases_v1::CreateResponse lease_reply;
  t.Say("write", c.leases.Create(write.get(), lease, &lease_reply));
  t.Say("a-write-creates", c.Listed(t.ns()));
  t.Say("only-the-first", c.Listed(t.ns() + "-second"));
}

// What keeps a namespace from being deleted, and what goes with it.
void Full(Transcript& t) {
  Client c(t);
  t.Say("lease", c.Lease("l"));
  t.Say("ingest", c.Write("left", "some", "", 100));
  t.Say("image", c.CreateImage("i", "", {}));
  t.Say("blob", c.Write("r", "full", ""));
  t.Say("container", c.CreateContainer("c"));
  t.Say("snapshot", c.Prepare("s", "", ""));
  t.Say("delete-all-four", c.DeleteNamespace());
  t.Say("image-gone", c.DeleteImage("i", ""));
  t.Say("delete-three", c.DeleteNamespace());
  t.Say("container-gone", c.DeleteContainer("c"));
  t.Say("delete-two", c.DeleteNamespace());
  t.Say("blob-gone", c.DeleteBlob("full", ""));
  t.Say("delete-one", c.DeleteNamespace());
  t.Say("snapshot-gone", c.Remove("s", ""));
  t.Say("delete", c.DeleteNamespace());
  t.Say("gone", c.Listed(t.ns()));
  // Nothing of it comes back with the name.
  t.Say("lease-again", c.Lease("l"));
  t.Say("held", c.Held("l"));
  content_v1::ListStatusesResponse statuses;
  const grpc::Status s = c.content.ListStatuses(t.Call().get(), {}, &statuses);
  t.Say("ingests", s, statuses);
}

// Who looks at the lease header, who adds to the lease, who takes out of it.
void Leased(Transcript& t) {
  Client c(t);
  t.Say("no-blob", c.Write("r", "blob 0", "none"));
  t.Say("no-ingest", c.Write("r", "some", "none", 100));
  t.Say("no-prepare", c.Prepare("p0", "", "none"));
  t.Say("prepare", c.Prepare("p0", "", ""));
  t.Say("no-commit", c.Commit("c0", "p0", "none"));
  t.Say("commit", c.Commit("c0", "p0", ""));
  t.Say("no-view", c.View("v0", "c0", "none"));
  t.Say("no-remove", c.Remove("c0", "none"));
  t.Say("no-image", c.CreateImage("plain", "none", {}));
  t.Say("no-image-update", c.UpdateImage("plain", "none", {{"a", "b"}}));
  t.Say("no-image-delete", c.DeleteImage("plain", "none"));
  t.Say("no-container", c.CreateContainer("c", "none"));
  t.Say("no-abort", c.Abort("nothing", "none"));

  t.Say("create", c.Lease("l"));
  t.Say("create-other", c.Lease("m"));
  t.Say("blob", c.Write("r", "blob 1", "l"));
  t.Say("blob-again", c.Write("r2", "blob 1", "m"));
  t.Say("ingest", c.Write("left", "some", "l", 100));
  t.Say("prepare-1", c.Prepare("p1", "", "l"));
  t.Say("prepare-1-again", c.Prepare("p1", "", "m"));
  t.Say("image", c.CreateImage("plain", "l", {}));
  t.Say("container", c.CreateContainer("c2", "l"));
  t.Say("held", c.Held("l"));
  t.Say("held-other", c.Held("m"));
  t.Say("commit-1", c.Commit("layer", "p1", "l"));
  t.Say("commit-1-again", c.Commit("layer", "p1", "m"));
  t.Say("view-1", c.View("v1", "layer", "m"));
  t.Say("held-after-commit", c.Held("l"));
  t.Say("held-other-after-commit", c.Held("m"));
  // Only the header's lease forgets.
  t.Say("remove-view", c.Remove("v1", "l"));
  t.Say("abort", c.Abort("left", "m"));
  t.Say("delete-blob", c.DeleteBlob("blob 1", "m"));
  t.Say("held-after-deletes", c.Held("l"));
  t.Say("held-other-after-deletes", c.Held("m"));
}

// 1.6 does not know this: images that expire belong to the header's lease.
void ExpiringImages(Transcript& t) {
  Client c(t);
  const Labels labels = {{kExpire, "2999-01-01T00:00:00Z"}};
  t.Say("no-lease", c.CreateImage("i", "none", labels));
  t.Say("create", c.Lease("l"));
  t.Say("image", c.CreateImage("j", "l", labels));
  t.Say("held", c.Held("l"));
}

void Filters(Transcript& t) {
  Client c(t);
  const std::vector<std::pair<std::string, Labels>> images = {
      {"one", {{"a", "b"}, {"x-y/z", "slash/value"}, {"dot.ted", "1"}}},
      {"two", {{"a", "b,c"}, {"c", "d e"}, {"n", "10"}}},
      {"three/3:tag",
       {{"quote", "say \"hi\""}, {"uni", "\xc3\xa4\xf0\x9f\x90\xb3"}}},
      {"four", {{"pipe", "p|q"}, {"re", "aab"}, {"nl", "l1\nl2"}}}};
  for (const auto& [name, labels] : images) {
    t.Say("image " + name, c.CreateImage(name, "", labels));
  }
  const auto list = [&](const std::vector<std::string>& filters) {
    images_v1::ListImagesRequest request;
    for (const std::string& one : filters) request.add_filters(one);
    images_v1::ListImagesResponse reply;
    const grpc::Status s = c.images.List(t.Call().get(), request, &reply);
    std::vector<std::string> names;
    for (const auto& one : reply.images()) names.push_back(one.name());
    t.Say(absl::StrJoin(filters, " || "),
          s.ok() ? absl::StrJoin(names, ", ")
                 : std::to_string(s.error_code()) + " " + s.error_message());
  };
  list({});
  list({"name==one", "name==two"});
  list({"name==one", ""});
  list({"name==one", "name=="});
  list({"name==none", "labels.n"});
  for (const char* filter : {"name",
                             "name,labels.a",
                             "name==three/3:tag",
                             "name==\"three/3:tag\"",
                             "name==three",
                             "labels.dot.ted",
                             "labels.dot.ted==1",
                             "labels.\"dot.ted\"==1",
                             "labels.dot.\"ted\"==1",
                             "labels.x-y/z",
                             "labels.\"x-y/z\"",
                             "labels.\"x-y/z\"==slash/value",
                             "labels.\"x-y/z\"~=^slash/",
                             "labels.\"x-y/z\"~=/^slash\\/v/",
                             "labels.\"x-y/z\"~=|^slash/v|",
                             "labels.\"x-y/z\"==/slash/",
                             "labels.\"x-y/z\"==|slash|",
                             "labels.a==b,c",
                             "labels.a==\"b,c\"",
                             "labels.c==d e",
                             "labels.c==\"d e\"",
                             "labels.c==\"d\\x20e\"",
                             "labels.c==\"d\\040e\"",
                             "labels.c==\"d\\u0020e\"",
                             "labels.c==\"d\\qe\"",
                             "labels.c==\"d",
                             "labels.quote==\"say \\\"hi\\\"\"",
                             "labels.quote~=/say \"hi\"/",
                             "labels.uni==\xc3\xa4\xf0\x9f\x90\xb3",
                             "labels.uni==\"\\u00e4\\U0001F433\"",
                             "labels.uni~=^.{2}$",
                             "labels.pipe~=/p\\|q/",
                             "labels.pipe~=|p\\|q|",
                             "labels.pipe==p|q",
                             "labels.re~=^a+b$",
                             "labels.re~=a{2}",
                             "labels.re~=(?i)AAB",
                             "labels.re~=(",
                             "labels.re~=\"\"",
                             "labels.re~=",
                             "labels.nl==\"l1\\nl2\"",
                             "labels.nl~=^l1$",
                             "labels.nl~=(?m)^l1$",
                             "labels.none~=^$",
                             "labels.none~=x",
                             "labels.none!=x",
                             "labels.none==",
                             "labels.none==\"\"",
                             "labels.a!=b",
                             "labels.n==10",
                             "labels.n=10",
                             "labels.n===10",
                             "labels.n<10",
                             "labels.n!~10",
                             "!labels.n",
                             "labels",
                             "labels.",
                             ".labels",
                             "labels..n",
                             "==b",
                             ",",
                             "name==one,",
                             ",name==one",
                             "name==one,,name==two",
                             "name==one name==two",
                             "name==one, labels.a",
                             "name==one ,labels.a",
                             "  name==one",
                             "name==one ",
                             "name== one",
                             "name ==one",
                             "name==one\t",
                             "'name'==one",
                             "name=='one'",
                             "\"name\"==one",
                             "na me==one",
                             "name==.one",
                             "name==,",
                             "name==\x01",
                             "name\x01==one",
                             "Name==one",
                             "target.size==5",
                             "target.mediatype==m",
                             "target.mediaType==m",
                             "created_at"}) {
    list({filter});
  }
}

TEST(EdgesCompared, Headers) { Compare("headers", Headers); }
TEST(EdgesCompared, FullNamespaces) { Compare("full", Full); }
TEST(EdgesCompared, LeaseHeaders) { Compare("lease-headers", Leased); }
TEST(EdgesCompared, ExpiringImages) { Compare("expiring", ExpiringImages); }
TEST(EdgesCompared, Filters) { Compare("filters", Filters); }

}  // namespace
}  // namespace bulkhead::conformance
