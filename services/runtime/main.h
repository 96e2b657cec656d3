// The runtime service as a program.
#ifndef BULKHEAD_SERVICES_RUNTIME_MAIN_H_
#define BULKHEAD_SERVICES_RUNTIME_MAIN_H_

namespace bulkhead {

int RuntimeMain(int argc, char** argv);

}  // namespace bulkhead

#endif  // BULKHEAD_SERVICES_RUNTIME_MAIN_H_
