// Speed of a running content service, through its sockets:
//
//   content_bench STATE      (of a suite, or of bulkhead-content --state STATE)
#include <chrono>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "lib/dataplane/dataplane.h"
#include "lib/os/fd.h"
#include "lib/rpc/channel.h"
#include "services/content/remote_store.h"

namespace bulkhead::content {
namespace {

constexpr int kMebibytes = 400;
constexpr int kCalls = 2000;
constexpr int kSmallBlobs = 200;

double Seconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int Fail(const absl::Status& status) {
  fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

int Run(const std::string& state) {
  const dataplane::Client client(state + "/content/data.sock");
  const auto store =
      OpenRemoteStore(rpc::Connect(state + "/content/content.sock"));
  std::string chunk(1 << 20, '\0');
  const std::string run = absl::StrCat(absl::ToUnixNanos(absl::Now()));
  for (size_t i = 0; i < chunk.size(); ++i) chunk[i] = run[i % run.size()];

  double start = Seconds();
  auto ingest = client.OpenIngest({.ref = "bench " + run});
  if (!ingest.ok()) return Fail(ingest.status());
  for (int64_t i = 0; i < kMebibytes; ++i) {
    const absl::Status written =
        os::PWriteFull((*ingest)->fd(), chunk.data(), chunk.size(), i << 20);
    if (!written.ok()) return Fail(written);
    (void)(*ingest)->Advance((i + 1) << 20);  // Shows at the commit.
  }
  double middle = Seconds();
  const auto passed = (*ingest)->Commit(int64_t{kMebibytes} << 20, "", {});
  if (!passed.ok()) return Fail(passed.status());
  double end = Seconds();
  printf("data plane write  %6.0f MiB/s (commit %.3f s)\n",
         kMebibytes / (end - start), end - middle);

  chunk[0] ^= 1;
  start = Seconds();
  auto writer = store->OpenWriter({"bench " + run, 0, {}});
  if (!writer.ok()) return Fail(writer.status());
  for (int i = 0; i < kMebibytes; ++i) {
    const absl::Status written = (*writer)->Append(chunk);
    if (!written.ok()) return Fail(written);
  }
  middle = Seconds();
  const auto blob = (*writer)->Commit({});
  if (!blob.ok()) return Fail(blob.status());
  end = Seconds();
  printf("gRPC write        %6.0f MiB/s (commit %.3f s)\n",
         kMebibytes / (end - start), end - middle);

  const auto reader = store->OpenBlob(blob->digest);
  if (!reader.ok()) return Fail(reader.status());
  std::string data;
  start = Seconds();
  (void)(*reader)->ReadAt(0, 0, &data);  // Size 0: all of it.
  end = Seconds();
  printf("gRPC read         %6.0f MiB/s\n",
         (data.size() >> 20) / (end - start));

  start = Seconds();
  for (int i = 0; i < kCalls; ++i) {
    const auto opened = client.Open(blob->digest.str());
    if (!opened.ok()) return Fail(opened.status());
  }
  printf("data plane open   %6.1f us\n", (Seconds() - start) / kCalls * 1e6);
  start = Seconds();
  for (int i = 0; i < kCalls; ++i) {
    const auto info = store->Info(blob->digest);
    if (!info.ok()) return Fail(info.status());
  }
  printf("gRPC Info         %6.1f us\n", (Seconds() - start) / kCalls * 1e6);
  start = Seconds();
  for (int i = 0; i < kSmallBlobs; ++i) {
    auto small = store->OpenWriter({"bench " + run, 0, {}});
    if (!small.ok()) return Fail(small.status());
    (void)(*small)->Append(absl::StrCat(run, " ", i));
    const auto committed = (*small)->Commit({});
    if (!committed.ok()) return Fail(committed.status());
    (void)store->Delete(committed->digest);
  }
  printf("small blob        %6.2f ms\n",
         (Seconds() - start) / kSmallBlobs * 1e3);
  const auto digest = Digest::Parse(passed->digest);
  if (digest.ok()) (void)store->Delete(*digest);
  (void)store->Delete(blob->digest);
  return 0;
}

}  // namespace
}  // namespace bulkhead::content

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: content_bench STATE\n");
    return 2;
  }
  return bulkhead::content::Run(argv[1]);
}
