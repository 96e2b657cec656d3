// The running hash of an ingest, kept beside its data, so that resuming it need
// not read what was hashed before: the file `hash`. One short line of text.
//
// What it says is true while the machine runs on: the page cache keeps what was
// written even if this process is killed. After a power failure bytes that were
// hashed may be gone or older, so the line names the boot it belongs to.
#ifndef BULKHEAD_SERVICES_CONTENT_HASH_FILE_H_
#define BULKHEAD_SERVICES_CONTENT_HASH_FILE_H_

#include <optional>
#include <string>

#include "lib/digest/digest.h"

namespace bulkhead::content {

constexpr size_t kHashFileBytesMax = 1024;

std::string EncodeHashFile(const std::string& boot_id, const Hasher& hasher);

// nullopt: damaged, of another version or of another boot.
std::optional<Hasher> DecodeHashFile(const std::string& text,
                                     const std::string& boot_id);

}  // namespace bulkhead::content

#endif  // BULKHEAD_SERVICES_CONTENT_HASH_FILE_H_
