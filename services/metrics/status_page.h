// The live status page: one self-contained HTML document.
#ifndef BULKHEAD_SERVICES_METRICS_STATUS_PAGE_H_
#define BULKHEAD_SERVICES_METRICS_STATUS_PAGE_H_

#include <memory>
#include <mutex>
#include <string>

#include "services/metrics/collector.h"

namespace bulkhead::metrics {

// Remembers the snapshot before, for rates. Thread-safe.
class StatusPage {
 public:
  std::string Render(std::shared_ptr<const Snapshot> now);

 private:
  std::mutex mutex_;
  std::shared_ptr<const Snapshot> current_;
  std::shared_ptr<const Snapshot> before_;
};

}  // namespace bulkhead::metrics

#endif  // BULKHEAD_SERVICES_METRICS_STATUS_PAGE_H_
