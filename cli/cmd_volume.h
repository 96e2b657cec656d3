// The commands about volumes.
#ifndef BULKHEAD_CLI_CMD_VOLUME_H_
#define BULKHEAD_CLI_CMD_VOLUME_H_

#include "cli/command.h"

namespace bulkhead::cli {

void AddVolumeCommands(Command& root);  // volume ls create inspect rm

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_CMD_VOLUME_H_
