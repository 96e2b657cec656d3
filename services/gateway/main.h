// bulkhead-gateway: the socket that clients use.
#ifndef BULKHEAD_SERVICES_GATEWAY_MAIN_H_
#define BULKHEAD_SERVICES_GATEWAY_MAIN_H_

namespace bulkhead {

int GatewayMain(int argc, char** argv);

}  // namespace bulkhead

#endif  // BULKHEAD_SERVICES_GATEWAY_MAIN_H_
