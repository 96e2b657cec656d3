// Signatures kept in the registry of the image they are for.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_SIGNATURES_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_SIGNATURES_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "services/distribution/registry.h"
#include "services/distribution/trust.h"

namespace bulkhead::distribution {

// Asks the same hosts with the same login as a pull. Not thread-safe.
class RegistrySignatures final : public SignatureSource {
 public:
  explicit RegistrySignatures(const RegistryOptions& options)
      : options_(options) {}

  absl::StatusOr<std::optional<oci::Manifest>> Tagged(
      const std::string& tag) override;
  absl::StatusOr<std::vector<oci::Descriptor>> Referrers(
      const Digest& image) override;
  absl::StatusOr<std::string> Read(const oci::Descriptor& descriptor,
                                   size_t bytes_max) override;

 private:
  Registry& Untagged();

  const RegistryOptions options_;
  std::unique_ptr<Registry> untagged_;  // Made when it is needed.
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_SIGNATURES_H_
