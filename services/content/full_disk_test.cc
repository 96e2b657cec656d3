// A file system that is really full: 3 MiB of tmpfs in a mount namespace of
// this process's own, so that nothing stays mounted whatever happens.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include "lib/dataplane/dataplane.h"
#include "lib/os/socket.h"
#include "lib/testing/temp_dir.h"
#include "services/content/data_server.h"
#include "services/content/fs_store.h"

namespace bulkhead::content {
namespace {

using ::bulkhead::testing::RandomBytes;
using ::bulkhead::testing::TempDir;
using Code = absl::StatusCode;

class FullDisk : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "mounting needs root";
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    ASSERT_EQ(::mount("tmpfs", dir_.path().c_str(), "tmpfs", 0, "size=3m"), 0);
    store_ = FsStore::Open(dir_.Path("content")).value();
  }

  void TearDown() override {
    store_.reset();
    ::umount2(dir_.path().c_str(), MNT_DETACH);
  }

  TempDir dir_;
  std::unique_ptr<FsStore> store_;
};

TEST_F(FullDisk, AnAppendFailsAndTheIngestGoesOnLater) {
  const std::string first = RandomBytes(2 << 20, 1);
  auto ballast = store_->OpenWriter({"ballast", 0, {}}).value();
  ASSERT_TRUE(ballast->Append(first).ok());
  const std::string data = RandomBytes((1 << 20) + (512 << 10), 2);
  auto writer = store_->OpenWriter({"ns/1/big", 0, {}}).value();
  ASSERT_TRUE(writer->Append(data.substr(0, 512 << 10)).ok());
  const absl::Status full = writer->Append(data.substr(512 << 10));
  EXPECT_EQ(full.code(), Code::kResourceExhausted) << full;
  EXPECT_NE(std::string(full.message()).find("ns/1/big"), std::string::npos);
  EXPECT_EQ(writer->Info().value().offset_bytes, 512 << 10);
  writer.reset();

  ballast.reset();
  ASSERT_TRUE(store_->Abort("ballast").ok());
  writer = store_->OpenWriter({"ns/1/big", 0, {}}).value();
  EXPECT_EQ(writer->Info().value().offset_bytes, 512 << 10);
  ASSERT_TRUE(writer->Append(data.substr(512 << 10)).ok());
  const auto blob = writer->Commit({.expected = Digest::Of(data)});
  EXPECT_TRUE(blob.ok()) << blob.status();
}

TEST_F(FullDisk, APeerThatMeetsItCanStillCommitOrResume) {
  auto listener =
      os::ListenUnix(dir_.Path("data.sock"), {.type = SOCK_SEQPACKET});
  const auto server =
      DataServer::Start(*std::move(listener), store_.get(), {}).value();
  const dataplane::Client client(dir_.Path("data.sock"));
  const std::string data = RandomBytes(4 << 20);
  auto ingest = client.OpenIngest({.ref = "r"}).value();
  EXPECT_EQ(os::PWriteFull(ingest->fd(), data.data(), data.size(), 0).code(),
            Code::kResourceExhausted);
  ASSERT_TRUE(ingest->Truncate(1 << 20).ok());
  EXPECT_EQ(ingest->Commit(4 << 20, "", {}).status().code(),
            Code::kFailedPrecondition);
  const std::string part = data.substr(0, 1 << 20);
  const auto done = ingest->Commit(1 << 20, Digest::Of(part).str(), {});
  EXPECT_TRUE(done.ok()) << done.status();
}

TEST_F(FullDisk, NoRoomForANewIngest) {
  auto ballast = store_->OpenWriter({"ballast", 0, {}}).value();
  while (ballast->Append(std::string(4096, 'x')).ok()) {
  }
  const absl::Status full = store_->OpenWriter({"new", 0, {}}).status();
  EXPECT_EQ(full.code(), Code::kResourceExhausted) << full;
  EXPECT_EQ(store_->ListStatuses().value().size(), 1u);
}

}  // namespace
}  // namespace bulkhead::content
