// The commands about snapshots.
#ifndef BULKHEAD_CLI_CMD_SNAPSHOT_H_
#define BULKHEAD_CLI_CMD_SNAPSHOT_H_

#include "cli/command.h"

namespace bulkhead::cli {

void AddSnapshotCommands(Command& root);  // snapshot ls tree usage diff ...

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_CMD_SNAPSHOT_H_
