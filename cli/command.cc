#include "cli/command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <utility>

#include "cli/client.h"

namespace bulkhead::cli {
namespace {

constexpr char kDefaultAddress[] = "/run/bulkhead/bulkhead.sock";

constexpr char kBashCompletion[] = R"SH(_bulkhead() {
  local words=("${COMP_WORDS[@]:1:COMP_CWORD}")
  local IFS=$'\n'
  COMPREPLY=($(compgen -W "$(bulkhead __complete "${words[@]}" 2>/dev/null)" \
    -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _bulkhead bulkhead
)SH";

constexpr char kZshCompletion[] = R"SH(#compdef bulkhead
_bulkhead() {
  local -a found
  found=("${(@f)$(bulkhead __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  compadd -- $found || _files
}
compdef _bulkhead bulkhead
)SH";

struct Meta {
  std::function<int(Session&)> action;
  std::vector<std::string>* rest = nullptr;
  size_t rest_min = 0;
  std::string usage;
  Completes completes = Completes::kNothing;
};

std::map<const CLI::App*, Meta>& Metas() {
  static auto* metas = new std::map<const CLI::App*, Meta>;
  return *metas;
}

const CLI::App*& Chosen() {
  static const CLI::App* chosen = nullptr;
  return chosen;
}

// The command line's.
std::set<std::string>& Words() {
  static auto* words = new std::set<std::string>;
  return *words;
}

std::string EnvOr(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : otherwise;
}

// "bulkhead namespace ls".
std::string PathOf(const CLI::App* app) {
  const std::string& name = app->get_name();
  return app->get_parent() == nullptr ? name
                                      : PathOf(app->get_parent()) + " " + name;
}

class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string) const override {
    std::string usage = "Usage: " + PathOf(app);
    if (!app->get_subcommands([](const CLI::App*) { return true; }).empty()) {
      return usage + " [options] COMMAND\n";
    }
    usage += " [options]";
    const auto found = Metas().find(app);
    if (found != Metas().end() && found->second.rest != nullptr) {
      return usage + " " + found->second.usage + "\n";
    }
    for (const CLI::Option* option : app->get_options()) {
      if (!option->get_positional()) continue;
      const std::string dots = option->get_expected_max() > 1 ? "..." : "";
      usage += option->get_required() ? " " + option->get_name() + dots
                                      : " [" + option->get_name() + dots + "]";
    }
    return usage + "\n";
  }
  std::string make_option_opts(const CLI::Option* option) const override {
    return option->get_type_size() == 0 || option->get_positional()
               ? ""
               : " " + option->get_type_name();
  }
};

void AddGlobals(CLI::App* app, Session* session) {
  app->add_option("--address", session->address,
                  "The suite's socket [$BULKHEAD_ADDRESS, else " +
                      std::string(kDefaultAddress) + "]")
      ->type_name("PATH")
      ->group("Global options");
  app->add_option("-n,--namespace", session->ns,
                  "Namespace [$CONTAINERD_NAMESPACE, else default]")
      ->type_name("NAME")
      ->group("Global options");
  app->set_help_flag("-h,--help", "Show help")->group("Global options");
}

int Fail(const std::string& message, int code) {
  std::fprintf(stderr, "bulkhead: %s\n", message.c_str());
  return code;
}

// Which command the words lead to, and whether its arguments have begun.
const CLI::App* Walk(const CLI::App* app,
                     const std::vector<std::string>& words) {
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    for (const CLI::App* sub :
         app->get_subcommands([](const CLI::App*) { return true; })) {
      if (sub->get_name() == words[i]) {
        app = sub;
        break;
      }
    }
  }
  return app;
}

