// Compares the compiled descriptors with the tables of the wire contract
// (proto/testdata), row by row, in both directions.
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "google/protobuf/descriptor.pb.h"
#include "proto/containerd/events/container.pb.h"
#include "proto/containerd/events/content.pb.h"
#include "proto/containerd/events/image.pb.h"
#include "proto/containerd/events/namespace.pb.h"
#include "proto/containerd/events/sandbox.pb.h"
#include "proto/containerd/events/snapshot.pb.h"
#include "proto/containerd/events/task.pb.h"
#include "proto/containerd/runc/v1/options.pb.h"
#include "proto/containerd/runtime/bootstrap/v1/bootstrap.pb.h"
#include "proto/containerd/runtime/sandbox/v1/sandbox.pb.h"
#include "proto/containerd/services/containers/v1/containers.pb.h"
#include "proto/containerd/services/content/v1/content.pb.h"
#include "proto/containerd/services/diff/v1/diff.pb.h"
#include "proto/containerd/services/events/ttrpc/v1/events.pb.h"
#include "proto/containerd/services/events/v1/events.pb.h"
#include "proto/containerd/services/images/v1/images.pb.h"
#include "proto/containerd/services/introspection/v1/introspection.pb.h"
#include "proto/containerd/services/leases/v1/leases.pb.h"
#include "proto/containerd/services/mounts/v1/mounts.pb.h"
#include "proto/containerd/services/namespaces/v1/namespaces.pb.h"
#include "proto/containerd/services/sandbox/v1/sandbox.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.pb.h"
#include "proto/containerd/services/streaming/v1/streaming.pb.h"
#include "proto/containerd/services/tasks/v1/tasks.pb.h"
#include "proto/containerd/services/transfer/v1/transfer.pb.h"
#include "proto/containerd/services/version/v1/version.pb.h"
#include "proto/containerd/task/v2/task.pb.h"
#include "proto/containerd/task/v3/task.pb.h"
#include "proto/containerd/types/descriptor.pb.h"
#include "proto/containerd/types/event.pb.h"
#include "proto/containerd/types/introspection.pb.h"
#include "proto/containerd/types/metrics.pb.h"
#include "proto/containerd/types/mount.pb.h"
#include "proto/containerd/types/platform.pb.h"
#include "proto/containerd/types/sandbox.pb.h"
#include "proto/containerd/types/transfer/container.pb.h"
#include "proto/containerd/types/transfer/imagestore.pb.h"
#include "proto/containerd/types/transfer/importexport.pb.h"
#include "proto/containerd/types/transfer/progress.pb.h"
#include "proto/containerd/types/transfer/registry.pb.h"
#include "proto/containerd/types/transfer/streaming.pb.h"
#include "proto/containerd/v1/types/task.pb.h"
#include "proto/google/rpc/status.pb.h"
#include "proto/io/containerd/cgroups/v1/metrics.pb.h"
#include "proto/io/containerd/cgroups/v2/metrics.pb.h"
#include "proto/nri/pkg/api/v1alpha1/api.pb.h"
#include "proto/runtime/v1/api.pb.h"
#include "proto/runtimeoptions/v1/options.pb.h"
#include "proto/ttrpc/request.pb.h"

