// Names of images: "debian", "ghcr.io/a/b:tag", "localhost:5000/x@sha256:...".
#ifndef BULKHEAD_LIB_OCI_REFERENCE_H_
#define BULKHEAD_LIB_OCI_REFERENCE_H_

#include <string>

#include "absl/status/statusor.h"
#include "lib/digest/digest.h"

namespace bulkhead::oci {

constexpr size_t kReferenceBytesMax = 1024;
constexpr size_t kRepositoryBytesMax = 255;
constexpr size_t kTagBytesMax = 128;

// A full reference: host, repository and a tag, a digest or both.
struct Reference {
  std::string host;        // "docker.io", "localhost:5000", "[::1]:5000".
  std::string repository;  // "library/debian".
  std::string tag;         // May be empty.
  Digest digest;           // May be empty.

  // "host/repository[:tag][@digest]": what images are called in the store.
  std::string str() const;
  // "host/repository".
  std::string Locator() const { return host + "/" + repository; }
  // What to ask the registry for: the digest if there is one, else the tag.
  std::string Object() const { return digest.empty() ? tag : digest.str(); }
};

// What people type: a name without a host is docker.io's, one without a slash
// there is in "library/"; without tag and digest it gets ":latest".
// "index.docker.io" becomes "docker.io".
// Errors: kInvalidArgument with the offending part.
absl::StatusOr<Reference> ParseNormalized(const std::string& text);

// What the API carries: the first component is always the host, nothing is
// added. Errors: kInvalidArgument.
absl::StatusOr<Reference> ParseFull(const std::string& text);

// The short form for people: without docker.io/ and library/.
std::string Familiar(const Reference& reference);
// The same for any image name; one that does not parse is returned as it is.
std::string FamiliarName(const std::string& image_name);

}  // namespace bulkhead::oci

#endif  // BULKHEAD_LIB_OCI_REFERENCE_H_
