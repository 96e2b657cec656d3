// cp.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/container_root.h"
#include "cli/format.h"
#include "cli/tar_copy.h"
#include "cli/tree_copy.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {
namespace {

// One side of `cp`.
struct Place {
  std::string container;  // Empty: this machine.
  std::string path;
};

Place ParsePlace(const std::string& text) {
  const size_t colon = text.find(':');
  // "./a:b" and "/a:b" are files.
  if (colon == std::string::npos || colon == 0 || text[0] == '/' ||
      text[0] == '.') {
    return {"", text};
  }
  return {text.substr(0, colon), text.substr(colon + 1)};
}

// The folder and the name that a path ends in; the name is empty if the path
// names a folder's contents ("a/.", "/").
std::pair<std::string, std::string> SplitPath(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const size_t slash = path.rfind('/');
  std::string name = path.substr(slash == std::string::npos ? 0 : slash + 1);
  if (name.empty() || name == "." || name == "..") return {path, ""};
  return {slash == std::string::npos ? "." : path.substr(0, slash + 1), name};
}

constexpr int kLinksFollowedMax = 40;  // As the kernel's own limit.

// `path` with the symlink that it may end in followed, within `root`.
absl::StatusOr<std::string> FollowLast(int root, std::string path) {
  for (int i = 0; i < kLinksFollowedMax; ++i) {
    const auto [folder, name] = SplitPath(path);
    if (name.empty()) return path;
    ASSIGN_OR_RETURN(const os::UniqueFd parent,
                     os::OpenInRoot(root, folder, O_PATH | O_DIRECTORY));
    std::string link(PATH_MAX, '\0');
    const ssize_t size =
        ::readlinkat(parent.get(), name.c_str(), link.data(), link.size());
    if (size < 0) {
      if (errno == EINVAL) return path;  // No symlink.
      return os::ErrnoStatus(errno, path);
    }
    link.resize(static_cast<size_t>(size));
    path = link[0] == '/' ? link : absl::StrCat(folder, "/", link);
  }
  return absl::FailedPreconditionError(
      absl::StrCat("too many symbolic links at ", path));
}

absl::Status CopyBetween(int from_root, const std::string& named, int to_root,
                         const std::string& to, bool follow,
                         const CopyOptions& options) {
  std::string from = named;
  if (follow) {
    ASSIGN_OR_RETURN(from, FollowLast(from_root, named));
  }
  const auto [from_folder, from_name] = SplitPath(from);
  // A copy is named as it was asked for.
  const std::string own_name = SplitPath(named).second;
  ASSIGN_OR_RETURN(
      const os::UniqueFd source_folder,
      os::OpenInRoot(from_root, from_folder, O_PATH | O_DIRECTORY));
  ASSIGN_OR_RETURN(
      const os::UniqueFd source,
      os::OpenInRoot(from_root, from,
                     O_PATH | (from_name.empty() ? 0 : O_NOFOLLOW)));
  struct stat info {};
  if (::fstat(source.get(), &info) != 0) return os::ErrnoStatus(errno, from);
  const absl::StatusOr<os::UniqueFd> target =
      os::OpenInRoot(to_root, to, O_PATH | O_DIRECTORY);
  if (S_ISDIR(info.st_mode)) {
    if (target.ok() && from_name.empty()) {
      return CopyContents(source.get(), target->get(), options);
    }
    const auto [to_folder, to_name] = SplitPath(to);
    ASSIGN_OR_RETURN(const os::UniqueFd parent,
                     os::OpenInRoot(to_root, target.ok() ? to : to_folder,
                                    O_PATH | O_DIRECTORY));
    const std::string name = target.ok() ? own_name : to_name;
    if (::mkdirat(parent.get(), name.c_str(), info.st_mode & 07777) != 0 &&
        errno != EEXIST) {
      return os::ErrnoStatus(errno, "mkdir " + name);
    }
    ASSIGN_OR_RETURN(
        const os::UniqueFd made,
        os::OpenAt(parent.get(), name, O_PATH | O_DIRECTORY | O_NOFOLLOW));
    return CopyContents(source.get(), made.get(), options);
  }
  std::string name = own_name;
  std::string folder = to;
  if (!target.ok()) {
    if (to.empty() || to.back() == '/') {
      return absl::NotFoundError(absl::StrCat("no folder ", to));
    }
    std::tie(folder, name) = SplitPath(to);
  }
  ASSIGN_OR_RETURN(const os::UniqueFd parent,
                   os::OpenInRoot(to_root, folder, O_PATH | O_DIRECTORY));
  return CopyEntry(source_folder.get(), from_name, parent.get(), name, options);
}

std::string Absolute(const std::string& path) {
  if (!path.empty() && path[0] == '/') return path;
  char folder[PATH_MAX];
  if (::getcwd(folder, sizeof(folder)) == nullptr) return path;
  return absl::StrCat(folder, "/", path);
}

// A container's file or folder to standard output.
absl::Status ToStream(int root, const std::string& named, bool follow) {
  std::string path = named;
  if (follow) {
    ASSIGN_OR_RETURN(path, FollowLast(root, named));
  }
  const auto [folder, name] = SplitPath(path);
  ASSIGN_OR_RETURN(const os::UniqueFd parent,
                   os::OpenInRoot(root, folder, O_PATH | O_DIRECTORY));
  // "/" and "a/." are named "." in the archive, as what unpacks in place.
  std::string as = SplitPath(named).second;
  if (as.empty()) as.assign(1, '.');
  return WriteTar(parent.get(), name.empty() ? "." : name, as, STDOUT_FILENO);
}

struct CopyFlags {
  std::string from;
  std::string to;
  bool archive = false;
  bool follow = false;
  bool quiet = false;
};

int Copy(Session& session, const CopyFlags& flags) {
  Client& client = session.client();
  const bool streamed = flags.from == "-" || flags.to == "-";
  Place from = ParsePlace(flags.from);
  Place to = ParsePlace(flags.to);
  if (from.container.empty() == to.container.empty()) {
    return Report(absl::InvalidArgumentError(
                      "exactly one side is CONTAINER:PATH (a file of this "
                      "machine with a ':' is written ./like:this)"),
                  kExitUsage);
  }
  if (flags.to == "-" && ::isatty(STDOUT_FILENO)) {
    return Report(absl::InvalidArgumentError(
                      "an archive is nothing for a terminal: redirect it"),
                  kExitUsage);
  }
  const std::string& name =
      from.container.empty() ? to.container : from.container;
  const absl::StatusOr<ContainerRecord> record = FindContainer(client, name);
  if (!record.ok()) return Report(record.status());
  const absl::StatusOr<os::UniqueFd> here = os::Open("/", O_PATH | O_DIRECTORY);
  if (!here.ok()) return Report(here.status());
  const CopyOptions options{flags.archive};
  const bool inward = from.container.empty();
  const absl::Status copied =
      WithRoot(client, *record, inward, [&](int root) -> absl::Status {
        if (streamed) {
          return inward ? ReadTar(STDIN_FILENO, root, to.path, options)
                        : ToStream(root, from.path, flags.follow);
        }
        if (inward) {
          return CopyBetween(here->get(), Absolute(from.path), root, to.path,
                             flags.follow, options);
        }
        return CopyBetween(root, from.path, here->get(), Absolute(to.path),
                           flags.follow, options);
      });
  return copied.ok()
             ? kExitOk
             : Report(Annotate(copied, absl::StrCat("copying ", flags.from,
                                                    " to ", flags.to)));
}

}  // namespace

void AddCopyCommand(Command& root) {
  auto copy = std::make_shared<CopyFlags>();
  root.Sub("cp", "Copy files between a container and this machine")
      .Flag("-a,--archive", &copy->archive, "Keep owners")
      .Flag("-L,--follow-link", &copy->follow,
            "Where FROM is a symbolic link, copy what it leads to")
      .Flag("-q,--quiet", &copy->quiet, "Print nothing (it never does)")
      .Argument("FROM", &copy->from, "PATH, CONTAINER:PATH or -")
      .Argument("TO", &copy->to, "PATH, CONTAINER:PATH or -")
      .Complete(Completes::kContainers)
      .Examples(
          "  bulkhead cp web:/etc/nginx ./nginx\n"
          "  bulkhead cp ./site/. web:/srv/www\n"
          "  bulkhead cp web:/var/log - | tar -t\n"
          "  tar -c site | bulkhead cp - web:/srv\n\n"
          "A folder is copied into one that is there; FROM/. means what is in "
          "it.\n- is a tar archive on standard input or output.\n"
          "No link of either side leads the copy out of the container.")
      .Does([copy](Session& session) { return Copy(session, *copy); });
}

}  // namespace bulkhead::cli
