// Power failures at every step, simulated: of what was not synced anything may
// be gone. What was acknowledged is there and whole, and nothing else is
// visible.
#include "lib/testing/power_loss.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "lib/testing/faulty_files.h"
#include "lib/testing/temp_dir.h"
#include "services/content/fs_store.h"

namespace bulkhead::content {
namespace {

using ::bulkhead::testing::Disk;
using ::bulkhead::testing::Fault;
using ::bulkhead::testing::FaultyFiles;
using ::bulkhead::testing::RandomBytes;
using ::bulkhead::testing::TempDir;

// What a client was told.
struct Told {
  std::map<Digest, bool> blobs;  // Committed; or deleted, or neither.
  std::map<std::string, std::string> ingests;  // Sent, by ref.
};

// Hashes are kept after most writes, so that the power is cut around them too.
FsStoreOptions InBoot(const std::string& boot_id) {
  FsStoreOptions options;
  options.boot_id = boot_id;
  options.hash_step_bytes = options.hash_min_bytes = 3000;
  return options;
}

std::string BytesOf(int number) {
  return RandomBytes(number == 0 ? 0 : 5000 + 997 * number, number + 1);
}

// Some commits, one of them of a blob that is there, a resumed ingest, one left
// behind, an abort and a delete.
void Work(FsStore& store, Told* told) {
  const auto write = [&](const std::string& ref, const std::string& data,
                         const Digest& digest) {
    auto writer = store.OpenWriter({ref, 0, {}});
    if (!writer.ok()) return false;
    const auto info = (*writer)->Info();
    if (!info.ok()) return false;
    told->ingests[ref] = data;
    for (size_t at = info->offset_bytes; at < data.size(); at += 3000) {
      if (!(*writer)->Append(data.substr(at, 3000)).ok()) return false;
      if (digest.empty()) return false;  // Left behind.
    }
    told->blobs.try_emplace(digest, false);
    if (!(*writer)->Commit({.expected = digest}).ok()) return false;
    told->blobs[digest] = true;
    told->ingests.erase(ref);
    return true;
  };
  for (int i = 0; i < 4; ++i) {
    const std::string data = BytesOf(i);
    if (i == 2) write("r2", data, {});
    write(absl::StrCat("r", i), data,
          Digest::Of(data, i == 3 ? DigestAlgorithm::kSha512
                                  : DigestAlgorithm::kSha256));
  }
  write("again", BytesOf(1), Digest::Of(BytesOf(1)));
  write("left", BytesOf(5), {});
  write("aborted", BytesOf(6), {});
  (void)store.Abort("aborted");
  const Digest deleted = Digest::Of(BytesOf(2));
  told->blobs.erase(deleted);  // It may come back: whole, all the same.
  (void)store.Delete(deleted);
}

// The complaints about what is below `root`.
void Check(const std::string& root, const Told& told) {
  FaultyFiles files(files::RealFiles(), {});  // Fsyncs would only take time.
  auto opened = FsStore::Open(root, files, InBoot("after"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  FsStore& store = **opened;
  ASSERT_TRUE(store
                  .List([&](const BlobInfo& info) {
                    const auto blob = store.OpenFsBlob(info.digest);
                    EXPECT_TRUE(blob.ok()) << blob.status();
                    const absl::Status whole =
                        store.Verify(**blob, info.digest);
                    EXPECT_TRUE(whole.ok()) << whole;
                    return absl::OkStatus();
                  })
                  .ok());
  for (const auto& [digest, committed] : told.blobs) {
    if (committed) {
      EXPECT_TRUE(store.Info(digest).ok()) << digest.str() << " is lost";
    }
  }
  const auto ingests = store.ListStatuses();
  ASSERT_TRUE(ingests.ok()) << ingests.status();
  for (const IngestInfo& ingest : *ingests) {
    // It resumes, whatever it holds, and its digest so far is true.
    auto writer = store.OpenWriter({ingest.ref, 0, {}});
    ASSERT_TRUE(writer.ok()) << writer.status();
    const auto digest = (*writer)->DigestSoFar();
    ASSERT_TRUE(digest.ok()) << digest.status();
    ASSERT_TRUE((*writer)->Truncate(0).ok());
    ASSERT_TRUE((*writer)->Append("fresh " + ingest.ref).ok());
    const auto fresh =
        (*writer)->Commit({.expected = Digest::Of("fresh " + ingest.ref)});
    EXPECT_TRUE(fresh.ok()) << fresh.status();
  }
  // Nothing half-made is left in the way.
  for (const auto& entry :
       std::filesystem::directory_iterator(root + "/ingest")) {
    ADD_FAILURE() << entry.path() << " is left over";
  }
}

TEST(PowerLoss, AtEveryStepWhatWasAcknowledgedStays) {
  std::mt19937 random(20261125);
  int step = 0;
  for (bool fired = true; fired; step += 1 + static_cast<int>(random() % 2)) {
    ASSERT_LT(step, 2000) << "the work never ends";
    TempDir dir;
    Told told;
    std::filesystem::create_directory(dir.Path("c"));
    Disk disk(dir.path());
    const auto files = testing::FilesOn(&disk);
    // The call with this number fails, and all after it.
    FaultyFiles faulty(
        *files,
        {.fail_at = step, .error = EIO, .for_ever = true, .pass_syncs = true});
    if (auto store = FsStore::Open(dir.Path("c"), faulty, InBoot("before"));
        store.ok()) {
      Work(**store, &told);
    }
    fired = faulty.fired();
    disk.CutPower();
    TempDir copies;
    for (int i = 0; i < 4; ++i) {
      SCOPED_TRACE(absl::StrCat("step ", step, ", copy ", i));
      const std::string copy = copies.Path(absl::StrCat(i));
      disk.Survivors(copy,
                     i == 0   ? Disk::Kept::kSyncedOnly
                     : i == 1 ? Disk::Kept::kEverything
                              : Disk::Kept::kAnything,
                     random);
      Check(copy + "/c", told);
      if (HasFailure()) return;
    }
  }
  EXPECT_GT(step, 100);
}

TEST(PowerLoss, TheSimulationFindsADroppedFsync) {
  std::mt19937 random(1);
  int lost = 0;
  TempDir dir;
  Disk disk(dir.path());
  const auto files = testing::FilesOn(&disk);
  FaultyFiles faulty(*files, {});  // Its fsyncs reach nothing.
  const std::string data = BytesOf(3);
  {
    auto store = FsStore::Open(dir.Path("c"), faulty).value();
    auto writer = store->OpenWriter({"r", 0, {}}).value();
    ASSERT_TRUE(writer->Append(data).ok());
    ASSERT_TRUE(writer->Commit({.expected = Digest::Of(data)}).ok());
  }
  disk.CutPower();
  TempDir copies;
  for (int i = 0; i < 20; ++i) {
    const std::string copy = copies.Path(absl::StrCat(i));
    disk.Survivors(copy, Disk::Kept::kAnything, random);
    std::error_code error;
    const auto size = std::filesystem::file_size(
        copy + "/c/blobs/sha256/" + Digest::Of(data).hex(), error);
    lost += error || size != data.size();
  }
  EXPECT_GT(lost, 0);
}

TEST(PowerLoss, InTheMiddleOfManyWriters) {
  std::mt19937 random(7);
  for (int round = 0; round < 12; ++round) {
    TempDir dir;
    Disk disk(dir.path());
    const auto files = testing::FilesOn(&disk);
    auto store = FsStore::Open(dir.Path("c"), *files, InBoot("before")).value();
    std::vector<Told> told(3);
    std::vector<std::thread> clients;
    for (int c = 0; c < 3; ++c) {
      clients.emplace_back([&, c] {
        for (int i = 0; !disk.off(); ++i) {
          const std::string data = BytesOf(10 + i % 7);  // Shared.
          const std::string ref = absl::StrCat(c, "/", i);
          auto writer = store->OpenWriter({ref, 0, {}});
          if (!writer.ok() || !(*writer)->Append(data).ok()) continue;
          if (i % 5 == 4) continue;
          const absl::Status done =
              (*writer)->Commit({.expected = Digest::Of(data)}).status();
          // Who is told that it is there may rely on it.
          if (done.ok() || absl::IsAlreadyExists(done)) {
            told[c].blobs[Digest::Of(data)] = true;
          }
        }
      });
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
    disk.CutPower();
    for (std::thread& client : clients) client.join();
    TempDir copies;
    for (int i = 0; i < 4; ++i) {
      const std::string copy = copies.Path(absl::StrCat(i));
      disk.Survivors(copy,
                     i == 0 ? Disk::Kept::kSyncedOnly : Disk::Kept::kAnything,
                     random);
      if (!std::filesystem::exists(copy + "/c")) continue;
      for (const Told& one : told) Check(copy + "/c", one);
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace bulkhead::content
