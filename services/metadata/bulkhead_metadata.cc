#include "services/metadata/main.h"

int main(int argc, char** argv) {
  return bulkhead::metadata::MetadataMain(argc, argv);
}
