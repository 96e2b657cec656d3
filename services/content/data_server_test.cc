// The data plane, through the client library that the other services use.
#include "services/content/data_server.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "lib/dataplane/dataplane.h"
#include "lib/os/socket.h"
#include "lib/testing/temp_dir.h"

namespace bulkhead::content {
namespace {

using ::bulkhead::testing::OpenFdCount;
using ::bulkhead::testing::RandomBytes;
using ::bulkhead::testing::TempDir;
using ::bulkhead::testing::WriteFileOrDie;
using Code = absl::StatusCode;

class DataPlane : public ::testing::Test {
 protected:
  static std::unique_ptr<DataServer> Serve(const std::string& path,
                                           FsStore* store,
                                           bool verify = false) {
    auto listener = os::ListenUnix(path, {.type = SOCK_SEQPACKET});
    return DataServer::Start(*std::move(listener), store,
                             {.verify_on_open = verify})
        .value();
  }

  std::unique_ptr<dataplane::Ingest> Begin(const std::string& ref,
                                           int64_t total = 0) {
    auto ingest = client_.OpenIngest({.ref = ref, .total_bytes = total});
    EXPECT_TRUE(ingest.ok()) << ingest.status();
    return ingest.ok() ? *std::move(ingest) : nullptr;
  }

  static void Write(const dataplane::Ingest& ingest, const std::string& data,
                    int64_t offset) {
    ASSERT_TRUE(
        os::PWriteFull(ingest.fd(), data.data(), data.size(), offset).ok());
  }

  // The answer to one raw packet.
  std::string Raw(const std::string& packet) {
    auto socket = os::ConnectUnix(path_, SOCK_SEQPACKET);
    EXPECT_TRUE(socket.ok());
    EXPECT_TRUE(os::SendWithFds(socket->get(), packet, {}).ok());
    auto reply = dataplane::Receive(socket->get());
    return reply.ok() ? reply->json : reply.status().ToString();
  }

  TempDir dir_;
  std::unique_ptr<FsStore> store_ = FsStore::Open(dir_.Path("content")).value();
  const std::string path_ = dir_.Path("data.sock");
  std::unique_ptr<DataServer> server_ = Serve(path_, store_.get());
  dataplane::Client client_{path_};
};

TEST_F(DataPlane, WriteAdvanceCommitOpen) {
  const std::string data = RandomBytes(5 << 20);
  const Digest digest = Digest::Of(data);
  auto ingest = Begin("r", data.size());
  EXPECT_EQ(ingest->opened().offset_bytes, 0);
  EXPECT_EQ(ingest->opened().total_bytes, 5 << 20);
  EXPECT_GT(ingest->opened().started_at_ns, 0);
  for (size_t at = 0; at < data.size(); at += 1 << 20) {
    Write(*ingest, data.substr(at, 1 << 20), at);
    ASSERT_TRUE(ingest->Advance(at + (1 << 20)).ok());
  }
  EXPECT_EQ(client_.Open(digest.str()).status().code(), Code::kNotFound);
  const auto committed = ingest->Commit(data.size(), digest.str(), {});
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->digest, digest.str());
  EXPECT_EQ(committed->size_bytes, 5 << 20);

