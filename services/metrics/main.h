// bulkhead-metrics: Prometheus figures and the live status page over HTTP.
#ifndef BULKHEAD_SERVICES_METRICS_MAIN_H_
#define BULKHEAD_SERVICES_METRICS_MAIN_H_

namespace bulkhead {

int MetricsMain(int argc, char** argv);

}  // namespace bulkhead

#endif  // BULKHEAD_SERVICES_METRICS_MAIN_H_
