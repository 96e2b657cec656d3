// The metadata and content programs as processes: the wire, restart, SIGKILL.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "lib/dataplane/dataplane.h"
#include "lib/digest/digest.h"
#include "lib/os/fd.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "lib/testing/temp_dir.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "proto/containerd/services/events/v1/events.grpc.pb.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"

namespace bulkhead::metadata {
namespace {

namespace containers_v1 = containerd::services::containers::v1;
namespace content_v1 = containerd::services::content::v1;
namespace events_v1 = containerd::services::events::v1;
namespace leases_v1 = containerd::services::leases::v1;
namespace snapshots_v1 = containerd::services::snapshots::v1;
using google::protobuf::Empty;

constexpr absl::Duration kTimeout = absl::Seconds(20);
// The first collection, just after the start, may come at any moment.
constexpr char kRoot[] = "containerd.io/gc.root";

// One program of ours; killed when this goes.
class Process {
 public:
  Process(const std::string& program, const std::string& dir) {
    const std::string root = dir + "/r";
    const std::string state = dir + "/s";
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::execl(program.c_str(), program.c_str(), "--root", root.c_str(),
              "--state", state.c_str(), "--log-level", "error", nullptr);
      ::_exit(127);
    }
  }
  ~Process() { Kill(); }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
};

class ProcessTest : public ::testing::Test {
 protected:
  ProcessTest() {
    for (const char* folder : {"/r", "/s", "/s/metadata", "/s/content"}) {
      ::mkdir((dir_.path() + folder).c_str(), 0700);
    }
    content_ = std::make_unique<Process>("services/content/bulkhead-content",
                                         dir_.path());
    Start();
  }
  void Start() {
    metadata_.reset();
    metadata_ = std::make_unique<Process>("services/metadata/bulkhead-metadata",
                                          dir_.path());
    channel_ = rpc::Connect(dir_.Path("s/metadata/metadata.sock"));
    leases_v1::Leases::Stub leases(channel_);
    const absl::Status up = rpc::RetryUnavailable(kTimeout, [&] {
      leases_v1::ListResponse response;
      return rpc::FromGrpc(leases.List(Call("ns").get(), {}, &response));
    });
    ASSERT_TRUE(up.ok()) << up;
  }
  static std::unique_ptr<grpc::ClientContext> Call(
      const std::string& ns, const std::string& lease = "") {
    auto context = rpc::MakeClientContext({ns, lease}, kTimeout);
    context->set_wait_for_ready(true);
    return context;
  }
  static std::string Text(const grpc::Status& status) {
    return std::to_string(status.error_code()) + " " + status.error_message();
  }

  // Sends `requests` in one Write stream; returns the responses.
  std::vector<content_v1::WriteContentResponse> Write(
      const std::string& ns, const std::string& lease,
      const std::vector<content_v1::WriteContentRequest>& requests,
      grpc::Status* status) {
    content_v1::Content::Stub stub(channel_);
    const auto context = Call(ns, lease);
    const auto stream = stub.Write(context.get());
    std::vector<content_v1::WriteContentResponse> responses;
    content_v1::WriteContentResponse response;
    for (const auto& request : requests) {
      if (!stream->Write(request) || !stream->Read(&response)) break;
      responses.push_back(response);
    }
    stream->WritesDone();
    while (stream->Read(&response)) {
    }
    *status = stream->Finish();
    return responses;
  }
  static content_v1::WriteContentRequest Message(content_v1::WriteAction action,
                                                 const std::string& ref,
                                                 int64_t offset = 0,
                                                 const std::string& data = "") {
    content_v1::WriteContentRequest request;
    request.set_action(action);
    request.set_ref(ref);
    request.set_offset(offset);
    request.set_data(data);
    return request;
  }

