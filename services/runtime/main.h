// The runtime service as a program.
#ifndef BULKHEAD_SERVICES_RUNTIME_MAIN_H_
#define BULKHEAD_SERVICES_RUNTIME_MAIN_H_

namespace bulkhead::runtime {

int RuntimeMain(int argc, char** argv);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_MAIN_H_
