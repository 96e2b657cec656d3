// Content and metadata under load, killed with SIGKILL at random moments;
// afterwards what was acknowledged is there and whole, what was acknowledged
// as deleted is gone, and a collection leaves no blob and no ingest that
// nothing refers to. BULKHEAD_CRASH_ROUNDS sets the number of rounds.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "lib/testing/temp_dir.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "services/content/remote_store.h"

namespace bulkhead {
namespace {

namespace containers_v1 = containerd::services::containers::v1;
namespace leases_v1 = containerd::services::leases::v1;
using bulkhead::testing::RandomBytes;
using google::protobuf::Empty;

constexpr char kNs[] = "ns";
constexpr char kLease[] = "work";  // Holds the ingests; dropped to collect.
constexpr absl::Duration kTimeout = absl::Seconds(20);

enum class Known { kThere, kGone, kUnknown };

// What one client was told.
struct Told {
  std::map<std::string, Known> containers;
  std::map<Digest, Known> blobs;
};

class Service {
 public:
  Service(const char* name, const std::string& dir) : name_(name), dir_(dir) {}
  ~Service() { Kill(); }
  void Start() {
    const std::string program =
        absl::StrCat("services/", name_, "/bulkhead-", name_);
    const std::string root = dir_ + "/r", state = dir_ + "/s";
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      // Each kill makes the other one complain.
      const int nowhere = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
      ::dup2(nowhere, 2);
      ::execl(program.c_str(), program.c_str(), "--root", root.c_str(),
              "--state", state.c_str(), "--config", "/dev/null", "--log-level",
              "error", nullptr);
      ::_exit(127);
    }
  }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  const std::string name_;
  const std::string dir_;
  pid_t pid_ = -1;
};

class Crash : public ::testing::Test {
 protected:
  Crash() {
    for (const char* folder : {"/r", "/s", "/s/metadata", "/s/content"}) {
      ::mkdir((dir_.path() + folder).c_str(), 0700);
    }
  }
  std::shared_ptr<grpc::Channel> Connect() {
    return rpc::Connect(dir_.Path("s/metadata/metadata.sock"));
  }
  static std::unique_ptr<grpc::ClientContext> Call() {
    return rpc::MakeClientContext({kNs, ""}, kTimeout);
  }

  // Both answer, and the lease is there.
  void WaitUntilUp() {
    channel_ = Connect();
    const absl::Status up = rpc::RetryUnavailable(kTimeout, [&] {
      leases_v1::CreateRequest request;
      request.set_id(kLease);
      leases_v1::CreateResponse response;
      const absl::Status status =
          rpc::FromGrpc(leases_v1::Leases::Stub(channel_).Create(
              Call().get(), request, &response));
      if (!status.ok() && !absl::IsAlreadyExists(status)) return status;
      return content::OpenRemoteStore(channel_, kNs)->ListStatuses().status();
    });
    ASSERT_TRUE(up.ok()) << up;
  }

  void Work(int client, int round, const std::atomic<bool>& stop, Told* told) {
    const auto channel = Connect();
    containers_v1::Containers::Stub stub(channel);
    leases_v1::Leases::Stub leases(channel);
    const auto store = content::OpenRemoteStore(channel, kNs, nullptr, kLease);
    std::mt19937 random(1000 * round + client);
    for (int i = 0; !stop; ++i) {
      const std::string id = absl::StrCat("c", client, "-", round, "-", i);
      Empty empty;
      switch (random() % 5) {
        case 0:
        case 1: {
          containers_v1::CreateContainerRequest request;
          request.mutable_container()->set_id(id);
          request.mutable_container()->mutable_runtime()->set_name("r");
          request.mutable_container()->mutable_spec()->set_type_url("t");
          containers_v1::CreateContainerResponse response;
          told->containers[id] = Known::kUnknown;
          if (stub.Create(Call().get(), request, &response).ok())
            told->containers[id] = Known::kThere;
          break;
        }
        case 2: {
          for (auto& [name, known] : told->containers) {
            if (known != Known::kThere) continue;
            containers_v1::DeleteContainerRequest request;
            request.set_id(name);
            known = Known::kUnknown;
            if (stub.Delete(Call().get(), request, &empty).ok())
              known = Known::kGone;
            break;
          }
          break;
        }
        case 3: {
          const std::string data =
              RandomBytes(20'000, 100'000 * round + 1000 * client + i);
          const Digest digest = Digest::Of(data);
          const auto writer = store->OpenWriter({id, 0, {}});
          if (!writer.ok() || !(*writer)->Append(data).ok()) break;
          if (random() % 4 == 0) break;  // Left behind.
          told->blobs[digest] = Known::kUnknown;
          if ((*writer)
                  ->Commit({.expected = digest,
                            .labels = {{"containerd.io/gc.root", "x"}}})
                  .ok())
            told->blobs[digest] = Known::kThere;
          break;
        }
        case 4: {
          for (auto& [digest, known] : told->blobs) {
            if (known != Known::kThere) continue;
            known = Known::kUnknown;
            if (store->Delete(digest).ok()) known = Known::kGone;
            break;
          }
          if (client == 0) {  // A collection beside the others' work.
            leases_v1::DeleteRequest request;
            request.set_id(absl::StrCat("l", round, "-", i));
            leases_v1::CreateRequest create;
            create.set_id(request.id());
            leases_v1::CreateResponse response;
            (void)leases.Create(Call().get(), create, &response);
            request.set_sync(true);
            (void)leases.Delete(Call().get(), request, &empty);
          }
          break;
        }
      }
    }
  }

