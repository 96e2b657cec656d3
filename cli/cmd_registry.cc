// login, logout, push, save, load, manifest.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/credentials.h"
#include "cli/format.h"
#include "cli/image.h"
#include "cli/pull.h"
#include "cli/run_options.h"
#include "cli/terminal.h"
#include "lib/base/status_macros.h"
#include "lib/oci/reference.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {
namespace {

constexpr size_t kPasswordBytesMax = 64 << 10;

struct LoginOptions : RegistryOptions {
  std::string server;
  std::string password;
  bool password_stdin = false;
  bool no_verify = false;
};

// One line of the terminal; not shown if `secret`.
absl::StatusOr<std::string> Ask(const std::string& question, bool secret) {
  std::fputs(question.c_str(), stderr);
  std::fflush(stderr);
  std::unique_ptr<EchoOff> hidden;
  if (secret) hidden = std::make_unique<EchoOff>(STDIN_FILENO);
  std::string line;
  char c = 0;
  ssize_t got = 0;
  while ((got = ::read(STDIN_FILENO, &c, 1)) == 1 && c != '\n') {
    if (line.size() < kPasswordBytesMax) line += c;
  }
  if (secret) std::fputs("\n", stderr);
  if (got <= 0 && line.empty()) {
    return absl::InvalidArgumentError("no answer");
  }
  return line;
}

absl::StatusOr<Credentials> AskCredentials(const LoginOptions& options) {
  Credentials credentials{options.user, options.password};
  if (options.password_stdin) {
    if (options.user.empty()) {
      return absl::InvalidArgumentError("--password-stdin needs --username");
    }
    credentials.secret.resize(kPasswordBytesMax);
    ASSIGN_OR_RETURN(const size_t got,
                     os::ReadFull(STDIN_FILENO, credentials.secret.data(),
                                  credentials.secret.size()));
    credentials.secret.resize(got);
    while (!credentials.secret.empty() && (credentials.secret.back() == '\n' ||
                                           credentials.secret.back() == '\r')) {
      credentials.secret.pop_back();
    }
  }
  if (credentials.user.empty() || credentials.secret.empty()) {
    if (options.password_stdin || !::isatty(STDIN_FILENO)) {
      return absl::InvalidArgumentError(
          "a user and a password are needed — give -u USER --password-stdin");
    }
    if (credentials.user.empty()) {
      ASSIGN_OR_RETURN(credentials.user, Ask("User: ", false));
    }
    if (credentials.secret.empty()) {
      ASSIGN_OR_RETURN(credentials.secret, Ask("Password: ", true));
    }
  }
  if (absl::StrContains(credentials.user, ':')) {
    return absl::InvalidArgumentError("a user name has no ':'");
  }
  return credentials;
}

int Login(Session& session, const LoginOptions& options) {
  const std::string host = RegistryHost(options.server);
  const absl::StatusOr<Credentials> credentials = AskCredentials(options);
  if (!credentials.ok()) return Report(credentials.status(), kExitUsage);
  if (!options.password.empty()) {
    std::fprintf(stderr,
                 "bulkhead: a password among the arguments can be seen by "
                 "everybody on this machine; --password-stdin is safer\n");
  }
  if (!options.no_verify) {
    const absl::Status tried =
        TryCredentials(session.client(), host, options, *credentials);
    if (absl::IsUnauthenticated(tried) || absl::IsPermissionDenied(tried)) {
      return Report(absl::Status(
          tried.code(),
          absl::StrCat(host, " refused these credentials (", MessageOf(tried),
                       ") — nothing was stored; --no-verify stores them "
                       "unseen")));
    }
    if (!tried.ok()) {
      return Report(absl::Status(
          tried.code(),
          absl::StrCat("the credentials could not be tried: ", MessageOf(tried),
                       " — --no-verify stores them unseen")));
    }
  }
  const absl::StatusOr<std::string> where =
      SaveCredentials(DockerConfigPath(), host, *credentials);
  if (!where.ok()) return Report(where.status());
  if (!absl::StartsWith(*where, "docker-credential-")) {
    std::fprintf(stderr,
                 "bulkhead: the password is in %s, not encrypted; a "
                 "credential helper would keep it better\n",
                 where->c_str());
  }
  std::printf("Login Succeeded\n");
  return kExitOk;
}

int Logout(const std::string& server) {
  const std::string host = RegistryHost(server);
  const absl::StatusOr<bool> erased =
      EraseCredentials(DockerConfigPath(), host);
  if (!erased.ok()) return Report(erased.status());
  std::printf(
      *erased ? "Removed the credentials of %s\n" : "Not logged in to %s\n",
      host.c_str());
  return kExitOk;
}

int Push(Session& session, PushOptions options, const std::string& target) {
  Client& client = session.client();
  const absl::StatusOr<ImageRecord> image =
      FindImage(client, options.reference);
  if (!image.ok()) {
    return Report(absl::IsNotFound(image.status())
                      ? absl::NotFoundError(
                            absl::StrCat("No such image: ", options.reference))
                      : image.status());
  }
  options.image = image->name();
  options.reference = target.empty() ? image->name() : target;
  const absl::Status pushed = PushImage(client, options);
  if (!pushed.ok()) return Report(pushed);
  std::printf("%s\n", image->target().digest().c_str());
  return kExitOk;
}

struct SaveFlags {
  SaveOptions save;
  std::string output;
};

int Save(Session& session, SaveFlags& flags) {
  if (flags.output.empty() && ::isatty(STDOUT_FILENO)) {
    return Report(absl::InvalidArgumentError(
                      "an archive is nothing for a terminal — use -o FILE or "
                      "redirect the output"),
                  kExitUsage);
  }
  Client& client = session.client();
  SaveOptions options = flags.save;
  for (std::string& name : options.images) {
    const absl::StatusOr<ImageRecord> image = FindImage(client, name);
    if (!image.ok()) return Report(image.status());
    name = image->name();
  }
  if (flags.output.empty()) {
    const absl::Status saved = SaveImages(client, options, STDOUT_FILENO);
    return saved.ok() ? kExitOk : Report(saved);
  }
  // Either the whole archive has the name, or nothing.
  const std::string part = flags.output + ".part";
  absl::StatusOr<os::UniqueFd> file =
      os::Open(part, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600);
  if (!file.ok()) return Report(file.status());
  absl::Status saved = SaveImages(client, options, file->get());
  if (saved.ok() && ::rename(part.c_str(), flags.output.c_str()) != 0) {
    saved = os::ErrnoStatus(errno, "rename to " + flags.output);
  }
  if (!saved.ok()) {
    ::unlink(part.c_str());
    return Report(saved);
  }
  return kExitOk;
}

struct LoadFlags {
  LoadOptions load;
  std::string input;
  bool no_unpack = false;
};

int Load(Session& session, LoadFlags& flags) {
  Client& client = session.client();
  flags.load.snapshotter = DefaultSnapshotter(client, flags.load.snapshotter);
  flags.load.unpack = !flags.no_unpack;
  os::UniqueFd file;
  int fd = STDIN_FILENO;
  if (!flags.input.empty() && flags.input != "-") {
    absl::StatusOr<os::UniqueFd> opened = os::Open(flags.input, O_RDONLY);
    if (!opened.ok()) return Report(opened.status());
    file = *std::move(opened);
    fd = file.get();
  } else if (::isatty(STDIN_FILENO)) {
    return Report(absl::InvalidArgumentError(
                      "no archive — use -i FILE or redirect the input"),
                  kExitUsage);
  }
  const absl::StatusOr<std::vector<std::string>> names =
      LoadImages(client, flags.load, fd);
  if (!names.ok()) return Report(names.status());
  if (names->empty()) {
    std::fprintf(stderr, "bulkhead: the archive has no image with a name\n");
  }
  for (const std::string& name : *names) {
    std::printf("Loaded image: %s\n",
                Printable(oci::FamiliarName(name)).c_str());
  }
  return kExitOk;
}

int ManifestInspect(Session& session, const PullOptions& options) {
  Client& client = session.client();
  const absl::StatusOr<ImageRecord> image =
      FindImage(client, options.reference);
  std::unique_ptr<ScopedLease> lease;
  std::string digest;
  if (image.ok()) {
    digest = image->target().digest();
  } else if (absl::IsNotFound(image.status())) {
    absl::StatusOr<std::unique_ptr<ScopedLease>> held =
        ScopedLease::Create(client);
    if (!held.ok()) return Report(held.status());
    lease = *std::move(held);
    absl::StatusOr<std::string> fetched = FetchManifest(client, options);
    if (!fetched.ok()) return Report(fetched.status());
    digest = *std::move(fetched);
  } else {
    return Report(image.status());
  }
  const absl::StatusOr<std::string> text = ReadBlob(client, digest);
  if (!text.ok()) return Report(text.status());
  const auto json = nlohmann::ordered_json::parse(*text, nullptr, false);
  if (json.is_discarded()) {
    return Report(absl::InvalidArgumentError("the manifest is not JSON"));
  }
  std::printf("%s\n",
              json.dump(3, ' ', false, nlohmann::json::error_handler_t::replace)
                  .c_str());
  return kExitOk;
}

}  // namespace

