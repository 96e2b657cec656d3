// Random sequences of operations on the real classes (over a database in
// memory) and on the model, which must agree in every answer and in what is
// left after every collection.
//
// BULKHEAD_MODEL_SEQUENCES: how many sequences; BULKHEAD_MODEL_SEED: the first
// seed. A failing sequence is cut down to the operations that matter and
// printed.
#include "services/metadata/model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <sstream>

#include "services/metadata/fake_backends.h"
#include "services/metadata/gc.h"
#include "services/metadata/mem_db.h"
#include "services/metadata/objects.h"

namespace bulkhead::metadata {
namespace {

constexpr int kSequencesDefault = 1500;
constexpr int kOperations = 50;
constexpr char kPast[] = "2001-01-01T00:00:00Z";
constexpr char kFuture[] = "2999-01-01T00:00:00Z";

enum Kind {
  kNamespaceCreate,
  kNamespaceUpdate,
  kNamespaceDelete,
  kImageCreate,
  kImageUpdate,
  kImageDelete,
  kContainerCreate,
  kContainerUpdate,
  kContainerDelete,
  kSandboxCreate,
  kSandboxUpdate,
  kSandboxDelete,
  kBlobAdd,
  kBlobUpdate,
  kBlobDelete,
  kIngestOpen,
  kIngestAbort,
  kPrepare,
  kView,
  kCommit,
  kRemove,
  kSnapshotUpdate,
  kLeaseCreate,
  kLeaseDelete,
  kResourceAdd,
  kResourceDelete,
  kCollect,        // Nobody else does anything meanwhile.
  kCollectBeside,  // The next `a` operations happen between mark and sweep.
  kKinds,
};

const char* const kNames[] = {"namespace create",
                              "namespace update",
                              "namespace delete",
                              "image create",
                              "image update",
                              "image delete",
                              "container create",
                              "container update",
                              "container delete",
                              "sandbox create",
                              "sandbox update",
                              "sandbox delete",
                              "blob add",
                              "blob update",
                              "blob delete",
                              "ingest open",
                              "ingest abort",
                              "prepare",
                              "view",
                              "commit",
                              "remove",
                              "snapshot update",
                              "lease create",
                              "lease delete",
                              "resource add",
                              "resource delete",
                              "collect",
                              "collect beside the next"};

// One operation; what the numbers mean depends on the kind, so that any
// subset of a sequence is a sequence too.
struct Op {
  Kind kind = kCollect;
  std::string ns;
  int a = 0;
  int b = 0;
  std::string lease;
  Model::Labels labels;

  std::string Text() const {
    std::ostringstream out;
    out << kNames[kind] << " ns=" << ns << " a=" << a << " b=" << b;
    if (!lease.empty()) out << " lease=" << lease;
    for (const auto& [key, value] : labels) {
      out << " [" << key << "]=" << value.substr(0, 12)
          << (value.size() > 12 ? ".." + value.substr(value.size() - 2) : "");
    }
    return out.str();
  }
};

std::string DigestOf(int n) {
  return "sha256:" + std::string(63, '0') + std::to_string(n % 8);
}
std::string SnapshotOf(int n) { return "s" + std::to_string(n % 6); }
std::string NameOf(int n) { return "n" + std::to_string(n % 4); }
std::string RefOf(int n) { return "r" + std::to_string(n % 3); }
std::string LeaseOf(int n) { return "l" + std::to_string(n % 3); }

class Source {
 public:
  explicit Source(uint32_t seed) : random_(seed) {}
  int Number(int below) { return static_cast<int>(random_() % below); }

  Op Next() {
    Op op;
    op.kind = static_cast<Kind>(Number(kKinds));
    op.ns = Number(4) == 0 ? "q" : "p";
    op.a = Number(24);
    op.b = Number(24);
    if (Number(2) == 0) op.lease = LeaseOf(Number(3));
    for (int i = Number(3); i > 0; --i) op.labels.insert(Label());
    if (op.kind == kLeaseCreate) {
      op.labels.clear();
      const int what = Number(5);
      if (what == 0) op.labels["containerd.io/gc.flat"] = "x";
      if (what == 1) op.labels["containerd.io/gc.expire"] = kPast;
      if (what == 2) op.labels["containerd.io/gc.expire"] = kFuture;
    }
    return op;
  }