  void Check(Told* told) {
    containers_v1::Containers::Stub stub(channel_);
    containers_v1::ListContainersResponse all;
    ASSERT_TRUE(stub.List(Call().get(), {}, &all).ok());
    std::set<std::string> names;
    for (const auto& container : all.containers()) {
      names.insert(container.id());
    }
    for (auto it = told->containers.begin(); it != told->containers.end();) {
      auto& [name, known] = *it;
      const bool there = names.count(name) > 0;
      EXPECT_TRUE(known == Known::kUnknown || there == (known == Known::kThere))
          << name;
      known = there ? Known::kThere : Known::kGone;
      it = there ? std::next(it) : told->containers.erase(it);
    }
    const auto store = content::OpenRemoteStore(channel_, kNs);
    for (auto it = told->blobs.begin(); it != told->blobs.end();) {
      auto& [digest, known] = *it;
      const auto blob = store->OpenBlob(digest);
      EXPECT_TRUE(known == Known::kUnknown ||
                  blob.ok() == (known == Known::kThere))
          << digest.str() << " " << blob.status();
      if (blob.ok()) {
        std::string data;
        EXPECT_TRUE((*blob)->ReadAt(0, (*blob)->size_bytes(), &data).ok());
        EXPECT_EQ(Digest::Of(data), digest);
      }
      known = blob.ok() ? Known::kThere : Known::kGone;
      it = blob.ok() ? std::next(it) : told->blobs.erase(it);
    }
  }

  // After a collection the disk has what the records name, and no ingest.
  void CheckNothingLeaks() {
    leases_v1::DeleteRequest request;
    request.set_id(kLease);
    request.set_sync(true);
    Empty empty;
    const grpc::Status deleted =
        leases_v1::Leases::Stub(channel_).Delete(Call().get(), request, &empty);
    ASSERT_TRUE(deleted.ok()) << deleted.error_message();
    std::set<std::string> records;
    ASSERT_TRUE(content::OpenRemoteStore(channel_, kNs)
                    ->List([&](const content::BlobInfo& info) {
                      records.insert(info.digest.hex());
                      return absl::OkStatus();
                    })
                    .ok());
    // A delete that failed because of the kill is tried again by itself.
    std::set<std::string> files;
    int ingests = 0;
    for (const absl::Time end = absl::Now() + absl::Seconds(40);;) {
      files.clear();
      ingests = 0;
      namespace fs = std::filesystem;
      for (const auto& e :
           fs::directory_iterator(dir_.Path("r/content/blobs/sha256"))) {
        files.insert(e.path().filename());
      }
      for ([[maybe_unused]] const auto& e :
           fs::directory_iterator(dir_.Path("r/content/ingest"))) {
        ++ingests;
      }
      if ((files == records && ingests == 0) || absl::Now() > end) break;
      absl::SleepFor(absl::Milliseconds(20));
    }
    EXPECT_EQ(files, records);
    EXPECT_EQ(ingests, 0);
  }

  bulkhead::testing::TempDir dir_;
  Service content_{"content", dir_.path()};
  Service metadata_{"metadata", dir_.path()};
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(Crash, NothingLostNothingLeaked) {
  const char* given = ::getenv("BULKHEAD_CRASH_ROUNDS");
  const int rounds = given != nullptr ? ::atoi(given) : 6;
  constexpr int kClients = 3;
  std::vector<Told> told(kClients);
  std::mt19937 random(20261123);
  content_.Start();
  metadata_.Start();
  WaitUntilUp();
  for (int round = 0; round < rounds && !HasFailure(); ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round));
    std::atomic<bool> stop{false};
    std::vector<std::thread> clients;
    for (int c = 0; c < kClients; ++c) {
      clients.emplace_back([&, c] { Work(c, round, stop, &told[c]); });
    }
    absl::SleepFor(absl::Milliseconds(20 + random() % 150));
    const int victims = 1 + random() % 3;
    if (victims & 1) metadata_.Kill();
    if (victims & 2) content_.Kill();
    stop = true;
    if (victims & 1) metadata_.Start();
    if (victims & 2) content_.Start();
    for (std::thread& client : clients) client.join();
    WaitUntilUp();
    for (Told& one : told) Check(&one);
  }
  // What a dead backend did not delete is tried again only after 30 s, or at
  // a start.
  metadata_.Kill();
  metadata_.Start();
  WaitUntilUp();
  CheckNothingLeaks();
  int blobs = 0, containers = 0;
  for (const Told& one : told) {
    blobs += one.blobs.size();
    containers += one.containers.size();
  }
  std::printf("%d rounds; %d blobs and %d containers at the end\n", rounds,
              blobs, containers);
  EXPECT_GT(containers, 0);
}

}  // namespace
}  // namespace bulkhead
