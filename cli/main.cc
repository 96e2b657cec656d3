// `bulkhead`: a service, if its name or first argument says so, else the
// command line.
#include <unistd.h>

#include <cstdio>

#include "cli/command.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/image.h"
#include "lib/oci/reference.h"

namespace bulkhead::cli {
namespace {

void Declare(Command& root) {
  AddRunCommands(root);
  AddImageCommands(root);
  AddListCommands(root);
  AddLifecycleCommands(root);
  AddUsageCommands(root);
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
  }
  return names;
}

}  // namespace
}  // namespace bulkhead::cli

int main(int argc, char** argv) {
  const int code = bulkhead::cli::RunCommandLine(
      argc, argv, bulkhead::cli::Declare, bulkhead::cli::NamesFor);
  // Threads may still wait for calls that nobody is interested in any more.
  std::fflush(stdout);
  std::fflush(stderr);
  ::_exit(code);
}
