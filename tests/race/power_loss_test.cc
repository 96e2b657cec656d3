// Power failures under the metadata service's whole path: records of every
// kind, blobs, leases and the event log, over the real content store and the
// real database on a disk that forgets what was not synced. What was answered
// with OK is there, with its event; what was not is there whole or not at all.
#include "lib/testing/power_loss.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "lib/testing/faulty_files.h"
#include "lib/testing/faulty_rocks.h"
#include "lib/testing/temp_dir.h"
#include "services/metadata/content.h"
#include "services/metadata/objects.h"
#include "tests/race/local_backends.h"

namespace bulkhead::race {
namespace {

using metadata::Container;
using metadata::Image;
using metadata::Lease;
using metadata::Sandbox;
using testing::Disk;
using testing::Fault;
using testing::FaultyFiles;
using testing::FaultyRocks;
using testing::RandomBytes;
using testing::RocksFault;
using testing::TempDir;

constexpr char kNs[] = "ns";
constexpr int kSteps = 40;
constexpr int kEventsKept = 10'000;
constexpr size_t kSpecBytes = 6000;
// Some flushes happen on the way.
constexpr size_t kWriteBufferBytes = 64 << 10;

// One service's parts on one disk.
struct Suite {
  Suite(const std::string& root, rocksdb::Env* env, files::Files& files,
        const std::string& boot_id) {
    metadata::DbOptions options;
    options.env = env;
    options.write_buffer_bytes = kWriteBufferBytes;
    auto db = metadata::Db::Open(root + "/db", options);
    status = db.status();
    if (!status.ok()) return;
    store = std::make_unique<metadata::Store>(*std::move(db), &events);
    status = events.OpenLog(store->db(), kEventsKept);
    if (!status.ok()) return;
    content::FsStoreOptions content_options;
    content_options.boot_id = boot_id;
    content_options.hash_step_bytes = content_options.hash_min_bytes = 1000;
    auto opened =
        content::FsStore::Open(root + "/content", files, content_options);
    status = opened.status();
    if (!status.ok()) return;
    blobs = *std::move(opened);
    backend = std::make_unique<LocalContent>(blobs.get());
    content = std::make_unique<metadata::Content>(*store, *backend, false);
  }

  absl::Status status;
  metadata::EventBus events;
  std::unique_ptr<metadata::Store> store;
  std::unique_ptr<content::FsStore> blobs;
  std::unique_ptr<LocalContent> backend;
  std::unique_ptr<metadata::Content> content;
};

// What is true of one object: "" is that it does not exist.
using Objects = std::map<std::string, std::string>;

// What a client was told.
struct Told {
  Objects objects;
  // The change that had no answer: it may be true as well.
  std::string doubtful;
  std::string doubtful_state;
  // "topic id" of each change that was answered, in order.
  std::vector<std::string> events;
  std::string doubtful_event;
};

std::string BlobOf(int number) {
  return RandomBytes(3000 + 701 * number, number);
}

// Changes of all kinds, until one fails.
class Client {
 public:
  Client(Suite& suite, Told* told) : suite_(suite), told_(*told) {}

  void Run(std::mt19937& random) {
    for (int i = 0; i < kSteps; ++i) {
      if (!Step(i, static_cast<int>(random() % 9))) return;
    }
  }

 private:
  bool Answered(const absl::Status& status, const std::string& object,
                const std::string& state, const std::string& event) {
    if (status.ok()) {
      told_.objects[object] = state;
      if (!event.empty()) told_.events.push_back(event);
      return true;
    }
    told_.doubtful = object;
    told_.doubtful_state = state;
    told_.doubtful_event = event;
    return false;
  }

  bool Step(int i, int kind) {
    metadata::Store& store = *suite_.store;
    const std::string id = absl::StrCat("o", i);
    switch (kind) {
      case 0: {
        Container container;
        container.set_id(id);
        container.mutable_runtime()->set_name("r");
        container.mutable_spec()->set_type_url("t");
        container.mutable_spec()->set_value(RandomBytes(kSpecBytes, i + 1));
        const bool goes_on = Answered(
            metadata::Containers(store).Create(kNs, container).status(),
            "c " + id, Digest::Of(container.spec().value()).str(),
            "/containers/create " + id);
        if (goes_on) containers_.push_back(id);
        return goes_on;
      }
      case 1: {
        if (containers_.empty()) return true;
        const std::string gone = containers_.back();
        containers_.pop_back();
        return Answered(metadata::Containers(store).Delete(kNs, gone),
                        "c " + gone, "", "/containers/delete " + gone);
      }
      case 2: {
        Image image;
        image.set_name("image " + id);
        image.mutable_target()->set_digest(Digest::Of(BlobOf(i)).str());
        image.mutable_target()->set_media_type("m");
        image.mutable_target()->set_size(1);
        return Answered(metadata::Images(store)
                            .Create(kNs, image, "", std::nullopt)
                            .status(),
                        "i " + image.name(), image.target().digest(),
                        "/images/create " + image.name());
      }
      case 3: {
        Lease lease;
        lease.set_id(id);
        (*lease.mutable_labels())["a"] = Digest::Of(absl::StrCat(i)).str();
        const bool goes_on =
            Answered(metadata::Leases(store).Create(kNs, lease).status(),
                     "l " + id, lease.labels().at("a"), "");
        if (goes_on) lease_ = id;
        return goes_on;
      }
      case 4: {
        if (lease_.empty()) return true;
        const std::string gone = lease_;
        lease_.clear();
        return Answered(metadata::Leases(store).Delete(kNs, gone), "l " + gone,
                        "", "");
      }
      case 5: {
        Sandbox sandbox;
        sandbox.set_sandbox_id(id);
        sandbox.mutable_runtime()->set_name("r");
        sandbox.mutable_spec()->set_value(RandomBytes(500, i + 1));
        return Answered(
            metadata::Sandboxes(store).Create(kNs, sandbox).status(), "x " + id,
            Digest::Of(sandbox.spec().value()).str(), "");
      }
      default: {
        const std::string data = BlobOf(i);
        const std::string digest = Digest::Of(data).str();
        return Answered(Write(id, data, digest), "b " + digest,
                        absl::StrCat("label ", i), "/content/create " + digest);
      }
    }
  }