int CompleteWords(const CLI::App* root, Session& session,
                  const std::vector<std::string>& words,
                  const NamesOf& names_of) {
  const CLI::App* app = Walk(root, words);
  const std::string last = words.empty() ? "" : words.back();
  std::vector<std::string> found;
  if (!last.empty() && last[0] == '-') {
    for (const CLI::Option* option : app->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        found.push_back("--" + name);
      }
    }
  } else {
    for (const CLI::App* sub :
         app->get_subcommands([](const CLI::App*) { return true; })) {
      if (!sub->get_group().empty()) found.push_back(sub->get_name());
    }
    const auto meta = Metas().find(app);
    if (meta != Metas().end()) {
      const std::vector<std::string> names =
          names_of(session, meta->second.completes);
      found.insert(found.end(), names.begin(), names.end());
    }
  }
  for (const std::string& word : found) {
    if (word.rfind(last, 0) == 0) std::printf("%s\n", word.c_str());
  }
  return kExitOk;
}

}  // namespace

Session::Session()
    : address(EnvOr("BULKHEAD_ADDRESS", kDefaultAddress)),
      ns(EnvOr("CONTAINERD_NAMESPACE", "default")) {}
// The process is about to end, and closing the connection in order would wait
// for gRPC's threads.
Session::~Session() { (void)client_.release(); }

Client& Session::client() {
  if (client_ == nullptr) {
    if (address.rfind("unix://", 0) == 0) address = address.substr(7);
    client_ = Client::Open(address, ns);
  }
  return *client_;
}

Command::Command(CLI::App* app, Session* session, bool named)
    : app_(app), session_(session), named_(named) {}

Command& Command::Flag(const std::string& names, bool* value,
                       const std::string& help) {
  if (!named_) return *this;
  app_->add_flag(names, *value, help);
  return *this;
}
Command& Command::Option(const std::string& names, std::string* value,
                         const std::string& help, const std::string& type) {
  if (!named_) return *this;
  app_->add_option(names, *value, help)->type_name(type);
  return *this;
}
Command& Command::Option(const std::string& names, int64_t* value,
                         const std::string& help, const std::string& type) {
  if (!named_) return *this;
  app_->add_option(names, *value, help)->type_name(type);
  return *this;
}
Command& Command::Option(const std::string& names, double* value,
                         const std::string& help, const std::string& type) {
  if (!named_) return *this;
  app_->add_option(names, *value, help)->type_name(type);
  return *this;
}
Command& Command::Option(const std::string& names,
                         std::vector<std::string>* values,
                         const std::string& help, const std::string& type) {
  if (!named_) return *this;
  app_->add_option(names, *values, help)
      ->type_name(type)
      ->allow_extra_args(false);
  return *this;
}
Command& Command::OptionalOption(const std::string& names, std::string* value,
                                 bool* given, const std::string& help,
                                 const std::string& type) {
  if (!named_) return *this;
  app_->add_option_function<std::string>(
          names,
          [value, given](const std::string& text) {
            *value = text;
            *given = true;
          },
          help)
      ->type_name(type);
  return *this;
}
Command& Command::Argument(const std::string& name, std::string* value,
                           const std::string& help, bool required) {
  if (!named_) return *this;
  app_->add_option(name, *value, help)->required(required);
  return *this;
}
Command& Command::Arguments(const std::string& name,
                            std::vector<std::string>* values,
                            const std::string& help, bool required) {
  if (!named_) return *this;
  app_->add_option(name, *values, help)->required(required);
  return *this;
}
Command& Command::Rest(const std::string& usage,
                       std::vector<std::string>* values, size_t values_min) {
  if (!named_) return *this;
  app_->prefix_command(true);
  Meta& meta = Metas()[app_];
  meta.rest = values;
  meta.rest_min = values_min;
  meta.usage = usage;
  return *this;
}
Command& Command::Examples(const std::string& text) {
  if (!named_) return *this;
  app_->footer("\nExamples:\n" + text);
  return *this;
}
Command& Command::Complete(Completes what) {
  if (!named_) return *this;
  Metas()[app_].completes = what;
  return *this;
}
Command& Command::Hide() {
  if (app_ != nullptr) app_->group("");
  return *this;
}