void AddRegistryCommands(Command& root) {
  auto login = std::make_shared<LoginOptions>();
  root.Sub("login", "Keep credentials for a registry")
      .Option("-u,--username", &login->user, "User", "USER")
      .Option("-p,--password", &login->password,
              "Password; --password-stdin is safer", "PASSWORD")
      .Flag("--password-stdin", &login->password_stdin,
            "Read the password from standard input")
      .Flag("--plain-http", &login->plain_http, "Try them without TLS")
      .Flag("--no-verify", &login->no_verify, "Do not try them")
      .Option("--hosts-dir", &login->hosts_dir,
              "Folder with hosts.toml files [the server's]", "DIR")
      .Argument("SERVER", &login->server, "Registry [docker.io]", false)
      .Examples(
          "  bulkhead login -u me --password-stdin registry.example < secret\n"
          "  bulkhead login registry.example:5000\n\n"
          "They are kept where Docker keeps them: with the credential helper\n"
          "that ~/.docker/config.json names, else in that file.")
      .Does([login](Session& session) { return Login(session, *login); });

  auto logout = std::make_shared<std::string>();
  root.Sub("logout", "Forget credentials for a registry")
      .Argument("SERVER", logout.get(), "Registry [docker.io]", false)
      .Examples("  bulkhead logout registry.example")
      .Does([logout](Session&) { return Logout(*logout); });

  DeclarePush(root);
  DeclareSave(root);
  DeclareLoad(root);

  auto inspected = std::make_shared<PullOptions>();
  root.Sub("manifest", "Look at manifests")
      .Sub("inspect", "Print the manifest or index of an image")
      .Flag("--explain", &inspected->explain, "Tell each request")
      .Flag("--plain-http,--insecure", &inspected->plain_http, "Without TLS")
      .Option("-u,--user", &inspected->user,
              "Credentials [~/.docker/config.json]", "USER:PASSWORD")
      .Option("--hosts-dir", &inspected->hosts_dir,
              "Folder with hosts.toml files [the server's]", "DIR")
      .Argument("IMAGE", &inspected->reference, "Name or digest")
      .Complete(Completes::kImages)
      .Examples(
          "  bulkhead manifest inspect debian:12\n\n"
          "One that is not here is read from its registry.")
      .Does([inspected](Session& session) {
        return ManifestInspect(session, *inspected);
      });
}

