// The conformance suite through a Unix socket; Diff.Apply and the data socket.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/dataplane/dataplane.h"
#include "lib/digest/digest.h"
#include "lib/os/socket.h"
#include "lib/rpc/status.h"
#include "lib/testing/grpc_fixture.h"
#include "lib/testing/temp_dir.h"
#include "services/snapshotter/data_server.h"
#include "services/snapshotter/diff_service.h"
#include "services/snapshotter/loop_fs.h"
#include "services/snapshotter/snapshots_service.h"
#include "services/snapshotter/snapshotter_conformance.h"
#include "services/snapshotter/tree_snapshotter.h"

namespace bulkhead::snapshotter {
namespace {

namespace v1 = containerd::services::snapshots::v1;
namespace content_v1 = containerd::services::content::v1;
namespace diff_v1 = containerd::services::diff::v1;
using ::bulkhead::testing::GrpcServer;
using ::bulkhead::testing::ReadFileOrDie;
using ::bulkhead::testing::TempDir;

// Somebody's Snapshots service as a Snapshotter.
class RemoteSnapshotter : public Snapshotter {
 public:
  RemoteSnapshotter(std::shared_ptr<grpc::Channel> channel, std::string name,
                    std::shared_ptr<void> keep_alive)
      : keep_alive_(std::move(keep_alive)),
        stub_(v1::Snapshots::NewStub(channel)),
        name_(std::move(name)) {}

  const std::string& name() const override { return name_; }

  absl::StatusOr<std::vector<os::MountSpec>> Prepare(
      const std::string& key, const std::string& parent,
      const Labels& labels) override {
    return Make<v1::PrepareSnapshotRequest, v1::PrepareSnapshotResponse>(
        key, parent, labels, &v1::Snapshots::Stub::Prepare);
  }
  absl::StatusOr<std::vector<os::MountSpec>> View(
      const std::string& key, const std::string& parent,
      const Labels& labels) override {
    return Make<v1::ViewSnapshotRequest, v1::ViewSnapshotResponse>(
        key, parent, labels, &v1::Snapshots::Stub::View);
  }
  absl::StatusOr<std::vector<os::MountSpec>> Mounts(
      const std::string& key) override {
    v1::MountsRequest request;
    request.set_key(key);
    v1::MountsResponse response;
    RETURN_IF_ERROR(Call(&v1::Snapshots::Stub::Mounts, &request, &response));
    return Specs(response);
  }
  absl::Status Commit(const std::string& name, const std::string& key,
                      const Labels& labels,
                      const std::string& parent) override {
    v1::CommitSnapshotRequest request;
    request.set_name(name);
    request.set_key(key);
    request.set_parent(parent);
    request.mutable_labels()->insert(labels.begin(), labels.end());
    google::protobuf::Empty response;
    return Call(&v1::Snapshots::Stub::Commit, &request, &response);
  }
  std::vector<absl::Status> RemoveMany(
      const std::vector<std::string>& keys) override {
    std::vector<absl::Status> results;
    for (const std::string& key : keys) {
      v1::RemoveSnapshotRequest request;
      request.set_key(key);
      google::protobuf::Empty response;
      results.push_back(
          Call(&v1::Snapshots::Stub::Remove, &request, &response));
    }
    return results;
  }
  absl::StatusOr<SnapshotInfo> Stat(const std::string& key) override {
    v1::StatSnapshotRequest request;
    request.set_key(key);
    v1::StatSnapshotResponse response;
    RETURN_IF_ERROR(Call(&v1::Snapshots::Stub::Stat, &request, &response));
    return InfoOf(response.info());
  }
  absl::StatusOr<SnapshotInfo> Update(
      const std::string& key, const Labels& labels,
      const std::vector<std::string>& paths) override {
    v1::UpdateSnapshotRequest request;
    request.mutable_info()->set_name(key);
    request.mutable_info()->mutable_labels()->insert(labels.begin(),
                                                     labels.end());
    for (const auto& path : paths)
      request.mutable_update_mask()->add_paths(path);
    v1::UpdateSnapshotResponse response;
    RETURN_IF_ERROR(Call(&v1::Snapshots::Stub::Update, &request, &response));
    return InfoOf(response.info());
  }
  absl::Status Walk(
      const std::function<absl::Status(const SnapshotInfo&)>& visit) override {
    return List({}, visit);
  }
  absl::Status List(
      const std::vector<std::string>& filters,
      const std::function<absl::Status(const SnapshotInfo&)>& visit) {
    v1::ListSnapshotsRequest request;
    request.set_snapshotter(name_);
    for (const auto& filter : filters) request.add_filters(filter);
    grpc::ClientContext context;
    const auto reader = stub_->List(&context, request);
    v1::ListSnapshotsResponse response;
    while (reader->Read(&response)) {
      EXPECT_LE(response.info_size(), 100);
      for (const auto& info : response.info()) {
        RETURN_IF_ERROR(visit(InfoOf(info)));
      }
    }
    return rpc::FromGrpc(reader->Finish());
  }
  absl::StatusOr<DiskUsage> Usage(const std::string& key) override {
    v1::UsageRequest request;
    request.set_key(key);
    v1::UsageResponse response;
    RETURN_IF_ERROR(Call(&v1::Snapshots::Stub::Usage, &request, &response));
    return DiskUsage{response.size(), response.inodes()};
  }
  absl::Status Cleanup() override {
    v1::CleanupRequest request;
    google::protobuf::Empty response;
    return Call(&v1::Snapshots::Stub::Cleanup, &request, &response);
  }
  absl::Status NoteUnpacked(const std::string&, const std::vector<std::string>&,
                            const std::optional<DiskUsage>&) override {
    return absl::OkStatus();
  }
  void NoteSynced(const std::string&) override {}

