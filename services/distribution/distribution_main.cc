#include "services/distribution/main.h"

int main(int argc, char** argv) {
  return bulkhead::distribution::DistributionMain(argc, argv);
}