namespace bulkhead {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;
using google::protobuf::MethodDescriptor;
using google::protobuf::ServiceDescriptor;

std::vector<const FileDescriptor*> Files() {
  return {
      ::containerd::events::ContainerCreate::descriptor()->file(),
      ::containerd::events::ContentCreate::descriptor()->file(),
      ::containerd::services::images::v1::ImageCreate::descriptor()->file(),
      ::containerd::events::NamespaceCreate::descriptor()->file(),
      ::containerd::events::SandboxCreate::descriptor()->file(),
      ::containerd::events::SnapshotPrepare::descriptor()->file(),
      ::containerd::events::TaskCreate::descriptor()->file(),
      ::containerd::runc::v1::Options::descriptor()->file(),
      ::containerd::runtime::bootstrap::v1::BootstrapParams::descriptor()
          ->file(),
      ::containerd::runtime::sandbox::v1::CreateSandboxRequest::descriptor()
          ->file(),
      ::containerd::services::containers::v1::Container::descriptor()->file(),
      ::containerd::services::content::v1::Info::descriptor()->file(),
      ::containerd::services::diff::v1::ApplyRequest::descriptor()->file(),
      ::containerd::services::events::ttrpc::v1::ForwardRequest::descriptor()
          ->file(),
      ::containerd::services::events::v1::PublishRequest::descriptor()->file(),
      ::containerd::services::images::v1::Image::descriptor()->file(),
      ::containerd::services::introspection::v1::Plugin::descriptor()->file(),
      ::containerd::services::leases::v1::Lease::descriptor()->file(),
      ::containerd::services::mounts::v1::ActivateRequest::descriptor()->file(),
      ::containerd::services::namespaces::v1::Namespace::descriptor()->file(),
      ::containerd::services::sandbox::v1::StoreCreateRequest::descriptor()
          ->file(),
      ::containerd::services::snapshots::v1::PrepareSnapshotRequest::
          descriptor()
              ->file(),
      ::containerd::services::streaming::v1::StreamInit::descriptor()->file(),
      ::containerd::services::tasks::v1::CreateTaskRequest::descriptor()
          ->file(),
      ::containerd::services::transfer::v1::TransferRequest::descriptor()
          ->file(),
      ::containerd::services::version::v1::VersionResponse::descriptor()
          ->file(),
      ::containerd::task::v2::CreateTaskRequest::descriptor()->file(),
      ::containerd::task::v3::CreateTaskRequest::descriptor()->file(),
      ::containerd::types::Descriptor::descriptor()->file(),
      ::containerd::types::Envelope::descriptor()->file(),
      ::containerd::types::RuntimeRequest::descriptor()->file(),
      ::containerd::types::Metric::descriptor()->file(),
      ::containerd::types::Mount::descriptor()->file(),
      ::containerd::types::Platform::descriptor()->file(),
      ::containerd::types::Sandbox::descriptor()->file(),
      ::containerd::types::transfer::ContainerPath::descriptor()->file(),
      ::containerd::types::transfer::ImageStore::descriptor()->file(),
      ::containerd::types::transfer::ImageImportStream::descriptor()->file(),
      ::containerd::types::transfer::Progress::descriptor()->file(),
      ::containerd::types::transfer::OCIRegistry::descriptor()->file(),
      ::containerd::types::transfer::Data::descriptor()->file(),
      ::containerd::v1::types::Process::descriptor()->file(),
      ::google::rpc::Status::descriptor()->file(),
      ::io::containerd::cgroups::v1::Metrics::descriptor()->file(),
      ::io::containerd::cgroups::v2::Metrics::descriptor()->file(),
      ::nri::pkg::api::v1alpha1::RegisterPluginRequest::descriptor()->file(),
      ::runtime::v1::VersionRequest::descriptor()->file(),
      ::runtimeoptions::v1::Options::descriptor()->file(),
      ::ttrpc::Request::descriptor()->file(),
  };
}

std::string ScalarOrName(const FieldDescriptor& field) {
  if (field.message_type() != nullptr) return field.message_type()->full_name();
  if (field.enum_type() != nullptr) return field.enum_type()->full_name();
  return field.type_name();
}

// A field's type as the tables write it.
std::string TypeOf(const FieldDescriptor& field) {
  if (field.is_map()) {
    return absl::StrCat("map<", ScalarOrName(*field.message_type()->map_key()),
                        ",", ScalarOrName(*field.message_type()->map_value()),
                        ">");
  }
  const char* prefix = "";
  if (field.is_repeated()) prefix = "repeated ";
  if (field.has_optional_keyword()) prefix = "optional ";
  return absl::StrCat(prefix, ScalarOrName(field));
}

void AddMessage(const Descriptor& message, std::set<std::string>* rows) {
  if (message.options().map_entry()) return;
  const std::string& owner = message.full_name();
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    rows->insert(absl::StrCat(
        "field\t", owner, "\t", field.number(), "\t", TypeOf(field), "\t",
        field.name(), field.options().deprecated() ? " deprecated" : ""));
  }
  for (int i = 0; i < message.reserved_range_count(); ++i) {
    const Descriptor::ReservedRange& range = *message.reserved_range(i);
    rows->insert(absl::StrCat("reserved\t", owner, "\t", range.start, "..",
                              range.end - 1, "\t\t"));
  }
  if (message.field_count() == 0 && message.nested_type_count() == 0 &&
      message.enum_type_count() == 0) {
    rows->insert(absl::StrCat("message\t", owner, "\t\t\t(no fields)"));
  }
  for (int i = 0; i < message.nested_type_count(); ++i) {
    AddMessage(*message.nested_type(i), rows);
  }
}

