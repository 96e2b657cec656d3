// The conformance suite through a Unix socket, and what only the wire has.
#include "services/content/content_service.h"

#include <gtest/gtest.h>

#include "lib/testing/grpc_fixture.h"
#include "lib/testing/temp_dir.h"
#include "services/content/fs_store.h"
#include "services/content/remote_store.h"
#include "services/content/store_conformance.h"

namespace bulkhead::content {
namespace {

namespace v1 = ::containerd::services::content::v1;
using ::bulkhead::testing::RandomBytes;

struct Served {
  explicit Served(const std::string& root)
      : store(FsStore::Open(root).value()), service(store.get()) {}

  std::unique_ptr<FsStore> store;
  ContentService service;
  bulkhead::testing::GrpcServer server{{&service}};
};

std::unique_ptr<Store> OpenThroughUnixSocket(const std::string& root) {
  auto served = std::make_shared<Served>(root);
  return OpenRemoteStore(served->server.Connect(), "", served);
}

INSTANTIATE_TEST_SUITE_P(Rpc, StoreConformance,
                         ::testing::Values(Backend{"rpc",
                                                   OpenThroughUnixSocket}));

class ContentWire : public ::testing::Test {
 protected:
  using Stream = grpc::ClientReaderWriter<v1::WriteContentRequest,
                                          v1::WriteContentResponse>;

  static v1::WriteContentRequest Message(v1::WriteAction action,
                                         const std::string& ref,
                                         int64_t offset = 0,
                                         const std::string& data = "") {
    v1::WriteContentRequest request;
    request.set_action(action);
    request.set_ref(ref);
    request.set_offset(offset);
    request.set_data(data);
    return request;
  }

  // The final status of a stream of `requests`; `last` gets the last reply.
  grpc::Status Send(const std::vector<v1::WriteContentRequest>& requests,
                    v1::WriteContentResponse* last = nullptr) {
    grpc::ClientContext context;
    const auto stream = stub_->Write(&context);
    v1::WriteContentResponse reply;
    for (const auto& request : requests) {
      if (!stream->Write(request) || !stream->Read(&reply)) break;
      if (last != nullptr) *last = reply;
    }
    stream->WritesDone();
    while (stream->Read(&reply)) {
    }
    return stream->Finish();
  }

  void Expect(const grpc::Status& status, grpc::StatusCode code,
              const std::string& message) {
    EXPECT_EQ(status.error_code(), code);
    EXPECT_EQ(status.error_message(), message);
  }

