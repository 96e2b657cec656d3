#include "services/distribution/store.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::distribution {

bool HasNamePrefix(const std::string& name, const std::string& prefix) {
  if (prefix.empty() || name == prefix) return true;
  if (!absl::StartsWith(name, prefix)) return false;
  const char last = prefix.back();
  const char next = name[prefix.size()];
  return last == '/' || next == '/' || next == ':' || next == '@';
}

absl::StatusOr<std::string> ReadStoredDocument(
    Store& store, const oci::Descriptor& descriptor) {
  const std::string& digest = descriptor.digest.str();
  ASSIGN_OR_RETURN(const dataplane::OpenedBlob blob, store.Open(digest));
  if (blob.size_bytes > oci::kDocumentBytesMax) {
    return absl::ResourceExhaustedError(absl::StrCat(
        digest, ": ", blob.size_bytes, " bytes, more than the limit of ",
        oci::kDocumentBytesMax));
  }
  std::string bytes(static_cast<size_t>(blob.size_bytes), '\0');
  ASSIGN_OR_RETURN(const size_t got,
                   os::PReadFull(blob.fd.get(), bytes.data(), bytes.size(), 0));
  bytes.resize(got);
  if (Digest::Of(bytes, descriptor.digest.algorithm()) != descriptor.digest) {
    return absl::DataLossError(
        absl::StrCat(digest, ": the stored bytes have another digest"));
  }
  return bytes;
}

}  // namespace bulkhead::distribution
