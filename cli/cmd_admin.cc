// gc, why, fsck, backup, restore: bulkhead.admin.v1, the suite's own service.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/format.h"
#include "cli/image.h"
#include "proto/bulkhead/admin/v1/admin.pb.h"

namespace bulkhead::cli {
namespace {

namespace admin = bulkhead::admin::v1;

constexpr char kAdmin[] = "/bulkhead.admin.v1.Admin/";

std::string Describe(const admin::Object& object) {
  if (object.kind().empty()) return "";
  std::string text = absl::StrCat(object.kind(), " ", object.name());
  if (!object.snapshotter().empty()) {
    absl::StrAppend(&text, " (", object.snapshotter(), ")");
  }
  if (!object.namespace_().empty() && object.kind() != "namespace") {
    absl::StrAppend(&text, " in ", object.namespace_());
  }
  return Printable(text);
}

int Collect(Session& session, bool dry_run) {
  admin::CollectRequest request;
  request.set_dry_run(dry_run);
  const std::unique_ptr<Stream> stream =
      session.client().ServerStream(std::string(kAdmin) + "Collect", request);
  admin::CollectResponse response;
  while (stream->Read(&response)) {
    for (const admin::Object& object : response.garbage()) {
      std::printf("%s\n", Describe(object).c_str());
    }
    if (!response.done()) continue;
    std::printf(
        "%s: %lld snapshots, %lld blobs%s, %lld images, %lld ingests, %lld "
        "leases\n",
        dry_run ? "Would remove" : "Removed",
        static_cast<long long>(response.snapshots()),
        static_cast<long long>(response.blobs()),
        dry_run
            ? absl::StrCat(
                  " (", HumanBytes(static_cast<double>(response.bytes())), ")")
                  .c_str()
            : "",
        static_cast<long long>(response.images()),
        static_cast<long long>(response.ingests()),
        static_cast<long long>(response.leases()));
  }
  const absl::Status status = stream->Finish();
  return status.ok() ? kExitOk : Report(status);
}

// `name` as it is, else what people call an image or a container by.
int Why(Session& session, const std::string& name) {
  Client& client = session.client();
  admin::WhyResponse response;
  const auto ask = [&](const std::string& full) {
    admin::WhyRequest request;
    request.set_name(full);
    return client.Call(std::string(kAdmin) + "Why", request, &response);
  };
  absl::Status status = ask(name);
  if (absl::IsNotFound(status)) {
    if (const auto image = FindImage(client, name); image.ok()) {
      status = ask(image->name());
    } else if (const auto container = FindContainer(client, name);
               container.ok()) {
      status = ask(container->id());
    }
  }
  if (!status.ok()) return Report(status);
  for (const admin::WhyResponse::Kept& kept : response.objects()) {
    if (kept.path_size() == 0) {
      std::printf("%s\n  nothing keeps it: the next collection removes it\n",
                  Describe(kept.object()).c_str());
      continue;
    }
    std::printf("%s\n", Describe(kept.object()).c_str());
    for (const admin::WhyResponse::Step& step : kept.path()) {
      const bool first = &step == &kept.path(0);
      std::printf("  %s%s (%s)\n", first ? "kept by " : "-> ",
                  Describe(step.object()).c_str(),
                  Printable(step.by()).c_str());
    }
  }
  return kExitOk;
}

struct CheckOptions {
  bool repair = false;
  bool quick = false;
  std::string root;
};

// Becomes the metadata program of this binary (or the one beside it), which
// owns the database.
int RunMetadata(std::vector<std::string> args) {
  std::error_code error;
  const std::string self =
      std::filesystem::read_symlink("/proc/self/exe", error).string();
  args.insert(args.begin(), {self, "metadata"});
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);
  ::execv(self.c_str(), argv.data());
  std::fprintf(stderr, "%s: cannot be started\n", self.c_str());
  return kExitFailed;
}

int Check(Session& session, const CheckOptions& options) {
  if (!options.root.empty()) {
    if (!options.repair) {
      std::fprintf(stderr,
                   "fsck --root works on a stopped suite, and only repairs: "
                   "add --repair\n");
      return kExitUsage;
    }
    return RunMetadata({"repair", "--root", options.root});
  }
  admin::CheckRequest request;
  request.set_repair(options.repair);
  request.set_skip_bytes(options.quick);
  const std::unique_ptr<Stream> stream =
      session.client().ServerStream(std::string(kAdmin) + "Check", request);
  admin::CheckResponse response;
  int wrong = 0;
  while (stream->Read(&response)) {
    for (const admin::CheckResponse::Finding& finding : response.findings()) {
      const bool note = finding.severity() == admin::CheckResponse::NOTE;
      if (!note && finding.repaired().empty()) ++wrong;
      const std::string object = Describe(finding.object());
      std::printf("%s: %s%s%s%s%s\n",
                  note ? "note"
                  : finding.severity() == admin::CheckResponse::LOST
                      ? "lost"
                      : "damaged",
                  object.c_str(), object.empty() ? "" : ": ",
                  Printable(finding.text()).c_str(),
                  finding.repaired().empty() ? "" : "; ",
                  Printable(finding.repaired()).c_str());
    }
    if (response.done()) {
      std::printf(
          "Checked %lld records, %lld blobs (%s read), %lld snapshots\n",
          static_cast<long long>(response.records()),
          static_cast<long long>(response.blobs()),
          HumanBytes(static_cast<double>(response.bytes())).c_str(),
          static_cast<long long>(response.snapshots()));
    }
  }
  const absl::Status status = stream->Finish();
  if (!status.ok()) return Report(status);
  return wrong == 0 ? kExitOk : kExitFailed;
}

int Backup(Session& session, const std::string& directory) {
  admin::BackupRequest request;
  std::error_code error;
  request.set_directory(std::filesystem::absolute(directory, error).string());
  admin::BackupResponse response;
  const absl::Status status =
      session.client().Call(std::string(kAdmin) + "Backup", request, &response);
  if (!status.ok()) return Report(status);
  std::printf("%s: %s\n", request.directory().c_str(),
              HumanBytes(static_cast<double>(response.bytes())).c_str());
  return kExitOk;
}

}  // namespace