  bulkhead::testing::TempDir dir_;
  Served served_{dir_.path()};
  std::unique_ptr<v1::Content::Stub> stub_ =
      v1::Content::NewStub(served_.server.Connect());
};

TEST_F(ContentWire, TheFirstMessageNeedsARef) {
  Expect(Send({Message(v1::STAT, "")}), grpc::INVALID_ARGUMENT,
         "first message must have a reference: invalid argument");
}

TEST_F(ContentWire, WritesOnlyAtTheCurrentOffset) {
  Expect(Send({Message(v1::WRITE, "r", 0, "hello"),
               Message(v1::WRITE, "", 3, "x")}),
         grpc::OUT_OF_RANGE,
         "write @3 must occur at current offset 5: out of range");
}

TEST_F(ContentWire, OffsetZeroStartsOverEvenOnCommit) {
  v1::WriteContentResponse reply;
  ASSERT_TRUE(Send({Message(v1::WRITE, "r", 0, "hello"),
                    Message(v1::WRITE, "", 0, "ab")},
                   &reply)
                  .ok());
  EXPECT_EQ(reply.offset(), 2);
  EXPECT_EQ(reply.digest(), Digest::Of("ab").str());
  v1::WriteContentRequest commit = Message(v1::COMMIT, "r");
  commit.set_total(2);
  Expect(Send({commit}), grpc::FAILED_PRECONDITION,
         "\"r\" failed size validation: 0 != 2: failed precondition");
}

TEST_F(ContentWire, CommitCarriesDataAndRepliesWithTheDigest) {
  v1::WriteContentResponse reply;
  ASSERT_TRUE(Send({Message(v1::COMMIT, "r", 0, "hello")}, &reply).ok());
  EXPECT_EQ(reply.action(), v1::COMMIT);
  EXPECT_EQ(reply.offset(), 5);
  EXPECT_EQ(reply.digest(), Digest::Of("hello").str());
}

TEST_F(ContentWire, TotalAndExpectedAreSticky) {
  v1::WriteContentRequest first = Message(v1::STAT, "r");
  first.set_total(5);
  first.set_expected(Digest::Of("other").str());
  Expect(Send({first, Message(v1::WRITE, "", 0, "hello!"),
               Message(v1::COMMIT, "", 6)}),
         grpc::FAILED_PRECONDITION,
         "\"r\" failed size validation: 6 != 5: failed precondition");
  Expect(Send({first, Message(v1::WRITE, "", 0, "hello"),
               Message(v1::COMMIT, "", 5)}),
         grpc::FAILED_PRECONDITION,
         "unexpected commit digest " + Digest::Of("hello").str() +
             ", expected " + Digest::Of("other").str() +
             ": failed precondition");
}

TEST_F(ContentWire, RepliesAccumulate) {
  v1::WriteContentRequest stat = Message(v1::STAT, "r");
  stat.set_total(9);
  v1::WriteContentResponse reply;
  ASSERT_TRUE(Send({stat}, &reply).ok());
  EXPECT_EQ(reply.digest(), Digest::Of("").str());
  EXPECT_EQ(reply.total(), 9);
  const int64_t started = reply.started_at().seconds();
  EXPECT_GT(started, 0);
  ASSERT_TRUE(Send({stat, Message(v1::WRITE, "", 0, "hello")}, &reply).ok());
  EXPECT_EQ(reply.action(), v1::WRITE);
  EXPECT_EQ(reply.total(), 9);
  EXPECT_EQ(reply.started_at().seconds(), started);
}

TEST_F(ContentWire, ExpectedThatAppearsMeanwhileEndsTheWrite) {
  ASSERT_TRUE(Send({Message(v1::COMMIT, "other", 0, "hello")}).ok());
  v1::WriteContentRequest commit = Message(v1::COMMIT, "", 3);
  commit.set_expected(Digest::Of("hello").str());
  Expect(Send({Message(v1::WRITE, "r", 0, "hel"), commit}),
         grpc::ALREADY_EXISTS,
         "blob with expected digest " + Digest::Of("hello").str() +
             " exists: already exists");
  EXPECT_TRUE(absl::IsNotFound(served_.store->Status("r").status()));
}

TEST_F(ContentWire, BadInput) {
  v1::InfoRequest info;
  info.set_digest("../../etc/passwd");
  v1::InfoResponse ignored;
  grpc::ClientContext info_context;
  Expect(stub_->Info(&info_context, info, &ignored), grpc::INVALID_ARGUMENT,
         "\"../../etc/passwd\" failed validation: invalid argument");
  v1::WriteContentRequest bad = Message(v1::STAT, "r");
  bad.set_expected("sha256:xyz");
  EXPECT_EQ(Send({bad}).error_code(), grpc::INVALID_ARGUMENT);
  bad = Message(static_cast<v1::WriteAction>(77), "r");
  EXPECT_EQ(Send({bad}).error_code(), grpc::INVALID_ARGUMENT);
  bad = Message(v1::STAT, std::string(kRefBytesMax + 1, 'x'));
  EXPECT_EQ(Send({bad}).error_code(), grpc::INVALID_ARGUMENT);
  Expect(Send({Message(v1::WRITE, "r", -1, "x")}), grpc::OUT_OF_RANGE,
         "write @-1 must occur at current offset 0: out of range");
  v1::UpdateResponse updated;
  grpc::ClientContext update_context;
  EXPECT_EQ(stub_->Update(&update_context, {}, &updated).error_code(),
            grpc::UNIMPLEMENTED);
  v1::StatusRequest status;
  status.set_ref("nope");
  v1::StatusResponse no_status;
  grpc::ClientContext status_context;
  Expect(stub_->Status(&status_context, status, &no_status), grpc::NOT_FOUND,
         "could not get status for ref \"nope\": reference nope: not found");
}

TEST_F(ContentWire, ReadOffsetsAreRelativeAndChunksBounded) {
  const std::string data = RandomBytes((2 << 20) + 100);
  ASSERT_TRUE(Send({Message(v1::COMMIT, "r", 0, data)}).ok());
  v1::ReadContentRequest request;
  request.set_digest(Digest::Of(data).str());
  const auto read = [&](int64_t offset, int64_t size, std::string* got) {
    request.set_offset(offset);
    request.set_size(size);
    grpc::ClientContext context;
    const auto stream = stub_->Read(&context, request);
    v1::ReadContentResponse chunk;
    got->clear();
    int messages = 0;
    while (stream->Read(&chunk)) {
      EXPECT_EQ(chunk.offset(), static_cast<int64_t>(got->size()));
      EXPECT_LE(chunk.data().size(), static_cast<size_t>(kReadChunkBytes));
      *got += chunk.data();
      ++messages;
    }
    const grpc::Status status = stream->Finish();
    return status.ok() ? messages : -status.error_code();
  };
  std::string got;
  EXPECT_EQ(read(50, 0, &got), 3);
  EXPECT_TRUE(got == data.substr(50));
  EXPECT_EQ(read(-5, -7, &got), 3);
  EXPECT_TRUE(got == data);
  EXPECT_EQ(read(7, 10, &got), 1);
  EXPECT_EQ(got, data.substr(7, 10));
  EXPECT_EQ(read(data.size(), 0, &got), 0);
  EXPECT_EQ(read(data.size() + 1, 0, &got), -grpc::OUT_OF_RANGE);
}

TEST_F(ContentWire, FiltersByDigestAndRef) {
  ASSERT_TRUE(Send({Message(v1::COMMIT, "r", 0, "one")}).ok());
  ASSERT_TRUE(Send({Message(v1::COMMIT, "r", 0, "two")}).ok());
  ASSERT_TRUE(Send({Message(v1::WRITE, "in-1", 0, "x")}).ok());
  ASSERT_TRUE(Send({Message(v1::WRITE, "in-2", 0, "x")}).ok());
  v1::ListContentRequest request;
  request.add_filters("digest==" + Digest::Of("two").str());
  grpc::ClientContext context;
  const auto stream = stub_->List(&context, request);
  v1::ListContentResponse batch;
  ASSERT_TRUE(stream->Read(&batch));
  ASSERT_EQ(batch.info_size(), 1);
  EXPECT_EQ(batch.info(0).digest(), Digest::Of("two").str());
  EXPECT_FALSE(stream->Read(&batch));
  EXPECT_TRUE(stream->Finish().ok());

  v1::ListStatusesRequest statuses;
  statuses.add_filters("ref~=/-2$/");
  v1::ListStatusesResponse response;
  grpc::ClientContext statuses_context;
  ASSERT_TRUE(stub_->ListStatuses(&statuses_context, statuses, &response).ok());
  ASSERT_EQ(response.statuses_size(), 1);
  EXPECT_EQ(response.statuses(0).ref(), "in-2");
}

TEST_F(ContentWire, AClientThatVanishesLeavesAResumableIngest) {
  {
    grpc::ClientContext context;
    const auto stream = stub_->Write(&context);
    v1::WriteContentResponse reply;
    ASSERT_TRUE(stream->Write(Message(v1::WRITE, "r", 0, "hel")));
    ASSERT_TRUE(stream->Read(&reply));
    context.TryCancel();
    EXPECT_FALSE(stream->Finish().ok());
  }
  v1::WriteContentResponse reply;
  const grpc::Status status =
      Send({Message(v1::STAT, "r"), Message(v1::COMMIT, "", 3, "lo")}, &reply);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(reply.digest(), Digest::Of("hello").str());
}

}  // namespace
}  // namespace bulkhead::content
