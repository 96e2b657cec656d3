// Volumes: folders that outlive containers, below <root>/volumes/<namespace>.
#ifndef BULKHEAD_CLI_VOLUMES_H_
#define BULKHEAD_CLI_VOLUMES_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/client.h"
#include "cli/container.h"
#include "lib/os/mount.h"

namespace bulkhead::cli {

struct Volume {
  std::string name;
  std::string path;  // What is mounted: .../<name>/_data.
  std::string created_at;
  bool anonymous = false;
  std::map<std::string, std::string> labels;
};

// Safe to use from several processes: a volume appears by one rename. Thread-
// safe.
class Volumes {
 public:
  explicit Volumes(Client& client);
  explicit Volumes(std::string folder) : folder_(std::move(folder)) {}

  // Sorted by name.
  absl::StatusOr<std::vector<Volume>> List() const;
  // kNotFound.
  absl::StatusOr<Volume> Find(const std::string& name) const;
  // An empty name makes an anonymous one. One that is there is returned as it
  // is, with *made false. kInvalidArgument: a bad name.
  absl::StatusOr<Volume> Create(
      const std::string& name, const std::map<std::string, std::string>& labels,
      bool* made) const;
  // kNotFound.
  absl::Status Remove(const std::string& name) const;

 private:
  std::string folder_;
};

// Fills a new volume with what the image has at `target`, as Docker does.
// Nothing there is OK.
absl::Status FillVolume(const Volume& volume,
                        const std::vector<os::MountSpec>& image,
                        const std::string& target);

// Names of the volumes that a container mounts, from its record.
std::vector<std::string> VolumesOf(const ContainerRecord& record);

// Removes the anonymous volumes that were made for this container.
absl::Status RemoveAnonymousVolumes(Client& client,
                                    const ContainerRecord& record);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_VOLUMES_H_
