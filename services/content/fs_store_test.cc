// The conformance suite, then what only files can do: faults, crashes, a full
// disk, peers with descriptors.
#include "services/content/fs_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "lib/testing/faulty_files.h"
#include "lib/testing/temp_dir.h"
#include "services/content/hash_file.h"
#include "services/content/store_conformance.h"

namespace bulkhead::content {
namespace {

using ::bulkhead::testing::Fault;
using ::bulkhead::testing::FaultyFiles;
using ::bulkhead::testing::OpenFdCount;
using ::bulkhead::testing::RandomBytes;
using ::bulkhead::testing::ReadFileOrDie;
using ::bulkhead::testing::TempDir;
using ::bulkhead::testing::WriteFileOrDie;
using Code = absl::StatusCode;
namespace fs = std::filesystem;

std::unique_ptr<Store> OpenFs(const std::string& root) {
  return FsStore::Open(root + "/content").value();
}

INSTANTIATE_TEST_SUITE_P(Fs, StoreConformance,
                         ::testing::Values(Backend{"fs", OpenFs}));

int Entries(const std::string& dir) {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(dir)) {
    ++count;
  }
  return count;
}

// Keeps the hash at every opportunity.
FsStoreOptions KeepingHashes(const std::string& boot_id = "boot") {
  FsStoreOptions options;
  options.boot_id = boot_id;
  options.hash_step_bytes = options.hash_min_bytes = 1;
  return options;
}

// Stores "hello" in two steps, as a client would; the status of the commit.
absl::Status StoreHello(FsStore* store) {
  auto writer = store->OpenFsWriter({"ref", 5, Digest::Of("hello")});
  if (!writer.ok()) return writer.status();
  absl::Status status = (*writer)->Append("hel");
  if (status.ok()) status = (*writer)->Append("lo");
  if (!status.ok()) return status;
  return (*writer)
      ->Commit({.size_bytes = 5, .expected = Digest::Of("hello")})
      .status();
}

// After a reopen the blob is whole or absent, whatever was answered; and then
// it can be stored.
void ExpectAllOrNothing(const std::string& root, const absl::Status& answered) {
  const Digest digest = Digest::Of("hello");
  FaultyFiles files(files::RealFiles(), {});
  auto store = FsStore::Open(root, files, KeepingHashes());
  ASSERT_TRUE(store.ok()) << store.status();
  const auto info = (*store)->Info(digest);
  EXPECT_TRUE(info.ok() || !answered.ok()) << "OK is a promise";
  if (info.ok()) {
    EXPECT_EQ(info->size_bytes, 5);
    EXPECT_TRUE(
        (*store)->Verify(*(*store)->OpenFsBlob(digest).value(), digest).ok());
  } else {
    EXPECT_TRUE(absl::IsNotFound(info.status()));
    auto writer = (*store)->OpenFsWriter({"ref", 5, digest});
    ASSERT_TRUE(writer.ok()) << writer.status();
    const int64_t there = (*writer)->Info().value().offset_bytes;
    EXPECT_LE(there, 5);
    EXPECT_EQ((*writer)->DigestSoFar().value(),
              Digest::Of(std::string("hello").substr(0, there)));
    ASSERT_TRUE((*writer)->Append(std::string("hello").substr(there)).ok());
    const auto blob = (*writer)->Commit({.size_bytes = 5, .expected = digest});
    EXPECT_TRUE(blob.ok()) << blob.status();
  }
  EXPECT_EQ(Entries(root + "/ingest"), 0);
}

TEST(FsStoreFaults, AnyFailedCallLeavesAllOrNothing) {
  for (const int variant : {0, 1, 2, 3}) {
    const bool for_ever = (variant & 1) != 0;
    const FsStoreOptions options =
        (variant & 2) != 0 ? KeepingHashes() : FsStoreOptions();
    for (const int error : {EIO, ENOSPC}) {
      for (int fail_at = 0;; ++fail_at) {
        ASSERT_LT(fail_at, 200) << "faults never stopped firing";
        SCOPED_TRACE(absl::StrCat("call ", fail_at, " error ", error,
                                  " variant ", variant));
        TempDir dir;
        FaultyFiles files(
            files::RealFiles(),
            {.fail_at = fail_at, .error = error, .for_ever = for_ever});
        absl::Status status;
        {
          auto store = FsStore::Open(dir.path(), files, options);
          status = store.ok() ? StoreHello(store->get()) : store.status();
        }
        ExpectAllOrNothing(dir.path(), status);
        if (!files.fired()) {
          EXPECT_TRUE(status.ok()) << status;
          break;
        }
      }
    }
  }
}

TEST(FsStoreFaults, ShortReadsAndWritesChangeNothing) {
  const std::string data = RandomBytes(300'000);
  for (int fail_at = 0;; ++fail_at) {
    TempDir dir;
    FaultyFiles files(files::RealFiles(),
                      {.fail_at = fail_at, .short_only = true});
    auto store = FsStore::Open(dir.path(), files).value();
    auto writer = store->OpenFsWriter({"ref", 300'000, {}}).value();
    ASSERT_TRUE(writer->Append(data.substr(0, 200'000)).ok());
    writer.reset();
    writer = store->OpenFsWriter({"ref", 300'000, {}}).value();
    ASSERT_TRUE(writer->Append(data.substr(200'000)).ok());
    const auto blob = writer->Commit({.expected = Digest::Of(data)});
    ASSERT_TRUE(blob.ok()) << fail_at << " " << blob.status();
    std::string read;
    ASSERT_TRUE(store->OpenBlob(Digest::Of(data))
                    .value()
                    ->ReadAt(0, 300'000, &read)
                    .ok());
    EXPECT_EQ(read, data);
    if (fail_at > files.calls()) return;
  }
}

// Linux marks pages whose write-back failed as clean: a second fsync says OK
// although the bytes are on no disk.
class LosingFiles final : public FaultyFiles {
 public:
  LosingFiles() : FaultyFiles(files::RealFiles(), {}) {}
  absl::StatusOr<size_t> PWrite(int fd, const void* data, size_t size_bytes,
                                int64_t offset_bytes) override {
    dirty_bytes += static_cast<int64_t>(size_bytes);
    return FaultyFiles::PWrite(fd, data, size_bytes, offset_bytes);
  }
  absl::Status Sync(int fd) override {
    if (lose && dirty_bytes > 0) {
      lose = false;
      dirty_bytes = 0;
      return os::ErrnoStatus(EIO, "fsync");
    }
    return FaultyFiles::Sync(fd);
  }
  bool lose = false;
  int64_t dirty_bytes = 0;  // Written and not lost.
};

TEST(FsStoreFaults, AfterAFailedFsyncTheBytesAreWrittenAgain) {
  const std::string data = RandomBytes(200'000);
  for (const bool reopened : {false, true}) {
    TempDir dir;
    LosingFiles files;
    auto store = FsStore::Open(dir.path(), files).value();
    auto writer = store->OpenFsWriter({"ref", 0, {}}).value();
    ASSERT_TRUE(writer->Append(data).ok());
    files.lose = true;
    EXPECT_EQ(writer->Commit({}).status().code(), Code::kInternal);
    EXPECT_EQ(files.dirty_bytes, 0);
    if (reopened) {
      writer.reset();
      store.reset();
      store = FsStore::Open(dir.path(), files).value();
      writer = store->OpenFsWriter({"ref", 0, {}}).value();
    }
    ASSERT_TRUE(writer->Commit({.expected = Digest::Of(data)}).ok());
    EXPECT_GE(files.dirty_bytes, 200'000);
    EXPECT_EQ(Entries(dir.Path("ingest")), 0);
  }
}

// After a failed fsync the page cache may have dropped what was written: then
// the bytes on the disk are others than those that were hashed.
TEST(FsStoreFaults, AfterAFailedFsyncWhatIsThereIsHashedAgain) {
  TempDir dir;
  LosingFiles files;
  auto store = FsStore::Open(dir.path(), files).value();
  auto writer = store->OpenFsWriter({"ref", 0, {}}).value();
  const os::UniqueFd fd = writer->ShareFd().value();
  ASSERT_TRUE(writer->Append("hello").ok());
  files.lose = true;
  EXPECT_EQ(writer->Commit({}).status().code(), Code::kInternal);
  ASSERT_EQ(::pwrite(fd.get(), "\0\0", 2, 1), 2);  // As the disk has it.
  EXPECT_EQ(writer->Commit({.expected = Digest::Of("hello")}).status().code(),
            Code::kFailedPrecondition);
  EXPECT_FALSE(store->Info(Digest::Of("hello")).ok());
}

TEST(FsStoreFaults, AFailedCommitCanBeRepeatedOnTheSameWriter) {
  for (int fail_at = 0;; ++fail_at) {
    ASSERT_LT(fail_at, 200) << "faults never stopped firing";
    TempDir dir;
    auto real = FsStore::Open(dir.path()).value();
    auto writer = real->OpenFsWriter({"ref", 0, {}}).value();
    ASSERT_TRUE(writer->Append("hello").ok());
    writer.reset();
    real.reset();

    FaultyFiles counted(files::RealFiles(), {});
    auto store = FsStore::Open(dir.path(), counted).value();
    writer = store->OpenFsWriter({"ref", 0, {}}).value();
    const int before = counted.calls();
    writer.reset();
    store.reset();

    FaultyFiles files(files::RealFiles(),
                      {.fail_at = before + fail_at, .error = EIO});
    store = FsStore::Open(dir.path(), files).value();
    writer = store->OpenFsWriter({"ref", 0, {}}).value();
    absl::Status status = writer->Commit({}).status();
    files.Disarm();
    if (!status.ok()) {
      EXPECT_EQ(status.code(), Code::kInternal) << status;
      EXPECT_FALSE(store->Info(Digest::Of("hello")).ok()) << fail_at;
      status = writer->Commit({}).status();
    }
    EXPECT_TRUE(status.ok()) << fail_at << " " << status;
    EXPECT_EQ(store->Info(Digest::Of("hello")).value().size_bytes, 5);
    if (!files.fired()) return;
  }
}

TEST(FsStoreFaults, AFullDiskNamesTheIngestAndLosesNothing) {
  TempDir dir;
  FaultyFiles files(files::RealFiles(), {});
  auto store = FsStore::Open(dir.path(), files).value();
  auto writer = store->OpenFsWriter({"ns/1/layer", 10, {}}).value();
  ASSERT_TRUE(writer->Append("hello").ok());
  files.FailWrites(ENOSPC);
  const absl::Status full = writer->Append("12345");
  EXPECT_EQ(full.code(), Code::kResourceExhausted);
  EXPECT_NE(std::string(full.message()).find("ingest ns/1/layer"),
            std::string::npos)
      << full;
  EXPECT_EQ(writer->Info().value().offset_bytes, 5);
  EXPECT_EQ(writer->DigestSoFar().value(), Digest::Of("hello"));
  EXPECT_EQ(store->OpenFsWriter({"other", 0, {}}).status().code(),
            Code::kResourceExhausted);
  EXPECT_EQ(Entries(dir.Path("ingest")), 1);
  files.FailWrites(0);
  ASSERT_TRUE(writer->Append("12345").ok());
  EXPECT_TRUE(
      writer->Commit({.expected = Digest::Of("hello12345")}).status().ok());
}

TEST(FsStore, LayoutAndModes) {
  TempDir dir;
  auto store = FsStore::Open(dir.path()).value();
  ASSERT_TRUE(StoreHello(store.get()).ok());
  const std::string path =
      dir.Path("blobs/sha256/" + Digest::Of("hello").hex());
  struct stat st;
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0444u);
  EXPECT_EQ(ReadFileOrDie(path), "hello");
  auto writer = store->OpenFsWriter({"a/b", 7, {}}).value();
  const std::string ingest = dir.Path("ingest/" + Digest::Of("a/b").hex());
  EXPECT_EQ(ReadFileOrDie(ingest + "/ref"), "a/b");
  EXPECT_EQ(ReadFileOrDie(ingest + "/total"), "7");
  EXPECT_EQ(ReadFileOrDie(ingest + "/data"), "");
}

TEST(FsStore, OneProcessOneRoot) {
  TempDir dir;
  auto store = FsStore::Open(dir.path()).value();
  EXPECT_EQ(FsStore::Open(dir.path()).status().code(),
            Code::kFailedPrecondition);
  store.reset();
  EXPECT_TRUE(FsStore::Open(dir.path()).ok());
}

TEST(FsStore, TheStartSweepsWhatACrashLeft) {
  TempDir dir;
  auto store = FsStore::Open(dir.path()).value();
  auto writer = store->OpenFsWriter({"good", 0, {}}).value();
  ASSERT_TRUE(writer->Append("hello").ok());
  writer.reset();
  store.reset();
  fs::create_directories(dir.Path("ingest/.new-7"));
  WriteFileOrDie(dir.Path("ingest/.new-7/ref"), "x");
  fs::create_directories(dir.Path("ingest/.del-0"));
  WriteFileOrDie(dir.Path("ingest/.del-0/data"), "x");
  const std::string committed = dir.Path("ingest/" + Digest::Of("c").hex());
  fs::create_directories(committed);
  WriteFileOrDie(committed + "/ref", "c");
  WriteFileOrDie(dir.Path("blobs/sha256/not-a-digest"), "x");
  fs::create_directories(dir.Path("blobs/sha256/" + Digest::Of("d").hex()));

  store = FsStore::Open(dir.path()).value();
  EXPECT_EQ(Entries(dir.Path("ingest")), 1);
  EXPECT_EQ(store->Status("good").value().offset_bytes, 5);
  EXPECT_TRUE(absl::IsNotFound(store->Info(Digest::Of("d")).status()));
  int blobs = 0;
  ASSERT_TRUE(store
                  ->List([&](const BlobInfo&) {
                    ++blobs;
                    return absl::OkStatus();
                  })
                  .ok());
  EXPECT_EQ(blobs, 0);
  EXPECT_EQ(store->ListStatuses().value().size(), 1u);
}

TEST(FsStore, AnIngestSealedByACrashedCommitOpens) {
  TempDir dir;
  auto store = FsStore::Open(dir.path()).value();
  ASSERT_TRUE(store->OpenFsWriter({"r", 0, {}}).value()->Append("hello").ok());
  const std::string data =
      dir.Path("ingest/" + Digest::Of("r").hex() + "/data");
  ASSERT_EQ(::chmod(data.c_str(), 0444), 0);
  auto writer = store->OpenFsWriter({"r", 0, {}}).value();
  ASSERT_TRUE(writer->Append("!").ok());
  EXPECT_TRUE(writer->Commit({.expected = Digest::Of("hello!")}).ok());
}

TEST(FsStore, AnOpenReaderOutlivesDelete) {
  TempDir dir;
  auto store = FsStore::Open(dir.path()).value();
  ASSERT_TRUE(StoreHello(store.get()).ok());
  auto blob = store->OpenBlob(Digest::Of("hello")).value();
  ASSERT_TRUE(store->Delete(Digest::Of("hello")).ok());
  std::string data;
  ASSERT_TRUE(blob->ReadAt(0, 5, &data).ok());
  EXPECT_EQ(data, "hello");
}

TEST(FsStore, VerifyFindsDamage) {
  TempDir dir;
  auto store = FsStore::Open(dir.path()).value();
  ASSERT_TRUE(StoreHello(store.get()).ok());
  const std::string path =
      dir.Path("blobs/sha256/" + Digest::Of("hello").hex());
  fs::remove(path);
  WriteFileOrDie(path, "jello");
  const auto blob = store->OpenFsBlob(Digest::Of("hello")).value();
  EXPECT_EQ(store->Verify(*blob, Digest::Of("hello")).code(), Code::kDataLoss);
}

TEST(FsStore, SomebodyElseWritesThroughTheDescriptor) {
  TempDir dir;
  auto store = FsStore::Open(dir.path()).value();
  const std::string data = RandomBytes(1 << 20);
  auto writer = store->OpenFsWriter({"r", 0, {}}).value();
  const os::UniqueFd fd = writer->ShareFd().value();
  for (size_t at = 0; at < data.size(); at += 100'000) {
    const size_t n = std::min<size_t>(100'000, data.size() - at);
    ASSERT_EQ(::pwrite(fd.get(), data.data() + at, n, at),
              static_cast<ssize_t>(n));
    ASSERT_TRUE(writer->Advance(at + n / 2).ok());
  }
  EXPECT_EQ(writer->Advance(10).code(), Code::kInvalidArgument);
  EXPECT_EQ(writer->Advance(2 << 20).code(), Code::kInvalidArgument);
  ASSERT_TRUE(writer->Truncate(500'000).ok());
  ASSERT_EQ(
      ::pwrite(fd.get(), data.data() + 500'000, data.size() - 500'000, 500'000),
      static_cast<ssize_t>(data.size() - 500'000));
  const auto blob = writer->Commit({.expected = Digest::Of(data)});
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_EQ(blob->size_bytes, static_cast<int64_t>(data.size()));
}

// Writes to an ingest while its commit is under way.
class MeddlingFiles final : public FaultyFiles {
 public:
  MeddlingFiles() : FaultyFiles(files::RealFiles(), {}) {}
  absl::Status Sync(int fd) override {
    if (victim >= 0) {
      EXPECT_EQ(::pwrite(victim, "J", 1, 0), 1);
    }
    victim = -1;
    return FaultyFiles::Sync(fd);
  }
  int victim = -1;
};

TEST(FsStore, AGapIsWhereAReopenedIngestGoesOn) {
  TempDir dir;
  auto store = FsStore::Open(dir.path()).value();
  const std::string data = RandomBytes(1 << 20);
  const auto write = [&](int fd, size_t at, size_t size) {
    ASSERT_EQ(::pwrite(fd, data.data() + at, size, static_cast<off_t>(at)),
              static_cast<ssize_t>(size));
  };
  auto writer = store->OpenFsWriter({"r", 1 << 20, {}}).value();
  os::UniqueFd fd = writer->ShareFd().value();
  write(fd.get(), 0, 64 << 10);
  write(fd.get(), 512 << 10, 64 << 10);
  ASSERT_TRUE(writer->Advance(4096).ok());
  writer.reset();
  // What is behind the gap stays, for those who know.
  writer = store->OpenFsWriter({"r", 1 << 20, {}}).value();
  EXPECT_EQ(writer->WholeBytes(), 64 << 10);
  EXPECT_EQ(fs::file_size("/proc/self/fd/" + std::to_string(fd.get())),
            576u << 10);
  write(fd.get(), 64 << 10, 448 << 10);
  write(fd.get(), 576 << 10, 448 << 10);
  ASSERT_TRUE(writer->Advance(1 << 20).ok());
  const auto blob = writer->Commit({});
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_EQ(blob->digest, Digest::Of(data));
  // Others get it cut.
  writer = store->OpenFsWriter({"s", 0, {}}).value();
  fd = writer->ShareFd().value();
  write(fd.get(), 0, 4096);
  write(fd.get(), 512 << 10, 4096);
  writer.reset();
  auto plain = store->OpenWriter({"s", 0, {}}).value();
  EXPECT_EQ(plain->Info().value().offset_bytes, 4096);
  ASSERT_TRUE(plain->Append("x").ok());
  EXPECT_EQ(plain->DigestSoFar().value(),
            Digest::Of(data.substr(0, 4096) + "x"));
}

TEST(FsStore, AWriteDuringCommitIsNoticed) {
  TempDir dir;
  MeddlingFiles files;
  auto store = FsStore::Open(dir.path(), files).value();
  auto writer = store->OpenFsWriter({"r", 0, {}}).value();
  const os::UniqueFd fd = writer->ShareFd().value();
  ASSERT_EQ(::pwrite(fd.get(), "hello", 5, 0), 5);
  files.victim = fd.get();
  EXPECT_EQ(writer->Commit({}).status().code(), Code::kFailedPrecondition);
  EXPECT_FALSE(store->Info(Digest::Of("hello")).ok());
  const auto blob = writer->Commit({});
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_EQ(blob->digest, Digest::Of("Jello"));
}

TEST(FsStore, LimitsAndLeaks) {
  TempDir dir;
  const int fds = OpenFdCount();
  {
    auto store = FsStore::Open(dir.path()).value();
    EXPECT_EQ(store->OpenWriter({std::string(kRefBytesMax + 1, 'x'), 0, {}})
                  .status()
                  .code(),
              Code::kInvalidArgument);
    EXPECT_EQ(store->OpenWriter({"r", -1, {}}).status().code(),
              Code::kInvalidArgument);
    std::vector<std::unique_ptr<Writer>> writers;
    for (int i = 0; i < kOpenIngestsMax; ++i) {
      auto writer = store->OpenWriter({absl::StrCat(i), 0, {}});
      ASSERT_TRUE(writer.ok()) << writer.status();
      writers.push_back(*std::move(writer));
    }
    EXPECT_EQ(store->OpenWriter({"one more", 0, {}}).status().code(),
              Code::kResourceExhausted);
  }
  EXPECT_EQ(OpenFdCount(), fds);
}

TEST(FsStore, AWaitingOpenGetsTheRefWhenItIsFree) {
  TempDir dir;
  auto store = FsStore::Open(dir.path()).value();
  auto first = store->OpenWriter({"r", 0, {}}).value();
  std::thread other([&] {
    // Either order of events is fine, as long as it ends in an open ingest.
    absl::StatusOr<std::unique_ptr<Writer>> second =
        store->OpenWriter({"r", 0, {}});
    while (absl::IsUnavailable(second.status())) {
      second = store->OpenWriter({"r", 0, {}});
    }
    EXPECT_TRUE(second.ok()) << second.status();
  });
  first.reset();
  other.join();
}

// --- the hash that is kept ---

// Counts what is read of ingests' data.
class ReadCountingFiles final : public FaultyFiles {
 public:
  ReadCountingFiles() : FaultyFiles(files::RealFiles(), {}) {}
  absl::StatusOr<size_t> PRead(int fd, void* data, size_t size_bytes,
                               int64_t offset_bytes) override {
    auto n = FaultyFiles::PRead(fd, data, size_bytes, offset_bytes);
    // Small files are read whole, with room for one byte more than they may be.
    const bool small = size_bytes == kRefBytesMax + 1 ||
                       size_bytes == kHashFileBytesMax + 1 || size_bytes == 129;
    if (n.ok() && !small) read_bytes += static_cast<int64_t>(*n);
    return n;
  }
  absl::StatusOr<size_t> PWrite(int fd, const void* data, size_t size_bytes,
                                int64_t offset_bytes) override {
    auto n = FaultyFiles::PWrite(fd, data, size_bytes, offset_bytes);
    if (n.ok()) written_bytes += static_cast<int64_t>(*n);
    return n;
  }
  absl::Status WaitWritten(int fd, int64_t offset_bytes,
                           int64_t size_bytes) override {
    if (std::exchange(fail_next_writeback, false)) {
      return absl::InternalError("EIO");
    }
    return FaultyFiles::WaitWritten(fd, offset_bytes, size_bytes);
  }
  int64_t read_bytes = 0;
  int64_t written_bytes = 0;
  bool fail_next_writeback = false;
};

class KeptHash : public ::testing::Test {
 protected:
  static constexpr int64_t kPieceBytes = 100'000;

  void Open(const std::string& boot_id, int64_t step_bytes = kPieceBytes,
            int64_t min_bytes = kPieceBytes, int64_t lag_bytes = 0) {
    writer_.reset();
    store_.reset();
    FsStoreOptions options;
    options.boot_id = boot_id;
    options.hash_step_bytes = step_bytes;
    options.hash_lag_bytes = lag_bytes;
    options.hash_min_bytes = min_bytes;
    store_ = FsStore::Open(dir_.Path("c"), files_, options).value();
  }
  void Resume() {
    writer_.reset();
    writer_ = store_->OpenFsWriter({"r", 0, {}}).value();
  }
  void AppendTo(int64_t size_bytes) {
    const int64_t there = writer_->WholeBytes();
    ASSERT_TRUE(
        writer_
            ->Append(absl::string_view(data_).substr(there, size_bytes - there))
            .ok());
  }
  // What a resumed ingest had to read before it could be committed.
  int64_t ReadForCommit() {
    files_.read_bytes = 0;
    Resume();
    AppendTo(data_.size());
    const auto blob = writer_->Commit({.expected = Digest::Of(data_)});
    EXPECT_TRUE(blob.ok()) << blob.status();
    return files_.read_bytes;
  }
  std::string HashPath() const {
    return dir_.Path("c/ingest/" + Digest::Of("r").hex() + "/hash");
  }

  TempDir dir_;
  ReadCountingFiles files_;
  const std::string data_ = RandomBytes(4 * kPieceBytes);
  std::unique_ptr<FsStore> store_;
  std::unique_ptr<FsWriter> writer_;
};

TEST_F(KeptHash, AResumedIngestIsNotReadAgain) {
  Open("boot");
  Resume();
  AppendTo(2 * kPieceBytes + 77);
  Open("boot");  // Another process.
  EXPECT_EQ(store_->Status("r")->offset_bytes, 2 * kPieceBytes + 77);
  Resume();
  EXPECT_EQ(writer_->RunningHash().size_bytes(), 2 * kPieceBytes + 77);
  EXPECT_EQ(writer_->DigestSoFar().value(),
            Digest::Of(data_.substr(0, 2 * kPieceBytes + 77)));
  EXPECT_EQ(ReadForCommit(), 0);
  EXPECT_EQ(Entries(dir_.Path("c/ingest")), 0);
}

TEST_F(KeptHash, AKilledProcessLeavesTheLastStep) {
  Open("boot", kPieceBytes, 100 * kPieceBytes);  // Nothing at the end.
  Resume();
  AppendTo(kPieceBytes);
  AppendTo(kPieceBytes + 5000);
  Open("boot");
  EXPECT_EQ(ReadForCommit(), 5000);
}

TEST_F(KeptHash, AStepIsKeptWhenMoreHasComeAfterIt) {
  Open("boot", kPieceBytes, 100 * kPieceBytes, 1000);
  Resume();
  AppendTo(kPieceBytes);
  AppendTo(kPieceBytes + 999);
  EXPECT_FALSE(fs::exists(HashPath()));
  AppendTo(kPieceBytes + 1000);
  EXPECT_TRUE(fs::exists(HashPath()));
  Open("boot", kPieceBytes, 100 * kPieceBytes, 1000);
  EXPECT_EQ(ReadForCommit(), 1000);
}

TEST_F(KeptHash, AStepThatIsCutMeanwhileIsNotKept) {
  Open("boot", kPieceBytes, 100 * kPieceBytes, 1000);
  Resume();
  AppendTo(kPieceBytes);
  ASSERT_TRUE(writer_->Truncate(kPieceBytes - 10).ok());
  const std::string other = RandomBytes(3000, 9);
  ASSERT_TRUE(writer_->Append(other).ok());
  Open("boot");
  Resume();
  const Digest whole = Digest::Of(data_.substr(0, kPieceBytes - 10) + other);
  EXPECT_EQ(writer_->DigestSoFar().value(), whole);
  EXPECT_TRUE(writer_->Commit({.expected = whole}).ok());
}

// Clean pages that are on no disk.
TEST_F(KeptHash, DataThatCouldNotBeWrittenBackIsWrittenAgain) {
  Open("boot");
  Resume();
  files_.fail_next_writeback = true;
  AppendTo(2 * kPieceBytes);
  EXPECT_FALSE(fs::exists(HashPath()));
  const int64_t before = files_.written_bytes;
  EXPECT_TRUE(
      writer_
          ->Commit({.expected = Digest::Of(data_.substr(0, 2 * kPieceBytes))})
          .ok());
  EXPECT_EQ(files_.written_bytes - before, 2 * kPieceBytes);
}

TEST_F(KeptHash, AnotherBootReadsAgain) {
  Open("boot");
  Resume();
  AppendTo(2 * kPieceBytes);
  Open("another");
  EXPECT_EQ(ReadForCommit(), 2 * kPieceBytes);
}

TEST_F(KeptHash, WithoutABootNothingIsKept) {
  Open("");
  Resume();
  AppendTo(2 * kPieceBytes);
  writer_.reset();
  EXPECT_FALSE(fs::exists(HashPath()));
  EXPECT_EQ(ReadForCommit(), 2 * kPieceBytes);
}

TEST_F(KeptHash, ADamagedOneIsNotBelieved) {
  Open("boot");
  Resume();
  AppendTo(kPieceBytes);
  writer_.reset();
  const std::string whole = ReadFileOrDie(HashPath());
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string text = whole;
    text[at] = static_cast<char>(text[at] ^ 1);
    WriteFileOrDie(HashPath(), text);
    Resume();
    ASSERT_EQ(writer_->RunningHash().size_bytes(), 0) << at;
    WriteFileOrDie(HashPath(), whole.substr(0, at));
    Resume();
    ASSERT_EQ(writer_->RunningHash().size_bytes(), 0) << at;
  }
  WriteFileOrDie(HashPath(), whole);
  Resume();
  EXPECT_EQ(writer_->RunningHash().size_bytes(), kPieceBytes);
  writer_.reset();
  // Data that is shorter than what was hashed.
  fs::resize_file(fs::path(HashPath()).replace_filename("data"), 1000);
  EXPECT_EQ(ReadForCommit(), 1000);
}

TEST_F(KeptHash, OtherBytesInTheSamePlaceAreHashed) {
  Open("boot");
  Resume();
  AppendTo(2 * kPieceBytes);
  ASSERT_TRUE(writer_->Truncate(1000).ok());
  EXPECT_FALSE(fs::exists(HashPath()));
  Open("boot");
  Resume();
  const std::string other = RandomBytes(3 * kPieceBytes, 9);
  ASSERT_TRUE(writer_->Append(other).ok());
  const std::string whole = data_.substr(0, 1000) + other;
  EXPECT_TRUE(writer_->Commit({.expected = Digest::Of(whole)}).ok());
}

TEST_F(KeptHash, OneThatWasRefusedDoesNotBecomeTrueAgain) {
  Open("boot", 100 * kPieceBytes);
  Resume();
  AppendTo(2 * kPieceBytes);
  writer_.reset();
  // A peer with a descriptor cuts the file.
  fs::resize_file(fs::path(HashPath()).replace_filename("data"), 1000);
  Resume();
  EXPECT_EQ(writer_->RunningHash().size_bytes(), 0);
  EXPECT_FALSE(fs::exists(HashPath()));
  const std::string other = RandomBytes(3 * kPieceBytes, 9);
  ASSERT_TRUE(writer_->Append(other).ok());
  const std::string whole = data_.substr(0, 1000) + other;
  EXPECT_EQ(writer_->DigestSoFar().value(), Digest::Of(whole));
  EXPECT_TRUE(writer_->Commit({.expected = Digest::Of(whole)}).ok());
}

TEST_F(KeptHash, AnUntruncatableOneStopsTheTruncation) {
  Open("boot");
  Resume();
  AppendTo(kPieceBytes);
  // A folder in its place cannot be unlinked.
  fs::remove(HashPath());
  fs::create_directory(HashPath());
  EXPECT_EQ(writer_->Truncate(10).code(), Code::kInternal);
  EXPECT_EQ(writer_->Info()->offset_bytes, kPieceBytes);
  fs::remove(HashPath());
  EXPECT_TRUE(writer_->Truncate(10).ok());
}

}  // namespace
}  // namespace bulkhead::content
