#ifndef BULKHEAD_SERVICES_CONTENT_MAIN_H_
#define BULKHEAD_SERVICES_CONTENT_MAIN_H_

namespace bulkhead {

// The content service's main().
int ContentMain(int argc, char** argv);

}  // namespace bulkhead

#endif  // BULKHEAD_SERVICES_CONTENT_MAIN_H_
