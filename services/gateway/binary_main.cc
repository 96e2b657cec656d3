#include "services/gateway/main.h"

int main(int argc, char** argv) { return bulkhead::GatewayMain(argc, argv); }