  const auto blob = client_.Open(digest.str());
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_EQ(blob->size_bytes, 5 << 20);
  std::string got(data.size(), '\0');
  EXPECT_EQ(os::PReadFull(blob->fd.get(), got.data(), got.size(), 0).value(),
            data.size());
  EXPECT_TRUE(got == data);
  EXPECT_EQ(::fcntl(blob->fd.get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_LT(::pwrite(blob->fd.get(), "x", 1, 0), 0);
}

TEST_F(DataPlane, CommitHashesWhatWasNotAdvanced) {
  auto ingest = Begin("r");
  Write(*ingest, "hello", 0);
  const auto committed = ingest->Commit(-1, "", {});
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->digest, Digest::Of("hello").str());
  EXPECT_EQ(committed->size_bytes, 5);
}

TEST_F(DataPlane, TheDigestSoFarIsOfWhatWasAdvanced) {
  auto ingest = Begin("r");
  EXPECT_EQ(ingest->DigestSoFar().value(), Digest::Of("").str());
  Write(*ingest, "hello world", 0);
  EXPECT_EQ(ingest->DigestSoFar().value(), Digest::Of("").str());
  ASSERT_TRUE(ingest->Advance(5).ok());
  EXPECT_EQ(ingest->DigestSoFar().value(), Digest::Of("hello").str());
  ASSERT_TRUE(ingest->Advance(11).ok());
  EXPECT_EQ(ingest->DigestSoFar().value(), Digest::Of("hello world").str());
  ASSERT_TRUE(ingest->Truncate(4).ok());
  EXPECT_EQ(ingest->DigestSoFar().value(), Digest::Of("hell").str());
  // A failed commit with another algorithm, and then another writer.
  EXPECT_EQ(
      ingest->Commit(4, Digest::Of("x", DigestAlgorithm::kSha512).str(), {})
          .status()
          .code(),
      Code::kFailedPrecondition);
  EXPECT_EQ(ingest->DigestSoFar().value(), Digest::Of("hell").str());
  ingest.reset();
  EXPECT_EQ(Begin("r")->DigestSoFar().value(), Digest::Of("hell").str());
}

TEST_F(DataPlane, ADigestSoFarThatCannotBeHadIsAnError) {
  auto ingest = Begin("r");
  Write(*ingest, "hello", 0);
  ASSERT_TRUE(ingest->Advance(5).ok());
  EXPECT_EQ(ingest->DigestSoFar().value(), Digest::Of("hello").str());
  ASSERT_EQ(::ftruncate(ingest->fd(), 0), 0);
  Write(*ingest, "hel", 0);
  // What was hashed is not read again, but a restarted hash would be short.
  EXPECT_EQ(
      ingest->Commit(3, Digest::Of("x", DigestAlgorithm::kSha512).str(), {})
          .status()
          .code(),
      Code::kFailedPrecondition);
  EXPECT_EQ(ingest->DigestSoFar().status().code(), Code::kFailedPrecondition);
  server_.reset();
  EXPECT_EQ(ingest->DigestSoFar().status().code(), Code::kUnavailable);
}

TEST_F(DataPlane, AFailedCommitLeavesTheSessionUsable) {
  auto ingest = Begin("r");
  Write(*ingest, "hello", 0);
  EXPECT_EQ(ingest->Commit(6, "", {}).status().code(),
            Code::kFailedPrecondition);
  EXPECT_EQ(ingest->Commit(0, "", {}).status().code(),
            Code::kFailedPrecondition);
  EXPECT_EQ(ingest->Commit(5, Digest::Of("x").str(), {}).status().code(),
            Code::kFailedPrecondition);
  EXPECT_EQ(ingest->Commit(5, "bad", {}).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(store_->Status("r").value().offset_bytes, 5);
  ASSERT_TRUE(ingest->Truncate(2).ok());
  Write(*ingest, "y", 2);
  EXPECT_TRUE(ingest->Commit(3, Digest::Of("hey").str(), {}).ok());
}

TEST_F(DataPlane, TheRefIsLockedUntilTheConnectionEnds) {
  auto ingest = Begin("r");
  Write(*ingest, "hel", 0);
  const auto locked = client_.OpenIngest({.ref = "r"});
  EXPECT_EQ(locked.status().code(), Code::kUnavailable);
  EXPECT_EQ(std::string(locked.status().message()).substr(0, 6), "ref r ");
  EXPECT_EQ(store_->OpenWriter({"r", 0, {}}).status().code(),
            Code::kUnavailable);
  ingest.reset();
  ingest = Begin("r");  // Waits for the server to notice.
  EXPECT_EQ(ingest->opened().offset_bytes, 3);
  Write(*ingest, "lo", 3);
  EXPECT_TRUE(ingest->Commit(5, Digest::Of("hello").str(), {}).ok());
}

TEST_F(DataPlane, AbortAndExisting) {
  auto ingest = Begin("r");
  Write(*ingest, "hello", 0);
  ASSERT_TRUE(ingest->Abort().ok());
  EXPECT_EQ(store_->Status("r").status().code(), Code::kNotFound);
  EXPECT_EQ(ingest->Commit(5, "", {}).status().code(), Code::kInvalidArgument);

  ingest = Begin("r");
  Write(*ingest, "hello", 0);
  ASSERT_TRUE(ingest->Commit(5, "", {}).ok());
  ingest = Begin("again");
  Write(*ingest, "hello", 0);
  EXPECT_EQ(ingest->Commit(5, "", {}).status().code(), Code::kAlreadyExists);
  EXPECT_EQ(
      client_
          .OpenIngest({.ref = "third", .expected = Digest::Of("hello").str()})
          .status()
          .code(),
      Code::kAlreadyExists);
  EXPECT_TRUE(store_->ListStatuses().value().empty());
}

TEST_F(DataPlane, BadPacketsGetAnErrorAndNothingElse) {
  for (const std::string& packet : std::vector<std::string>{
           "garbage", "[]", "{}", "{\"op\":7}", "{\"op\":\"dance\"}",
           "{\"op\":\"open\"}", "{\"op\":\"open\",\"digest\":{}}",
           "{\"op\":\"open\",\"digest\":\"../../etc/passwd\"}",
           "{\"op\":\"ingest\"}", "{\"op\":\"ingest\",\"ref\":[]}",
           "{\"op\":\"ingest\",\"ref\":\"r\",\"total\":\"many\"}",
           "{\"op\":\"ingest\",\"ref\":\"r\",\"total\":-1}",
           "{\"op\":\"commit\"}", "{\"op\":\"advance\",\"offset\":1}",
           "{\"op\":\"status\"}", "{\"op\":\"truncate\",\"offset\":0}"}) {
    EXPECT_NE(Raw(packet).find("\"code\":3"), std::string::npos)
        << packet << " -> " << Raw(packet);
  }
  auto ingest = Begin("r");
  Write(*ingest, "hello", 0);
  ASSERT_TRUE(ingest->Advance(6).ok());  // Past the end: the session is over.
  EXPECT_FALSE(ingest->Commit(5, "", {}).ok());
  EXPECT_FALSE(ingest->Commit(5, "", {}).ok());
  EXPECT_EQ(store_->Status("r").value().offset_bytes, 5);
}

TEST_F(DataPlane, VerifyOnOpen) {
  const std::string path = dir_.Path("verified.sock");
  const auto server = Serve(path, store_.get(), true);
  const Digest digest = Digest::Of("hello");
  WriteFileOrDie(dir_.Path("content/blobs/sha256/" + digest.hex()), "jello");
  EXPECT_TRUE(client_.Open(digest.str()).ok());
  EXPECT_EQ(dataplane::Client(path).Open(digest.str()).status().code(),
            Code::kDataLoss);
  // Gone, so that it is fetched again.
  EXPECT_EQ(client_.Open(digest.str()).status().code(), Code::kNotFound);
}

TEST_F(DataPlane, ManySessionsAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 24; ++t) {
    threads.emplace_back([&, t] {
      const std::string data = RandomBytes(300'000, t + 1);
      auto ingest = Begin(absl::StrCat("r", t));
      for (size_t at = 0; at < data.size(); at += 50'000) {
        Write(*ingest, data.substr(at, 50'000), at);
        EXPECT_TRUE(ingest->Advance(at + 50'000).ok());
      }
      const auto done = ingest->Commit(data.size(), Digest::Of(data).str(), {});
      EXPECT_TRUE(done.ok()) << done.status();
      EXPECT_TRUE(client_.Open(Digest::Of(data).str()).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(DataPlane, NoDescriptorStaysBehind) {
  server_.reset();
  ::unlink(path_.c_str());
  const int before = OpenFdCount();
  server_ = Serve(path_, store_.get());
  std::vector<std::unique_ptr<dataplane::Ingest>> open;
  for (int i = 0; i < 40; ++i) {
    open.push_back(Begin(absl::StrCat("r", i)));
    Write(*open.back(), "x", 0);
  }
  server_.reset();  // With sessions open.
  EXPECT_FALSE(open[0]->Commit(1, "", {}).ok());
  open.clear();
  EXPECT_EQ(OpenFdCount(), before);
  EXPECT_EQ(store_->ListStatuses().value().size(), 40u);
  EXPECT_TRUE(store_->OpenWriter({"r0", 0, {}}).ok());  // Unlocked.
}

}  // namespace
}  // namespace bulkhead::content
