// `bulkhead`: a service, if its name or first argument says so, else the
// command line.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <optional>

#include "cli/cmd_snapshot.h"
#include "cli/cmd_volume.h"
#include "cli/command.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/image.h"
#include "cli/up.h"
#include "lib/oci/reference.h"

#ifndef BULKHEAD_WITHOUT_SERVICES
#include "cli/multicall.h"
#endif

namespace bulkhead::cli {
namespace {

void Declare(Command& root) {
  AddRunCommands(root);
  AddImageCommands(root);
  AddRegistryCommands(root);
  AddImageGroup(root);
  AddContainerCommands(root);
  AddVolumeCommands(root);
  AddSnapshotCommands(root);
  AddListCommands(root);
  AddLifecycleCommands(root);
  AddUsageCommands(root);
  AddSystemCommands(root);
  AddAdminCommands(root);
  // Handled in main(), before any thread starts; here for the help.
  root.Sub("up", "Run one whole suite in the foreground")
      .Examples("  bulkhead up --root /srv/bulkhead --state /run/bulkhead")
      .Does([](Session&) { return kExitUsage; });
}

std::vector<std::string> NamesFor(Session& session, Completes what) {
  std::vector<std::string> names;
  if (what == Completes::kContainers) {
    if (const auto all = ListContainers(session.client()); all.ok()) {
      for (const ContainerRecord& record : *all) {
        names.push_back(NameOf(record));
      }
    }
  } else if (what == Completes::kImages) {
    if (const auto all = ListImages(session.client()); all.ok()) {
      for (const ImageRecord& image : *all) {
        names.push_back(oci::FamiliarName(image.name()));
      }
    }
  } else if (what == Completes::kNamespaces) {
    if (const auto all = ListNamespaceNames(session.client()); all.ok()) {
      names = *all;
    }
  }
  return names;
}

}  // namespace
}  // namespace bulkhead::cli

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "up") == 0) {
    return bulkhead::UpMain(argc, argv);
  }
#ifndef BULKHEAD_WITHOUT_SERVICES
  if (const std::optional<int> code = bulkhead::RunService(argc, argv)) {
    return *code;
  }
#endif
  const int code = bulkhead::cli::RunCommandLine(
      argc, argv, bulkhead::cli::Declare, bulkhead::cli::NamesFor);
  // Threads may still wait for calls that nobody is interested in any more.
  std::fflush(stdout);
  std::fflush(stderr);
  ::_exit(code);
}
