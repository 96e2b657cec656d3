// The client of bench/records.py: the same calls to any socket that speaks
// containerd's API. Prints one number (or two), whose meaning the command says.
//
//   records_client SOCKET NAMESPACE creates CLIENTS SECONDS
//       containers created a second
//   records_client SOCKET NAMESPACE refused CLIENTS SECONDS
//       the same with an id that cannot be one: what the way there and back
//       allows, without the database
//   records_client FOLDER - floor CLIENTS SECONDS
//       records of that size that metadata's database alone, in this process,
//       makes durable a second; FOLDER is made
//   records_client SOCKET NAMESPACE list COUNT ROUNDS
//       milliseconds of Images.List of COUNT images, the median
//   records_client SOCKET NAMESPACE fill BLOBS SNAPSHOTS
//       makes garbage that a lease still holds; prints seconds
//   records_client SOCKET NAMESPACE collect
//       gives that lease up and waits for the collection; prints seconds
//   records_client SOCKET NAMESPACE collect-beside
//       the same while containers are created one after the other; prints the
//       longest and the median time of a create, in milliseconds, and how many
//       there were
//   records_client SOCKET NAMESPACE remove SNAPSHOTTER KEY...
//       milliseconds until the snapshots are removed, one after the other
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/digest/digest.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "proto/containerd/services/images/v1/images.grpc.pb.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"
#include "services/metadata/db.h"

namespace bulkhead::bench {
namespace {

namespace containers_v1 = containerd::services::containers::v1;
namespace content_v1 = containerd::services::content::v1;
namespace images_v1 = containerd::services::images::v1;
namespace leases_v1 = containerd::services::leases::v1;
namespace snapshots_v1 = containerd::services::snapshots::v1;
using google::protobuf::Empty;

constexpr absl::Duration kTimeout = absl::Minutes(5);
constexpr int kFillers = 8;
constexpr char kLease[] = "garbage";
constexpr char kSnapshotter[] = "overlayfs";
constexpr size_t kSpecBytes = 8192;

void Check(const grpc::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.error_message().c_str());
  std::exit(1);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

class Bench {
 public:
  Bench(std::string socket, std::string ns)
      : socket_(std::move(socket)), ns_(std::move(ns)) {}

  void Creates(int clients, absl::Duration duration) const {
    Rate(clients, duration, [this] {
      auto stub = std::make_shared<containers_v1::Containers::Stub>(
          rpc::Connect(socket_));
      return [this, stub](const std::string& id) { Create(*stub, id); };
    });
  }

  void Refused(int clients, absl::Duration duration) const {
    Rate(clients, duration, [this] {
      auto stub = std::make_shared<containers_v1::Containers::Stub>(
          rpc::Connect(socket_));
      return [this, stub](const std::string& id) {
        const grpc::Status status = TryCreate(*stub, id + " ");
        if (status.error_code() != grpc::INVALID_ARGUMENT) {
          std::fprintf(stderr, "not refused: %s\n",
                       status.error_message().c_str());
          std::exit(1);
        }
      };
    });
  }

  void Floor(int clients, absl::Duration duration) const {
    const auto db = metadata::Db::Open(socket_);
    if (!db.ok()) {
      std::fprintf(stderr, "%s\n", db.status().ToString().c_str());
      std::exit(1);
    }
    Rate(clients, duration, [&db] {
      return [&db](const std::string& id) {
        metadata::Batch batch;
        batch.Put("floor/" + id, std::string(kSpecBytes, 'x'));
        if (!(*db)->Write(batch, /*sync=*/true).ok()) std::exit(1);
      };
    });
  }