void DeclarePush(Command& parent) {
  auto push = std::make_shared<std::pair<PushOptions, std::string>>();
  parent.Sub("push", "Push an image to a registry")
      .Flag("-q,--quiet", &push->first.quiet, "No progress")
      .Flag("--explain", &push->first.explain,
            "Tell each request, its login, its answer, what is tried next")
      .Flag("--plain-http", &push->first.plain_http, "Without TLS")
      .Option("--platform", &push->first.platform,
              "Only this platform [what is here]", "OS/ARCH[/VARIANT]")
      .Option("-u,--user", &push->first.user,
              "Credentials [~/.docker/config.json]", "USER:PASSWORD")
      .Option("--hosts-dir", &push->first.hosts_dir,
              "Folder with hosts.toml files [the server's]", "DIR")
      .Argument("IMAGE", &push->first.reference, "Name or digest")
      .Argument("TARGET", &push->second, "Where to [the image's name]", false)
      .Complete(Completes::kImages)
      .Examples(
          "  bulkhead push registry.example/app:1\n"
          "  bulkhead push --plain-http app localhost:5000/app:test")
      .Does([push](Session& session) {
        return Push(session, push->first, push->second);
      });
}

void DeclareSave(Command& parent) {
  auto save = std::make_shared<SaveFlags>();
  parent.Sub("save", "Write images to an archive")
      .Option("-o,--output", &save->output, "File [standard output]", "FILE")
      .Option("--platform", &save->save.platform, "Platform [this machine's]",
              "OS/ARCH[/VARIANT]")
      .Flag("--all-platforms", &save->save.all_platforms, "Every platform")
      .Arguments("IMAGE", &save->save.images, "Names or digests")
      .Complete(Completes::kImages)
      .Examples(
          "  bulkhead save -o app.tar app:1 debian:12\n"
          "  bulkhead save app:1 | ssh there bulkhead load\n\n"
          "The archive is an OCI layout that `docker load` reads, too.")
      .Does([save](Session& session) { return Save(session, *save); });
}

void DeclareLoad(Command& parent) {
  auto load = std::make_shared<LoadFlags>();
  load->load.snapshotter.clear();
  parent.Sub("load", "Read images from an archive")
      .Option("-i,--input", &load->input, "File [standard input]", "FILE")
      .Option("--platform", &load->load.platform,
              "Platform to unpack [this machine's]", "OS/ARCH[/VARIANT]")
      .Option("--base-name", &load->load.base_name,
              "Repository of images that bring only a tag [import]", "NAME")
      .Option("--snapshotter", &load->load.snapshotter,
              "Snapshotter [overlayfs]")
      .Flag("--no-unpack", &load->no_unpack, "Only store it")
      .Flag("--compress", &load->load.compress,
            "Compress plain layers of docker's archives")
      .Flag("-q,--quiet", &load->load.quiet, "No progress")
      .Examples(
          "  bulkhead load -i app.tar\n"
          "  docker save app | bulkhead load")
      .Does([load](Session& session) { return Load(session, *load); });
}

}  // namespace bulkhead::cli
