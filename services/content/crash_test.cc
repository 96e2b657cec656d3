// The real process, killed with SIGKILL while many clients write; then what a
// client was told must be true, and what it was not told must be whole or gone.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "lib/dataplane/dataplane.h"
#include "lib/rpc/channel.h"
#include "lib/testing/temp_dir.h"
#include "services/content/remote_store.h"

namespace bulkhead::content {
namespace {

using ::bulkhead::testing::RandomBytes;
using ::bulkhead::testing::TempDir;

constexpr int kRounds = 6;
constexpr int kClients = 4;
constexpr size_t kBlobBytes = 400'000;

// bulkhead-content, run from the test's runfiles.
class Process {
 public:
  explicit Process(const TempDir& dir) {
    int ready[2];
    EXPECT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const std::string root = dir.Path("r");
    const std::string state = dir.Path("s");
    const char* binary = "services/content/bulkhead-content";
    std::vector<const char*> argv = {
        binary,     "--root",    root.c_str(),  "--state", state.c_str(),
        "--config", "/dev/null", "--log-level", "error",   nullptr};
    // The child's descriptor 9 is the pipe's writing end.
    std::vector<const char*> env = {"BULKHEAD_READY_FD=9", nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ready[1], 9);
    const int error = ::posix_spawn(&pid_, binary, &actions, nullptr,
                                    const_cast<char**>(argv.data()),
                                    const_cast<char**>(env.data()));
    posix_spawn_file_actions_destroy(&actions);
    ::close(ready[1]);
    EXPECT_EQ(error, 0) << binary;
    char byte;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1) << "the service did not start";
    ::close(ready[0]);
  }

  ~Process() { End(SIGKILL); }

  pid_t pid() const { return pid_; }

  int End(int signal) {
    if (pid_ <= 0) return -1;
    ::kill(pid_, signal);
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_ = -1;
};

struct Acknowledged {
  std::mutex mutex;
  std::set<Digest> digests;