 private:
  std::pair<std::string, std::string> Label() {
    static const char* const kTails[] = {"", ".x", "/y"};
    const std::string tail = kTails[Number(3)];
    const std::string gc = "containerd.io/gc.";
    switch (Number(16)) {
      case 0:
        return {gc + "root", "x"};
      case 1:
        return {gc + "expire", kPast};
      case 2:
        return {gc + "expire", Number(2) == 0 ? kFuture : "soon"};
      case 3:
        return {"labels.plain", std::to_string(Number(3))};
      case 4:
      case 5:
        return {gc + "ref.snapshot.fake" + (tail == "/y" ? tail : ""),
                SnapshotOf(Number(6))};
      case 6:
        return {gc + "ref.image" + tail, NameOf(Number(4))};
      case 7:
        return {gc + "bref.content" + tail, DigestOf(Number(8))};
      case 8:
        return {gc + "bref.image" + tail, NameOf(Number(4))};
      case 9:
        return {gc + "bref.container" + tail, NameOf(Number(4))};
      case 10:
        return {gc + "bref.snapshot.fake", SnapshotOf(Number(6))};
      case 11:
        return {gc + "cond.snapshot.fake" + (tail == "/y" ? tail : ""),
                "usedat<24h|" + SnapshotOf(Number(6))};
      case 12:
        return {gc + "cond.value-usedat", Number(2) == 0 ? kPast : kFuture};
      default:
        return {gc + "ref.content" + tail, DigestOf(Number(8))};
    }
  }

  std::mt19937 random_;
};

template <typename Map>
void SetLabels(const Model::Labels& labels, Map* map) {
  map->insert(labels.begin(), labels.end());
}

// The service and the model, side by side.
class World {
 public:
  World() {
    auto backend = std::make_unique<FakeSnapshotBackend>();
    snapshotter_ = backend.get();
    Snapshots::Backends backends;
    backends["fake"] = std::move(backend);
    snapshots_ = std::make_unique<Snapshots>(store_, std::move(backends));
  }

  // Empty: both agreed all the way.
  std::string Run(const std::vector<Op>& ops) {
    for (size_t i = 0; i < ops.size() && failure_.empty(); ++i) {
      if (ops[i].kind == kCollectBeside) {
        const size_t end = std::min(ops.size(), i + 1 + ops[i].a % 6);
        CollectBeside(ops, i + 1, end);
        i = end - 1;
      } else if (ops[i].kind == kCollect) {
        Collect();
      } else {
        Apply(ops[i]);
      }
    }
    if (failure_.empty()) Collect();
    return failure_;
  }

 private:
  void Fail(const std::string& what) {
    if (failure_.empty()) failure_ = what;
  }

  void Collect() {
    if (const auto status = CollectRecords(store_).status(); !status.ok()) {
      Fail(status.ToString());
    }
    for (auto& [ns, model] : models_) model.Collect();
    Compare("after a collection");
    CheckBackends();
  }

  // What is live after the operations must survive; what the run spared beyond
  // that goes with the next one.
  void CollectBeside(const std::vector<Op>& ops, size_t begin, size_t end) {
    const auto status = CollectRecords(store_, nullptr, [&] {
                          for (size_t i = begin; i < end; ++i) {
                            if (ops[i].kind < kCollect) Apply(ops[i]);
                          }
                        }).status();
    if (!status.ok()) Fail(status.ToString());
    for (auto& [ns, model] : models_) {
      const Model found = Read(ns);
      Model kept = model;
      kept.Collect();
      for (const auto& [name, image] : kept.images) {
        if (!found.images.contains(name)) Fail("lost image " + name);
      }
      for (const auto& [digest, labels] : kept.blobs) {
        if (!found.blobs.contains(digest)) Fail("lost blob " + digest);
      }
      for (const auto& [key, snapshot] : kept.snapshots) {
        if (!found.snapshots.contains(key)) Fail("lost snapshot " + key);
      }
      for (const auto& [ref, ingest] : kept.ingests) {
        if (!found.ingests.contains(ref)) Fail("lost ingest " + ref);
      }
      for (const auto& [id, lease] : kept.leases) {
        if (!found.leases.contains(id)) Fail("lost lease " + id);
      }
    }
    if (failure_.empty()) Collect();
  }

  void CheckBackends() {
    std::set<std::string> blobs;
    size_t snapshots = 0;
    if (!content_.SweepBackend().ok() ||
        !snapshots_->SweepBackend("fake").ok()) {
      Fail("a backend was not swept");
    }
    std::set<std::string> refs;
    for (auto& [ns, model] : models_) {
      for (const auto& [digest, labels] : model.blobs) blobs.insert(digest);
      snapshots += model.snapshots.size();
    }
    std::set<std::string> stored;
    for (const auto& [digest, size] : blobs_.blobs) stored.insert(digest);
    if (!std::includes(stored.begin(), stored.end(), blobs.begin(),
                       blobs.end())) {
      Fail("the backend lost a blob");
    }
    // An ingest whose bytes another namespace brought keeps them.
    for (auto& [ns, model] : models_) {
      for (const auto& [ref, ingest] : model.ingests) {
        blobs.insert(ingest.expected);
      }
    }
    if (!std::includes(blobs.begin(), blobs.end(), stored.begin(),
                       stored.end())) {
      Fail("the backend keeps a blob that nobody names");
    }
    if (snapshotter_->snapshots.size() != snapshots) {
      Fail("the backend's snapshots differ");
    }
  }

