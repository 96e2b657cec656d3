#include "services/runtime/shim/task_wire.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::shim {

using ttrpc::WireReader;
using ttrpc::WireWriter;

std::string Timestamp(timespec at) {
  WireWriter out;
  out.Int(1, at.tv_sec).Int(2, at.tv_nsec);
  return out.Take();
}

void AddExit(uint32_t first, const ExitInfo& exit, WireWriter* out) {
  out->Uint(first, static_cast<uint32_t>(exit.status));
  if (exit.at.tv_sec != 0) out->Message(first + 1, Timestamp(exit.at));
}

absl::Status RuntimeError(const char* what, const std::string& error) {
  return absl::UnknownError(absl::StrCat(what, ": ", error));
}

absl::StatusOr<pid_t> ReadPidFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, os::ReadFile(path, 64));
  const long pid = std::strtol(text.c_str(), nullptr, 10);
  if (pid <= 0) return absl::UnknownError(absl::StrCat("no pid in ", path));
  return static_cast<pid_t>(pid);
}

absl::Status WriteFile(const std::string& path, const std::string& data) {
  ASSIGN_OR_RETURN(os::UniqueFd fd,
                   os::Open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600));
  return os::WriteFull(fd.get(), data.data(), data.size());
}

absl::StatusOr<os::UniqueFd> MemoryFile(const std::string& data) {
  os::UniqueFd fd(::memfd_create("request", MFD_CLOEXEC));
  if (!fd.valid()) return os::ErrnoStatus(errno, "memfd_create");
  RETURN_IF_ERROR(os::PWriteFull(fd.get(), data.data(), data.size(), 0));
  return fd;
}

std::string MakeAny(std::string_view type_url, std::string_view value) {
  WireWriter any;
  any.Str(1, type_url).Str(2, value);
  return any.Take();
}

std::string AnyValue(std::string_view any) {
  std::string value;
  WireReader reader(any);
  while (reader.Next()) {
    if (reader.field() == 2) value = reader.str();
  }
  return value;
}

}  // namespace bulkhead::shim
