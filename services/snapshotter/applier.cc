#include "services/snapshotter/applier.h"

#include <optional>

#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/stats/stats.h"

namespace bulkhead::snapshotter {

absl::StatusOr<Unpacked> Applier::ApplyProcessed(
    const std::vector<os::MountSpec>& mounts, LayerSource& source,
    const std::string& media_type, bool parallel, const Payloads& payloads,
    const std::function<void()>& on_unpacked) {
  std::string written;
  const auto hook = [&](const std::string& tree,
                        const Unpacked& unpacked) -> absl::Status {
    written = tree;
    std::optional<DiskUsage> usage;
    if (unpacked.extracted.blocks >= 0) {
      usage = DiskUsage{.size_bytes = unpacked.extracted.blocks * 512,
                        .inodes = unpacked.extracted.inodes};
    }
    for (Snapshotter* snapshotter : snapshotters_) {
      RETURN_IF_ERROR(
          snapshotter->NoteUnpacked(tree,
                                    parallel ? unpacked.extracted.implicit_dirs
                                             : std::vector<std::string>{},
                                    usage));
    }
    if (on_unpacked) on_unpacked();
    return absl::OkStatus();
  };
  const auto sink_for = [&](const std::string& tree, ExtractOptions* options)
      -> absl::StatusOr<std::unique_ptr<LayerSink>> {
    for (Snapshotter* snapshotter : snapshotters_) {
      ASSIGN_OR_RETURN(std::unique_ptr<LayerSink> sink,
                       snapshotter->SinkFor(tree, options));
      if (sink != nullptr) return sink;
    }
    return std::unique_ptr<LayerSink>();
  };
  ASSIGN_OR_RETURN(const std::unique_ptr<ProcessorChain> chain,
                   StartProcessors(source, media_type, processors_, payloads));
  absl::StatusOr<Unpacked> result =
      ApplyLayer(mounts, chain == nullptr ? source : chain->output(),
                 chain == nullptr ? media_type : chain->media_type(), parallel,
                 limits_, hook, sink_for);
  if (chain != nullptr) {
    // A program that failed left an archive cut off: it is the cause.
    const absl::Status ended = chain->Finish(result.ok());
    if (!ended.ok() && !absl::IsCancelled(ended)) return ended;
  }
  RETURN_IF_ERROR(result.status());
  for (Snapshotter* snapshotter : snapshotters_) {
    snapshotter->NoteSynced(written);
  }
  return result;
}

absl::StatusOr<Unpacked> Applier::Apply(
    const std::vector<os::MountSpec>& mounts, LayerSource& source,
    const std::string& media_type, bool parallel, const Payloads& payloads,
    const std::function<void()>& on_unpacked) {
  static stats::Value* const running =
      stats::Gauge("bulkhead_snapshotter_applies_running");
  static stats::Value* const applied =
      stats::Counter("bulkhead_snapshotter_layers_applied_total");
  static stats::Value* const failed =
      stats::Counter("bulkhead_snapshotter_layers_failed_total");
  static stats::Value* const bytes =
      stats::Counter("bulkhead_snapshotter_layer_bytes_total");
  static stats::Histogram* const seconds =
      stats::Latency("bulkhead_snapshotter_apply_seconds");
  running->Add(1);
  const absl::Time start = absl::Now();
  absl::StatusOr<Unpacked> result = ApplyProcessed(
      mounts, source, media_type, parallel, payloads, on_unpacked);
  running->Add(-1);
  seconds->ObserveMicros(absl::ToInt64Microseconds(absl::Now() - start));
  (result.ok() ? applied : failed)->Add(1);
  if (result.ok()) bytes->Add(result->size_bytes);
  return result;
}

}  // namespace bulkhead::snapshotter