  // --- what is in the service ---

  template <typename Record>
  static Model::Labels LabelsOf(const Record& record) {
    return Model::Labels(record.labels().begin(), record.labels().end());
  }

  Model Read(const std::string& ns) {
    Model model;
    const auto each = [&](char kind, const auto& visit) {
      const auto status = store_.db().Scan(
          Prefix(kind, {ns}), [&](std::string_view key, std::string_view v) {
            visit(Split(key), std::string(v));
            return true;
          });
      if (!status.ok()) Fail(status.ToString());
    };
    const auto record =
        store_.Get<Namespace>(Key(kind::kNamespace, {ns})).value();
    model.exists = record.has_value();
    if (record.has_value()) model.labels = LabelsOf(*record);
    using Parts = std::vector<std::string>;
    each(kind::kImage, [&](const Parts& key, const std::string& bytes) {
      Image image;
      image.ParseFromString(bytes);
      model.images[key[1]] = {image.target().digest(), LabelsOf(image)};
    });
    each(kind::kContainer, [&](const Parts& key, const std::string& bytes) {
      Container container;
      container.ParseFromString(bytes);
      model.containers[key[1]] = container.snapshot_key();
      model.container_labels[key[1]] = LabelsOf(container);
    });
    each(kind::kSandbox, [&](const Parts& key, const std::string& bytes) {
      Sandbox sandbox;
      sandbox.ParseFromString(bytes);
      model.sandboxes[key[1]] = LabelsOf(sandbox);
    });
    each(kind::kBlob, [&](const Parts& key, const std::string& bytes) {
      content_v1::Info info;
      info.ParseFromString(bytes);
      model.blobs[key[1]] = LabelsOf(info);
    });
    each(kind::kSnapshot, [&](const Parts& key, const std::string& bytes) {
      SnapshotRecord snapshot;
      snapshot.ParseFromString(bytes);
      model.snapshots[key[2]] = {snapshot.parent(), snapshot.kind(),
                                 LabelsOf(snapshot)};
    });
    each(kind::kIngest, [&](const Parts& key, const std::string& bytes) {
      IngestRecord ingest;
      ingest.ParseFromString(bytes);
      model.ingests[key[1]] = {ingest.expected(), ingest.has_expire_at()};
    });
    each(kind::kLease, [&](const Parts& key, const std::string& bytes) {
      Lease lease;
      lease.ParseFromString(bytes);
      model.leases[key[1]].labels = LabelsOf(lease);
    });
    each(kind::kLeaseResource, [&](const Parts& key, const std::string&) {
      model.leases[key[1]].resources.insert({key[2], key[3]});
    });
    return model;
  }

  void Compare(const std::string& when) {
    for (const std::string ns : {"p", "q"}) {
      if (Read(ns) != models_[ns]) {
        Fail("namespace " + ns + " differs " + when);
      }
    }
  }

  // --- one operation on both ---

  void Apply(const Op& op) {
    Model& model = models_[op.ns];
    absl::Status status;
    const Model::Code wanted = Both(op, model, &status);
    if (status.code() != wanted) {
      Fail(op.Text() + ": " + status.ToString() + " instead of " +
           absl::StatusCodeToString(wanted));
    }
  }

