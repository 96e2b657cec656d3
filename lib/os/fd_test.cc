#include "lib/os/fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "lib/os/socket.h"

namespace bulkhead::os {
namespace {

class FdTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/bh-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    dir_ = name;
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(dir_).ok()); }
  std::string Path(const std::string& name) { return dir_ + "/" + name; }

  std::string dir_;
};

TEST_F(FdTest, OpenInRootIsConfined) {
  ASSERT_TRUE(MakeDirs(Path("root/in"), 0755).ok());
  ASSERT_TRUE(WriteFileAtomic(Path("secret"), "s", 0600).ok());
  ASSERT_TRUE(WriteFileAtomic(Path("root/in/file"), "f", 0600).ok());
  ASSERT_EQ(::symlink(Path("secret").c_str(), Path("root/abs").c_str()), 0);
  ASSERT_EQ(::symlink("../../secret", Path("root/in/up").c_str()), 0);
  ASSERT_EQ(::symlink("/in/file", Path("root/ok").c_str()), 0);
  absl::StatusOr<UniqueFd> root = Open(Path("root"), O_PATH | O_DIRECTORY);
  ASSERT_TRUE(root.ok());
  for (const char* name : {"abs", "in/up", "../secret", "in/../../secret"}) {
    EXPECT_FALSE(OpenInRoot(root->get(), name, O_RDONLY).ok()) << name;
  }
  EXPECT_TRUE(OpenInRoot(root->get(), "ok", O_RDONLY).ok());
  EXPECT_TRUE(OpenInRoot(root->get(), "/in/file", O_RDONLY).ok());
}

TEST_F(FdTest, AtomicWriteReplacesAndLeavesNothing) {
  ASSERT_TRUE(WriteFileAtomic(Path("f"), "one", 0600).ok());
  ASSERT_TRUE(WriteFileAtomic(Path("f"), "two", 0644).ok());
  EXPECT_EQ(ReadFile(Path("f")).value_or(""), "two");
  struct stat info;
  ASSERT_EQ(::stat(Path("f").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0644u);
  EXPECT_TRUE(absl::IsResourceExhausted(ReadFile(Path("f"), 2).status()));
  EXPECT_TRUE(absl::IsNotFound(ReadFile(Path("none")).status()));
  EXPECT_TRUE(absl::IsNotFound(WriteFileAtomic(Path("no/folder"), "x", 0600)));
}

TEST_F(FdTest, RemoveAllFollowsNoLink) {
  ASSERT_TRUE(MakeDirs(Path("keep"), 0755).ok());
  ASSERT_TRUE(WriteFileAtomic(Path("keep/f"), "x", 0600).ok());
  ASSERT_TRUE(MakeDirs(Path("go/deep/er"), 0755).ok());
  ASSERT_EQ(::symlink(Path("keep").c_str(), Path("go/deep/link").c_str()), 0);
  ASSERT_TRUE(RemoveAll(Path("go")).ok());
  EXPECT_NE(::access(Path("go").c_str(), F_OK), 0);
  EXPECT_EQ(ReadFile(Path("keep/f")).value_or(""), "x");
  EXPECT_TRUE(RemoveAll(Path("never-was")).ok());
}

TEST_F(FdTest, SocketsArePrivateAndReplacedWhenStale) {
  const std::string path = Path("s");
  {
    absl::StatusOr<UniqueFd> first = ListenUnix(path, {});
    ASSERT_TRUE(first.ok()) << first.status();
    struct stat info;
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0600u);
    EXPECT_TRUE(absl::IsFailedPrecondition(ListenUnix(path, {}).status()));
  }
  EXPECT_TRUE(absl::IsUnavailable(ConnectUnix(path).status()));
  EXPECT_TRUE(ListenUnix(path, {}).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(
      ListenUnix("/tmp/" + std::string(200, 'x'), {}).status()));
  ASSERT_TRUE(WriteFileAtomic(Path("file"), "x", 0600).ok());
  EXPECT_TRUE(
      absl::IsFailedPrecondition(ListenUnix(Path("file"), {}).status()));
}

// A service killed with SIGKILL may be served for a moment by a child on its
// way to exec.
TEST_F(FdTest, ListenUnixWaitsForAServerThatIsLeaving) {
  const std::string path = Path("s");
  UniqueFd leaving = ListenUnix(path, {}).value();
  std::atomic<bool> asked{false};
  std::thread other([&] {
    // Gone once the new one has met it: a connection is waiting.
    while (!Accept(leaving.get()).ok()) {
    }
    asked = true;
    leaving.Reset();
  });
  const auto listener = ListenUnix(path, {});
  other.join();
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_TRUE(asked);
  EXPECT_TRUE(ConnectUnix(path).ok());
}

TEST_F(FdTest, ListenUnixRefusesToReplaceAServerThatStays) {
  const std::string path = Path("s");
  const UniqueFd staying = ListenUnix(path, {}).value();
  const auto second = ListenUnix(path, {});
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_NE(second.status().message().find(path), std::string::npos);
  EXPECT_TRUE(ConnectUnix(path).ok());  // Untouched.
}

// A database that makes its files while the sockets are bound must get the
// modes it asked for.
TEST_F(FdTest, ListeningLeavesOtherThreadsModesAlone) {
  std::atomic<bool> done = false;
  std::thread listening([&] {
    for (int i = 0; i < 2000 && !done; ++i) {
      EXPECT_TRUE(ListenUnix(Path("s"), {}).ok());
    }
    done = true;
  });
  const std::string path = Path("f");
  while (!done) {
    UniqueFd file(::open(path.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600));
    ASSERT_TRUE(file.valid());
    struct stat info;
    ASSERT_EQ(::fstat(file.get(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
    if ((info.st_mode & 0777) != 0600) done = true;
    ASSERT_EQ(::unlink(path.c_str()), 0);
  }
  listening.join();
}

TEST_F(FdTest, DescriptorsTravel) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  UniqueFd a(pair[0]);
  UniqueFd b(pair[1]);
  ASSERT_TRUE(WriteFileAtomic(Path("f"), "content", 0600).ok());
  absl::StatusOr<UniqueFd> file = Open(Path("f"), O_RDONLY);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(SendWithFds(a.get(), "take this", {file->get()}).ok());
  absl::StatusOr<ReceivedMessage> got = ReceiveWithFds(b.get(), 100);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->data, "take this");
  ASSERT_EQ(got->fds.size(), 1u);
  EXPECT_NE(::fcntl(got->fds[0].get(), F_GETFD) & FD_CLOEXEC, 0);
  char text[16] = {};
  EXPECT_EQ(PReadFull(got->fds[0].get(), text, sizeof(text), 0).value_or(0),
            7u);
  EXPECT_STREQ(text, "content");

  ASSERT_TRUE(SendWithFds(a.get(), std::string(101, 'x'), {}).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(ReceiveWithFds(b.get(), 100).status()));
}

}  // namespace
}  // namespace bulkhead::os