  // Images that are there already are kept.
  void List(int count, int rounds) const {
    images_v1::Images::Stub stub(rpc::Connect(socket_));
    InParallel(count, [&](int i) {
      images_v1::CreateImageRequest request;
      auto* image = request.mutable_image();
      image->set_name(absl::StrCat("docker.io/library/bench:", i));
      image->mutable_target()->set_media_type(
          "application/vnd.oci.image.manifest.v1+json");
      image->mutable_target()->set_digest("sha256:" + std::string(64, '1'));
      image->mutable_target()->set_size(1000);
      (*image->mutable_labels())["io.cri-containerd.image"] = "managed";
      images_v1::CreateImageResponse response;
      const grpc::Status status = stub.Create(Call().get(), request, &response);
      if (status.error_code() != grpc::ALREADY_EXISTS) Check(status);
    });
    std::vector<double> times;
    for (int i = 0; i < rounds; ++i) {
      const absl::Time start = absl::Now();
      // In an arena, so that the client's own share stays small.
      google::protobuf::Arena arena;
      auto* const response =
          google::protobuf::Arena::CreateMessage<images_v1::ListImagesResponse>(
              &arena);
      Check(stub.List(Call().get(), {}, response));
      times.push_back(absl::ToDoubleMilliseconds(absl::Now() - start));
      if (response->images_size() != count) {
        std::fprintf(stderr, "%d images\n", response->images_size());
        std::exit(1);
      }
    }
    std::printf("%.3f\n", Median(times));
  }

  void Fill(int blobs, int snapshots) const {
    const absl::Time start = absl::Now();
    leases_v1::Leases::Stub leases(rpc::Connect(socket_));
    leases_v1::CreateRequest lease;
    lease.set_id(kLease);
    leases_v1::CreateResponse made;
    Check(leases.Create(Call().get(), lease, &made));
    content_v1::Content::Stub content(rpc::Connect(socket_));
    InParallel(blobs, [&](int i) {
      const std::string bytes = absl::StrCat(ns_, " blob ", i);
      content_v1::WriteContentRequest request;
      request.set_action(content_v1::COMMIT);
      request.set_ref(absl::StrCat("bench-", i));
      request.set_total(static_cast<int64_t>(bytes.size()));
      request.set_expected(Digest::Of(bytes).str());
      request.set_data(bytes);
      const auto context = Call(kLease);
      const auto stream = content.Write(context.get());
      content_v1::WriteContentResponse response;
      stream->Write(request);
      stream->WritesDone();
      while (stream->Read(&response)) {
      }
      Check(stream->Finish());
    });
    snapshots_v1::Snapshots::Stub stub(rpc::Connect(socket_));
    InParallel(snapshots, [&](int i) {
      snapshots_v1::PrepareSnapshotRequest request;
      request.set_snapshotter(kSnapshotter);
      request.set_key(absl::StrCat("bench-", i));
      snapshots_v1::PrepareSnapshotResponse response;
      Check(stub.Prepare(Call(kLease).get(), request, &response));
    });
    std::printf("%.3f\n", absl::ToDoubleSeconds(absl::Now() - start));
  }

  double Collect() const {
    leases_v1::Leases::Stub stub(rpc::Connect(socket_));
    leases_v1::DeleteRequest request;
    request.set_id(kLease);
    request.set_sync(true);
    Empty empty;
    const absl::Time start = absl::Now();
    Check(stub.Delete(Call().get(), request, &empty));
    return absl::ToDoubleSeconds(absl::Now() - start);
  }

  void Remove(const std::string& snapshotter,
              const std::vector<std::string>& keys) const {
    snapshots_v1::Snapshots::Stub stub(rpc::Connect(socket_));
    snapshots_v1::StatSnapshotRequest look;
    look.set_snapshotter(snapshotter);
    look.set_key(keys[0]);
    snapshots_v1::StatSnapshotResponse info;
    Check(
        stub.Stat(Call().get(), look, &info));  // It is connected from now on.
    const absl::Time start = absl::Now();
    for (const std::string& key : keys) {
      snapshots_v1::RemoveSnapshotRequest request;
      request.set_snapshotter(snapshotter);
      request.set_key(key);
      Empty empty;
      Check(stub.Remove(Call().get(), request, &empty));
    }
    std::printf("%.3f\n", absl::ToDoubleMilliseconds(absl::Now() - start));
  }

  void CollectBeside() const {
    std::atomic<bool> done{false};
    std::vector<double> times;
    std::atomic<int> made{0};
    std::thread creates([&] {
      containers_v1::Containers::Stub stub(rpc::Connect(socket_));
      for (; !done; ++made) {
        const absl::Time start = absl::Now();
        Create(stub, absl::StrCat("beside-", made.load()));
        times.push_back(absl::ToDoubleMilliseconds(absl::Now() - start));
      }
    });
    while (made < 20) absl::SleepFor(absl::Milliseconds(1));
    const double seconds = Collect();
    done = true;
    creates.join();
    std::printf("%.3f %.3f %d %.3f\n",
                *std::max_element(times.begin(), times.end()), Median(times),
                made.load(), seconds);
  }

