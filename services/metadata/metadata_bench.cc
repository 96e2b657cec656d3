// Durable creates a second and the time of a listing, at any socket that
// speaks containerd's API: ours, the gateway's or containerd's.
//
//   metadata_bench SOCKET [NAMESPACE [SECONDS [IMAGES]]]
//
// Uses a namespace of its own, and empties it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/images/v1/images.grpc.pb.h"
#include "proto/containerd/services/namespaces/v1/namespaces.grpc.pb.h"

namespace bulkhead::metadata {
namespace {

namespace containers_v1 = containerd::services::containers::v1;
namespace images_v1 = containerd::services::images::v1;
namespace namespaces_v1 = containerd::services::namespaces::v1;

constexpr absl::Duration kTimeout = absl::Seconds(30);

struct Bench {
  std::string socket;
  std::string ns = "bench";

  std::unique_ptr<grpc::ClientContext> Call() const {
    return rpc::MakeClientContext({ns, ""}, kTimeout);
  }

  // Containers made by `clients` at once, a second.
  double Creates(int clients, absl::Duration duration) const {
    std::vector<std::thread> threads;
    std::vector<std::vector<std::string>> made(clients);
    const absl::Time end = absl::Now() + duration;
    for (int c = 0; c < clients; ++c) {
      threads.emplace_back([&, c] {
        containers_v1::Containers::Stub stub(rpc::Connect(socket));
        containers_v1::CreateContainerRequest request;
        auto* container = request.mutable_container();
        container->set_image("docker.io/library/bench:latest");
        container->mutable_runtime()->set_name("io.containerd.runc.v2");
        container->mutable_spec()->set_type_url(
            "types.containerd.io/opencontainers/runtime-spec/1/Spec");
        container->mutable_spec()->set_value(std::string(8192, 'x'));
        while (absl::Now() < end) {
          container->set_id(
              absl::StrCat("b", clients, "-", c, "-", made[c].size()));
          containers_v1::CreateContainerResponse response;
          const grpc::Status status =
              stub.Create(Call().get(), request, &response);
          if (!status.ok()) {
            std::fprintf(stderr, "%s\n", status.error_message().c_str());
            std::exit(1);
          }
          made[c].push_back(container->id());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    size_t total = 0;
    containers_v1::Containers::Stub stub(rpc::Connect(socket));
    for (const auto& ids : made) {
      total += ids.size();
      for (const std::string& id : ids) {
        containers_v1::DeleteContainerRequest request;
        request.set_id(id);
        google::protobuf::Empty empty;
        (void)stub.Delete(Call().get(), request, &empty);
      }
    }
    return static_cast<double>(total) / absl::ToDoubleSeconds(duration);
  }

  // The median of a few listings of `count` images, in milliseconds.
  double List(int count) const {
    images_v1::Images::Stub stub(rpc::Connect(socket));
    for (int i = 0; i < count; ++i) {
      images_v1::CreateImageRequest request;
      auto* image = request.mutable_image();
      image->set_name(absl::StrCat("docker.io/library/bench:", i));
      image->mutable_target()->set_media_type(
          "application/vnd.oci.image.manifest.v1+json");
      image->mutable_target()->set_digest("sha256:" + std::string(64, '1'));
      image->mutable_target()->set_size(1000);
      (*image->mutable_labels())["io.cri-containerd.image"] = "managed";
      images_v1::CreateImageResponse response;
      (void)stub.Create(Call().get(), request, &response);
    }
    std::vector<double> times;
    for (int i = 0; i < 9; ++i) {
      const absl::Time start = absl::Now();
      images_v1::ListImagesResponse response;
      (void)stub.List(Call().get(), {}, &response);
      times.push_back(absl::ToDoubleMilliseconds(absl::Now() - start));
      if (response.images_size() != count) {
        std::fprintf(stderr, "%d images instead of %d\n",
                     response.images_size(), count);
      }
    }
    for (int i = 0; i < count; ++i) {
      images_v1::DeleteImageRequest request;
      request.set_name(absl::StrCat("docker.io/library/bench:", i));
      google::protobuf::Empty empty;
      (void)stub.Delete(Call().get(), request, &empty);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s SOCKET [NAMESPACE [SECONDS [IMAGES]]]\n",
                 argv[0]);
    return 2;
  }
  Bench bench;
  bench.socket = argv[1];
  if (argc > 2) bench.ns = argv[2];
  const int seconds = argc > 3 ? std::atoi(argv[3]) : 3;
  const int images = argc > 4 ? std::atoi(argv[4]) : 5000;
  for (const int clients : {1, 16}) {
    std::printf("creates/s, %2d clients: %.0f\n", clients,
                bench.Creates(clients, absl::Seconds(seconds)));
    std::fflush(stdout);
  }
  std::printf("Images.List of %d: %.1f ms\n", images, bench.List(images));
  namespaces_v1::Namespaces::Stub stub(rpc::Connect(bench.socket));
  namespaces_v1::DeleteNamespaceRequest request;
  request.set_name(bench.ns);
  google::protobuf::Empty empty;
  (void)stub.Delete(bench.Call().get(), request, &empty);
  return 0;
}

}  // namespace
}  // namespace bulkhead::metadata

int main(int argc, char** argv) { return bulkhead::metadata::Main(argc, argv); }
