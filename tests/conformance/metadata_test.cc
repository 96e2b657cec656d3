// Namespaces, images, containers, leases and events, compared.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <tuple>

#include "lib/digest/digest.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/events/v1/events.grpc.pb.h"
#include "proto/containerd/services/images/v1/images.grpc.pb.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "proto/containerd/services/namespaces/v1/namespaces.grpc.pb.h"
#include "tests/conformance/daemons.h"

namespace bulkhead::conformance {
namespace {

namespace containers_v1 = containerd::services::containers::v1;
namespace events_v1 = containerd::services::events::v1;
namespace images_v1 = containerd::services::images::v1;
namespace leases_v1 = containerd::services::leases::v1;
namespace namespaces_v1 = containerd::services::namespaces::v1;
using google::protobuf::Empty;
using Labels = std::map<std::string, std::string>;
using Paths = std::vector<std::string>;

template <typename Map>
void Set(Map* map, const Labels& labels) {
  map->insert(labels.begin(), labels.end());
}

const std::vector<std::string> kFilters = {"",
                                           "labels.a==b",
                                           "labels.a",
                                           "labels.none",
                                           "labels.a!=b",
                                           "x=y",
                                           "labels.a==b,",
                                           "labels.a= b",
                                           "name==/x",
                                           "labels.a~=/(/",
                                           "id~=|^c|",
                                           "labels.a~=^b$",
                                           "labels.\"q.r/s\"==t",
                                           "labels.q\\.r",
                                           " labels.a == b",
                                           "labels.a==b , id",
                                           "'a'==b",
                                           "labels.a==\"b\"",
                                           "labels.a=!b",
                                           "labels.a==b,labels.c==d"};

void Namespaces(Transcript& t) {
  namespaces_v1::Namespaces::Stub stub(t.channel());
  const auto create = [&](const std::string& label, const std::string& name,
                          const Labels& labels) {
    namespaces_v1::CreateNamespaceRequest request;
    request.mutable_namespace_()->set_name(name);
    Set(request.mutable_namespace_()->mutable_labels(), labels);
    namespaces_v1::CreateNamespaceResponse reply;
    const grpc::Status s = stub.Create(t.Call().get(), request, &reply);
    t.Say(label, s, reply);
  };
  const auto get = [&](const std::string& label, const std::string& name) {
    namespaces_v1::GetNamespaceRequest request;
    request.set_name(name);
    namespaces_v1::GetNamespaceResponse reply;
    const grpc::Status s = stub.Get(t.Call().get(), request, &reply);
    t.Say(label, s, reply);
  };
  const auto update = [&](const std::string& label, const std::string& name,
                          const Paths& paths, const Labels& labels) {
    namespaces_v1::UpdateNamespaceRequest request;
    request.mutable_namespace_()->set_name(name);
    Set(request.mutable_namespace_()->mutable_labels(), labels);
    for (const auto& p : paths) request.mutable_update_mask()->add_paths(p);
    namespaces_v1::UpdateNamespaceResponse reply;
    t.Say(label, stub.Update(t.Call().get(), request, &reply));
  };
  const auto remove = [&](const std::string& label, const std::string& name) {
    namespaces_v1::DeleteNamespaceRequest request;
    request.set_name(name);
    Empty empty;
    t.Say(label, stub.Delete(t.Call().get(), request, &empty));
  };
  const std::string ns = t.ns();
  get("get-none", ns);
  create("create", ns, {{"a", "b"}, {"e", ""}});
  create("again", ns, {});
  get("get", ns);
  for (const auto& [label, name] :
       std::vector<std::pair<std::string, std::string>>{
           {"empty", ""},
           {"slash", "a/b"},
           {"dot", ".a"},
           {"dash", "a-"},
           {"double", "a..b"},
           {"long", std::string(77, 'x')},
           {"utf8", "\xc3\xa4"},
           {"space", "a b"}}) {
    create("create-" + label, name, {});
    get("get-" + label, name);
    remove("delete-bad-" + label, name);
  }
  create("label-too-long", ns + "l", {{"k", std::string(5000, 'v')}});
  update("update-one", ns, {"labels.x.y"}, {{"x.y", "z"}, {"no", "n"}});
  get("get-2", ns);
  update("update-labels", ns, {"labels"}, {{"x", "z"}});
  update("update-name", ns, {"name"}, {});
  update("update-delete", ns, {"labels.a"}, {});
  get("get-3", ns);
  update("update-nomask", ns, {}, {{"n", "m"}, {"e", ""}});
  get("get-4", ns);
  update("update-creates", ns + "-u", {"labels.k"}, {{"k", "v"}});
  get("get-5", ns + "-u");
  namespaces_v1::ListNamespacesResponse all;
  const grpc::Status s = stub.List(t.Call().get(), {}, &all);
  namespaces_v1::ListNamespacesResponse mine;
  for (const auto& one : all.namespaces()) {
    if (one.name().rfind(ns, 0) == 0) *mine.add_namespaces() = one;
  }
  t.Say("list", s, mine);

  containers_v1::CreateContainerRequest container;
  container.mutable_container()->set_id("c");
  container.mutable_container()->mutable_runtime()->set_name("r");
  container.mutable_container()->mutable_spec()->set_type_url("t");
  containers_v1::CreateContainerResponse created;
  containers_v1::Containers::Stub containers(t.channel());
  t.Say("container", containers.Create(t.Call().get(), container, &created));
  remove("delete-full", ns);
  containers_v1::DeleteContainerRequest gone;
  gone.set_id("c");
  Empty empty;
  t.Say("container-gone", containers.Delete(t.Call().get(), gone, &empty));
  remove("delete", ns);
  remove("delete-again", ns);
  remove("delete-u", ns + "-u");
}

void Images(Transcript& t) {
  images_v1::Images::Stub stub(t.channel());
  const std::string digest = Digest::Of("manifest").str();
  const auto fill = [&](images_v1::Image* image, const std::string& name,
                        const std::string& d, int64_t size,
                        const std::string& media, const Labels& labels) {
    image->set_name(name);
    image->mutable_target()->set_digest(d);
    image->mutable_target()->set_size(size);
    image->mutable_target()->set_media_type(media);
    (*image->mutable_target()->mutable_annotations())["an"] = "no";
    Set(image->mutable_labels(), labels);
  };
  const auto create = [&](const std::string& label, const std::string& name,
                          const std::string& d, int64_t size,
                          const std::string& media, const Labels& labels = {}) {
    images_v1::CreateImageRequest request;
    fill(request.mutable_image(), name, d, size, media, labels);
    images_v1::CreateImageResponse reply;
    const grpc::Status s = stub.Create(t.Call().get(), request, &reply);
    t.Say(label, s, reply);
  };
  const auto update = [&](const std::string& label, const std::string& name,
                          const std::string& d, const Paths& paths,
                          const Labels& labels) {
    images_v1::UpdateImageRequest request;
    fill(request.mutable_image(), name, d, 7, "m2", labels);
    for (const auto& p : paths) request.mutable_update_mask()->add_paths(p);
    images_v1::UpdateImageResponse reply;
    const grpc::Status s = stub.Update(t.Call().get(), request, &reply);
    t.Say(label, s, reply);
  };
  const auto get = [&](const std::string& label, const std::string& name) {
    images_v1::GetImageRequest request;
    request.set_name(name);
    images_v1::GetImageResponse reply;
    const grpc::Status s = stub.Get(t.Call().get(), request, &reply);
    t.Say(label, s, reply);
  };
  get("get-none", "i");
  create("no-name", "", digest, 5, "m");
  create("no-digest", "i", "", 5, "m");
  create("bad-digest", "i", "sha256:1", 5, "m");
  create("no-size", "i", digest, 0, "m");
  create("negative-size", "i", digest, -1, "m");
  create("no-media", "i", digest, 5, "");
  create("long-label", "i", digest, 5, "m", {{"k", std::string(5000, 'v')}});
  create("create", "i", digest, 5, "m", {{"a", "b"}, {"e", ""}, {"c", "d"}});
  create("again", "i", digest, 5, "m");
  create("odd-name", "any thing/ at:all", digest, 5, "m", {{"q.r/s", "t"}});
  get("get", "i");
  get("get-empty", "");
  const std::string other = Digest::Of("other").str();
  update("update-target", "i", other, {"target"}, {{"no", "n"}});
  update("update-label", "i", digest, {"labels.x.y"}, {{"x.y", "z"}});
  update("update-labels", "i", digest, {"labels"}, {{"a", "b"}, {"c", "d"}});
  update("update-annotation", "i", digest, {"annotations.an"}, {});
  update("update-name", "i", digest, {"name"}, {});
  update("update-two", "i", digest, {"labels.k", "bad"}, {{"k", "v"}});
  update("update-nomask", "i", digest, {}, {{"a", "b"}, {"c", "d"}});
  update("update-none", "none", digest, {}, {});
  update("update-no-name", "", digest, {}, {});
  update("update-bad-target", "i", "x", {"target"}, {});
  std::vector<std::string> filters = kFilters;
  filters.insert(filters.end(),
                 {"name==i", "target.digest==" + digest, "target.mediatype==m2",
                  "annotations.an==no", "size==7", "name~=thing"});
  for (const std::string& filter : filters) {
    images_v1::ListImagesRequest request;
    request.add_filters(filter);
    images_v1::ListImagesResponse reply;
    const grpc::Status s = stub.List(t.Call().get(), request, &reply);
    t.Say("list " + filter, s, reply);
  }
  const auto remove = [&](const std::string& label, const std::string& name,
                          bool sync) {
    images_v1::DeleteImageRequest request;
    request.set_name(name);
    request.set_sync(sync);
    Empty empty;
    t.Say(label, stub.Delete(t.Call().get(), request, &empty));
  };
  remove("delete-none", "none", false);
  remove("delete-empty", "", false);
  remove("delete", "i", true);
  get("gone", "i");
  images_v1::ListImagesResponse reply;
  t.Say("no-ns", stub.List(t.Call("", "-").get(), {}, &reply));
  t.Say("bad-ns", stub.List(t.Call("", "a/b").get(), {}, &reply));
}

void Containers(Transcript& t) {
  containers_v1::Containers::Stub stub(t.channel());
  using Edit = std::function<void(containers_v1::Container*)>;
  const auto base = [](containers_v1::Container* c) {
    c->set_id("c");
    c->mutable_runtime()->set_name("io.containerd.runc.v2");
    c->mutable_spec()->set_type_url("types.containerd.io/x");
    c->mutable_spec()->set_value("{\"a\": 1}");
  };
  const auto create = [&](const std::string& label, const Edit& edit) {
    containers_v1::CreateContainerRequest request;
    base(request.mutable_container());
    edit(request.mutable_container());
    containers_v1::CreateContainerResponse reply;
    const grpc::Status s = stub.Create(t.Call().get(), request, &reply);
    t.Say(label, s, reply);
  };
  const auto update = [&](const std::string& label, const Paths& paths,
                          const Edit& edit) {
    containers_v1::UpdateContainerRequest request;
    base(request.mutable_container());
    edit(request.mutable_container());
    for (const auto& p : paths) request.mutable_update_mask()->add_paths(p);
    containers_v1::UpdateContainerResponse reply;
    const grpc::Status s = stub.Update(t.Call().get(), request, &reply);
    t.Say(label, s, reply);
  };
  const auto remove = [&](const std::string& label, const std::string& id) {
    containers_v1::DeleteContainerRequest request;
    request.set_id(id);
    Empty empty;
    t.Say(label, stub.Delete(t.Call().get(), request, &empty));
  };
  const auto get = [&](const std::string& label, const std::string& id) {
    containers_v1::GetContainerRequest request;
    request.set_id(id);
    containers_v1::GetContainerResponse reply;
    const grpc::Status s = stub.Get(t.Call().get(), request, &reply);
    t.Say(label, s, reply);
  };
  using C = containers_v1::Container;
  get("get-nothing", "c");
  remove("delete-nothing", "c");
  create("no-id", [](C* c) { c->set_id(""); });
  create("bad-id", [](C* c) { c->set_id("a/b"); });
  create("no-runtime", [](C* c) { c->clear_runtime(); });
  create("no-spec", [](C* c) { c->clear_spec(); });
  create("no-snapshotter", [](C* c) { c->set_snapshot_key("k"); });
  create("empty-extension", [](C* c) { (*c->mutable_extensions())[""]; });
  create("empty-extension-value",
         [](C* c) { (*c->mutable_extensions())["x"]; });
  create("long-label",
         [](C* c) { (*c->mutable_labels())["k"] = std::string(5000, 'v'); });
  create("create", [](C* c) {
    Set(c->mutable_labels(), {{"a", "b"}, {"e", ""}, {"c", "d"}});
    c->set_image("img");
    c->set_snapshotter("overlayfs");
    c->set_snapshot_key("key");
    (*c->mutable_extensions())["ext"].set_type_url("u");
    (*c->mutable_extensions())["ext"].set_value("v");
    c->mutable_runtime()->mutable_options()->set_type_url("o");
  });
  create("again", [](C*) {});
  create("second", [](C* c) {
    c->set_id("c2");
    Set(c->mutable_labels(), {{"q.r/s", "t"}});
  });
  get("get", "c");
  get("get-none", "none");
  get("get-empty", "");
  remove("delete-none", "none");
  remove("delete-empty", "");
  update("label", {"labels.x.y"}, [](C* c) {
    Set(c->mutable_labels(), {{"x.y", "z"}, {"no", "n"}});
  });
  update("labels", {"labels"}, [](C* c) {
    Set(c->mutable_labels(), {{"a", "b"}, {"c", "d"}, {"e", ""}});
  });
  update("image", {"image"}, [](C* c) { c->set_image("img2"); });
  update("spec", {"spec"}, [](C* c) { c->mutable_spec()->set_value("2"); });
  update("snapshotkey", {"snapshotkey"},
         [](C* c) { c->set_snapshot_key("key2"); });
  update("snapshot_key", {"snapshot_key"}, [](C*) {});
  update("extension", {"extensions.new"},
         [](C* c) { (*c->mutable_extensions())["new"].set_type_url("n"); });
  update("runtime", {"runtime"}, [](C*) {});
  update("id", {"id"}, [](C*) {});
  update("empty-path", {""}, [](C*) {});
  update("nomask-snapshotter", {}, [](C* c) { c->set_snapshotter("native"); });
  update("nomask-runtime", {}, [](C* c) {
    c->set_snapshotter("overlayfs");
    c->mutable_runtime()->set_name("other");
  });
  update("nomask", {}, [](C* c) {
    c->set_snapshotter("overlayfs");
    c->set_snapshot_key("key3");
    Set(c->mutable_labels(), {{"a", "b"}, {"c", "d"}});
  });
  update("none", {"labels.a"}, [](C* c) { c->set_id("none"); });
  update("update-no-id", {"labels.a"}, [](C* c) { c->set_id(""); });
  std::vector<std::string> filters = kFilters;
  filters.insert(filters.end(), {"id==c", "runtime.name~=runc", "image==img2",
                                 "runtime==x", "spec==x", "id!=c"});
  for (const std::string& filter : filters) {
    containers_v1::ListContainersRequest request;
    request.add_filters(filter);
    containers_v1::ListContainersResponse reply;
    const grpc::Status s = stub.List(t.Call().get(), request, &reply);
    t.Say("list " + filter, s, reply);
    const auto context = t.Call();
    const auto stream = stub.ListStream(context.get(), request);
    containers_v1::ListContainerMessage one;
    std::string text;
    while (stream->Read(&one)) text += "{" + one.ShortDebugString() + "}";
    const grpc::Status f = stream->Finish();
    t.Say("stream " + filter,
          text + std::to_string(f.error_code()) + " " + f.error_message());
  }
  update("extensions", {"extensions"},
         [](C* c) { (*c->mutable_extensions())["only"].set_type_url("n"); });
  get("extensions-kept", "c");
  remove("delete", "c");
  remove("delete-again", "c");
  remove("delete-2", "c2");
}

void Leases(Transcript& t) {
  leases_v1::Leases::Stub stub(t.channel());
  const std::string digest = Digest::Of("leased").str();
  const auto create = [&](const std::string& label, const std::string& id,
                          const Labels& labels) {
    leases_v1::CreateRequest request;
    request.set_id(id);
    Set(request.mutable_labels(), labels);
    leases_v1::CreateResponse reply;
    const grpc::Status s = stub.Create(t.Call().get(), request, &reply);
    if (id.empty() && s.ok()) t.Hide(reply.lease().id(), "GENERATED");
    t.Say(label, s, reply);
  };
  const auto resource = [&](const std::string& label, const std::string& lease,
                            const std::string& type, const std::string& id) {
    leases_v1::AddResourceRequest add;
    add.set_id(lease);
    add.mutable_resource()->set_type(type);
    add.mutable_resource()->set_id(id);
    Empty empty;
    t.Say("add-" + label, stub.AddResource(t.Call().get(), add, &empty));
  };
  const auto list = [&](const std::string& label, const std::string& lease) {
    leases_v1::ListResourcesRequest request;
    request.set_id(lease);
    leases_v1::ListResourcesResponse reply;
    const grpc::Status s = stub.ListResources(t.Call().get(), request, &reply);
    t.Say(label, s, reply);
  };
  const auto remove = [&](const std::string& label, const std::string& id,
                          bool sync) {
    leases_v1::DeleteRequest request;
    request.set_id(id);
    request.set_sync(sync);
    Empty empty;
    t.Say(label, stub.Delete(t.Call().get(), request, &empty));
  };
  create("create", "l", {{"a", "b"}, {"e", ""}, {"c", "d"}});
  create("again", "l", {});
  create("odd", "a b/c!", {{"q.r/s", "t"}});
  create("long-label", "long", {{"k", std::string(5000, 'v')}});
  create("generated", "", {{"gen", "x"}});
  resource("content", "l", "content", digest);
  resource("content-again", "l", "content", digest);
  resource("bad-digest", "l", "content", "nope");
  resource("ingest", "l", "ingests", "some ref");
  resource("snapshot", "l", "snapshots/overlayfs", "key 1");
  resource("snapshot-2", "l", "snapshots/native", "key 2");
  resource("no-snapshotter", "l", "snapshots", "key");
  resource("deep", "l", "snapshots/a/b", "key");
  resource("content-shape", "l", "content/x", digest);
  resource("image", "l", "images", "img");
  resource("unknown", "l", "unknown", "x");
  resource("empty", "l", "", "x");
  resource("empty-id", "l", "ingests", "");
  resource("no-lease", "none", "content", digest);
  list("resources", "l");
  list("resources-empty", "a b/c!");
  list("resources-none", "none");
  for (const auto& [label, type, id] :
       std::vector<std::tuple<std::string, std::string, std::string>>{
           {"content", "content", digest},
           {"again", "content", digest},
           {"unknown", "unknown", "x"},
           {"snapshot", "snapshots/native", "key 2"},
           {"bad-digest", "content", "nope"}}) {
    leases_v1::DeleteResourceRequest request;
    request.set_id("l");
    request.mutable_resource()->set_type(type);
    request.mutable_resource()->set_id(id);
    Empty empty;
    t.Say("del-" + label, stub.DeleteResource(t.Call().get(), request, &empty));
  }
  {
    leases_v1::DeleteResourceRequest request;
    request.set_id("none");
    request.mutable_resource()->set_type("content");
    request.mutable_resource()->set_id(digest);
    Empty empty;
    t.Say("del-no-lease", stub.DeleteResource(t.Call().get(), request, &empty));
  }
  list("resources-2", "l");
  std::vector<std::string> filters = kFilters;
  filters.insert(filters.end(), {"id==l", "id!=l,labels.a"});
  for (const std::string& filter : filters) {
    leases_v1::ListRequest request;
    request.add_filters(filter);
    leases_v1::ListResponse reply;
    const grpc::Status s = stub.List(t.Call().get(), request, &reply);
    std::sort(reply.mutable_leases()->begin(), reply.mutable_leases()->end(),
              [](const auto& a, const auto& b) { return a.id() < b.id(); });
    t.Say("list " + filter, s, reply);
  }
  remove("delete-none", "none", false);
  remove("delete-empty", "", false);
  remove("delete", "l", false);
  remove("delete-sync", "a b/c!", true);
  remove("delete-again", "l", false);
}

void Events(Transcript& t) {
  events_v1::Events::Stub stub(t.channel());
  const auto publish = [&](const std::string& label, const std::string& topic,
                           const std::string& ns = "") {
    events_v1::PublishRequest request;
    request.set_topic(topic);
    request.mutable_event()->set_type_url("any.Thing");
    request.mutable_event()->set_value("raw");
    Empty empty;
    t.Say("publish-" + label,
          stub.Publish(t.Call("", ns).get(), request, &empty));
  };
  const auto forward = [&](const std::string& label, const std::string& topic,
                           const std::string& ns, bool time) {
    events_v1::ForwardRequest request;
    request.mutable_envelope()->set_topic(topic);
    request.mutable_envelope()->set_namespace_(ns);
    if (time) request.mutable_envelope()->mutable_timestamp()->set_seconds(9);
    request.mutable_envelope()->mutable_event()->set_type_url("any.Thing");
    Empty empty;
    t.Say("forward-" + label,
          stub.Forward(t.Call("", "-").get(), request, &empty));
  };
  publish("no-slash", "a/b");
  publish("root", "/");
  publish("empty", "");
  publish("component", "/a/b c");
  publish("double", "/a//b");
  publish("end", "/a/");
  publish("no-ns", "/a/b", "-");
  // Not asked: an event without time or payload kills containerd 1.6.
  forward("no-ns", "/a/b", "", true);
  forward("bad-ns", "/a/b", "x/y", true);
  forward("bad-topic", "a/b", t.ns(), true);
  for (const std::string& filter :
       {std::string("topic==/x"), std::string("x=y"), std::string("a b")}) {
    events_v1::SubscribeRequest request;
    request.add_filters(filter);
    const auto context = t.Call("", "-");
    t.Say("subscribe " + filter,
          stub.Subscribe(context.get(), request)->Finish());
  }

  // What the other services publish, in order.
  events_v1::SubscribeRequest request;
  request.add_filters("namespace==" + t.ns());
  const auto context = t.Call("", "-");
  const auto reader = stub.Subscribe(context.get(), request);
  // containerd tells nobody when the subscription stands: knock until heard.
  containerd::types::Envelope envelope;
  for (std::atomic<bool> heard{false}; !heard;) {
    std::thread knock([&] {
      while (!heard) {
        events_v1::PublishRequest ping;
        ping.set_topic("/knock");
        ping.mutable_event()->set_type_url("any.Knock");
        Empty empty;
        (void)stub.Publish(t.Call().get(), ping, &empty);
        std::this_thread::yield();
      }
    });
    ASSERT_TRUE(reader->Read(&envelope));
    heard = true;
    knock.join();
  }
  publish("good", "/a/b-c/d.e_f");
  forward("good", "/a/b", t.ns(), true);
  containers_v1::Containers::Stub containers(t.channel());
  containers_v1::CreateContainerRequest container;
  container.mutable_container()->set_id("c");
  container.mutable_container()->set_image("img");
  container.mutable_container()->mutable_runtime()->set_name("r");
  container.mutable_container()->mutable_spec()->set_type_url("t");
  containers_v1::CreateContainerResponse created;
  t.Say("create", containers.Create(t.Call().get(), container, &created));
  containers_v1::UpdateContainerRequest change;
  *change.mutable_container() = container.container();
  (*change.mutable_container()->mutable_labels())["a"] = "b";
  change.mutable_update_mask()->add_paths("labels.a");
  containers_v1::UpdateContainerResponse changed;
  t.Say("update", containers.Update(t.Call().get(), change, &changed));
  containers_v1::DeleteContainerRequest gone;
  gone.set_id("c");
  Empty empty;
  t.Say("delete", containers.Delete(t.Call().get(), gone, &empty));
  images_v1::Images::Stub images(t.channel());
  images_v1::CreateImageRequest image;
  image.mutable_image()->set_name("i");
  image.mutable_image()->mutable_target()->set_digest(Digest::Of("i").str());
  image.mutable_image()->mutable_target()->set_size(1);
  image.mutable_image()->mutable_target()->set_media_type("m");
  (*image.mutable_image()->mutable_labels())["a"] = "b";
  images_v1::CreateImageResponse image_created;
  t.Say("image", images.Create(t.Call().get(), image, &image_created));
  images_v1::UpdateImageRequest image_change;
  *image_change.mutable_image() = image.image();
  images_v1::UpdateImageResponse image_changed;
  t.Say("image-update",
        images.Update(t.Call().get(), image_change, &image_changed));
  images_v1::DeleteImageRequest image_gone;
  image_gone.set_name("i");
  t.Say("image-delete", images.Delete(t.Call().get(), image_gone, &empty));
  publish("last", "/last");
  for (int n = 0;;) {
    ASSERT_TRUE(reader->Read(&envelope));
    if (envelope.topic() == "/knock") continue;
    t.Say("event-" + std::to_string(n++), envelope.ShortDebugString());
    if (envelope.topic() == "/last") break;
  }
  context->TryCancel();
  t.Say("cancelled", std::to_string(reader->Finish().error_code()));
}

TEST(MetadataCompared, Namespaces) { Compare("namespaces", Namespaces); }
TEST(MetadataCompared, Images) { Compare("images", Images); }
TEST(MetadataCompared, Containers) { Compare("containers", Containers); }
TEST(MetadataCompared, Leases) { Compare("leases", Leases); }
TEST(MetadataCompared, Events) { Compare("events", Events); }

}  // namespace
}  // namespace bulkhead::conformance
