#include "services/snapshotter/main.h"

int main(int argc, char** argv) {
  return bulkhead::SnapshotterMain(argc, argv);
}
