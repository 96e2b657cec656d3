// Merges the Prometheus texts of several services into one.
#ifndef BULKHEAD_SERVICES_METRICS_EXPOSITION_H_
#define BULKHEAD_SERVICES_METRICS_EXPOSITION_H_

#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace bulkhead::metrics {

// Text exposition format 0.0.4. Not thread-safe.
class Exposition {
 public:
  // Adds every sample of `text`, with the label service="`service`" put first.
  // Lines that are no samples and no TYPE or HELP are dropped.
  void Add(const std::string& service, const std::string& text);

  // Families in order of their names, samples in the order they came.
  std::string Text() const;

 private:
  struct Family {
    std::string type;
    std::string help;
    std::vector<std::string> samples;
  };
  std::map<std::string, Family> families_;
};

// The sum of all samples `name` in `text`, and of those whose grpc_code is not
// "OK": for the status page.
struct CallTotals {
  double calls = 0;
  double failed = 0;
};
CallTotals SumCalls(const std::string& text);

}  // namespace bulkhead::metrics

#endif  // BULKHEAD_SERVICES_METRICS_EXPOSITION_H_