  testing::TempDir dir_;
  std::unique_ptr<Process> content_;
  std::unique_ptr<Process> metadata_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(ProcessTest, WriteStreams) {
  const std::string data = "hello world";
  const std::string digest = Digest::Of(data).str();
  grpc::Status status;
  EXPECT_EQ(
      (Write("", "", {Message(content_v1::STAT, "r")}, &status), Text(status)),
      "9 namespace is required: failed precondition");
  EXPECT_EQ(
      (Write("ns", "", {Message(content_v1::STAT, "")}, &status), Text(status)),
      "3 first message must have a reference: invalid argument");
  EXPECT_EQ((Write("ns", "nope", {Message(content_v1::STAT, "r")}, &status),
             Text(status)),
            "5 lease does not exist: not found");

  auto responses = Write("ns", "",
                         {Message(content_v1::STAT, "r"),
                          Message(content_v1::WRITE, "", 0, "hello")},
                         &status);
  ASSERT_EQ(responses.size(), 2u) << Text(status);
  EXPECT_EQ(responses[0].digest(), Digest::Of("").str());
  EXPECT_EQ(responses[1].offset(), 5);
  EXPECT_EQ(responses[1].digest(), Digest::Of("hello").str());

  // Resumed; a wrong offset; a restart at 0; the commit.
  responses = Write(
      "ns", "",
      {Message(content_v1::STAT, "r"), Message(content_v1::WRITE, "", 3, "x")},
      &status);
  EXPECT_EQ(responses[0].offset(), 5);
  EXPECT_EQ(responses[0].digest(), Digest::Of("hello").str());
  EXPECT_EQ(Text(status),
            "11 write @3 must occur at current offset 5: out of range");
  content_v1::WriteContentRequest commit =
      Message(content_v1::COMMIT, "", static_cast<int64_t>(data.size()));
  commit.set_expected(Digest::Of("other").str());
  const std::vector<content_v1::WriteContentRequest> all = {
      Message(content_v1::WRITE, "r", 0, data), commit};
  Write("ns", "", all, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_NE(status.error_message().find("unexpected commit digest"),
            std::string::npos)
      << Text(status);
  commit.set_ref("r");
  commit.set_expected(digest);
  (*commit.mutable_labels())[kRoot] = "1";
  (*commit.mutable_labels())["empty"] = "";
  responses = Write("ns", "", {commit}, &status);
  ASSERT_EQ(responses.size(), 1u) << Text(status);
  EXPECT_EQ(responses[0].digest(), digest);

  content_v1::Content::Stub stub(channel_);
  content_v1::InfoRequest info_request;
  info_request.set_digest(digest);
  content_v1::InfoResponse info;
  ASSERT_TRUE(stub.Info(Call("ns").get(), info_request, &info).ok());
  EXPECT_EQ(info.info().size(), 11);
  EXPECT_EQ(info.info().labels().size(), 1u);
  EXPECT_EQ(Text(stub.Info(Call("two").get(), info_request, &info)),
            "5 content digest " + digest + ": not found");

  // Again: it exists, and joins the lease all the same.
  leases_v1::Leases::Stub leases(channel_);
  leases_v1::CreateRequest create;
  create.set_id("l");
  leases_v1::CreateResponse created;
  ASSERT_TRUE(leases.Create(Call("ns").get(), create, &created).ok());
  content_v1::WriteContentRequest stat = Message(content_v1::STAT, "r2");
  stat.set_expected(digest);
  Write("ns", "l", {stat}, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  leases_v1::ListResourcesRequest resources_request;
  resources_request.set_id("l");
  leases_v1::ListResourcesResponse resources;
  ASSERT_TRUE(
      leases.ListResources(Call("ns").get(), resources_request, &resources)
          .ok());
  ASSERT_EQ(resources.resources_size(), 1);
  EXPECT_EQ(resources.resources(0).id(), digest);

  // Another namespace needs no bytes.
  commit.set_ref("r3");
  stat.set_ref("r3");
  responses = Write("two", "", {stat, commit}, &status);
  ASSERT_EQ(responses.size(), 2u) << Text(status);
  EXPECT_EQ(responses[0].offset(), 11);
  EXPECT_EQ(responses[0].digest(), digest);

  // Reading: offsets count from the request's.
  content_v1::ReadContentRequest read;
  read.set_digest(digest);
  read.set_offset(6);
  content_v1::ReadContentResponse piece;
  {
    const auto context = Call("two");
    const auto reader = stub.Read(context.get(), read);
    ASSERT_TRUE(reader->Read(&piece));
    EXPECT_EQ(piece.data(), "world");
    EXPECT_EQ(piece.offset(), 0);
    EXPECT_FALSE(reader->Read(&piece));
    EXPECT_TRUE(reader->Finish().ok());
  }
  read.set_offset(12);
  const auto context = Call("two");
  EXPECT_EQ(Text(stub.Read(context.get(), read)->Finish()),
            "11 read past object length 11 bytes: out of range");
}

TEST_F(ProcessTest, LockedRefStatusAndAbort) {
  content_v1::Content::Stub stub(channel_);
  const auto context = Call("ns");
  const auto holder = stub.Write(context.get());
  content_v1::WriteContentResponse response;
  ASSERT_TRUE(holder->Write(Message(content_v1::STAT, "r")) &&
              holder->Read(&response));
  grpc::Status status;
  Write("ns", "", {Message(content_v1::STAT, "r")}, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message().rfind("ref ns/", 0), 0u) << Text(status);
  EXPECT_NE(status.error_message().find(" locked for "), std::string::npos);
  content_v1::StatusRequest request;
  request.set_ref("r");
  content_v1::StatusResponse found;
  EXPECT_TRUE(stub.Status(Call("ns").get(), request, &found).ok());
  EXPECT_EQ(found.status().ref(), "r");
  content_v1::AbortRequest abort;
  abort.set_ref("r");
  Empty empty;
  EXPECT_TRUE(stub.Abort(Call("ns").get(), abort, &empty).ok());
  EXPECT_EQ(Text(stub.Abort(Call("ns").get(), abort, &empty)),
            "5 reference r: not found");
  EXPECT_EQ(Text(stub.Status(Call("ns").get(), request, &found)),
            "5 could not get status for ref \"r\": reference r: not found");
  context->TryCancel();
}

TEST_F(ProcessTest, DataSocket) {
  const dataplane::Client client(dir_.Path("s/metadata/data.sock"));
  const std::string data = testing::RandomBytes(3 << 20);
  const std::string digest = Digest::Of(data).str();
  dataplane::IngestRequest request;
  request.ref = "layer";
  request.expected = digest;
  request.total_bytes = static_cast<int64_t>(data.size());
  request.ns = "ns";
  for (const char* ns : {"ns", "two"}) {
    request.ns = ns;
    auto ingest = client.OpenIngest(request);
    ASSERT_TRUE(ingest.ok()) << ingest.status();
    if ((*ingest)->opened().offset_bytes == 0) {
      EXPECT_EQ(std::string(ns), "ns");
      ASSERT_TRUE(
          os::PWriteFull((*ingest)->fd(), data.data(), data.size(), 0).ok());
      ASSERT_TRUE((*ingest)->Advance(request.total_bytes).ok());
    }
    const auto result =
        (*ingest)->Commit(request.total_bytes, digest, {{kRoot, "1"}});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->digest, digest);
    EXPECT_TRUE(absl::IsAlreadyExists(client.OpenIngest(request).status()));
    const auto blob = client.Open(digest, ns);
    ASSERT_TRUE(blob.ok()) << blob.status();
    EXPECT_EQ(blob->size_bytes, request.total_bytes);
  }
  EXPECT_TRUE(absl::IsNotFound(client.Open(digest, "three").status()));
}

TEST_F(ProcessTest, ErrorsThatContainerdLeavesUnmapped) {
  snapshots_v1::Snapshots::Stub snapshots(channel_);
  snapshots_v1::ListSnapshotsRequest list;
  list.set_snapshotter("overlayfs");
  {
    const auto context = Call("");
    EXPECT_EQ(Text(snapshots.List(context.get(), list)->Finish()),
              "2 namespace is required: failed precondition");
  }
  list.add_filters("x=y");
  {
    const auto context = Call("ns");
    EXPECT_EQ(snapshots.List(context.get(), list)->Finish().error_code(),
              grpc::StatusCode::UNKNOWN);
  }
  snapshots_v1::CleanupRequest cleanup;
  cleanup.set_snapshotter("overlayfs");
  Empty empty;
  EXPECT_EQ(snapshots.Cleanup(Call("ns").get(), cleanup, &empty).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  events_v1::Events::Stub events(channel_);
  events_v1::SubscribeRequest subscribe;
  subscribe.add_filters("topic==/images/create");
  const auto context = Call("");
  EXPECT_EQ(Text(events.Subscribe(context.get(), subscribe)->Finish()),
            "2 filters: parse error: [topic== >|/|< images/create]: invalid "
            "quote encountered: invalid argument");
}

TEST_F(ProcessTest, EventsAreDeliveredInOrder) {
  events_v1::Events::Stub events(channel_);
  events_v1::SubscribeRequest subscribe;
  subscribe.add_filters("namespace==ns,topic~=|^/containers/|");
  const auto context = Call("");
  const auto reader = events.Subscribe(context.get(), subscribe);
  // The headers say that the subscription stands.
  reader->WaitForInitialMetadata();
  containers_v1::Containers::Stub containers(channel_);
  containers_v1::CreateContainerRequest request;
  request.mutable_container()->mutable_runtime()->set_name("r");
  request.mutable_container()->mutable_spec();
  containers_v1::CreateContainerResponse response;
  for (int i = 0; i < 20; ++i) {
    request.mutable_container()->set_id("c" + std::to_string(i));
    ASSERT_TRUE(containers.Create(Call("ns").get(), request, &response).ok());
  }
  containerd::types::Envelope envelope;
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(reader->Read(&envelope));
    EXPECT_EQ(envelope.topic(), "/containers/create");
    EXPECT_EQ(envelope.event().type_url(), "containerd.events.ContainerCreate");
    EXPECT_NE(envelope.event().value().find("c" + std::to_string(i)),
              std::string::npos);
  }
  context->TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

// What was acknowledged before a SIGKILL is there afterwards.
TEST_F(ProcessTest, NothingAcknowledgedIsLost) {
  constexpr int kWriters = 4;
  std::vector<std::vector<std::string>> acknowledged(kWriters);
  std::atomic<int> total{0};
  std::vector<std::thread> writers;
  for (int w = 0; w < kWriters; ++w) {
    writers.emplace_back([&, w] {
      containers_v1::Containers::Stub containers(channel_);
      for (int i = 0; i < 100000; ++i) {
        containers_v1::CreateContainerRequest request;
        request.mutable_container()->set_id(std::to_string(w) + "-" +
                                            std::to_string(i));
        request.mutable_container()->mutable_runtime()->set_name("r");
        request.mutable_container()->mutable_spec();
        containers_v1::CreateContainerResponse response;
        const auto context = rpc::MakeClientContext({"ns", ""}, kTimeout);
        if (!containers.Create(context.get(), request, &response).ok()) return;
        acknowledged[w].push_back(request.container().id());
        ++total;
      }
    });
  }
  while (total < 200) std::this_thread::yield();
  metadata_->Kill();
  for (std::thread& writer : writers) writer.join();
  Start();
  containers_v1::Containers::Stub containers(channel_);
  for (const auto& ids : acknowledged) {
    for (const std::string& id : ids) {
      containers_v1::GetContainerRequest request;
      request.set_id(id);
      containers_v1::GetContainerResponse response;
      EXPECT_TRUE(containers.Get(Call("ns").get(), request, &response).ok())
          << id;
    }
  }
}

}  // namespace
}  // namespace bulkhead::metadata