 private:
  // Prints how often a second `clients` threads call what `make()` made for
  // each, with a new name every time.
  template <typename Make>
  void Rate(int clients, absl::Duration duration, const Make& make) const {
    std::vector<std::thread> threads;
    std::atomic<int64_t> total{0};
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    for (int c = 0; c < clients; ++c) {
      threads.emplace_back([&, c] {
        const auto step = make();
        step(absl::StrCat("warm-", clients, "-", c));
        ++ready;
        while (!go) std::this_thread::yield();
        const absl::Time end = absl::Now() + duration;
        int64_t made = 0;
        for (; absl::Now() < end; ++made) {
          step(absl::StrCat("b", clients, "-", c, "-", made));
        }
        total += made;
      });
    }
    while (ready < clients) absl::SleepFor(absl::Milliseconds(1));
    const absl::Time began = absl::Now();
    go = true;
    for (std::thread& thread : threads) thread.join();
    std::printf("%.1f\n", static_cast<double>(total) /
                              absl::ToDoubleSeconds(absl::Now() - began));
  }

  std::unique_ptr<grpc::ClientContext> Call(
      const std::string& lease = "") const {
    return rpc::MakeClientContext({ns_, lease}, kTimeout);
  }

  void Create(containers_v1::Containers::Stub& stub,
              const std::string& id) const {
    Check(TryCreate(stub, id));
  }

  grpc::Status TryCreate(containers_v1::Containers::Stub& stub,
                         const std::string& id) const {
    static const std::string* const spec = new std::string(kSpecBytes, 'x');
    containers_v1::CreateContainerRequest request;
    auto* container = request.mutable_container();
    container->set_id(id);
    container->set_image("docker.io/library/bench:latest");
    container->mutable_runtime()->set_name("io.containerd.runc.v2");
    container->mutable_spec()->set_type_url(
        "types.containerd.io/opencontainers/runtime-spec/1/Spec");
    container->mutable_spec()->set_value(*spec);
    containers_v1::CreateContainerResponse response;
    return stub.Create(Call().get(), request, &response);
  }

  template <typename Step>
  static void InParallel(int count, const Step& step) {
    std::atomic<int> next{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < kFillers; ++t) {
      threads.emplace_back([&] {
        for (int i = next++; i < count; i = next++) step(i);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  const std::string socket_;
  const std::string ns_;
};

int Main(int argc, char** argv) {
  const auto number = [&](int at) {
    return argc > at ? std::atoi(argv[at]) : 0;
  };
  const std::string command = argc > 3 ? argv[3] : "";
  const Bench bench(argc > 1 ? argv[1] : "", argc > 2 ? argv[2] : "");
  if (command == "creates" && argc == 6) {
    bench.Creates(number(4), absl::Seconds(number(5)));
  } else if (command == "refused" && argc == 6) {
    bench.Refused(number(4), absl::Seconds(number(5)));
  } else if (command == "floor" && argc == 6) {
    bench.Floor(number(4), absl::Seconds(number(5)));
  } else if (command == "list" && argc == 6) {
    bench.List(number(4), number(5));
  } else if (command == "fill" && argc == 6) {
    bench.Fill(number(4), number(5));
  } else if (command == "collect" && argc == 4) {
    std::printf("%.3f\n", bench.Collect());
  } else if (command == "collect-beside" && argc == 4) {
    bench.CollectBeside();
  } else if (command == "remove" && argc > 5) {
    bench.Remove(argv[4], {argv + 5, argv + argc});
  } else {
    std::fprintf(stderr, "see the top of bench/records_client.cc\n");
    return 2;
  }
  std::fflush(stdout);
  ::_exit(0);  // gRPC's own threads take their time.
}

}  // namespace
}  // namespace bulkhead::bench

int main(int argc, char** argv) { return bulkhead::bench::Main(argc, argv); }