  void Add(const Digest& digest) {
    const std::lock_guard<std::mutex> lock(mutex);
    digests.insert(digest);
  }
};

absl::Status WriteOverGrpc(Store* store, const std::string& ref,
                           const std::string& data) {
  auto writer = store->OpenWriter({ref, 0, {}});
  if (!writer.ok()) return writer.status();
  const auto info = (*writer)->Info();
  if (!info.ok()) return info.status();
  for (size_t at = info->offset_bytes; at < data.size(); at += 50'000) {
    const absl::Status status =
        (*writer)->Append(absl::string_view(data).substr(at, 50'000));
    if (!status.ok()) return status;
  }
  return (*writer)->Commit({.expected = Digest::Of(data)}).status();
}

absl::Status WriteOverDataPlane(const std::string& socket,
                                const std::string& ref,
                                const std::string& data) {
  auto ingest = dataplane::Client(socket).OpenIngest({.ref = ref});
  if (!ingest.ok()) return ingest.status();
  for (size_t at = (*ingest)->opened().offset_bytes; at < data.size();) {
    const size_t n = std::min<size_t>(50'000, data.size() - at);
    absl::Status status =
        os::PWriteFull((*ingest)->fd(), data.data() + at, n, at);
    at += n;
    if (status.ok()) status = (*ingest)->Advance(at);
    if (!status.ok()) return status;
  }
  return (*ingest)->Commit(data.size(), Digest::Of(data).str(), {}).status();
}

TEST(Crash, AcknowledgedBlobsSurviveSigkillAndNothingIsHalf) {
  TempDir dir;
  const std::string grpc_path = dir.Path("s/content/content.sock");
  const std::string data_path = dir.Path("s/content/data.sock");
  Acknowledged acknowledged;
  std::mt19937 random(20261123);
  for (int round = 0; round < kRounds; ++round) {
    Process process(dir);
    std::atomic<int> commits{0};
    std::atomic<bool> dead{false};
    std::vector<std::thread> clients;
    for (int c = 0; c < kClients; ++c) {
      clients.emplace_back([&, c] {
        const auto store = OpenRemoteStore(rpc::Connect(grpc_path));
        for (int i = 0; !dead; ++i) {
          // What was cut short in the round before is resumed first.
          const int number = round * 1000 + (i == 0 ? -1000 : i);
          const std::string data =
              RandomBytes(kBlobBytes, 10 * number + c + 100'000);
          const std::string ref = absl::StrCat("client ", c);
          const absl::Status status =
              c % 2 == 0 ? WriteOverGrpc(store.get(), ref, data)
                         : WriteOverDataPlane(data_path, ref, data);
          if (status.ok()) {
            acknowledged.Add(Digest::Of(data));
            ++commits;
          } else if (!dead) {
            // Another blob's bytes from before the kill, or the kill itself.
            (void)store->Abort(ref);
          }
        }
      });
    }
    // Killed at some point between two commits of somebody.
    const int kill_after = 3 + static_cast<int>(random() % 20);
    while (commits < kill_after) std::this_thread::yield();
    process.End(SIGKILL);
    dead = true;
    for (std::thread& client : clients) client.join();
  }

  Process process(dir);
  const auto store = OpenRemoteStore(rpc::Connect(grpc_path));
  std::set<Digest> seen;
  ASSERT_TRUE(store
                  ->List([&](const BlobInfo& info) {
                    seen.insert(info.digest);
                    std::string data;
                    auto blob = store->OpenBlob(info.digest);
                    EXPECT_TRUE(blob.ok());
                    EXPECT_TRUE(
                        (*blob)->ReadAt(0, info.size_bytes, &data).ok());
                    EXPECT_EQ(Digest::Of(data), info.digest);
                    return absl::OkStatus();
                  })
                  .ok());
  EXPECT_GE(acknowledged.digests.size(), static_cast<size_t>(3 * kRounds));
  for (const Digest& digest : acknowledged.digests) {
    EXPECT_EQ(seen.count(digest), 1u) << digest.str() << " is lost";
  }
  const auto statuses = store->ListStatuses();
  ASSERT_TRUE(statuses.ok());
  EXPECT_LE(statuses->size(), static_cast<size_t>(kClients));
  for (const IngestInfo& info : *statuses) {
    EXPECT_LE(info.offset_bytes, static_cast<int64_t>(kBlobBytes));
    EXPECT_TRUE(store->Abort(info.ref).ok());
  }
  const int status = process.End(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

// What `pid` has read by system calls, page cache included.
int64_t ReadBytesOf(pid_t pid) {
  const std::string io =
      testing::ReadFileOrDie(absl::StrCat("/proc/", pid, "/io"));
  const size_t at = io.find("rchar: ");
  EXPECT_EQ(at, 0u) << io;
  return std::atoll(io.c_str() + 7);
}

TEST(Crash, AKilledIngestIsNotReadAgain) {
  constexpr int64_t kPieceBytes = 4 << 20;
  constexpr int kPieces = 66;  // A little more than until a step is kept.
  constexpr int64_t kReadMax = 80 << 20;
  TempDir dir;
  const std::string socket = dir.Path("s/content/data.sock");
  const std::string piece = RandomBytes(kPieceBytes);
  Hasher hasher;
  {
    Process process(dir);
    const auto ingest =
        dataplane::Client(socket).OpenIngest({.ref = "large"}).value();
    for (int i = 0; i < kPieces; ++i) {
      ASSERT_TRUE(os::PWriteFull(ingest->fd(), piece.data(), piece.size(),
                                 i * kPieceBytes)
                      .ok());
      ASSERT_TRUE(ingest->Advance((i + 1) * kPieceBytes).ok());
      hasher.Update(piece);
    }
    // Waits for all that was said before.
    ASSERT_EQ(ingest->Commit(1, "", {}).status().code(),
              absl::StatusCode::kFailedPrecondition);
    process.End(SIGKILL);
  }
  Process process(dir);
  const auto ingest =
      dataplane::Client(socket).OpenIngest({.ref = "large"}).value();
  EXPECT_EQ(ingest->opened().offset_bytes, kPieces * kPieceBytes);
  EXPECT_EQ(ingest->DigestSoFar().value(), hasher.Current().str());
  ASSERT_TRUE(
      os::PWriteFull(ingest->fd(), "end", 3, kPieces * kPieceBytes).ok());
  hasher.Update("end");
  const auto done = ingest->Commit(-1, hasher.Current().str(), {});
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_LT(ReadBytesOf(process.pid()), kReadMax);
}

}  // namespace
}  // namespace bulkhead::content
