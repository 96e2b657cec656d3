#include "services/distribution/registry_signatures.h"

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::distribution {

Registry& RegistrySignatures::Untagged() {
  if (untagged_ == nullptr) untagged_ = std::make_unique<Registry>(options_);
  return *untagged_;
}

absl::StatusOr<std::optional<oci::Manifest>> RegistrySignatures::Tagged(
    const std::string& tag) {
  RegistryOptions options = options_;
  options.reference.tag = tag;
  options.reference.digest = Digest();
  Registry registry(std::move(options));
  const absl::StatusOr<oci::Descriptor> found = registry.Resolve();
  if (absl::IsNotFound(found.status())) return std::optional<oci::Manifest>();
  if (!found.ok()) return found.status();
  ASSIGN_OR_RETURN(const std::string text, registry.FetchDocument(*found));
  ASSIGN_OR_RETURN(oci::Manifest manifest, oci::ParseManifest(text));
  return std::optional<oci::Manifest>(std::move(manifest));
}

absl::StatusOr<std::vector<oci::Descriptor>> RegistrySignatures::Referrers(
    const Digest& image) {
  return Untagged().Referrers(image, "");
}

absl::StatusOr<std::string> RegistrySignatures::Read(
    const oci::Descriptor& descriptor, size_t bytes_max) {
  if (descriptor.size_bytes <= 0 ||
      descriptor.size_bytes > static_cast<int64_t>(bytes_max)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(descriptor.digest.str(), ": a part of a signature has ",
                     descriptor.size_bytes, " bytes; from 1 to ", bytes_max,
                     " are expected"));
  }
  // Never from a place that the signature itself names.
  oci::Descriptor plain = descriptor;
  plain.urls.clear();
  return Untagged().FetchDocument(plain);
}

}  // namespace bulkhead::distribution
