// A suite under load, killed with SIGKILL at random moments, again and again.
// After each round everything acknowledged is there and whole, nothing is half
// there, and fsck finds nothing; now and then a collection must free all that
// nothing refers to, to the byte. Prints one line a round; exits with 1 at the
// first complaint and keeps the folder.
//
//   crash --bin DIR [--rounds N] [--seconds S] [--seed X] [--clients N]
//         [--without NAME]... [--image REFERENCE]...
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "tests/crash/client.h"
#include "tests/crash/suite.h"

namespace bulkhead::crash {
namespace {

namespace admin_v1 = bulkhead::admin::v1;
namespace fs = std::filesystem;

constexpr int kInventoryEvery = 10;  // Rounds.
constexpr int kLoadMillisMax = 250;
constexpr absl::Duration kUpTimeout = absl::Seconds(30);

struct Options {
  std::string bin;
  int rounds = 1 << 30;
  absl::Duration time = absl::InfiniteDuration();
  uint64_t seed = 1;
  int clients = 4;
  std::vector<std::string> names = {"content", "snapshotter", "metadata",
                                    "distribution", "gateway"};
  std::vector<std::string> images;
};

// Every regular file below `path` and its size.
std::map<std::string, int64_t> FilesBelow(const std::string& path) {
  std::map<std::string, int64_t> files;
  std::error_code error;
  for (fs::recursive_directory_iterator it(path, error), end; it != end;
       it.increment(error)) {
    if (it->is_regular_file(error)) {
      files[it->path().string().substr(path.size() + 1)] =
          static_cast<int64_t>(it->file_size(error));
    }
  }
  return files;
}

std::vector<std::string> NamesIn(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    names.push_back(entry.path().filename());
  }
  return names;
}

class Run {
 public:
  Run(const Options& options, const std::string& dir)
      : options_(options),
        suite_(options.bin, dir, options.names),
        random_(options.seed) {
    for (int i = 0; i < options.clients; ++i) {
      clients_.push_back(
          std::make_unique<Client>(i, options.seed, options.images));
    }
  }

  bool Go() {
    suite_.StartAll();
    if (!Up()) return false;
    const absl::Time end = absl::Now() + options_.time;
    for (round_ = 1; round_ <= options_.rounds && absl::Now() < end; ++round_) {
      if (!Round()) return false;
      if (round_ % kInventoryEvery == 0 && !Inventory()) return false;
    }
    --round_;
    return Inventory();
  }

  void Summary() const {
    int64_t acknowledged = 0, pulls = 0;
    for (const auto& client : clients_) {
      acknowledged += client->acknowledged();
      pulls += client->pulls();
    }
    std::printf(
        "%d rounds, %lld changes acknowledged, %lld pulls, "
        "%d inventories: nothing lost, nothing leaked\n",
        round_, static_cast<long long>(acknowledged),
        static_cast<long long>(pulls), inventories_);
  }

 private:
  bool Complain(const std::vector<std::string>& wrong) {
    for (const std::string& text : wrong) {
      std::printf("round %d: %s\n", round_, text.c_str());
    }
    std::fflush(stdout);
    return wrong.empty();
  }

  // Fresh channels; every service answers.
  bool Up() {
    for (const auto& client : clients_) client->Connect(suite_.gateway());
    channel_ = rpc::Connect(suite_.gateway());
    return true;  // Clients ask until they are answered.
  }

