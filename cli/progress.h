// Progress of a pull: a few lines that redraw themselves on a terminal, plain
// lines elsewhere.
#ifndef BULKHEAD_CLI_PROGRESS_H_
#define BULKHEAD_CLI_PROGRESS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace bulkhead::cli {

// Not thread-safe. Pure: time and width come from the caller.
class Progress {
 public:
  // One report of the server. `name` is a ref key ("layer-sha256:...") or
  // empty for a message about the whole.
  void Update(const std::string& event, const std::string& name,
              int64_t done_bytes, int64_t total_bytes, absl::Time now);

  // The lines for a terminal `width` columns wide, one for each part and a
  // summary, without control sequences.
  std::vector<std::string> Lines(size_t width, absl::Time now) const;

  // What is new since the last call, for logs: one line each time a part
  // enters a new stage.
  std::vector<std::string> News();

 private:
  struct Part {
    std::string event;
    int64_t done_bytes = 0;
    int64_t total_bytes = 0;
    // When its event began, and with how many bytes: for the rate.
    absl::Time since;
    int64_t since_bytes = 0;
  };
  std::vector<std::string> order_;
  std::map<std::string, Part> parts_;
  std::string message_;
  std::vector<std::string> news_;
  absl::Time started_at_ = absl::InfinitePast();
};

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_PROGRESS_H_
