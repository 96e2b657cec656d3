// Programs that judge images, by the contract of containerd's plugin
// io.containerd.image-verifier.v1.bindir: each gets `-name REFERENCE -digest
// DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json`, the
// descriptor on its standard input, and allows the image by the exit code 0;
// what it prints is the reason.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_VERIFIER_PROGRAMS_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_VERIFIER_PROGRAMS_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "lib/oci/image.h"

namespace bulkhead::distribution {

constexpr size_t kVerifierOutputBytesMax = 32 << 10;  // More is dropped.

struct VerifierPrograms {
  std::string bin_dir;
  int programs_max = 10;  // The first by name; negative: all.
  absl::Duration timeout = absl::Seconds(10);  // For each.
};

// Runs them one after the other; blocks. OK: each allowed the image, or the
// folder is empty. A program and all it has started are killed once it has
// answered, or at its time-out, or when `cancelled` says so.
// Errors, naming the program: kPermissionDenied: it refused, with its reason.
//   kDeadlineExceeded: no answer in time. kFailedPrecondition: the folder
//   cannot be read, or a program not be run. kCancelled.
absl::Status RunVerifierPrograms(const VerifierPrograms& programs,
                                 const std::string& reference,
                                 const oci::Descriptor& image,
                                 const std::function<bool()>& cancelled);

// What has to be executable for programs in `bin_dir` to run: the folder, the
// interpreters named, the dynamic loaders of this machine.
std::vector<std::string> ExecutablePaths(
    const std::string& bin_dir, const std::vector<std::string>& interpreters);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_VERIFIER_PROGRAMS_H_
