// The client of bench/content.py: large blobs through any socket that speaks
// containerd's API, or through our data socket. Prints MiB a second.
//
//   content_client SOCKET NAMESPACE write MIB CHUNK_KIB
//       one Write stream, a reply awaited for each chunk, as containerd's own
//       client does it; the commit (and so the disk) is part of the time
//   content_client SOCKET NAMESPACE read MIB CHUNK_KIB
//       what `write` of the same size has left, by Read
//   content_client SOCKET NAMESPACE data-write MIB CHUNK_KIB
//   content_client SOCKET NAMESPACE data-read MIB CHUNK_KIB
//       the same through a data socket (metadata's): pwrite and pread on
//       descriptors
//   content_client FILE - floor MIB CHUNK_KIB
//       the same bytes written, hashed and synced by this process alone; FILE
//       is made and removed
//   content_client SOCKET NAMESPACE remove MIB CHUNK_KIB
//       forgets what `write` or `data-write` has left, and collects it
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/dataplane/dataplane.h"
#include "lib/digest/digest.h"
#include "lib/os/fd.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"

namespace bulkhead::bench {
namespace {

namespace content_v1 = containerd::services::content::v1;
namespace leases_v1 = containerd::services::leases::v1;
using google::protobuf::Empty;

constexpr absl::Duration kTimeout = absl::Minutes(5);
constexpr int64_t kMebibyte = 1 << 20;
constexpr char kRoot[] = "containerd.io/gc.root";

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

void Check(const grpc::Status& status) {
  if (!status.ok()) Die(status.error_message());
}

void Check(const absl::Status& status) {
  if (!status.ok()) Die(status.ToString());
}

// The same bytes for the same size, and no two chunks alike.
class Bytes {
 public:
  explicit Bytes(int64_t chunk_bytes)
      : chunk_(static_cast<size_t>(chunk_bytes), '\0') {
    uint64_t state = 88172645463325252;
    for (char& byte : chunk_) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      byte = static_cast<char>(state);
    }
  }
  // The piece at `offset_bytes`, a multiple of the chunk.
  const std::string& At(int64_t offset_bytes) {
    std::memcpy(chunk_.data(), &offset_bytes, sizeof(offset_bytes));
    return chunk_;
  }
  int64_t size_bytes() const { return static_cast<int64_t>(chunk_.size()); }

 private:
  std::string chunk_;
};

Digest DigestOf(int64_t total_bytes, Bytes& bytes) {
  Hasher hasher;
  for (int64_t at = 0; at < total_bytes; at += bytes.size_bytes()) {
    hasher.Update(bytes.At(at));
  }
  return hasher.Finish();
}

class Bench {
 public:
  // The chunk must be the same in all commands, for the digest.
  Bench(std::string socket, std::string ns, int64_t total_bytes,
        int64_t chunk_bytes)
      : socket_(std::move(socket)),
        ns_(std::move(ns)),
        total_bytes_(total_bytes),
        bytes_(chunk_bytes),
        digest_(DigestOf(total_bytes, bytes_).str()) {}

  void Write() {
    content_v1::Content::Stub stub(rpc::Connect(socket_));
    const absl::Time start = absl::Now();
    const auto context = Call();
    const auto stream = stub.Write(context.get());
    content_v1::WriteContentRequest request;
    content_v1::WriteContentResponse response;
    const auto exchange = [&] {
      if (!stream->Write(request) || !stream->Read(&response)) {
        Check(stream->Finish());
        Die("the stream ended early");
      }
    };
    request.set_action(content_v1::STAT);
    request.set_ref("bench");
    request.set_total(total_bytes_);
    request.set_expected(digest_);
    exchange();
    request.Clear();
    request.set_action(content_v1::WRITE);
    for (int64_t at = 0; at < total_bytes_; at += bytes_.size_bytes()) {
      request.set_offset(at);
      request.set_data(bytes_.At(at));
      exchange();
      if (response.offset() != at + bytes_.size_bytes()) Die("a short write");
    }
    request.Clear();
    request.set_action(content_v1::COMMIT);
    request.set_offset(total_bytes_);
    request.set_total(total_bytes_);
    request.set_expected(digest_);
    (*request.mutable_labels())[kRoot] = "bench";
    exchange();
    const absl::Duration took = absl::Now() - start;
    if (response.digest() != digest_) Die("another digest");
    stream->WritesDone();
    while (stream->Read(&response)) {
    }
    Check(stream->Finish());
    Print(took);
  }

  void Read() {
    content_v1::Content::Stub stub(rpc::Connect(socket_));
    content_v1::ReadContentRequest request;
    request.set_digest(digest_);
    const absl::Time start = absl::Now();
    const auto context = Call();
    const auto reader = stub.Read(context.get(), request);
    content_v1::ReadContentResponse response;
    int64_t seen = 0;
    while (reader->Read(&response)) {
      seen += static_cast<int64_t>(response.data().size());
    }
    Check(reader->Finish());
    if (seen != total_bytes_) Die("a short read");
    Print(absl::Now() - start);
  }

