// The data plane: descriptors instead of bytes (ARCHITECTURE.md, rule 2).
//
// A SOCK_SEQPACKET Unix socket; one JSON object a packet, at most
// kPacketBytesMax, descriptors by SCM_RIGHTS; each request gets one reply,
// in order. A connection carries one session at a time:
//
// content (no namespaces; keys as the caller wraps them) and metadata
// (namespaced; forwards to content and passes its descriptor on) speak:
//
//   {"op":"open","digest":D,"ns":N}           -> {"size":S} + read-only fd
//   {"op":"ingest","ref":R,"total":T,"expected":D,"ns":N,"lease":L}
//       -> {"offset":O,"total":T,"started_at_ns":..,"updated_at_ns":..}
//          + read-write fd of the ingest
//     The ref is locked until the connection ends, "commit" or "abort".
//     The caller writes at O and after, with pwrite: in order, or in several
//     places at once, then behind the first gap in whole pages only. O is
//     where the first gap begins, or the end; what is behind a gap stays: the
//     file's holes are what is missing.
//   {"op":"advance","offset":O}   (no reply) bytes below O are written: the
//     content service hashes behind the writer, so that commit is short.
//   {"op":"truncate","offset":O}              -> {} ingest cut to O
//   {"op":"commit","size":S,"expected":D,"labels":{..}}
//       -> {"digest":D,"size":S}; hashes what is left, verifies, makes durable,
//     publishes. S < 0: whatever is there. On failure the ingest survives.
//   {"op":"abort"}                            -> {} ingest gone
//   {"op":"status","digest":B}  -> {"offset":..,"total":..,"digest":D}
//     B (or none): also the sha256 of the bytes below O, or below where they
//     were last advanced or truncated to.
//
// snapshotter speaks "apply" on its own data socket, see
// services/snapshotter/README.md:
//
//   {"op":"apply","mounts":[{"type","source","target","options"}],
//    "media_type":M,"digest":D,"size":S,"parallel":B,"tell_unpacked":B}
//     + read-only fd of the layer's bytes (a blob, or an ingest that is still
//     growing)
//       -> {}  started
//   {"op":"advance","offset":O}   (no reply) bytes below O may be read
//   {"op":"finish","size":S}      (no reply) no more will come
//       -> {"unpacked":true}  if it was asked for: only the sync is left
//       -> {"digest":diffID,"size":uncompressed} when the tree is complete and
//          synced, or an error; then the session is over
//
// An error reply is {"error":"message","code":N} with N a gRPC status code.
// ADVANCE offsets only grow. A peer that breaks the protocol gets
// INVALID_ARGUMENT and is disconnected.
#ifndef BULKHEAD_LIB_DATAPLANE_DATAPLANE_H_
#define BULKHEAD_LIB_DATAPLANE_DATAPLANE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/fd.h"

namespace bulkhead::dataplane {

constexpr size_t kPacketBytesMax = 256 << 10;

struct OpenedBlob {
  os::UniqueFd fd;  // Read-only.
  int64_t size_bytes = 0;
};

struct IngestState {
  int64_t offset_bytes = 0;
  int64_t total_bytes = 0;
  int64_t started_at_ns = 0;  // Unix time.
  int64_t updated_at_ns = 0;
};

struct CommitResult {
  std::string digest;
  int64_t size_bytes = 0;
};

// One open ingest; the connection and so the ref's lock live as long as it.
// Not thread-safe, but Advance() may be called from another thread than the
// one that writes. Calls block on the service.
class Ingest {
 public:
  virtual ~Ingest() = default;
  virtual int fd() const = 0;  // Read-write; pwrite from the offset on.
  virtual const IngestState& opened() const = 0;
  virtual absl::Status Advance(int64_t offset_bytes) = 0;
  virtual absl::Status Truncate(int64_t offset_bytes) = 0;
  // The sha256 of the bytes below the last of opened(), Advance() and
  // Truncate(). The service has it at hand, but for what a resumed ingest held
  // already: that it may have to read.
  virtual absl::StatusOr<std::string> DigestSoFar() = 0;
  // Errors: kFailedPrecondition: size or digest do not match (the ingest
  //   survives). kAlreadyExists: the blob is there (the ingest is gone).
  virtual absl::StatusOr<CommitResult> Commit(
      int64_t size_bytes, const std::string& expected,
      const std::map<std::string, std::string>& labels) = 0;
  virtual absl::Status Abort() = 0;
};

// What is missing of the `total_bytes` of an ingest's file: begin and end of
// each hole and of what is behind its end, from `from_bytes` on; at most
// kGapsMax, the last of which reaches to the end. Moves the file position.
constexpr size_t kGapsMax = 1024;
std::map<int64_t, int64_t> Gaps(int fd, int64_t from_bytes,
                                int64_t total_bytes);

struct IngestRequest {
  std::string ref;
  int64_t total_bytes = 0;
  std::string expected;
  std::string ns;     // metadata only.
  std::string lease;  // metadata only.
};

// A client of content's or metadata's data socket. Thread-safe; each call
// uses a connection of its own.
class Client {
 public:
  explicit Client(std::string socket_path) : path_(std::move(socket_path)) {}

  // Errors: kNotFound: no such blob (in `ns`). kUnavailable: nobody listens.
  absl::StatusOr<OpenedBlob> Open(const std::string& digest,
                                  const std::string& ns = "") const;
  // Errors: kUnavailable: the ref is open elsewhere (the message starts with
  //   "ref ") or nobody listens. kAlreadyExists: `expected` is in `ns`.
  absl::StatusOr<std::unique_ptr<Ingest>> OpenIngest(
      const IngestRequest& request) const;

 private:
  std::string path_;
};

struct Mount {
  std::string type;
  std::string source;
  std::string target;
  std::vector<std::string> options;
};

struct ApplyRequest {
  std::vector<Mount> mounts;
  std::string media_type;
  std::string digest;  // Of the compressed layer, for messages.
  int64_t size_bytes = 0;
  // The layer will be committed onto its parent later (Commit's `parent`):
  // whiteouts are written in overlay's form even though the mount is a bind.
  bool parallel = false;
  // Called at most once, within Finish(): the tree is complete, its sync begins
  // and little memory is used any more. Null: not wanted.
  std::function<void()> on_unpacked;
};

struct Applied {
  std::string diff_id;
  int64_t size_bytes = 0;  // Uncompressed.
};

// A running Diff.Apply whose input may still be growing.
class ApplySession {
 public:
  virtual ~ApplySession() = default;  // Ends an unfinished apply.
  virtual absl::Status Advance(int64_t offset_bytes) = 0;
  // Announces the end and waits for the result.
  virtual absl::StatusOr<Applied> Finish(int64_t size_bytes) = 0;
};

// Errors: kUnavailable: nobody listens (fall back to Diff.Apply over gRPC).
absl::StatusOr<std::unique_ptr<ApplySession>> StartApply(
    const std::string& socket_path, const ApplyRequest& request, int layer_fd);

// Low level, for the servers: one request or reply with its descriptors.
struct Packet {
  std::string json;
  std::vector<os::UniqueFd> fds;
  bool closed = false;  // The peer has gone.
};
absl::StatusOr<Packet> Receive(int socket);
absl::Status Send(int socket, const std::string& json,
                  const std::vector<int>& fds = {});
absl::Status SendError(int socket, const absl::Status& error);

}  // namespace bulkhead::dataplane

#endif  // BULKHEAD_LIB_DATAPLANE_DATAPLANE_H_
