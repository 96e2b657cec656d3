// Every command declares itself here; see main.cc.
#ifndef BULKHEAD_CLI_COMMANDS_H_
#define BULKHEAD_CLI_COMMANDS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/command.h"

namespace bulkhead::cli {

void AddAdminCommands(Command& root);      // gc why fsck backup restore
void AddRunCommands(Command& root);        // run create start exec attach
void AddContainerCommands(Command& root);  // rename update export diff ...
void AddCopyCommand(Command& root);        // cp
void AddImageCommands(Command& root);      // pull images tag rmi
void AddRegistryCommands(Command& root);   // login logout push save load ...
void AddListCommands(Command& root);       // ps inspect logs
void AddLifecycleCommands(Command& root);  // stop kill pause ... wait rm
void AddUsageCommands(Command& root);      // stats top
void AddSystemCommands(Command& root);     // events info version namespace ...

// The flags of `run` and `create`, but -d.
struct RunOptions;
void DeclareRunFlags(Command& command, RunOptions* options);

void AddImageGroup(Command& root);  // history, image ls pull prune ...

// Commands that are there twice, as `rmi` and `image rm`.
void DeclarePull(Command& parent);
void DeclareImages(Command& parent, const std::string& name);
void DeclareTag(Command& parent);
void DeclareRemoveImages(Command& parent, const std::string& name);
void DeclarePush(Command& parent);
void DeclareSave(Command& parent);
void DeclareLoad(Command& parent);
// `type`: "container", "image" or "" for both.
void DeclareInspect(Command& parent, Completes completes,
                    const std::string& type);

absl::StatusOr<std::vector<std::string>> ListNamespaceNames(Client& client);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_COMMANDS_H_
