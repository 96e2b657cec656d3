#include "services/distribution/stream_credentials.h"

#include <gtest/gtest.h>

#include "proto/containerd/types/transfer/registry.pb.h"

namespace bulkhead::distribution {
namespace {

namespace transfer = containerd::types::transfer;

// A client that looks at the reference only, as some do.
class ClientOfOne : public Stream {
 public:
  bool Send(const StreamMessage& message) override {
    EXPECT_EQ(BareType(message.type_url),
              "containerd.types.transfer.AuthRequest");
    EXPECT_TRUE(asked_.ParseFromString(message.value));
    return !closed_;
  }
  bool Receive(StreamMessage* message) override {
    transfer::AuthResponse response;
    if (asked_.reference() == "push.example/app:1") {
      response.set_authtype(transfer::CREDENTIALS);
      response.set_username("me");
      response.set_secret("for push.example");
    }
    *message = {"type.example/containerd.types.transfer.AuthResponse",
                response.SerializeAsString()};
    return true;
  }
  void Close() override { closed_ = true; }

  transfer::AuthRequest asked_;
  bool closed_ = false;
};

TEST(StreamCredentials, AnotherRegistryIsAskedForByItsOwnReference) {
  const auto stream = std::make_shared<ClientOfOne>();
  const auto credentials = std::make_shared<StreamCredentials>(stream);
  const CredentialSource push =
      StreamCredentials::For(credentials, "push.example/app:1");
  const CredentialSource origin =
      StreamCredentials::For(credentials, "origin.example/app");
  const auto given = push("push.example", {"Basic realm=x"});
  ASSERT_TRUE(given.ok()) << given.status();
  EXPECT_EQ(given->secret, "for push.example");
  EXPECT_EQ(stream->asked_.wwwauthenticate(0), "Basic realm=x");
  const auto none = origin("origin.example", {});
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->secret, "");
  EXPECT_EQ(none->username, "");
  EXPECT_EQ(stream->asked_.host(), "origin.example");
  EXPECT_EQ(stream->asked_.reference(), "origin.example/app");
}

TEST(StreamCredentials, NobodyToAsk) {
  EXPECT_FALSE(StreamCredentials::For(nullptr, "push.example/app:1"));
  const auto stream = std::make_shared<ClientOfOne>();
  stream->Close();
  const CredentialSource source = StreamCredentials::For(
      std::make_shared<StreamCredentials>(stream), "push.example/app:1");
  EXPECT_TRUE(absl::IsUnauthenticated(source("push.example", {}).status()));
}

}  // namespace
}  // namespace bulkhead::distribution
