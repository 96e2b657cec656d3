// bulkhead-distribution.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_MAIN_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_MAIN_H_

namespace bulkhead::distribution {

int DistributionMain(int argc, char** argv);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_MAIN_H_