void AddAdminCommands(Command& root) {
  auto dry_run = std::make_shared<bool>(false);
  root.Sub("gc", "Remove what nothing refers to, now")
      .Flag("--dry-run", dry_run.get(), "Only say what would go")
      .Examples("  bulkhead gc --dry-run")
      .Does([dry_run](Session& session) { return Collect(session, *dry_run); });

  auto name = std::make_shared<std::string>();
  root.Sub("why", "Say what keeps a blob, a snapshot or an image")
      .Argument("NAME", name.get(), "Digest, snapshot key or full image name")
      .Examples("  bulkhead why docker.io/library/alpine:latest")
      .Does([name](Session& session) { return Why(session, *name); });

  auto check = std::make_shared<CheckOptions>();
  root.Sub("fsck", "Check records, blobs and snapshots against each other")
      .Flag("--repair", &check->repair, "Put right what can be put right")
      .Flag("--quick", &check->quick, "Do not read the bytes of blobs")
      .Option("--root", &check->root,
              "With --repair: salvage the database of a stopped suite", "DIR")
      .Examples(
          "  bulkhead fsck\n"
          "  bulkhead fsck --repair --root /var/lib/bulkhead")
      .Does([check](Session& session) { return Check(session, *check); });

  auto directory = std::make_shared<std::string>();
  root.Sub("backup", "Copy the metadata database while the suite runs")
      .Argument("DIR", directory.get(), "A new folder")
      .Examples("  bulkhead backup /var/backups/bulkhead-1")
      .Does([directory](Session& session) {
        return Backup(session, *directory);
      });

  auto from = std::make_shared<std::pair<std::string, std::string>>();
  from->second = "/var/lib/bulkhead";
  root.Sub("restore", "Put back a backup, with the suite stopped")
      .Argument("DIR", &from->first, "What `bulkhead backup` made")
      .Option("--root", &from->second, "The suite's root [/var/lib/bulkhead]",
              "DIR")
      .Examples("  bulkhead restore /var/backups/bulkhead-1")
      .Does([from](Session&) {
        return RunMetadata({"restore", from->first, "--root", from->second});
      });
}

}  // namespace bulkhead::cli
