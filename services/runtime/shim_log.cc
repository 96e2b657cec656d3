#include "services/runtime/shim_log.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "lib/log/log.h"
#include "services/runtime/bundle.h"

namespace bulkhead::runtime {
namespace {

constexpr size_t kLogLineBytesMax = 4096;

}  // namespace

std::shared_ptr<os::UniqueFd> CopyShimLog(ttrpc::Reactor& reactor,
                                          const std::string& bundle,
                                          const std::string& ns,
                                          const std::string& id) {
  absl::StatusOr<os::UniqueFd> fd = os::Open(
      absl::StrCat(bundle, "/", kLogFifo), O_RDWR | O_NONBLOCK | O_NOFOLLOW);
  if (!fd.ok()) return nullptr;
  auto log = std::make_shared<os::UniqueFd>(std::move(*fd));
  auto line = std::make_shared<std::string>();
  reactor.Watch(log->get(), EPOLLIN, [log, line, ns, id](uint32_t) {
    char buffer[4096];
    const ssize_t n = ::read(log->get(), buffer, sizeof(buffer));
    for (ssize_t i = 0; i < n; ++i) {
      if (buffer[i] != '\n') line->push_back(buffer[i]);
      if (buffer[i] == '\n' || line->size() >= kLogLineBytesMax) {
        log::Info("shim", {{"ns", ns}, {"id", id}, {"line", *line}});
        line->clear();
      }
    }
  });
  return log;
}

}  // namespace bulkhead::runtime
