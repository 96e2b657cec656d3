#include "services/metadata/objects.h"

#include <gtest/gtest.h>

#include <set>

#include "lib/testing/temp_dir.h"
#include "proto/containerd/events/task.pb.h"
#include "services/metadata/util.h"

namespace bulkhead::metadata {
namespace {

class ObjectsTest : public ::testing::Test {
 protected:
  ObjectsTest() { Reopen(); }
  void Reopen() {
    store_.reset();
    store_ = std::make_unique<Store>(Db::Open(dir_.Path("db")).value(), &bus_);
  }
  // What was published since the last call, as "ns topic type".
  std::vector<std::string> Events() {
    std::vector<std::string> seen;
    while (true) {
      const auto next = subscription_->Next().value();
      if (next.envelope == nullptr) return seen;
      const Envelope& envelope = *next.envelope;
      seen.push_back(absl::StrCat(envelope.namespace_(), " ", envelope.topic(),
                                  " ", envelope.event().type_url()));
    }
  }

  testing::TempDir dir_;
  EventBus bus_;
  std::unique_ptr<Subscription> subscription_ =
      bus_.Subscribe(filters::Filter(), [] {}).value();
  std::unique_ptr<Store> store_;
};

std::string Digest1() { return "sha256:" + std::string(64, '1'); }

Image MakeImage(const std::string& name) {
  Image image;
  image.set_name(name);
  image.mutable_target()->set_digest(Digest1());
  image.mutable_target()->set_media_type("m");
  image.mutable_target()->set_size(5);
  return image;
}

Container MakeContainer(const std::string& id) {
  Container container;
  container.set_id(id);
  container.mutable_runtime()->set_name("r");
  container.mutable_spec()->set_type_url("types.containerd.io/x");
  container.mutable_spec()->set_value(std::string("{\0}", 3));
  return container;
}

// The names of the images in "ns" that match.
std::vector<std::string> Names(const Images& core, const std::string& filter) {
  std::vector<std::string> names;
  const auto gather = [&names](Image& image, std::string_view) {
    names.push_back(image.name());
    return true;
  };
  EXPECT_TRUE(
      core.List("ns", filters::Filter::ParseAll({filter}).value(), gather)
          .ok());
  return names;
}

TEST_F(ObjectsTest, Namespaces) {
  Namespaces core(*store_);
  EXPECT_EQ(core.Get("nope")->name(), "nope");
  Namespace foo;
  foo.set_name("foo");
  (*foo.mutable_labels())["a"] = "b";
  (*foo.mutable_labels())["empty"] = "";
  EXPECT_EQ(core.Create(foo)->labels().size(), 1u);
  EXPECT_EQ(core.Create(foo).status(),
            absl::AlreadyExistsError("namespace \"foo\""));
  EXPECT_EQ(core.Update(foo, {"labels"}).status(),
            absl::InvalidArgumentError("cannot update \"labels\" field"));
  (*foo.mutable_labels())["x.y"] = "z";
  EXPECT_EQ(core.Update(foo, {"labels.x.y", "labels.a"})->labels().size(), 2u);
  (*foo.mutable_labels())["a"] = "";
  EXPECT_EQ(core.Update(foo, {"labels.a"})->labels().size(), 1u);
  ASSERT_TRUE(Images(*store_).Create("foo", MakeImage("i"), "", {}).ok());
  ASSERT_TRUE(Containers(*store_).Create("foo", MakeContainer("c")).ok());
  EXPECT_EQ(core.Delete("foo"),
            absl::FailedPreconditionError("namespace \"foo\" must be empty, "
                                          "but it still has images, "
                                          "containers"));
  ASSERT_TRUE(Images(*store_).Delete("foo", "i", "", "").ok());
  ASSERT_TRUE(Containers(*store_).Delete("foo", "c").ok());
  ASSERT_TRUE(Leases(*store_).Create("foo", Lease()).ok());
  EXPECT_TRUE(core.Delete("foo").ok());
  EXPECT_TRUE(absl::IsNotFound(core.Delete("foo")));
  EXPECT_TRUE(core.List()->empty());
  EXPECT_EQ(Events().front(),
            "foo /namespaces/create containerd.events.NamespaceCreate");
}

TEST_F(ObjectsTest, Images) {
  Images core(*store_);
  Image image = MakeImage("docker.io/library/a:1");
  (*image.mutable_labels())["l"] = "1";
  ASSERT_TRUE(core.Create("ns", image, "", {}).ok());
  EXPECT_EQ(Events(), std::vector<std::string>{
                          "ns /images/create "
                          "containerd.services.images.v1.ImageCreate"});
  EXPECT_EQ(core.Create("ns", image, "", {}).status(),
            absl::AlreadyExistsError("image \"docker.io/library/a:1\""));
  EXPECT_EQ(core.Get("ns", "x").status(), absl::NotFoundError("image \"x\""));
  EXPECT_TRUE(absl::IsNotFound(core.Get("other", image.name()).status()));
  Image bad = image;
  bad.mutable_target()->set_size(0);
  EXPECT_TRUE(absl::IsInvalidArgument(core.Create("ns", bad, "", {}).status()));

  // "labels.a.b" is the key a.b; the target stays.
  Image change = MakeImage(image.name());
  (*change.mutable_labels())["a.b"] = "2";
  change.mutable_target()->set_size(9);
  Image updated = core.Update("ns", change, {"labels.a.b"}, "", {}).value();
  EXPECT_EQ(updated.labels().size(), 2u);
  EXPECT_EQ(updated.target().size(), 5);
  updated = core.Update("ns", change, {}, "", {}).value();
  EXPECT_EQ(updated.labels().size(), 1u);
  EXPECT_EQ(updated.target().size(), 9);
  EXPECT_EQ(core.Update("ns", change, {"name"}, "", {}).status(),
            absl::InvalidArgumentError("cannot update \"name\" field on image "
                                       "\"docker.io/library/a:1\""));
  EXPECT_EQ(Names(core, "name~=library").size(), 1u);
  EXPECT_TRUE(absl::IsNotFound(
      core.Delete("ns", image.name(), "sha256:" + std::string(64, '2'), "")));
  EXPECT_TRUE(core.Delete("ns", image.name(), Digest1(), "").ok());
}

// The index changes nothing but the time: every listing is what a filter that
// no index helps ("~=") finds.
TEST_F(ObjectsTest, IndexFollowsEveryChange) {
  Images core(*store_);
  const std::string other = "sha256:" + std::string(64, '2');
  for (int i = 0; i < 6; ++i) {
    Image image = MakeImage("i" + std::to_string(i));
    if (i % 2 == 0) (*image.mutable_labels())["a.b/c"] = "even";
    if (i < 2) image.mutable_target()->set_digest(other);
    (*image.mutable_labels())["containerd.io/gc.ref.content.0"] = other;
    ASSERT_TRUE(core.Create("ns", image, "", {}).ok());
  }
  Image change = MakeImage("i0");
  ASSERT_TRUE(core.Update("ns", change, {"labels"}, "", {}).ok());
  ASSERT_TRUE(core.Update("ns", change, {"target"}, "", {}).ok());
  ASSERT_TRUE(core.Delete("ns", "i4", "", "").ok());
  change = MakeImage("i5");
  (*change.mutable_labels())["a.b/c"] = "even";
  ASSERT_TRUE(core.Update("ns", change, {"labels.a.b/c"}, "", {}).ok());
  using List = std::vector<std::string>;
  const std::string even = "labels.\"a.b/c\"==even";
  EXPECT_EQ(Names(core, even), (List{"i2", "i5"}));
  EXPECT_EQ(Names(core, "labels.\"a.b/c\"~=^even$"), (List{"i2", "i5"}));
  EXPECT_EQ(Names(core, "target.digest==" + other), (List{"i1"}));
  EXPECT_EQ(Names(core, "name==i2," + even), (List{"i2"}));
  EXPECT_EQ(Names(core, "name==i3," + even), List());
  EXPECT_EQ(Names(core, "name==nobody"), List());
  EXPECT_EQ(Names(core, even + ",name!=i2"), (List{"i5"}));
  EXPECT_EQ(Names(core, "labels.\"containerd.io/gc.ref.content.0\"==" + other),
            (List{"i1", "i2", "i3", "i5"}));
  List names;
  const auto gather = [&names](Image& image, std::string_view) {
    names.push_back(image.name());
    return true;
  };
  const auto either =
      filters::Filter::ParseAll({"name==i3", even, "target.digest==" + other})
          .value();
  ASSERT_TRUE(core.List("ns", either, gather).ok());
  EXPECT_EQ(names, (List{"i1", "i2", "i3", "i5"}));
  // Nothing is left in the index but what the records say.
  std::set<std::string> wanted;
  std::set<std::string> found;
  ASSERT_TRUE(store_->db()
                  .Scan(Prefix(kind::kImage, {}),
                        [&](std::string_view key, std::string_view value) {
                          wanted.merge(IndexEntries(key, value));
                          return true;
                        })
                  .ok());
  ASSERT_TRUE(store_->db()
                  .Scan(Prefix(kind::kIndex, {}),
                        [&](std::string_view key, std::string_view) {
                          found.emplace(key);
                          return true;
                        })
                  .ok());
  EXPECT_EQ(found, wanted);
  EXPECT_EQ(found.size(), 7u);
}

TEST_F(ObjectsTest, Containers) {
  Containers core(*store_);
  Container wanted = MakeContainer("web");
  wanted.set_snapshot_key("k");
  EXPECT_EQ(core.Create("ns", wanted).status(),
            absl::InvalidArgumentError("container.Snapshotter must be set if "
                                       "container.SnapshotKey is set"));
  wanted.set_snapshotter("overlayfs");
  ASSERT_TRUE(core.Create("ns", wanted).ok());
  Reopen();
  Containers again(*store_);
  Container found = again.Get("ns", "web").value();
  EXPECT_EQ(found.spec().value(), std::string("{\0}", 3));
  EXPECT_EQ(found.spec().type_url(), "types.containerd.io/x");
  EXPECT_GT(found.created_at().seconds(), 0);
  EXPECT_EQ(again.Get("ns", "x").status(),
            absl::NotFoundError("container \"x\" in namespace \"ns\""));
  Container change = wanted;
  change.set_snapshotter("native");
  EXPECT_EQ(
      again.Update("ns", change, {}).status(),
      absl::InvalidArgumentError("container.Snapshotter field is immutable"));
  (*change.mutable_extensions())["e"].set_value("v");
  EXPECT_EQ(again.Update("ns", change, {"extensions.e"})->extensions().size(),
            1u);
  EXPECT_EQ(
      again.Update("ns", change, {"runtime"}).status(),
      absl::InvalidArgumentError("cannot update \"runtime\" field on \"web\""));
  EXPECT_TRUE(again.Delete("ns", "web").ok());
  EXPECT_TRUE(absl::IsNotFound(again.Delete("ns", "web")));
}

TEST_F(ObjectsTest, Leases) {
  Leases core(*store_);
  const Lease generated = core.Create("ns", Lease()).value();
  EXPECT_GT(generated.id().size(), 5u);
  Lease named;
  named.set_id("a b/c!");
  ASSERT_TRUE(core.Create("ns", named).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(core.Create("ns", named).status()));
  Resource resource;
  resource.set_type("streams");
  resource.set_id("x");
  EXPECT_EQ(
      core.AddResource("ns", named.id(), resource),
      absl::UnimplementedError("resource type streams not supported yet"));
  resource.set_type("content");
  EXPECT_TRUE(
      absl::IsInvalidArgument(core.AddResource("ns", named.id(), resource)));
  for (const auto& [type, id] :
       std::vector<std::pair<std::string, std::string>>{
           {"snapshots/overlayfs", "s"},
           {"ingests", "g"},
           {"images", "i"},
           {"content", Digest1()}}) {
    resource.set_type(type);
    resource.set_id(id);
    EXPECT_TRUE(core.AddResource("ns", named.id(), resource).ok());
  }
  std::vector<Resource> all;
  const auto gather = [&all](Resource& one) {
    all.push_back(one);
    return true;
  };
  ASSERT_TRUE(core.ListResources("ns", named.id(), gather).ok());
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[0].type(), "content");
  EXPECT_EQ(all[3].type(), "snapshots/overlayfs");
  EXPECT_TRUE(core.DeleteResource("ns", named.id(), all[0]).ok());
  EXPECT_TRUE(core.DeleteResource("ns", named.id(), all[0]).ok());
  EXPECT_TRUE(core.Delete("ns", named.id()).ok());
  EXPECT_TRUE(absl::IsNotFound(core.Delete("ns", named.id())));
  int leases = 0;
  const auto count = [&leases](Lease&, std::string_view) {
    return ++leases > 0;
  };
  ASSERT_TRUE(core.List("ns", filters::Filter(), count).ok());
  EXPECT_EQ(leases, 1);
}

TEST_F(ObjectsTest, Events) {
  containerd::events::TaskExit exit;
  exit.set_container_id("c1");
  auto matching =
      bus_.Subscribe(filters::Filter::ParseAll(
                         {"topic~=|^/tasks/|,event.container_id==c1"})
                         .value(),
                     [] {})
          .value();
  ASSERT_TRUE(bus_.Publish("ns", "/tasks/exit", exit).ok());
  exit.set_container_id("c2");
  ASSERT_TRUE(bus_.Publish("ns", "/tasks/exit", exit).ok());
  EXPECT_NE(matching->Next()->envelope, nullptr);
  EXPECT_EQ(matching->Next()->envelope, nullptr);
  EXPECT_EQ(Events().size(), 2u);
  EXPECT_EQ(ValidateTopic("x"),
            absl::InvalidArgumentError("envelope topic \"x\": must start with "
                                       "'/'"));
  EXPECT_FALSE(ValidateTopic("/").ok());
  EXPECT_FALSE(ValidateTopic("/a//b").ok());
  EXPECT_TRUE(ValidateTopic("/tasks/exec-added").ok());
}

TEST_F(ObjectsTest, SequenceNumbersNeverRepeat) {
  const uint64_t first = store_->NextSequence().value();
  Reopen();
  EXPECT_GT(store_->NextSequence().value(), first);
}

}  // namespace
}  // namespace bulkhead::metadata
