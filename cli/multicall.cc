#include "cli/multicall.h"

#include <cstring>
#include <string>

#include "services/content/main.h"
#include "services/gateway/main.h"
#include "services/metadata/main.h"
#include "services/runtime/main.h"

namespace bulkhead {
namespace {

struct Program {
  const char* name;
  int (*main)(int, char**);
};

constexpr Program kPrograms[] = {{"content", ContentMain},
                                 {"gateway", GatewayMain},
                                 {"metadata", metadata::MetadataMain},
                                 {"runtime", RuntimeMain}};
constexpr char kPrefix[] = "bulkhead-";

}  // namespace

std::optional<int> RunService(int argc, char** argv) {
  if (argc < 1) return std::nullopt;
  const char* slash = std::strrchr(argv[0], '/');
  const std::string name = slash == nullptr ? argv[0] : slash + 1;
  for (const Program& program : kPrograms) {
    if (name == std::string(kPrefix) + program.name) {
      return program.main(argc, argv);
    }
    if (argc > 1 && std::strcmp(argv[1], program.name) == 0) {
      return program.main(argc - 1, argv + 1);
    }
  }
  return std::nullopt;
}

}  // namespace bulkhead