  bool Round() {
    const absl::Time began = absl::Now();
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (const auto& client : clients_) {
      threads.emplace_back([&stop, &client] { client->Work(stop); });
    }
    const auto rest = [this](int millis) {
      absl::SleepFor(absl::Milliseconds(random_() % millis));
    };
    rest(kLoadMillisMax);
    std::vector<std::string> victims;
    switch (random_() % 6) {
      case 0:
        victims = suite_.names();
        break;
      case 1:  // Two, one after the other.
        victims.push_back(suite_.names()[random_() % suite_.names().size()]);
        [[fallthrough]];
      default:
        victims.push_back(suite_.names()[random_() % suite_.names().size()]);
    }
    for (const std::string& name : victims) {
      suite_.Kill(name);
      if (random_() % 4 == 0) rest(10);
    }
    suite_.StartAll();
    if (random_() % 5 == 0) {  // Again, while it starts.
      rest(60);
      suite_.Kill(victims[0]);
      suite_.StartAll();
    }
    const bool goes_on = random_() % 2 == 0;
    if (goes_on) rest(kLoadMillisMax);  // Through the outage.
    stop = true;
    for (std::thread& thread : threads) thread.join();
    // What had no answer may still be under way in those that live on: what
    // comes of it must be settled before it is looked at.
    for (const char* name : {"distribution", "metadata"}) suite_.Kill(name);
    suite_.StartAll();
    const absl::Time killed = absl::Now();
    Up();
    std::vector<std::string> wrong = CheckAll();
    if (wrong.empty()) wrong = Fsck();
    const std::string ended = suite_.Ended();
    if (!ended.empty()) wrong.push_back("ended by itself: " + ended);
    std::printf(
        "round %d: SIGKILL to %s, %.0f ms of load, %.0f ms of checks%s\n",
        round_, absl::StrJoin(victims, ", ").c_str(),
        absl::ToDoubleMilliseconds(killed - began),
        absl::ToDoubleMilliseconds(absl::Now() - killed),
        wrong.empty() ? "" : ": FAILED");
    std::fflush(stdout);
    return Complain(wrong);
  }

