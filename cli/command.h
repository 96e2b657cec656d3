// The command tree: names, flags, help and completion. A thin layer over
// CLI11, which stays inside command.cc.
#ifndef BULKHEAD_CLI_COMMAND_H_
#define BULKHEAD_CLI_COMMAND_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace bulkhead::cli {

class Client;

// Exit codes of our own, as Docker's.
constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;       // A command failed.
constexpr int kExitUsage = 2;        // Bad flags.
constexpr int kExitRunFailed = 125;  // `run` itself failed.
constexpr int kExitNotExecutable = 126;
constexpr int kExitNotFound = 127;

// What every command can use.
class Session {
 public:
  std::string address;  // The suite's socket.
  std::string ns;
  bool debug = false;

  Session();
  ~Session();
  // The connection, made at the first use.
  Client& client();

 private:
  std::unique_ptr<Client> client_;
};

// Which names a command's arguments have, for completion.
enum class Completes { kNothing, kContainers, kImages, kNamespaces };

// One command while it is being declared. Targets of flags must outlive the
// parse; declare them in a struct held by the action (std::make_shared).
class Command {
 public:
  // A command that the command line does not name is `named` false: it is
  // listed in the help, and what is declared of it is not built at all. Most of
  // a client's start went into that.
  Command(CLI::App* app, Session* session, bool named);

  // `names` as "-a,--all".
  Command& Flag(const std::string& names, bool* value, const std::string& help);
  Command& Option(const std::string& names, std::string* value,
                  const std::string& help, const std::string& type = "TEXT");
  Command& Option(const std::string& names, int64_t* value,
                  const std::string& help, const std::string& type = "N");
  Command& Option(const std::string& names, double* value,
                  const std::string& help, const std::string& type = "N");
  // May be given many times, one value each.
  Command& Option(const std::string& names, std::vector<std::string>* values,
                  const std::string& help, const std::string& type = "TEXT");
  // Tells "" from not given.
  Command& OptionalOption(const std::string& names, std::string* value,
                          bool* given, const std::string& help,
                          const std::string& type = "TEXT");
  Command& Argument(const std::string& name, std::string* value,
                    const std::string& help, bool required = true);
  Command& Arguments(const std::string& name, std::vector<std::string>* values,
                     const std::string& help, bool required = true);
  // Parsing stops at the first argument that is not a flag; it and everything
  // after it are stored as they are. `usage` is shown in the help.
  Command& Rest(const std::string& usage, std::vector<std::string>* values,
                size_t values_min);
  Command& Examples(const std::string& text);
  Command& Complete(Completes what);
  Command& Hide();
  Command Sub(const std::string& name, const std::string& summary);
  // What the command does; the result is the exit code.
  Command& Does(std::function<int(Session&)> action);

 private:
  CLI::App* app_;
  Session* session_;
  bool named_;
};

// Names of the given kind, for completion; never fails loudly.
using NamesOf =
    std::function<std::vector<std::string>(Session& session, Completes what)>;

// Builds the tree with `declare` (called once with the root), parses and runs.
// Returns the exit code.
int RunCommandLine(int argc, char** argv,
                   const std::function<void(Command&)>& declare,
                   const NamesOf& names_of);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_COMMAND_H_
