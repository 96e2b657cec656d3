#include "services/metrics/main.h"

int main(int argc, char** argv) { return bulkhead::MetricsMain(argc, argv); }
