// The archive reader, under the names that unpacking uses.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_TAR_READER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_TAR_READER_H_

#include "lib/tar/reader.h"

namespace bulkhead::snapshotter {

using tar::kTarBlockBytes;
using tar::kTarNameBytesMax;
using tar::kTarPaxBytesMax;
using tar::kTarSparseRangesMax;
using tar::TarEntry;
using tar::TarRange;
using tar::TarReader;
using tar::TarType;

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_TAR_READER_H_