  Model::Code Both(const Op& op, Model& model, absl::Status* status) {
    const std::string& ns = op.ns;
    const SnapshotCall call{ns, op.lease, "fake"};
    const std::string parent = op.b % 3 == 0 ? "" : SnapshotOf(op.b);
    LabelMap labels;
    SetLabels(op.labels, &labels);
    switch (op.kind) {
      case kNamespaceCreate: {
        Namespace wanted;
        wanted.set_name(ns);
        *wanted.mutable_labels() = labels;
        *status = Namespaces(store_).Create(wanted).status();
        return model.CreateNamespace(op.labels);
      }
      case kNamespaceUpdate: {
        Namespace wanted;
        wanted.set_name(ns);
        const std::string value = op.a % 3 == 0 ? "" : "v";
        (*wanted.mutable_labels())["k"] = value;
        *status = Namespaces(store_).Update(wanted, {"labels.k"}).status();
        return model.UpdateNamespace("k", value);
      }
      case kNamespaceDelete:
        *status = Namespaces(store_).Delete(ns);
        return model.DeleteNamespace();
      case kImageCreate:
      case kImageUpdate: {
        Image image;
        image.set_name(NameOf(op.a));
        image.mutable_target()->set_digest(DigestOf(op.b));
        image.mutable_target()->set_media_type("m");
        image.mutable_target()->set_size(5);
        *image.mutable_labels() = labels;
        const Model::Image in_model{DigestOf(op.b), op.labels};
        if (op.kind == kImageCreate) {
          *status = images_.Create(ns, image, op.lease, {}).status();
          return model.CreateImage(image.name(), in_model, op.lease);
        }
        *status = images_.Update(ns, image, {}, op.lease, {}).status();
        return model.UpdateImage(image.name(), in_model, op.lease);
      }
      case kImageDelete:
        *status = images_.Delete(ns, NameOf(op.a), "", op.lease);
        return model.DeleteImage(NameOf(op.a), op.lease);
      case kContainerCreate:
      case kContainerUpdate: {
        Container container;
        container.set_id(NameOf(op.a));
        container.mutable_runtime()->set_name("r");
        container.mutable_spec();
        container.set_snapshotter("fake");
        container.set_snapshot_key(parent);
        *container.mutable_labels() = labels;
        if (op.kind == kContainerCreate) {
          *status = containers_.Create(ns, container).status();
          return model.CreateContainer(container.id(), parent, op.labels);
        }
        *status = containers_.Update(ns, container, {"labels"}).status();
        return model.UpdateContainer(container.id(), op.labels);
      }
      case kContainerDelete:
        *status = containers_.Delete(ns, NameOf(op.a));
        return model.DeleteContainer(NameOf(op.a));
      case kSandboxCreate:
      case kSandboxUpdate: {
        Sandbox sandbox;
        sandbox.set_sandbox_id(NameOf(op.a));
        *sandbox.mutable_labels() = labels;
        if (op.kind == kSandboxCreate) {
          *status = sandboxes_.Create(ns, sandbox).status();
          return model.CreateSandbox(sandbox.sandbox_id(), op.labels);
        }
        *status = sandboxes_.Update(ns, sandbox, {"labels"}).status();
        return model.UpdateSandbox(sandbox.sandbox_id(), op.labels);
      }
      case kSandboxDelete:
        *status = sandboxes_.Delete(ns, NameOf(op.a));
        return model.DeleteSandbox(NameOf(op.a));
      case kBlobAdd:
        *status = AddBlob(op, labels);
        return model.AddBlob(DigestOf(op.a), op.labels, op.lease);
      case kBlobUpdate: {
        content_v1::Info info;
        info.set_digest(DigestOf(op.a));
        *info.mutable_labels() = labels;
        *status = content_.Update(ns, info, {"labels"}).status();
        return model.UpdateBlob(DigestOf(op.a), op.labels);
      }
      case kBlobDelete:
        *status = content_.Delete(ns, DigestOf(op.a), op.lease);
        return model.DeleteBlob(DigestOf(op.a), op.lease);
      case kIngestOpen: {
        WriterRequest request{ns, op.lease, RefOf(op.a), 0, ""};
        if (op.b % 2 == 0) request.expected = DigestOf(op.b);
        *status = content_.OpenWriter(request).status();
        return model.OpenIngest(request.ref, request.expected, op.lease);
      }
      case kIngestAbort:
        *status = content_.Abort(ns, RefOf(op.a), op.lease);
        return model.Abort(RefOf(op.a), op.lease);
      case kPrepare:
      case kView:
        *status =
            snapshots_
                ->Prepare(call, op.kind == kView, SnapshotOf(op.a), parent, {})
                .status();
        return model.Prepare(SnapshotOf(op.a), parent, op.kind == kView,
                             op.lease);
      case kCommit:
        *status = snapshots_->Commit(call, SnapshotOf(op.a), SnapshotOf(op.b),
                                     "", labels);
        return model.CommitSnapshot(SnapshotOf(op.a), SnapshotOf(op.b),
                                    op.labels, op.lease);
      case kRemove:
        *status = snapshots_->Remove(call, SnapshotOf(op.a));
        return model.RemoveSnapshot(SnapshotOf(op.a), op.lease);
      case kSnapshotUpdate: {
        snapshots_v1::Info info;
        info.set_name(SnapshotOf(op.a));
        *info.mutable_labels() = labels;
        *status = snapshots_->Update(call, info, {"labels"}).status();
        return model.UpdateSnapshot(SnapshotOf(op.a), op.labels);
      }
      case kLeaseCreate: {
        Lease lease;
        lease.set_id(LeaseOf(op.a));
        *lease.mutable_labels() = labels;
        *status = leases_.Create(ns, lease).status();
        return model.CreateLease(lease.id(), op.labels);
      }
      case kLeaseDelete:
        *status = leases_.Delete(ns, LeaseOf(op.a));
        return model.DeleteLease(LeaseOf(op.a));
      case kResourceAdd:
      case kResourceDelete: {
        Resource resource;
        switch (op.b % 4) {
          case 0:
            resource.set_type("content");
            resource.set_id(DigestOf(op.b / 4));
            break;
          case 1:
            resource.set_type("images");
            resource.set_id(NameOf(op.b / 4));
            break;
          case 2:
            resource.set_type("ingests");
            resource.set_id(RefOf(op.b / 4));
            break;
          default:
            resource.set_type("snapshots/fake");
            resource.set_id(SnapshotOf(op.b / 4));
        }
        const std::string lease = LeaseOf(op.a);
        if (op.kind == kResourceAdd) {
          *status = leases_.AddResource(ns, lease, resource);
          return model.AddResource(lease, resource.type(), resource.id());
        }
        *status = leases_.DeleteResource(ns, lease, resource);
        return model.DeleteResource(lease, resource.type(), resource.id());
      }
      default:
        return Model::Code::kOk;
    }
  }