 private:
  template <typename Method, typename Request, typename Response>
  absl::Status Call(Method method, Request* request, Response* response) {
    request->set_snapshotter(name_);
    grpc::ClientContext context;
    const grpc::Status status =
        (stub_.get()->*method)(&context, *request, response);
    if (!status.ok()) {  // Clients strip exactly this.
      EXPECT_TRUE(absl::EndsWith(
          status.error_message(),
          rpc::ClassText(static_cast<absl::StatusCode>(status.error_code()))))
          << status.error_message();
    }
    return rpc::FromGrpc(status);
  }
  template <typename Request, typename Response, typename Method>
  absl::StatusOr<std::vector<os::MountSpec>> Make(const std::string& key,
                                                  const std::string& parent,
                                                  const Labels& labels,
                                                  Method method) {
    Request request;
    request.set_key(key);
    request.set_parent(parent);
    request.mutable_labels()->insert(labels.begin(), labels.end());
    Response response;
    RETURN_IF_ERROR(Call(method, &request, &response));
    return Specs(response);
  }
  template <typename Response>
  static std::vector<os::MountSpec> Specs(const Response& response) {
    std::vector<os::MountSpec> out;
    for (const auto& m : response.mounts()) {
      out.push_back({m.type(),
                     m.source(),
                     m.target(),
                     {m.options().begin(), m.options().end()}});
    }
    return out;
  }
  static SnapshotInfo InfoOf(const v1::Info& info) {
    return {
        info.name(),
        info.parent(),
        static_cast<Kind>(info.kind()),
        info.created_at().seconds() * 1000000000 + info.created_at().nanos(),
        0,
        {info.labels().begin(), info.labels().end()}};
  }