void AddEnum(const EnumDescriptor& values, std::set<std::string>* rows) {
  for (int i = 0; i < values.value_count(); ++i) {
    rows->insert(absl::StrCat("enum\t", values.full_name(), "\t",
                              values.value(i)->number(), "\t\t",
                              values.value(i)->name()));
  }
}

void AddNestedEnums(const Descriptor& message, std::set<std::string>* rows) {
  for (int i = 0; i < message.enum_type_count(); ++i) {
    AddEnum(*message.enum_type(i), rows);
  }
  for (int i = 0; i < message.nested_type_count(); ++i) {
    AddNestedEnums(*message.nested_type(i), rows);
  }
}

void AddService(const ServiceDescriptor& service, std::set<std::string>* rows) {
  for (int i = 0; i < service.method_count(); ++i) {
    const MethodDescriptor& method = *service.method(i);
    rows->insert(absl::StrCat("rpc\t", service.full_name(), "\t", method.name(),
                              "\t", method.client_streaming() ? "stream " : "",
                              method.input_type()->full_name(), "\t",
                              method.server_streaming() ? "stream " : "",
                              method.output_type()->full_name()));
  }
}

// What the tables say of google.rpc.Status is nothing: it is not theirs.
std::set<std::string> Compiled() {
  std::set<std::string> rows;
  for (const FileDescriptor* file : Files()) {
    if (file->package() == "google.rpc") continue;
    for (int i = 0; i < file->message_type_count(); ++i) {
      AddMessage(*file->message_type(i), &rows);
      AddNestedEnums(*file->message_type(i), &rows);
    }
    for (int i = 0; i < file->enum_type_count(); ++i) {
      AddEnum(*file->enum_type(i), &rows);
    }
    for (int i = 0; i < file->service_count(); ++i) {
      AddService(*file->service(i), &rows);
    }
  }
  return rows;
}

std::set<std::string> Tables() {
  std::set<std::string> rows;
  for (const char* name : {"cgroups1.tsv",
                           "cgroups2.tsv",
                           "cri.tsv",
                           "events.tsv",
                           "nri.tsv",
                           "runtime.tsv",
                           "services-containers.tsv",
                           "services-content.tsv",
                           "services-diff.tsv",
                           "services-events.tsv",
                           "services-images.tsv",
                           "services-introspection.tsv",
                           "services-leases.tsv",
                           "services-mounts.tsv",
                           "services-namespaces.tsv",
                           "services-sandbox.tsv",
                           "services-snapshots.tsv",
                           "services-streaming.tsv",
                           "services-tasks.tsv",
                           "services-transfer.tsv",
                           "services-ttrpc-events.tsv",
                           "services-version.tsv",
                           "ttrpc.tsv",
                           "types.tsv"}) {
    std::ifstream table(absl::StrCat("proto/testdata/", name));
    EXPECT_TRUE(table.good()) << name;
    std::string line;
    while (std::getline(table, line)) {
      if (line.empty() || line[0] == '#') continue;
      rows.insert(line);
    }
  }
  return rows;
}

TEST(WireContract, EveryRowOfTheTablesIsCompiled) {
  const std::set<std::string> compiled = Compiled();
  const std::set<std::string> tables = Tables();
  EXPECT_GT(tables.size(), 2000u);
  for (const std::string& row : tables) {
    EXPECT_TRUE(compiled.count(row) == 1) << "missing: " << row;
  }
}

TEST(WireContract, NothingIsCompiledThatTheTablesDoNotHave) {
  const std::set<std::string> tables = Tables();
  for (const std::string& row : Compiled()) {
    EXPECT_TRUE(tables.count(row) == 1) << "extra: " << row;
  }
}

}  // namespace
}  // namespace bulkhead
