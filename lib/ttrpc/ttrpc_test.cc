#include <gtest/gtest.h>
#include <sys/socket.h>

#include <future>
#include <mutex>
#include <vector>

#include "lib/os/socket.h"
#include "lib/testing/temp_dir.h"
#include "lib/ttrpc/client.h"
#include "lib/ttrpc/frame.h"
#include "lib/ttrpc/server.h"

namespace bulkhead::ttrpc {
namespace {

class TtrpcTest : public ::testing::Test {
 protected:
  TtrpcTest() {
    auto listener = os::ListenUnix(dir_.Path("t"), {});
    server_ = Server::Start(
        reactor_, *std::move(listener),
        {{"a.S/Echo",
          [](const Request& r, Server::Reply reply) { reply(r.payload); }},
         {"a.S/Hold", [this](const Request&, Server::Reply reply) {
            std::lock_guard<std::mutex> lock(mutex_);
            held_.push_back(std::move(reply));
          }}});
    client_ = Client::Create(reactor_, *Dial(dir_.Path("t")), nullptr);
  }
  Client::Result Call(const std::string& method, const std::string& payload) {
    return client_->Call("a.S", method, payload, {}, absl::Seconds(10));
  }

  testing::TempDir dir_;
  Reactor reactor_;
  std::mutex mutex_;
  std::vector<Server::Reply> held_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<Client> client_;
};

TEST_F(TtrpcTest, AnswersOutOfOrderAndInTime) {
  std::promise<Client::Result> late;
  client_->Start("a.S", "Hold", "", {}, absl::InfiniteFuture(),
                 [&](Client::Result result) { late.set_value(result); });
  EXPECT_EQ(*Call("Echo", "x"), "x");
  EXPECT_EQ(*Call("Echo", ""), "");
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      client_->Call("a.S", "Hold", "", {}, absl::Milliseconds(5)).status()));
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& reply : held_) reply(std::string("held"));  // One has given up.
  EXPECT_EQ(*late.get_future().get(), "held");
}

TEST_F(TtrpcTest, RefusesWhatIsUnknownOrTooLong) {
  EXPECT_EQ(Call("Nope", "").status(), absl::UnimplementedError("method Nope"));
  EXPECT_EQ(client_->Call("b.T", "M", "", {}, absl::Seconds(10)).status(),
            absl::UnimplementedError("service b.T"));
  EXPECT_TRUE(absl::IsResourceExhausted(
      Call("Echo", std::string(kFrameBodySizeBytesMax + 1, 'x')).status()));
  EXPECT_EQ(*Call("Echo", "still here"), "still here");
}

TEST_F(TtrpcTest, LostConnectionFailsPendingCalls) {
  std::promise<Client::Result> late;
  client_->Start("a.S", "Hold", "", {}, absl::InfiniteFuture(),
                 [&](Client::Result result) { late.set_value(result); });
  EXPECT_EQ(*Call("Echo", "x"), "x");
  server_.reset();
  const absl::Status status = late.get_future().get().status();
  EXPECT_EQ(status, absl::UnknownError("ttrpc: closed"));
  EXPECT_TRUE(IsClosed(status));
}

}  // namespace
}  // namespace bulkhead::ttrpc
