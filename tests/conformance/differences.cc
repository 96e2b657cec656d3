#include "tests/conformance/daemons.h"

namespace bulkhead::conformance {

const std::vector<Rule>& Rules() {
  static const std::vector<Rule> kRules = {
      {"(: (invalid argument|not found|already exists|failed precondition|out "
       "of range|unavailable|not implemented))+$",
       "",
       "every message of ours ends with its class, once; 1.6 forgets or "
       "repeats it"},
      {"(info\\.)?Labels: label key and value( length \\([0-9]+ bytes\\))?",
       "Labels: label key and value",
       "the text of 2.x, which gives the length"},
      {"failed to (create snapshot|get active mount|get snapshot mount|commit "
       "snapshot|commit|get active snapshot): ",
       "", "our backend is another process: no layers of wrapping"},
      {"NS/SEQ/", "",
       "1.6 shows the backend's key where we show the client's, and we the "
       "backend's ref in a size mismatch"},
      {" options: \"index=off\"", "",
       "2.x appends index=off, 1.6 puts it first"},
      {" total: [0-9]+ digest", " digest",
       "we tell a resumed ingest's total, 1.6 only what this stream said"},
      {"^3 (create container failed validation|update failed validation): ",
       "3 ", "1.6 wraps once more"},
      {"^([29]) (failed publishing event|subscription error: failed parsing "
       "subscription filters): ",
       "$1 ", "as above"},
      {"type: \"btrfs\" source: \"/dev/[^\"]*\" options: \"subvolid=[0-9]+\" "
       "options: \"ro\"",
       "type: \"bind\" source: \"DIR/N\" options: \"rbind\" options: \"ro\"",
       "containerd mounts a subvolume by its number from the device, we the "
       "folder that it is: whoever mounts need not see the device"},
      {"type: \"btrfs\" source: \"/dev/[^\"]*\" options: \"subvolid=[0-9]+\"",
       "type: \"bind\" source: \"DIR/N\" options: \"rbind\" options: \"rw\"",
       "as above"},
      {"failed validation on component", "component",
       "our text; the code is the same"},
  };
  return kRules;
}

const std::vector<Difference>& Differences() {
  static const std::vector<Difference> kRows = {
      {"content-write/negative", "11 write @-1", "offset: 6",
       "a negative offset is a client's mistake, not an append"},
      {"content-write/bad-expected", "3 \"sha256:12\" failed validation",
       "9 unexpected commit digest", "what is no digest cannot be expected"},
      {"content-write/exists-later", "exists", "exists",
       "2.x quotes the digest"},
      {"content-write/unknown-action", "3 unknown write action", "action: 7",
       "an action that does not exist is refused"},
      {"content-write/sha512", "sha512:", "9 unexpected commit digest",
       "1.6 commits sha256 only; 2.x and we hash again"},
      {"content-write/status-sticky", "total: 30", "offset: 5 total: 30",
       "another total starts the ingest anew: 1.6 says so but keeps the bytes"},
      {"content-write/statuses", "total: 30", "offset: 5 total: 30",
       "as status-sticky"},
      {"content-write/leased", "sha512:", "\"r8\"", "as sha512"},
      {"content/delete-*", "failed validation", "digest",
       "one text for a bad digest; 1.6 has three"},
      {"content/read-*", "failed validation", "digest", "as delete-*"},
      {"content/update-empty", "key: \"\"", "2 writing labels",
       "1.6's database cannot keep an empty key and answers UNKNOWN"},
      {"namespaces/delete-bad-*", "3 identifier", "5 namespace",
       "what cannot be a namespace is refused before it is looked for"},
      {"leases/add-content-shape", "content resource type", "resource type",
       "2.x's text"},
      {"leases/add-image", "0 ", "12 ", "1.6 cannot lease images, 2.x can"},
      {"leases/add-empty-id", "0 ", "2 key required",
       "1.6's database cannot keep an empty key and answers UNKNOWN"},
      {"leases/resources", "images", "ingests", "as add-image"},
      {"leases/resources-2", "images", "ingests", "as add-image"},
      {"snapshots/no-key", "3 snapshot key missing", "2 bucket name required",
       "a client's mistake is INVALID_ARGUMENT"},
      {"snapshots/commit-no-name", "3 snapshot name missing",
       "2 bucket name required", "as no-key"},
      {"native/commit-view", "9 snapshot \"v\" is not active", "2 lstat",
       "1.6 looks for the view's folder first and shows its path"},
      {"namespaces/create", "{ key: \"a\" value: \"b\" } }}", "key: \"e\"",
       "1.6 answers with the empty label that it does not keep"},
      {"containers/delete-nothing", "cannot delete container c",
       "cannot delete container \"c\" in namespace",
       "one text, whether the namespace has other containers or none"},
      {"containers/empty-extension", "must not be empty",
       "must not be zero-length", "our text; the code is the same"},
      {"containers/update-no-id", "must specify a container id",
       "Container.ID required", "our text; the code is the same"},
      {"containers/extensions-kept", "key: \"only\"", "key: \"new\"",
       "1.6 never deletes an extension: replacing all of them adds only"},
      {"native/no-key", "3 snapshot key missing", "2 bucket name required",
       "as snapshots/no-key"},
      {"native/commit-no-name", "3 snapshot name missing",
       "2 bucket name required", "as snapshots/no-key"},
      {"btrfs/no-key", "3 snapshot key missing", "2 bucket name required",
       "as snapshots/no-key"},
      {"btrfs/commit-no-name", "3 snapshot name missing",
       "2 bucket name required", "as snapshots/no-key"},
      {"proxy/no-key", "3 snapshot key missing", "2 bucket name required",
       "as snapshots/no-key"},
      {"proxy/commit-no-name", "3 snapshot name missing",
       "2 bucket name required", "as snapshots/no-key"},
      {"lease-headers/held-other", "snapshots/native p1", "content",
       "2.x and we add a snapshot that is there already to the lease that "
       "asked for it, 1.6 blobs only"},
      {"lease-headers/held-other-after-commit", "snapshots/native layer",
       "snapshots/native v1", "as held-other"},
      {"lease-headers/held-other-after-deletes", "snapshots/native layer",
       "snapshots/native v1", "as held-other"},
      {"expiring/no-lease", "5 lease does not exist", "0 ",
       "1.6 cannot lease images, 2.x can"},
      {"expiring/held", "images j", "", "as no-lease"},
  };
  return kRows;
}

}  // namespace bulkhead::conformance
