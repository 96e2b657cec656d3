#include "lib/digest/digest.h"

#include <gtest/gtest.h>

#include <string>
#include <unordered_set>
#include <vector>

namespace bulkhead {
namespace {

constexpr char kEmptySha256[] =
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

std::string ParseError(const std::string& text) {
  const auto digest = Digest::Parse(text);
  EXPECT_EQ(digest.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(digest.status().message());
}

TEST(Digest, KnownVectors) {
  EXPECT_EQ(Digest::Of("").str(), kEmptySha256);
  EXPECT_EQ(Digest::Of("abc").str(),
            "sha256:"
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Digest::Of("abc", DigestAlgorithm::kSha384).hex(),
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed"
            "8086072ba1e7cc2358baeca134c825a7");
  EXPECT_EQ(Digest::Of("abc", DigestAlgorithm::kSha512).hex(),
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
            "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f");
}

TEST(Digest, ParseAcceptsWhatItPrints) {
  for (auto algorithm : {DigestAlgorithm::kSha256, DigestAlgorithm::kSha384,
                         DigestAlgorithm::kSha512}) {
    const Digest digest = Digest::Of("x", algorithm);
    const auto parsed = Digest::Parse(digest.str());
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(*parsed, digest);
    EXPECT_EQ(parsed->algorithm(), algorithm);
    EXPECT_EQ(digest.str(), std::string(AlgorithmName(algorithm)) + ":" +
                                std::string(digest.hex()));
  }
}

TEST(Digest, ParseErrors) {
  const std::string hex(64, 'a');
  for (const std::string& bad : std::vector<std::string>{
           "", ":", "sha256", "sha256:", std::string(":") + hex,
           "sha256:" + std::string(64, 'A'), "sha256:" + std::string(64, 'g'),
           "SHA256:" + hex, "sha256../x:" + hex, "md5:a/b", "x-:" + hex}) {
    EXPECT_EQ(ParseError(bad), "invalid checksum digest format") << bad;
  }
  EXPECT_EQ(ParseError("sha256:abc"), "invalid checksum digest length");
  EXPECT_EQ(ParseError("sha256:" + hex + "a"),
            "invalid checksum digest length");
  EXPECT_EQ(ParseError("sha512:" + hex), "invalid checksum digest length");
  EXPECT_EQ(ParseError("md5:" + hex), "unsupported digest algorithm");
  EXPECT_EQ(ParseError("a+b.c:Zz=_-"), "unsupported digest algorithm");
}

TEST(Digest, OrderAndHash) {
  const Digest a = Digest::Of("a");
  const Digest b = Digest::Of("b");
  EXPECT_NE(a, b);
  EXPECT_EQ(a < b, a.str() < b.str());
  EXPECT_TRUE(Digest().empty());
  EXPECT_LT(Digest(), a);
  std::unordered_set<Digest> set = {a, b, a};
  EXPECT_EQ(set.size(), 2u);
}

TEST(Hasher, ACopyGoesOnAlone) {
  Hasher running;
  running.Update("ab");
  Hasher copy = running;
  running.Update("c");
  EXPECT_EQ(running.size_bytes(), 3);
  EXPECT_EQ(running.Current(), Digest::Of("abc"));
  EXPECT_EQ(running.Current(), Digest::Of("abc"));
  EXPECT_EQ(copy.size_bytes(), 2);
  EXPECT_EQ(copy.Finish(), Digest::Of("ab"));
}

TEST(Hasher, AnySplitGivesTheSame) {
  std::string data;
  for (int i = 0; i < 1000; ++i) data.push_back(static_cast<char>(i * 7));
  const Digest whole = Digest::Of(data);
  for (size_t step : {1, 63, 64, 65, 999}) {
    Hasher hasher;
    for (size_t at = 0; at < data.size(); at += step) {
      hasher.Update(absl::string_view(data).substr(at, step));
    }
    EXPECT_EQ(hasher.Finish(), whole) << step;
  }
}

TEST(Hasher, GoesOnFromItsState) {
  std::string data;
  for (int i = 0; i < 1000; ++i) data.push_back(static_cast<char>(i * 7));
  for (const auto algorithm :
       {DigestAlgorithm::kSha256, DigestAlgorithm::kSha384,
        DigestAlgorithm::kSha512}) {
    for (const size_t cut : {0, 1, 63, 64, 65, 127, 128, 129, 999, 1000}) {
      Hasher hasher(algorithm);
      hasher.Update(absl::string_view(data).substr(0, cut));
      const std::string state = hasher.State();
      EXPECT_LE(state.size(), kHasherStateBytesMax);
      std::optional<Hasher> other = Hasher::FromState(state);
      ASSERT_TRUE(other.has_value()) << cut;
      EXPECT_EQ(other->size_bytes(), static_cast<int64_t>(cut));
      EXPECT_EQ(other->algorithm(), algorithm);
      other->Update(absl::string_view(data).substr(cut));
      EXPECT_EQ(other->Finish(), Digest::Of(data, algorithm)) << cut;
    }
  }
}

TEST(Hasher, WhatIsNoStateIsRefused) {
  Hasher hasher;
  hasher.Update("hello");
  const std::string state = hasher.State();
  ASSERT_TRUE(Hasher::FromState(state).has_value());
  for (size_t size = 0; size < state.size(); ++size) {
    EXPECT_FALSE(Hasher::FromState(state.substr(0, size)).has_value()) << size;
  }
  EXPECT_FALSE(Hasher::FromState(state + "x").has_value());
  std::string other = state;
  other[0] = 2;  // Version.
  EXPECT_FALSE(Hasher::FromState(other).has_value());
  other = state;
  other[1] = 3;  // Algorithm.
  EXPECT_FALSE(Hasher::FromState(other).has_value());
  other = state;
  other[9] = '\x7f';  // A length that no file has.
  EXPECT_FALSE(Hasher::FromState(other).has_value());
}

}  // namespace
}  // namespace bulkhead