Command Command::Sub(const std::string& name, const std::string& summary) {
  if (!named_) return Command(nullptr, session_, false);
  CLI::App* sub = app_->add_subcommand(name, summary);
  const bool named = Words().count(name) != 0;
  if (named) {
    sub->footer("");
    sub->prefix_command(false);
    sub->set_help_flag("-h,--help", "Show help")->group("Global options");
  }
  return Command(sub, session_, named);
}

Command& Command::Does(std::function<int(Session&)> action) {
  if (!named_) return *this;
  Metas()[app_].action = std::move(action);
  AddGlobals(app_, session_);  // Last in the help.
  app_->callback([app = app_] { Chosen() = app; });
  return *this;
}

int RunCommandLine(int argc, char** argv,
                   const std::function<void(Command&)>& declare,
                   const NamesOf& names_of) {
  Session session;
  CLI::App app("Bulkhead runs containers. See `bulkhead COMMAND --help`.",
               "bulkhead");
  app.formatter(std::make_shared<HelpFormatter>());
  app.require_subcommand(1);
  AddGlobals(&app, &session);
  Words().insert(argv, argv + argc);
  Command root(&app, &session, true);
  declare(root);

  auto shell = std::make_shared<std::string>();
  root.Sub("completion", "Print a shell completion script")
      .Argument("SHELL", shell.get(), "bash or zsh")
      .Examples("  source <(bulkhead completion bash)")
      .Does([shell](Session&) {
        if (*shell == "bash") return std::fputs(kBashCompletion, stdout), 0;
        if (*shell == "zsh") return std::fputs(kZshCompletion, stdout), 0;
        return Fail("unknown shell '" + *shell + "': bash or zsh", kExitUsage);
      });

  if (argc >= 2 && std::string(argv[1]) == "__complete") {
    return CompleteWords(&app, session, {argv + 2, argv + argc}, names_of);
  }
  if (argc < 2) {
    std::fputs(app.help().c_str(), stdout);
    return kExitUsage;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    // The innermost command that was named.
    const CLI::App* at = &app;
    for (auto subs = at->get_subcommands(); !subs.empty();
         subs = at->get_subcommands()) {
      at = subs.front();
    }
    std::fputs(at->help().c_str(), stdout);
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    const CLI::App* at = &app;
    for (auto subs = at->get_subcommands(); !subs.empty();
         subs = at->get_subcommands()) {
      at = subs.front();
    }
    const auto meta = Metas().find(at);
    const bool runs = meta != Metas().end() && meta->second.rest != nullptr;
    if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr &&
        at->get_require_subcommand_min() > 0) {
      for (const std::string& word : at->remaining()) {
        if (word.empty() || word[0] == '-') continue;
        return Fail("'" + word + "' is not a command of " + PathOf(at) +
                        "\nSee `" + PathOf(at) + " --help`",
                    kExitUsage);
      }
    }
    return Fail(std::string(error.what()) + "\nSee `" + PathOf(at) + " --help`",
                runs ? kExitRunFailed : kExitUsage);
  }
  const CLI::App* chosen = Chosen();
  if (chosen == nullptr) {
    const CLI::App* at = &app;
    for (auto subs = at->get_subcommands(); !subs.empty();
         subs = at->get_subcommands()) {
      at = subs.front();
    }
    std::fputs(at->help().c_str(), stdout);
    return kExitUsage;
  }
  Meta& meta = Metas()[chosen];
  if (meta.rest != nullptr) {
    std::vector<std::string> rest = chosen->remaining();
    if (!rest.empty() && rest[0] == "--") rest.erase(rest.begin());
    if (!rest.empty() && rest[0].size() > 1 && rest[0][0] == '-') {
      return Fail(
          "unknown flag: " + rest[0] + "\nSee `" + PathOf(chosen) + " --help`",
          kExitRunFailed);
    }
    if (rest.size() < meta.rest_min) {
      return Fail("too few arguments\nUsage: " + PathOf(chosen) +
                      " [options] " + meta.usage,
                  kExitRunFailed);
    }
    *meta.rest = std::move(rest);
  }
  return meta.action(session);
}

}  // namespace bulkhead::cli