  absl::Status Write(const std::string& ref, const std::string& data,
                     const std::string& digest) {
    metadata::WriterRequest request;
    request.ns = kNs;
    request.lease = lease_;
    request.ref = ref;
    ASSIGN_OR_RETURN(auto writer, suite_.content->OpenWriter(request));
    for (size_t at = 0; at < data.size(); at += 2000) {
      RETURN_IF_ERROR(writer->Append(at, data.substr(at, 2000)));
    }
    metadata::LabelMap labels;
    labels["l"] = "label " + ref.substr(1);
    return writer->Commit(static_cast<int64_t>(data.size()), digest, labels)
        .status();
  }

  Suite& suite_;
  Told& told_;
  std::vector<std::string> containers_;
  std::string lease_;
};

// Everything there is. Blobs are read; their bytes must be their digest's.
Objects ReadAll(Suite& suite) {
  Objects all;
  metadata::Store& store = *suite.store;
  const filters::Filter every;
  EXPECT_TRUE(metadata::Containers(store)
                  .List(kNs, every,
                        [&](Container& container, std::string_view) {
                          all["c " + container.id()] =
                              Digest::Of(container.spec().value()).str();
                          return true;
                        })
                  .ok());
  EXPECT_TRUE(metadata::Images(store)
                  .List(kNs, every,
                        [&](Image& image, std::string_view) {
                          all["i " + image.name()] = image.target().digest();
                          return true;
                        })
                  .ok());
  EXPECT_TRUE(metadata::Leases(store)
                  .List(kNs, every,
                        [&](Lease& lease, std::string_view) {
                          all["l " + lease.id()] = lease.labels().at("a");
                          return true;
                        })
                  .ok());
  EXPECT_TRUE(metadata::Sandboxes(store)
                  .List(kNs, every,
                        [&](Sandbox& sandbox, std::string_view) {
                          all["x " + sandbox.sandbox_id()] =
                              Digest::Of(sandbox.spec().value()).str();
                          return true;
                        })
                  .ok());
  std::vector<std::string> digests;
  EXPECT_TRUE(suite.content
                  ->List(kNs, every,
                         [&](metadata::content_v1::Info& info) {
                           all["b " + info.digest()] = info.labels().at("l");
                           digests.push_back(info.digest());
                           return true;
                         })
                  .ok());
  for (const std::string& digest : digests) {
    const auto blob = suite.content->Open(kNs, digest);
    EXPECT_TRUE(blob.ok()) << digest << " has a record only: " << blob.status();
    if (!blob.ok()) continue;
    std::string data;
    EXPECT_TRUE((*blob)
                    ->Read(0, (*blob)->size_bytes(), 1 << 20,
                           [&](const std::string& piece) {
                             data.append(piece);
                             return true;
                           })
                    .ok());
    EXPECT_EQ(Digest::Of(data).str(), digest);
  }
  return all;
}

// "topic id" of each event that is kept; their numbers must grow.
std::vector<std::string> ReadEvents(Suite& suite) {
  std::vector<std::string> all;
  auto subscription = suite.events.Subscribe(
      filters::Filter(), [] {}, 0);
  if (absl::IsFailedPrecondition(subscription.status())) return all;  // None.
  EXPECT_TRUE(subscription.ok()) << subscription.status();
  uint64_t last = 0;
  for (;;) {
    const auto event = (*subscription)->Next();
    EXPECT_TRUE(event.ok()) << event.status();
    if (!event.ok() || event->envelope == nullptr) return all;
    EXPECT_GT(event->sequence, last);
    last = event->sequence;
    std::string text = event->envelope->topic();
    for (const char* name : {"id", "name", "digest"}) {
      const auto value =
          metadata::EventField(*event->envelope, {"event", name});
      if (value.has_value()) absl::StrAppend(&text, " ", *value);
    }
    // The first record of a namespace makes it.
    if (event->envelope->topic() != "/namespaces/create") all.push_back(text);
  }
}

void Check(const std::string& root, const Told& told) {
  FaultyFiles files(files::RealFiles(), {});  // Fsyncs would only take time.
  FaultyRocks rocks;
  Suite suite(root, rocks.env(), files, "after");
  ASSERT_TRUE(suite.status.ok()) << suite.status;
  Objects there = ReadAll(suite);
  std::vector<std::string> events = ReadEvents(suite);
  const auto state = [](const Objects& objects, const std::string& object) {
    const auto it = objects.find(object);
    return it == objects.end() ? "" : it->second;
  };
  // The last change, if it had no answer: both it and its event, or neither.
  bool doubtful_done = false;
  if (!told.doubtful.empty()) {
    const std::string now = state(there, told.doubtful);
    const std::string before = state(told.objects, told.doubtful);
    EXPECT_TRUE(now == told.doubtful_state || now == before)
        << told.doubtful << " is half done: " << now;
    doubtful_done = now == told.doubtful_state && now != before;
  }
  std::set<std::string> names;
  for (const auto& [object, unused] : there) names.insert(object);
  for (const auto& [object, unused] : told.objects) names.insert(object);
  for (const std::string& object : names) {
    if (object == told.doubtful) continue;
    EXPECT_EQ(state(there, object), state(told.objects, object))
        << object << (state(there, object).empty() ? " is lost" : " is wrong");
  }
  std::vector<std::string> wanted = told.events;
  if (doubtful_done && !told.doubtful_event.empty()) {
    wanted.push_back(told.doubtful_event);
  }
  EXPECT_EQ(events, wanted);
  // And it goes on.
  Told more;
  std::mt19937 random(3);
  Client(suite, &more).Run(random);
}

// `rocks_at`, `files_at`: the change of the database's or the content store's
// disk that fails, with all after it; -1: none. True if it was reached.
bool Round(int rocks_at, int files_at, std::mt19937& random) {
  TempDir dir;
  std::filesystem::create_directory(dir.Path("db"));
  std::filesystem::create_directory(dir.Path("content"));
  Disk disk(dir.path());
  FaultyRocks rocks(&disk);
  const auto on_disk = testing::FilesOn(&disk);
  FaultyFiles files(*on_disk, {.fail_at = files_at,
                               .error = EIO,
                               .for_ever = true,
                               .pass_syncs = true});
  rocks.Set(
      {.fail_at = rocks_at, .kind = RocksFault::Kind::kTorn, .for_ever = true});
  Told told;
  {
    Suite suite(dir.path(), rocks.env(), files, "before");
    if (suite.status.ok()) {
      std::mt19937 steps(17);
      Client(suite, &told).Run(steps);
    }
    disk.CutPower();
  }
  TempDir copies;
  for (int i = 0; i < 3; ++i) {
    SCOPED_TRACE(absl::StrCat("database step ", rocks_at, ", content step ",
                              files_at, ", copy ", i));
    const std::string copy = copies.Path(absl::StrCat(i));
    disk.Survivors(
        copy, i == 0 ? Disk::Kept::kSyncedOnly : Disk::Kept::kAnything, random);
    Check(copy, told);
    if (::testing::Test::HasFailure()) return true;
  }
  return rocks.fired() || files.fired();
}

TEST(PowerLoss, AtEveryStepOfTheDatabase) {
  std::mt19937 random(20261125);
  int step = 0;
  while (Round(step, -1, random) && !HasFailure()) {
    step += 1 + static_cast<int>(random() % 31);
    ASSERT_LT(step, 5000) << "the work never ends";
  }
  EXPECT_GT(step, 50);
}

TEST(PowerLoss, AtEveryStepOfTheBlobs) {
  std::mt19937 random(7);
  int step = 0;
  while (Round(-1, step, random) && !HasFailure()) {
    step += 1 + static_cast<int>(random() % 39);
    ASSERT_LT(step, 5000) << "the work never ends";
  }
  EXPECT_GT(step, 50);
}

TEST(PowerLoss, TheSimulationFindsADroppedFsync) {
  std::mt19937 random(3);
  int lost = 0;
  for (int i = 0; i < 30; ++i) {
    TempDir dir;
    std::filesystem::create_directory(dir.Path("db"));
    Disk disk(dir.path());
    FaultyRocks rocks(&disk);
    FaultyFiles files(files::RealFiles(), {});
    Suite suite(dir.path(), rocks.env(), files, "before");
    ASSERT_TRUE(suite.status.ok()) << suite.status;
    rocks.Set(
        {.fail_at = 0, .kind = RocksFault::Kind::kLostSync, .for_ever = true});
    Lease lease;
    lease.set_id("l");
    (*lease.mutable_labels())["a"] = "b";
    ASSERT_TRUE(metadata::Leases(*suite.store).Create(kNs, lease).ok());
    disk.CutPower();
    TempDir copies;
    disk.Survivors(copies.Path("c"), Disk::Kept::kAnything, random);
    FaultyRocks quiet;
    Suite after(copies.Path("c"), quiet.env(), files, "after");
    lost += !after.status.ok() || ReadAll(after).empty();
  }
  EXPECT_GT(lost, 0);
}

}  // namespace
}  // namespace bulkhead::race
