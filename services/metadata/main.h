#ifndef BULKHEAD_SERVICES_METADATA_MAIN_H_
#define BULKHEAD_SERVICES_METADATA_MAIN_H_

namespace bulkhead::metadata {

int MetadataMain(int argc, char** argv);

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_MAIN_H_