  std::shared_ptr<void> keep_alive_;
  std::unique_ptr<v1::Snapshots::Stub> stub_;
  std::string name_;
};

using Driver = TreeSnapshotterOptions::Driver;

struct Served {
  explicit Served(const std::string& root, Driver driver = Driver::kOverlay)
      : core(OpenTreeSnapshotter(
                 {.driver = driver, .name = "overlayfs", .root = root})
                 .value()),
        service({core.get()}),
        server({&service}) {}
  std::unique_ptr<Snapshotter> core;
  SnapshotsService service;
  GrpcServer server;
};

// Under a foreign name: the only snapshotter answers to any.
Backend Remote(const std::string& name, Driver driver, bool overlay) {
  return {name, overlay, [driver](const std::string& root) {
            auto served = std::make_shared<Served>(
                driver == Driver::kBtrfs ? BtrfsRootFor(root) : root, driver);
            auto channel = served->server.Connect();
            return std::make_unique<RemoteSnapshotter>(channel, "foreign",
                                                       served);
          }};
}

INSTANTIATE_TEST_SUITE_P(
    Rpc, SnapshotterConformance,
    ::testing::Values(Remote("overlayfs", Driver::kOverlay, true),
                      Remote("native", Driver::kNative, false),
                      Remote("btrfs", Driver::kBtrfs, false),
                      Remote("erofs", Driver::kErofs, true)),
    [](const auto& info) { return info.param.name; });

TEST(SnapshotsWire, ListFiltersAndComesInBatches) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  auto served = std::make_shared<Served>(dir.Path("r"));
  RemoteSnapshotter remote(served->server.Connect(), "overlayfs", served);
  ASSERT_TRUE(remote.Prepare("p", "", {}).ok());
  ASSERT_TRUE(remote.Commit("base", "p", {{"a/b", "1"}}, "").ok());
  for (int i = 0; i < 150; ++i) {
    ASSERT_TRUE(remote.Prepare(absl::StrCat("k", i), "base", {}).ok());
  }
  auto count = [&](const std::vector<std::string>& filters) {
    int n = 0;
    const absl::Status status = remote.List(filters, [&](const SnapshotInfo&) {
      ++n;
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
    return n;
  };
  EXPECT_EQ(count({}), 151);
  EXPECT_EQ(count({""}), 151);
  EXPECT_EQ(count({"kind==active"}), 150);
  EXPECT_EQ(count({"parent==base,name==k7", "labels.\"a/b\"==1"}), 2);
  EXPECT_EQ(remote.List({"kind=="}, nullptr).code(),
            absl::StatusCode::kUnknown);
  SnapshotsService two({served->core.get(), served->core.get()});
  v1::StatSnapshotRequest request;
  request.set_snapshotter("x");
  v1::StatSnapshotResponse response;
  EXPECT_EQ(two.Stat(nullptr, &request, &response).error_message(),
            "snapshotter not loaded: x: invalid argument");
}

// Content that only has the stream.
class StreamedContent final : public content_v1::Content::Service {
 public:
  std::string data;
  grpc::Status Read(
      grpc::ServerContext*, const content_v1::ReadContentRequest* request,
      grpc::ServerWriter<content_v1::ReadContentResponse>* writer) override {
    if (request->digest() != Digest::Of(data).str()) {
      return {grpc::StatusCode::NOT_FOUND, "content: not found"};
    }
    content_v1::ReadContentResponse response;
    for (size_t at = 0; at < data.size(); at += 1000) {
      response.set_data(data.substr(at, 1000));
      writer->Write(response);
    }
    return grpc::Status::OK;
  }
};

struct Suite {
  Suite() {
    EXPECT_EQ(std::system(absl::StrCat("cd ", dir.path(),
                                       " && mkdir -p src/d root tmp && head -c "
                                       "3000000 /dev/urandom > src/d/f && tar "
                                       "-C src -cf t . && gzip -k t")
                              .c_str()),
              0);
    diff_id = Digest::Of(ReadFileOrDie(dir.Path("t"))).str();
    layer = ReadFileOrDie(dir.Path("t.gz"));
  }
  bool SameTree() const {
    return std::system(
               absl::StrCat("diff -r ", dir.Path("src"), " ", dir.Path("root"))
                   .c_str()) == 0;
  }
  TempDir dir;
  std::string diff_id, layer;
  Applier applier{{}, {.temp_dir = dir.Path("tmp")}};
};

TEST(DiffWire, ApplyFallsBackToTheContentStream) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  Suite suite;
  StreamedContent content;
  content.data = suite.layer;
  GrpcServer content_server({&content});
  DiffService diff(suite.applier,
                   {.content_data_socket = suite.dir.Path("none"),
                    .content_socket = content_server.socket_path(),
                    .metadata_data_socket = suite.dir.Path("none")});
  GrpcServer server({&diff});
  const auto stub = diff_v1::Diff::NewStub(server.Connect());
  diff_v1::ApplyRequest request;
  request.mutable_diff()->set_media_type(
      "application/vnd.oci.image.layer.v1.tar+gzip");
  request.mutable_diff()->set_digest(Digest::Of(suite.layer).str());
  auto* mount = request.add_mounts();
  mount->set_type("bind");
  mount->set_source(suite.dir.Path("root"));
  mount->add_options("rbind");
  mount->add_options("rw");
  diff_v1::ApplyResponse response;
  grpc::ClientContext context;
  const grpc::Status status = stub->Apply(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.applied().digest(), suite.diff_id);
  EXPECT_EQ(response.applied().media_type(),
            "application/vnd.oci.image.layer.v1.tar");
  EXPECT_TRUE(suite.SameTree());
  request.mutable_diff()->set_digest(Digest::Of("other").str());
  grpc::ClientContext again;
  EXPECT_EQ(stub->Apply(&again, request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

class DataSocket : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    path_ = suite_.dir.Path("data.sock");
    server_ = std::make_unique<DataServer>(
        os::ListenUnix(path_, {.type = SOCK_SEQPACKET}).value(),
        suite_.applier);
    file_ =
        os::Open(suite_.dir.Path("growing"), O_RDWR | O_CREAT, 0600).value();
    request_.mounts = {{"bind", suite_.dir.Path("root"), "", {"rw", "rbind"}}};
    request_.media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    request_.digest = "sha256:layer";
  }

  Suite suite_;
  std::string path_;
  std::unique_ptr<DataServer> server_;
  os::UniqueFd file_;
  dataplane::ApplyRequest request_;
};

TEST_F(DataSocket, AppliesALayerThatGrows) {
  auto session = dataplane::StartApply(path_, request_, file_.get());
  ASSERT_TRUE(session.ok()) << session.status();
  const std::string& layer = suite_.layer;
  for (size_t at = 0; at < layer.size(); at += 70000) {
    const size_t n = std::min<size_t>(70000, layer.size() - at);
    ASSERT_TRUE(os::PWriteFull(file_.get(), layer.data() + at, n, at).ok());
    ASSERT_TRUE((*session)->Advance(at + n).ok());
  }
  const auto applied = (*session)->Finish(layer.size());
  ASSERT_TRUE(applied.ok()) << applied.status();
  EXPECT_EQ(applied->diff_id, suite_.diff_id);
  EXPECT_TRUE(suite_.SameTree());
}

TEST_F(DataSocket, TellsWhenOnlyTheSyncIsLeft) {
  const std::string& layer = suite_.layer;
  ASSERT_TRUE(os::PWriteFull(file_.get(), layer.data(), layer.size(), 0).ok());
  int told = 0;
  request_.on_unpacked = [&] {
    ++told;
    EXPECT_TRUE(suite_.SameTree());
  };
  auto session = dataplane::StartApply(path_, request_, file_.get());
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE((*session)->Advance(layer.size()).ok());
  const auto applied = (*session)->Finish(layer.size());
  ASSERT_TRUE(applied.ok()) << applied.status();
  EXPECT_EQ(applied->diff_id, suite_.diff_id);
  EXPECT_EQ(told, 1);
}

TEST_F(DataSocket, ABrokenLayerIsAnErrorAndAnotherSessionWorks) {
  ASSERT_TRUE(
      os::PWriteFull(file_.get(), std::string(2000, 'x').data(), 2000, 0).ok());
  {
    auto session = dataplane::StartApply(path_, request_, file_.get());
    ASSERT_TRUE(session.ok());
    (void)(*session)->Advance(2000);
    EXPECT_TRUE(absl::IsInvalidArgument((*session)->Finish(2000).status()));
  }
  {  // Goes away in the middle.
    auto session = dataplane::StartApply(path_, request_, file_.get());
    ASSERT_TRUE(session.ok());
  }
  {  // Goes backwards.
    auto session = dataplane::StartApply(path_, request_, file_.get());
    ASSERT_TRUE(session.ok());
    (void)(*session)->Advance(100);
    (void)(*session)->Advance(10);
    EXPECT_TRUE(absl::IsInvalidArgument((*session)->Finish(2000).status()));
  }
  auto session = dataplane::StartApply(path_, request_, file_.get());
  ASSERT_TRUE(session.ok());
  server_.reset();  // Ends sessions instead of waiting for them.
}

}  // namespace
}  // namespace bulkhead::snapshotter
