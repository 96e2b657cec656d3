#include "lib/os/acceptor.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "lib/os/socket.h"
#include "lib/testing/temp_dir.h"

namespace bulkhead::os {
namespace {

// While it lives, this process gets no new descriptor.
class NoDescriptors {
 public:
  NoDescriptors() {
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &before_), 0);
    // All below the limit are taken.
    rlimit few = before_;
    few.rlim_cur = 64;
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
    for (int fd = ::dup(0); fd >= 0; fd = ::dup(0)) taken_.emplace_back(fd);
  }
  ~NoDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  void FreeOne() { taken_.pop_back(); }

 private:
  rlimit before_{};
  std::vector<UniqueFd> taken_;
};

class AcceptorTest : public ::testing::Test {
 protected:
  // Made while there are descriptors.
  UniqueFd Client() { return ConnectUnix(path_).value(); }

  testing::TempDir dir_;
  const std::string path_ = dir_.Path("s");
  const UniqueFd listener_ = ListenUnix(path_, {}).value();
};

TEST_F(AcceptorTest, RefusesWithAReasonWhenNoDescriptorIsFree) {
  Acceptor acceptor(listener_.get(), [](int fd, const absl::Status& why) {
    EXPECT_TRUE(absl::IsResourceExhausted(why)) << why;
    EXPECT_EQ(::write(fd, "no", 2), 2);
  });
  const UniqueFd first = Client();
  const UniqueFd second = Client();
  const UniqueFd third = Client();
  char text[8];
  {
    NoDescriptors none;
    for (const UniqueFd* client : {&first, &second}) {
      const auto accepted = acceptor.Accept();
      EXPECT_TRUE(absl::IsResourceExhausted(accepted.status()))
          << accepted.status();
      EXPECT_NE(accepted.status().message().find("Too many open files"),
                std::string::npos)
          << accepted.status();
      EXPECT_EQ(::read(client->get(), text, sizeof(text)), 2);
      EXPECT_EQ(::read(client->get(), text, sizeof(text)), 0) << "not closed";
    }
    // Nobody waits for the reserve's sake: a blocking listener still blocks.
    none.FreeOne();
    EXPECT_TRUE(acceptor.Accept().ok());
  }
  const UniqueFd fourth = Client();
  EXPECT_TRUE(acceptor.Accept().ok());
}

// accept(2) says that there is no descriptor before it looks for a client.
TEST_F(AcceptorTest, WithoutDescriptorAndClientItBlocks) {
  Acceptor acceptor(listener_.get());
  std::atomic<int> answers = 0;
  std::thread accepting;
  {
    NoDescriptors none;
    accepting = std::thread([&] {
      while (absl::IsResourceExhausted(acceptor.Accept().status())) ++answers;
    });
    ::usleep(100'000);
    EXPECT_EQ(answers, 0);
    ::shutdown(listener_.get(), SHUT_RDWR);
    accepting.join();
  }
  EXPECT_LE(answers, 1);
}

TEST_F(AcceptorTest, WithoutAReserveItWaitsAndGetsOneLater) {
  const UniqueFd client = Client();
  std::unique_ptr<Acceptor> acceptor;
  {
    NoDescriptors none;
    acceptor = std::make_unique<Acceptor>(listener_.get());
    EXPECT_TRUE(absl::IsResourceExhausted(acceptor->Accept().status()));
    none.FreeOne();
    EXPECT_TRUE(acceptor->Accept().ok());
  }
}

// Passed descriptors are lost then; that is not the peer's mistake.
TEST_F(AcceptorTest, AMessageWithDescriptorsSaysWhyTheyAreMissing) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd sender(pair[0]);
  const UniqueFd receiver(pair[1]);
  ASSERT_TRUE(SendWithFds(sender.get(), "x", {0, 0}).ok());
  ASSERT_TRUE(SendWithFds(sender.get(), "y", {0}).ok());
  {
    NoDescriptors none;
    none.FreeOne();
    const auto message = ReceiveWithFds(receiver.get(), 100);
    EXPECT_TRUE(absl::IsResourceExhausted(message.status()))
        << message.status();
    EXPECT_NE(message.status().message().find("Too many open files"),
              std::string::npos);
  }
  EXPECT_EQ(ReceiveWithFds(receiver.get(), 100)->fds.size(), 1u);
}

TEST_F(AcceptorTest, OtherErrorsEndTheLoop) {
  Acceptor acceptor(listener_.get());
  ::shutdown(listener_.get(), SHUT_RDWR);
  const absl::Status status = acceptor.Accept().status();
  EXPECT_FALSE(status.ok());
  EXPECT_FALSE(absl::IsResourceExhausted(status)) << status;
  EXPECT_FALSE(absl::IsUnavailable(status)) << status;
}

}  // namespace
}  // namespace bulkhead::os