  absl::Status AddBlob(const Op& op, const LabelMap& labels) {
    const std::string digest = DigestOf(op.a);
    auto writer =
        content_.OpenWriter({op.ns, op.lease, "of-" + digest, 0, digest});
    RETURN_IF_ERROR(writer.status());
    if (!(*writer)->is_virtual()) {
      RETURN_IF_ERROR((*writer)->Append(0, "12345"));
    }
    return (*writer)->Commit(5, digest, labels).status();
  }

  EventBus bus_;
  Store store_{std::make_unique<MemDb>(), &bus_};
  FakeContentBackend blobs_;
  Content content_{store_, blobs_, false};
  FakeSnapshotBackend* snapshotter_ = nullptr;
  std::unique_ptr<Snapshots> snapshots_;
  Images images_{store_};
  Containers containers_{store_};
  Sandboxes sandboxes_{store_};
  Leases leases_{store_};
  std::map<std::string, Model> models_{{"p", {}}, {"q", {}}};
  std::string failure_;
};

// Drops operations, many at first, as long as it still fails.
std::vector<Op> CutDown(std::vector<Op> ops) {
  for (size_t piece = ops.size() / 2; piece > 0; piece /= 2) {
    for (size_t at = 0; at + piece <= ops.size();) {
      std::vector<Op> fewer = ops;
      fewer.erase(fewer.begin() + static_cast<int64_t>(at),
                  fewer.begin() + static_cast<int64_t>(at + piece));
      if (World().Run(fewer).empty()) {
        at += piece;
      } else {
        ops = std::move(fewer);
      }
    }
  }
  return ops;
}

int Setting(const char* name, int fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::atoi(text);
}

TEST(ModelTest, ServiceAndModelAgree) {
  const int sequences = Setting("BULKHEAD_MODEL_SEQUENCES", kSequencesDefault);
  const int first = Setting("BULKHEAD_MODEL_SEED",
                            static_cast<int>(std::random_device()() >> 2));
  std::printf("%d sequences from seed %d\n", sequences, first);
  for (int i = 0; i < sequences; ++i) {
    Source source(static_cast<uint32_t>(first + i));
    std::vector<Op> ops;
    for (int step = 0; step < kOperations; ++step) ops.push_back(source.Next());
    if (World().Run(ops).empty()) continue;
    ops = CutDown(std::move(ops));
    std::ostringstream text;
    for (const Op& op : ops) text << "\n  " << op.Text();
    FAIL() << "seed " << first + i << ": " << World().Run(ops) << text.str();
  }
}

// The test can fail: a service that keeps what it should not is found.
TEST(ModelTest, ModelCollectsWhatNothingNames) {
  Model model;
  EXPECT_EQ(model.AddBlob("d", {}, ""), absl::StatusCode::kOk);
  EXPECT_EQ(model.CreateImage("i", {"d", {}}, ""), absl::StatusCode::kOk);
  model.Collect();
  EXPECT_EQ(model.blobs.size(), 1u);
  EXPECT_EQ(model.DeleteImage("i", ""), absl::StatusCode::kOk);
  model.Collect();
  EXPECT_TRUE(model.blobs.empty());
}

}  // namespace
}  // namespace bulkhead::metadata