  void DataWrite() {
    const dataplane::Client client(socket_);
    const absl::Time start = absl::Now();
    dataplane::IngestRequest request;
    request.ref = "bench";
    request.total_bytes = total_bytes_;
    request.expected = digest_;
    request.ns = ns_;
    auto ingest = client.OpenIngest(request);
    Check(ingest.status());
    for (int64_t at = 0; at < total_bytes_; at += bytes_.size_bytes()) {
      const std::string& chunk = bytes_.At(at);
      Check(os::PWriteFull((*ingest)->fd(), chunk.data(), chunk.size(), at));
      Check((*ingest)->Advance(at + bytes_.size_bytes()));
    }
    Check(
        (*ingest)->Commit(total_bytes_, digest_, {{kRoot, "bench"}}).status());
    Print(absl::Now() - start);
  }

  void DataRead() {
    const dataplane::Client client(socket_);
    const absl::Time start = absl::Now();
    const auto blob = client.Open(digest_, ns_);
    Check(blob.status());
    std::string buffer(kMebibyte, '\0');
    for (int64_t at = 0; at < total_bytes_;) {
      const auto n =
          os::PReadFull(blob->fd.get(), buffer.data(), buffer.size(), at);
      Check(n.status());
      if (*n == 0) Die("a short read");
      at += static_cast<int64_t>(*n);
    }
    Print(absl::Now() - start);
  }

  void Floor() {
    const std::string& path = socket_;
    const absl::Time start = absl::Now();
    const os::UniqueFd fd(
        ::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600));
    if (!fd.valid()) Die("cannot make " + path);
    Hasher hasher;
    for (int64_t at = 0; at < total_bytes_; at += bytes_.size_bytes()) {
      const std::string& chunk = bytes_.At(at);
      Check(os::PWriteFull(fd.get(), chunk.data(), chunk.size(), at));
      hasher.Update(chunk);
    }
    if (::fsync(fd.get()) != 0) Die("cannot sync " + path);
    const absl::Duration took = absl::Now() - start;
    if (hasher.Finish().str() != digest_) Die("another digest");
    ::unlink(path.c_str());
    Print(took);
  }

  void Remove() {
    content_v1::Content::Stub content(rpc::Connect(socket_));
    content_v1::DeleteContentRequest request;
    request.set_digest(digest_);
    Empty empty;
    Check(content.Delete(Call().get(), request, &empty));
    // A lease deleted with `sync` waits for a collection.
    leases_v1::Leases::Stub leases(rpc::Connect(socket_));
    leases_v1::CreateRequest create;
    create.set_id("bench");
    leases_v1::CreateResponse made;
    Check(leases.Create(Call().get(), create, &made));
    leases_v1::DeleteRequest remove;
    remove.set_id("bench");
    remove.set_sync(true);
    Check(leases.Delete(Call().get(), remove, &empty));
    std::printf("0\n");
  }

 private:
  std::unique_ptr<grpc::ClientContext> Call() const {
    return rpc::MakeClientContext({ns_, ""}, kTimeout);
  }
  void Print(absl::Duration took) const {
    std::printf("%.1f\n", static_cast<double>(total_bytes_) / kMebibyte /
                              absl::ToDoubleSeconds(took));
  }

  const std::string socket_;
  const std::string ns_;
  const int64_t total_bytes_;
  Bytes bytes_;
  const std::string digest_;
};

int Main(int argc, char** argv) {
  const std::string command = argc > 3 ? argv[3] : "";
  const int64_t total = argc > 4 ? std::atoll(argv[4]) * kMebibyte : 0;
  const int64_t chunk = argc > 5 ? std::atoll(argv[5]) << 10 : 0;
  if (total <= 0 || chunk <= 0 || total % chunk != 0) {
    std::fprintf(stderr,
                 "content_client SOCKET NAMESPACE COMMAND MIB CHUNK_KIB; see "
                 "the top of bench/content_client.cc\n");
    return 2;
  }
  Bench bench(argv[1], argv[2], total, chunk);
  if (command == "write") {
    bench.Write();
  } else if (command == "read") {
    bench.Read();
  } else if (command == "data-write") {
    bench.DataWrite();
  } else if (command == "data-read") {
    bench.DataRead();
  } else if (command == "floor") {
    bench.Floor();
  } else if (command == "remove") {
    bench.Remove();
  } else {
    std::fprintf(stderr, "unknown command %s\n", command.c_str());
    return 2;
  }
  std::fflush(stdout);
  ::_exit(0);  // gRPC's own threads take their time.
}

}  // namespace
}  // namespace bulkhead::bench

int main(int argc, char** argv) { return bulkhead::bench::Main(argc, argv); }
