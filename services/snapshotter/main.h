#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_MAIN_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_MAIN_H_

namespace bulkhead {

// bulkhead-snapshotter; see README.md.
int SnapshotterMain(int argc, char** argv);

}  // namespace bulkhead

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_MAIN_H_
