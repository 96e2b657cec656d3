// pull, images, tag, rmi.
#include <google/protobuf/empty.pb.h>

#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/format.h"
#include "cli/image.h"
#include "cli/names.h"
#include "cli/pull.h"
#include "cli/run_options.h"
#include "lib/base/status_macros.h"
#include "lib/oci/reference.h"

namespace bulkhead::cli {
namespace {

namespace images = containerd::services::images::v1;

int Pull(Session& session, PullOptions& options) {
  Client& client = session.client();
  options.snapshotter = DefaultSnapshotter(client, options.snapshotter);
  const absl::StatusOr<std::string> name = PullImage(client, options);
  if (!name.ok()) return Report(name.status());
  const absl::StatusOr<ImageRecord> image = FindImage(client, *name);
  if (!image.ok()) return Report(image.status());
  if (options.quiet) {
    std::printf("%s\n", image->target().digest().c_str());
  } else {
    std::printf("%s\n%s\n", image->target().digest().c_str(), name->c_str());
  }
  return kExitOk;
}

// "docker.io/library/debian:12" -> "debian", "12". What is no full reference
// (`ctr images import` makes "import-2026-01-01:tag") is cut at its last colon.
std::pair<std::string, std::string> SplitName(const std::string& name) {
  const absl::StatusOr<oci::Reference> reference = oci::ParseFull(name);
  if (!reference.ok()) {
    const size_t colon = name.rfind(':');
    if (colon == std::string::npos || colon == 0 ||
        name.find('/', colon) != std::string::npos) {
      return {name, "<none>"};
    }
    return {name.substr(0, colon), name.substr(colon + 1)};
  }
  oci::Reference without_tag = *reference;
  without_tag.tag.clear();
  without_tag.digest = Digest();
  return {oci::Familiar(without_tag),
          reference->tag.empty() ? "<none>" : reference->tag};
}

std::string ShortDigest(const std::string& digest) {
  const size_t colon = digest.find(':');
  return digest.substr(colon == std::string::npos ? 0 : colon + 1,
                       kShortIdHexDigits);
}

struct ImagesOptions {
  bool quiet = false;
  bool no_trunc = false;
  bool digests = false;
  bool all = false;
  std::string format;
  std::string snapshotter;
  std::string wanted;
};

int Images(Session& session, const ImagesOptions& options) {
  Client& client = session.client();
  const absl::StatusOr<std::vector<ImageRecord>> all = ListImages(client);
  if (!all.ok()) return Report(all.status());
  const std::string snapshotter =
      DefaultSnapshotter(client, options.snapshotter);
  Listing listing({{"REPOSITORY", "Repository"},
                   {"TAG", "Tag"},
                   {options.digests ? "DIGEST" : "", "Digest"},
                   {"IMAGE ID", "ID"},
                   {"CREATED", "CreatedSince"},
                   {"SIZE", "Size"},
                   {"", "Name"},
                   {"", "CreatedAt"},
                   {"", "CompressedSize"}});
  for (const ImageRecord& image : *all) {
    const auto [repository, tag] = SplitName(image.name());
    if (!options.wanted.empty() && options.wanted != repository &&
        options.wanted != repository + ":" + tag &&
        options.wanted != image.name()) {
      continue;
    }
    const std::string& digest = image.target().digest();
    const std::string id = options.no_trunc ? digest : ShortDigest(digest);
    if (options.quiet) {
      std::printf("%s\n", id.c_str());
      continue;
    }
    std::string created = "N/A";
    std::string created_at;
    std::string size = "N/A";
    std::string compressed;
    const absl::StatusOr<ImageInfo> info =
        LoadImage(client, image, oci::HostPlatform());
    if (info.ok()) {
      created_at = info->config.created;
      absl::Time when;
      if (absl::ParseTime(absl::RFC3339_full, created_at, &when, nullptr)) {
        created = HumanDuration(absl::Now() - when) + " ago";
      }
      const int64_t bytes = UnpackedBytes(client, *info, snapshotter);
      compressed = HumanBytes(static_cast<double>(info->compressed_bytes));
      size = bytes >= 0 ? HumanBytes(static_cast<double>(bytes))
                        : compressed + " (not unpacked)";
    }
    listing.Add({repository, tag, digest, id, created, size, image.name(),
                 created_at, compressed});
  }
  if (options.quiet) return kExitOk;
  const absl::StatusOr<std::string> text = listing.Render(options.format);
  if (!text.ok()) return Report(text.status(), kExitUsage);
  std::fputs(text->c_str(), stdout);
  return kExitOk;
}

int Tag(Session& session, const std::string& source,
        const std::string& target) {
  Client& client = session.client();
  const absl::StatusOr<oci::Reference> name = oci::ParseNormalized(target);
  if (!name.ok()) return Report(name.status());
  absl::StatusOr<ImageRecord> image = FindImage(client, source);
  if (!image.ok()) return Report(image.status());
  image->set_name(name->str());
  image->clear_created_at();
  image->clear_updated_at();
  images::CreateImageRequest create;
  *create.mutable_image() = *image;
  images::CreateImageResponse created;
  absl::Status status =
      client.Call(std::string(kImages) + "Create", create, &created);
  if (absl::IsAlreadyExists(status)) {
    images::UpdateImageRequest update;
    *update.mutable_image() = *image;
    images::UpdateImageResponse updated;
    status = client.Call(std::string(kImages) + "Update", update, &updated);
  }
  return status.ok() ? kExitOk : Report(status);
}

int RemoveImages(Session& session, const std::vector<std::string>& names,
                 bool force, bool sync) {
  Client& client = session.client();
  int code = kExitOk;
  const absl::StatusOr<std::vector<ContainerRecord>> containers =
      ListContainers(client);
  if (!containers.ok()) return Report(containers.status());
  for (const std::string& name : names) {
    const absl::StatusOr<ImageRecord> image = FindImage(client, name);
    if (!image.ok()) {
      if (force && absl::IsNotFound(image.status())) continue;
      code = Report(absl::IsNotFound(image.status())
                        ? absl::NotFoundError("No such image: " + name)
                        : image.status());
      continue;
    }
    std::string user;
    for (const ContainerRecord& container : *containers) {
      if (container.image() == image->name()) user = NameOf(container);
    }
    if (!user.empty() && !force) {
      code = Report(absl::FailedPreconditionError(absl::StrCat(
          "image ", name, " is used by container ", user,
          " — remove it first (`bulkhead rm ", user, "`), or use -f")));
      continue;
    }
    images::DeleteImageRequest request;
    request.set_name(image->name());
    request.set_sync(sync);
    google::protobuf::Empty empty;
    const absl::Status status =
        client.Call(std::string(kImages) + "Delete", request, &empty);
    if (!status.ok()) {
      code = Report(status);
      continue;
    }
    std::printf("Untagged: %s\n", oci::FamiliarName(image->name()).c_str());
  }
  return code;
}

}  // namespace

void DeclarePull(Command& parent) {
  auto pull = std::make_shared<PullOptions>();
  auto no_unpack = std::make_shared<bool>(false);
  pull->snapshotter.clear();
  parent.Sub("pull", "Pull an image from a registry and unpack it")
      .Flag("-q,--quiet", &pull->quiet, "Print only the digest")
      .Flag("--explain", &pull->explain,
            "Tell each request, its login, its answer, what is tried next")
      .Flag("--plain-http", &pull->plain_http, "Without TLS")
      .Option("--platform", &pull->platform, "Platform [this machine's]",
              "OS/ARCH[/VARIANT]")
      .Option("-u,--user", &pull->user, "Credentials [~/.docker/config.json]",
              "USER:PASSWORD")
      .Option("--snapshotter", &pull->snapshotter, "Snapshotter [overlayfs]")
      .Flag("--no-unpack", no_unpack.get(), "Only store it, every layer")
      .Flag("--all-metadata", &pull->all_metadata,
            "Also the manifests of other platforms, signatures and the like")
      .Option("--hosts-dir", &pull->hosts_dir,
              "Folder with hosts.toml files [the server's]", "DIR")
      .Argument("IMAGE", &pull->reference, "Such as debian:12")
      .Examples(
          "  bulkhead pull debian:12\n"
          "  bulkhead pull --plain-http localhost:5000/busybox")
      .Does([pull, no_unpack](Session& session) {
        pull->unpack = !*no_unpack;
        return Pull(session, *pull);
      });
}

void DeclareImages(Command& parent, const std::string& name) {
  auto list = std::make_shared<ImagesOptions>();
  parent.Sub(name, "List images")
      .Flag("-q,--quiet", &list->quiet, "Only ids")
      .Flag("-a,--all", &list->all, "For Docker's habits; all are shown anyway")
      .Flag("--no-trunc", &list->no_trunc, "Whole ids")
      .Flag("--digests", &list->digests, "Show digests")
      .Option("--format", &list->format, "json, or a template", "FORMAT")
      .Option("--snapshotter", &list->snapshotter, "Whose sizes [overlayfs]")
      .Argument("NAME", &list->wanted, "Only this one", false)
      .Complete(Completes::kImages)
      .Examples(
          "  bulkhead images\n"
          "  bulkhead images --format '{{.Repository}}:{{.Tag}}'")
      .Does([list](Session& session) { return Images(session, *list); });
}

void DeclareTag(Command& parent) {
  auto tag = std::make_shared<std::pair<std::string, std::string>>();
  parent.Sub("tag", "Give an image another name")
      .Argument("IMAGE", &tag->first, "An image")
      .Argument("NAME", &tag->second, "Its new name")
      .Complete(Completes::kImages)
      .Examples("  bulkhead tag debian:12 localhost:5000/debian:12")
      .Does([tag](Session& session) {
        return Tag(session, tag->first, tag->second);
      });
}

void DeclareRemoveImages(Command& parent, const std::string& name) {
  struct RemoveOptions {
    std::vector<std::string> names;
    bool force = false;
    bool sync = false;
  };
  auto remove = std::make_shared<RemoveOptions>();
  parent.Sub(name, "Remove images")
      .Flag("-f,--force", &remove->force, "Even if a container uses it")
      .Flag("--sync", &remove->sync, "Wait until the space is free")
      .Arguments("IMAGE", &remove->names, "Names or digests")
      .Complete(Completes::kImages)
      .Examples("  bulkhead rmi debian:12")
      .Does([remove](Session& session) {
        return RemoveImages(session, remove->names, remove->force,
                            remove->sync);
      });
}

void AddImageCommands(Command& root) {
  DeclarePull(root);
  DeclareImages(root, "images");
  DeclareTag(root);
  DeclareRemoveImages(root, "rmi");
}

}  // namespace bulkhead::cli