  std::vector<std::string> CheckAll() {
    std::vector<std::vector<std::string>> wrong(clients_.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < clients_.size(); ++i) {
      threads.emplace_back([&, i] { wrong[i] = clients_[i]->Check(); });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<std::string> all;
    for (const auto& some : wrong)
      all.insert(all.end(), some.begin(), some.end());
    return all;
  }

  std::vector<std::string> Fsck() {
    const auto stub = admin_v1::Admin::NewStub(channel_);
    std::vector<std::string> wrong;
    const absl::Status status = rpc::RetryUnavailable(kUpTimeout, [&] {
      wrong.clear();
      const auto context = rpc::MakeClientContext({}, kUpTimeout);
      const auto stream = stub->Check(context.get(), {});
      admin_v1::CheckResponse response;
      while (stream->Read(&response)) {
        for (const auto& finding : response.findings()) {
          if (finding.severity() == admin_v1::CheckResponse::NOTE) continue;
          const bool doubtful = std::any_of(
              clients_.begin(), clients_.end(), [&](const auto& client) {
                return client->ns() == finding.object().namespace_() &&
                       client->IsDoubtful(finding.object().name());
              });
          if (doubtful) continue;
          wrong.push_back(absl::StrCat("fsck: ", finding.object().kind(), " ",
                                       finding.object().namespace_(), " ",
                                       finding.object().name(), ": ",
                                       finding.text()));
        }
      }
      return rpc::FromGrpc(stream->Finish());
    });
    if (!status.ok()) wrong.push_back("fsck: " + status.ToString());
    return wrong;
  }

  // After a collection, folders hold what records name and not a byte more.
  bool Inventory() {
    ++inventories_;
    for (const auto& client : clients_) {
      const absl::Status dropped = client->DropTemporary();
      if (!dropped.ok()) return Complain({dropped.ToString()});
    }
    const auto stub = admin_v1::Admin::NewStub(channel_);
    const absl::Status collected = rpc::RetryUnavailable(kUpTimeout, [&] {
      const auto context = rpc::MakeClientContext({}, kUpTimeout);
      const auto stream = stub->Collect(context.get(), {});
      admin_v1::CollectResponse response;
      while (stream->Read(&response)) {
      }
      return rpc::FromGrpc(stream->Finish());
    });
    if (!collected.ok()) return Complain({collected.ToString()});
    std::map<std::string, int64_t> blobs;
    int snapshots = 0;
    for (const auto& client : clients_) {
      if (!Complain(client->CheckExact(&blobs, &snapshots))) return false;
    }
    std::map<std::string, int64_t> wanted;
    for (const auto& [digest, size] : blobs) {
      std::string path = "blobs/" + digest;
      path.replace(path.find(':'), 1, "/");
      wanted[path] = size;
    }
    // Folders of snapshots are deleted in the background.
    const std::string content = suite_.dir() + "/r/content";
    const std::string trees =
        suite_.dir() + "/r/snapshotter/overlayfs/snapshots";
    std::vector<std::string> wrong;
    const absl::Time end = absl::Now() + absl::Seconds(20);
    do {
      wrong.clear();
      const auto there = FilesBelow(content);
      for (const auto& [path, size] : there) {
        const auto found = wanted.find(path);
        if (found == wanted.end()) {
          wrong.push_back(absl::StrCat("leaked: ", path, ", ", size, " bytes"));
        } else if (found->second != size) {
          wrong.push_back(absl::StrCat(path, " has ", size,
                                       " bytes instead of ", found->second));
        }
      }
      for (const auto& [path, size] : wanted) {
        if (there.count(path) == 0) wrong.push_back("missing: " + path);
      }
      for (const std::string& name : NamesIn(content + "/ingest")) {
        wrong.push_back("leaked: ingest/" + name);
      }
      const std::vector<std::string> folders = NamesIn(trees);
      if (static_cast<int>(folders.size()) != snapshots) {
        wrong.push_back(
            absl::StrCat(folders.size(), " snapshot folders for ", snapshots,
                         " snapshots: ", absl::StrJoin(folders, " ")));
      }
      if (!wrong.empty()) absl::SleepFor(absl::Milliseconds(20));
    } while (!wrong.empty() && absl::Now() < end);
    std::printf("inventory: %zu blobs, %d snapshots, to the byte%s\n",
                wanted.size(), snapshots, wrong.empty() ? "" : ": FAILED");
    for (const auto& client : clients_) {
      std::printf("  %s: %s\n", client->ns().c_str(), client->Census().c_str());
    }
    return Complain(wrong);
  }

  const Options options_;
  Suite suite_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::shared_ptr<grpc::Channel> channel_;
  int round_ = 0;
  int inventories_ = 0;
};

int Usage() {
  std::fprintf(stderr,
               "usage: crash --bin DIR [--rounds N] [--seconds S] [--seed X] "
               "[--clients N] [--without NAME]... [--image REFERENCE]...\n");
  return 2;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 >= argc) return Usage();
    const std::string value = argv[i + 1];
    if (flag == "--bin") {
      options.bin = value;
    } else if (flag == "--rounds") {
      options.rounds = std::atoi(value.c_str());
    } else if (flag == "--seconds") {
      options.time = absl::Seconds(std::atoi(value.c_str()));
    } else if (flag == "--seed") {
      options.seed = std::strtoull(value.c_str(), nullptr, 10);
    } else if (flag == "--clients") {
      options.clients = std::max(1, std::atoi(value.c_str()));
    } else if (flag == "--without") {
      std::erase(options.names, value);
    } else if (flag == "--image") {
      options.images.push_back(value);
    } else {
      return Usage();
    }
  }
  if (options.bin.empty()) return Usage();
  char folder[] = "/tmp/bh-crash-XXXXXX";
  if (::mkdtemp(folder) == nullptr) {
    std::perror("mkdtemp");
    return 2;
  }
  bool good = false;
  {
    Run run(options, folder);
    good = run.Go();
    if (good) run.Summary();
  }
  if (!good) {
    std::printf("seed %llu; the folder is kept: %s\n",
                static_cast<unsigned long long>(options.seed), folder);
    return 1;
  }
  std::error_code error;
  fs::remove_all(folder, error);
  return error ? 1 : 0;
}

}  // namespace
}  // namespace bulkhead::crash

int main(int argc, char** argv) { return bulkhead::crash::Main(argc, argv); }
