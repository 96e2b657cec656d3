// Unpacks one layer: stored bytes -> inflate -> SHA-256 -> tar -> names -> what
// is in files, on three threads with bounded buffers between them.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_APPLY_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_APPLY_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/fd.h"
#include "lib/os/mount.h"
#include "services/snapshotter/byte_stream.h"
#include "services/snapshotter/layer_sink.h"
#include "services/snapshotter/tar_extract.h"

namespace bulkhead::snapshotter {

// Few enough to stay in a processor's cache between the threads.
constexpr size_t kPipeBufferBytes = 128 << 10;
constexpr int kPipeBuffers = 8;

// A file that may still be growing: bytes below the last Advance() can be
// read. Advance(), Finish() and Fail() come from another thread than Read().
class FdSource : public LayerSource {
 public:
  // `readable_bytes` of `fd` (pread) are there; more may come unless
  // `finished`.
  FdSource(os::UniqueFd fd, int64_t readable_bytes, bool finished);

  absl::StatusOr<size_t> Read(char* out, size_t size_bytes) override;

  // Errors: kInvalidArgument: the offset shrinks, or comes after Finish().
  absl::Status Advance(int64_t offset_bytes);
  absl::Status Finish(int64_t size_bytes);
  // Ends waiting: Read() returns `status` from now on.
  void Fail(const absl::Status& status);
  void Cancel() override { Fail(absl::CancelledError("unpacking has ended")); }

 private:
  os::UniqueFd fd_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t readable_bytes_;  // Guarded by mutex_.
  bool finished_;           // Guarded by mutex_.
  absl::Status failed_;     // Guarded by mutex_.
  int64_t at_bytes_ = 0;
};

struct Unpacked {
  std::string diff_id;  // sha256 of the uncompressed stream, to its very end.
  int64_t size_bytes = 0;
  ExtractResult extracted;
};

// What the unpacking threads confine themselves to: no network, no mounts, no
// new processes or threads, no signals, no tracing. The first inflates and
// parses compressed bytes, opens nothing and has no capability; the second
// parses the archive and makes files, with the capabilities for that; the third
// fills files that are open, opens nothing and can give them away. (A blob
// read over gRPC, from a foreign store, is inflated on a thread that is not.)
enum class Worker { kInflate, kExtract, kFill };
absl::Status ConfineWorker(Worker worker);

// How what was unpacked is written to the disk while the rest is still coming,
// so that the sync at the end finds less to wait for.
struct EarlySync {
  int64_t bytes = 0;                   // Of files between two calls.
  std::function<absl::Status()> sync;  // Null: not at all.
};

// Runs the pipeline on confined threads; blocks until the tree is complete
// (not synced to its end), or `sink`, if given, has taken it all (not
// published; it syncs early by itself).
// Errors: those of `early.sync`, of the source, of ExtractTar(), and
// kUnimplemented for a media type that is no layer.
absl::StatusOr<Unpacked> UnpackLayer(LayerSource& source,
                                     const std::string& media_type,
                                     const std::string& root,
                                     const ExtractOptions& options,
                                     LayerSink* sink = nullptr,
                                     const EarlySync& early = {});

struct ApplyLimits {
  int64_t layer_bytes_max = int64_t{1} << 40;
  int64_t layer_entries_max = 10'000'000;
  int64_t early_sync_bytes = 64 << 20;  // See EarlySync.
  // Where temporary mounts are made; created when needed.
  std::string temp_dir;
};

// Called with the directory written to and the result, before the sync: what
// must be durable with the tree is written here.
using ApplyHook =
    std::function<absl::Status(const std::string& root, const Unpacked&)>;

// Unpacks a layer into what `mounts` show and syncs the file system (one
// syncfs). One overlay mount with an upperdir is written to directly, with
// overlayfs' own whiteouts; one bind mount likewise, with real deletions unless
// `parallel`; anything else is mounted under `limits.temp_dir` meanwhile. A
// sink that `sink_for` has for the directory takes the layer instead.
// Thread-safe.
// Errors: kInvalidArgument: no mounts, or a read-only one.
absl::StatusOr<Unpacked> ApplyLayer(const std::vector<os::MountSpec>& mounts,
                                    LayerSource& source,
                                    const std::string& media_type,
                                    bool parallel, const ApplyLimits& limits,
                                    const ApplyHook& hook = nullptr,
                                    const SinkChooser& sink_for = nullptr);

// Mounts `mounts` on a fresh folder below `temp_dir`, runs `body` with its
// path, unmounts and removes it.
absl::Status WithTempMount(
    const std::vector<os::MountSpec>& mounts, const std::string& temp_dir,
    const std::function<absl::Status(const std::string& path)>& body);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_APPLY_H_
