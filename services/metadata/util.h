// Rules that every kind of object shares: identifiers, labels, field masks.
#ifndef BULKHEAD_SERVICES_METADATA_UTIL_H_
#define BULKHEAD_SERVICES_METADATA_UTIL_H_

#include <google/protobuf/map.h>
#include <google/protobuf/timestamp.pb.h>

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "lib/base/status_macros.h"

namespace bulkhead::metadata {

using LabelMap = google::protobuf::Map<std::string, std::string>;

constexpr size_t kLabelBytesMax = 4096;
constexpr size_t kIdentifierBytesMax = 76;

google::protobuf::Timestamp Now();
google::protobuf::Timestamp ToTimestamp(absl::Time time);
absl::Time ToTime(const google::protobuf::Timestamp& timestamp);

// As Go's %q prints it, for names without odd characters.
std::string Quoted(const std::string& text);

// Container ids, sandbox ids, namespaces, topic components; containerd's
// texts.
absl::Status CheckIdentifier(const std::string& id);

// kInvalidArgument, with `context` in front: key and value over
// kLabelBytesMax together.
absl::Status CheckLabels(const LabelMap& labels, const std::string& context);

// Removes labels with an empty value: they are never stored.
void DropEmpty(LabelMap* labels);

// True for `prefix`.<key>; sets `key` to everything after the dot.
bool MaskKey(const std::string& path, const std::string& prefix,
             std::string* key);

// labels[key] = from[key]; absent or empty deletes.
void SetLabel(const std::string& key, const LabelMap& from, LabelMap* labels);

// When the object expires by its gc.expire label: nullopt if it has none or
// one that does not parse.
bool Expired(const LabelMap& labels, absl::Time now);

inline constexpr char kLabelExpire[] = "containerd.io/gc.expire";
inline constexpr char kLabelFlat[] = "containerd.io/gc.flat";
inline constexpr char kLabelRoot[] = "containerd.io/gc.root";
inline constexpr char kLabelSnapshotRef[] = "containerd.io/snapshot.ref";

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_UTIL_H_
