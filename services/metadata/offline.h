// What can be done to the database while no metadata service runs:
//   repair --root ROOT        salvages what RocksDB can still read
//   restore DIR --root ROOT   puts a backup in place; what was there is kept
//                             beside it as db.before-restore-<seconds>
#ifndef BULKHEAD_SERVICES_METADATA_OFFLINE_H_
#define BULKHEAD_SERVICES_METADATA_OFFLINE_H_

#include <string>

#include "absl/status/status.h"

namespace bulkhead::metadata {

bool IsOfflineCommand(const std::string& word);
// Returns the exit code: 0, 1 (failed, one line on stderr) or 2 (usage).
int OfflineMain(int argc, char** argv);

// Errors: kFailedPrecondition: a service has the database open. kNotFound: no
// database there.
absl::Status RepairDatabase(const std::string& root);
// Checks that the backup opens before anything is moved. Files get the owner of
// ROOT/metadata. Errors: kFailedPrecondition: a service has the database open.
//   kNotFound: `directory` is no backup. kDataLoss: the backup is damaged.
absl::Status RestoreDatabase(const std::string& directory,
                             const std::string& root);

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_OFFLINE_H_
