#include "services/content/store_conformance.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace bulkhead::content {

using ::bulkhead::testing::RandomBytes;
using ::testing::AssertionFailure;
using ::testing::AssertionResult;
using ::testing::AssertionSuccess;

namespace {

AssertionResult Ok(const absl::Status& status) {
  return status.ok() ? AssertionSuccess() : AssertionFailure() << status;
}

// `status` has this code, and a message with `text` in it.
AssertionResult Fails(const absl::Status& status, absl::StatusCode code,
                      const std::string& text = "") {
  if (status.code() != code ||
      std::string(status.message()).find(text) == std::string::npos) {
    return AssertionFailure() << "got " << status << ", not "
                              << absl::StatusCodeToString(code) << " " << text;
  }
  return AssertionSuccess();
}

using Code = absl::StatusCode;

}  // namespace

std::unique_ptr<Writer> StoreConformance::Begin(const std::string& ref,
                                                int64_t total,
                                                const Digest& expected) {
  auto writer = store_->OpenWriter({ref, total, expected});
  EXPECT_TRUE(Ok(writer.status())) << ref;
  return writer.ok() ? *std::move(writer) : nullptr;
}

Digest StoreConformance::Put(const std::string& ref, const std::string& data) {
  auto writer = Begin(ref);
  EXPECT_TRUE(Ok(writer->Append(data)));
  const auto blob = writer->Commit({});
  EXPECT_TRUE(Ok(blob.status()));
  return Digest::Of(data);
}

std::string StoreConformance::ReadAll(const Digest& digest) {
  const auto blob = store_->OpenBlob(digest);
  EXPECT_TRUE(Ok(blob.status()));
  if (!blob.ok()) return "";
  std::string data;
  EXPECT_TRUE(Ok((*blob)->ReadAt(0, (*blob)->size_bytes(), &data)));
  return data;
}

TEST_P(StoreConformance, IngestIsInvisibleUntilCommit) {
  const Digest digest = Digest::Of("hello");
  auto writer = Begin("ref");
  ASSERT_TRUE(Ok(writer->Append("hello")));
  EXPECT_TRUE(Fails(store_->Info(digest).status(), Code::kNotFound,
                    "content digest " + digest.str()));
  EXPECT_TRUE(Fails(store_->OpenBlob(digest).status(), Code::kNotFound));

  const auto blob = writer->Commit({.size_bytes = 5, .expected = digest});
  ASSERT_TRUE(Ok(blob.status()));
  EXPECT_EQ(blob->digest, digest);
  EXPECT_EQ(blob->size_bytes, 5);
  EXPECT_EQ(writer->DigestSoFar().value(), digest);
  const auto info = store_->Info(digest);
  ASSERT_TRUE(Ok(info.status()));
  EXPECT_EQ(info->size_bytes, 5);
  EXPECT_LT(absl::AbsDuration(absl::Now() - info->created_at),
            absl::Minutes(1));
  EXPECT_TRUE(Fails(store_->Status("ref").status(), Code::kNotFound));
  EXPECT_EQ(ReadAll(digest), "hello");
}

TEST_P(StoreConformance, AnEmptyBlobIsABlob) {
  auto writer = Begin("ref");
  EXPECT_EQ(writer->DigestSoFar().value(), Digest::Of(""));
  ASSERT_TRUE(Ok(writer->Commit({}).status()));
  EXPECT_EQ(store_->Info(Digest::Of("")).value().size_bytes, 0);
  EXPECT_EQ(ReadAll(Digest::Of("")), "");
}

TEST_P(StoreConformance, UnknownDigests) {
  const Digest digest = Digest::Of("never");
  const std::string text = "content digest " + digest.str();
  EXPECT_TRUE(Fails(store_->Info(digest).status(), Code::kNotFound, text));
  EXPECT_TRUE(Fails(store_->Delete(digest), Code::kNotFound, text));
  EXPECT_TRUE(Fails(store_->OpenBlob(digest).status(), Code::kNotFound, text));
}

TEST_P(StoreConformance, ReadsAnyRange) {
  const std::string data = RandomBytes((3 << 20) + 17);
  const Digest digest = Put("ref", data);
  const auto blob = store_->OpenBlob(digest);
  ASSERT_TRUE(Ok(blob.status()));
  EXPECT_EQ((*blob)->size_bytes(), static_cast<int64_t>(data.size()));
  std::string got;
  for (size_t offset :
       {size_t{0}, size_t{1}, size_t{1 << 20}, data.size() - 1}) {
    for (size_t size : {size_t{1}, size_t{2} << 20, data.size()}) {
      ASSERT_TRUE(Ok((*blob)->ReadAt(offset, size, &got)));
      EXPECT_TRUE(got == data.substr(offset, size)) << offset << " " << size;
    }
  }
  ASSERT_TRUE(Ok((*blob)->ReadAt(data.size(), 1, &got)));
  EXPECT_EQ(got, "");
  EXPECT_TRUE(Fails((*blob)->ReadAt(data.size() + 1, 1, &got),
                    Code::kOutOfRange, "read past object length"));
}

TEST_P(StoreConformance, DeleteForgets) {
  const Digest digest = Put("ref", "hello");
  ASSERT_TRUE(Ok(store_->Delete(digest)));
  EXPECT_TRUE(Fails(store_->Info(digest).status(), Code::kNotFound));
  EXPECT_TRUE(Fails(store_->Delete(digest), Code::kNotFound));
}

TEST_P(StoreConformance, ListsAllBlobsOnce) {
  std::set<std::string> expected;
  for (int i = 0; i < 205; ++i) {  // More than two batches.
    const std::string data = absl::StrCat("blob ", i);
    expected.insert(Put("ref", data).str());
  }
  std::multiset<std::string> seen;
  ASSERT_TRUE(Ok(store_->List([&](const BlobInfo& info) {
    seen.insert(info.digest.str());
    return absl::OkStatus();
  })));
  EXPECT_EQ(seen, std::multiset<std::string>(expected.begin(), expected.end()));
}

TEST_P(StoreConformance, ResumesWhereItStopped) {
  const std::string data = RandomBytes(300'000);
  auto writer = Begin("ref", 300'000, Digest::Of(data));
  ASSERT_TRUE(Ok(writer->Append(data.substr(0, 100'000))));
  writer.reset();
  const auto status = store_->Status("ref");
  ASSERT_TRUE(Ok(status.status()));
  EXPECT_EQ(status->ref, "ref");
  EXPECT_EQ(status->offset_bytes, 100'000);
  EXPECT_EQ(status->total_bytes, 300'000);
  EXPECT_LE(status->started_at, status->updated_at + absl::Seconds(1));

  writer = Begin("ref", 300'000, Digest::Of(data));
  EXPECT_EQ(writer->Info().value().offset_bytes, 100'000);
  EXPECT_EQ(writer->Info().value().total_bytes, 300'000);
  EXPECT_EQ(writer->DigestSoFar().value(), Digest::Of(data.substr(0, 100'000)));
  ASSERT_TRUE(Ok(writer->Append(data.substr(100'000))));
  EXPECT_EQ(writer->DigestSoFar().value(), Digest::Of(data));
  ASSERT_TRUE(
      Ok(writer->Commit({.size_bytes = 300'000, .expected = Digest::Of(data)})
             .status()));
  EXPECT_TRUE(ReadAll(Digest::Of(data)) == data);
}

TEST_P(StoreConformance, AConflictingTotalStartsAnew) {
  auto writer = Begin("ref", 10);
  ASSERT_TRUE(Ok(writer->Append("12345")));
  writer.reset();
  writer = Begin("ref");  // An unknown total does not conflict.
  EXPECT_EQ(writer->Info().value().offset_bytes, 5);
  writer.reset();
  writer = Begin("ref", 20);
  EXPECT_EQ(writer->Info().value().offset_bytes, 0);
  EXPECT_EQ(writer->Info().value().total_bytes, 20);
}

TEST_P(StoreConformance, TruncateToNothing) {
  auto writer = Begin("ref");
  ASSERT_TRUE(Ok(writer->Append("garbage")));
  ASSERT_TRUE(Ok(writer->Truncate(0)));
  EXPECT_EQ(writer->Info().value().offset_bytes, 0);
  EXPECT_EQ(writer->DigestSoFar().value(), Digest::Of(""));
  ASSERT_TRUE(Ok(writer->Append("hello")));
  ASSERT_TRUE(Ok(writer->Commit({.expected = Digest::Of("hello")}).status()));
}

TEST_P(StoreConformance, AFailedCommitKeepsTheIngest) {
  auto writer = Begin("ref");
  ASSERT_TRUE(Ok(writer->Append("hello")));
  EXPECT_TRUE(Fails(writer->Commit({.size_bytes = 6}).status(),
                    Code::kFailedPrecondition,
                    "failed size validation: 5 != 6"));
  writer.reset();
  writer = Begin("ref");
  EXPECT_TRUE(
      Fails(writer->Commit({.size_bytes = 5, .expected = Digest::Of("other")})
                .status(),
            Code::kFailedPrecondition,
            absl::StrCat("unexpected commit digest ", Digest::Of("hello").str(),
                         ", expected ", Digest::Of("other").str())));
  writer.reset();
  EXPECT_TRUE(
      Fails(store_->Info(Digest::Of("hello")).status(), Code::kNotFound));
  writer = Begin("ref");
  EXPECT_EQ(writer->Info().value().offset_bytes, 5);
  ASSERT_TRUE(Ok(writer->Append(" world")));
  ASSERT_TRUE(
      Ok(writer->Commit({.expected = Digest::Of("hello world")}).status()));
}

TEST_P(StoreConformance, WhatIsThereIsNotStoredTwice) {
  const Digest digest = Put("first", "hello");
  auto writer = Begin("second");
  ASSERT_TRUE(Ok(writer->Append("hello")));
  EXPECT_TRUE(Fails(writer->Commit({}).status(), Code::kAlreadyExists,
                    "content " + digest.str()));
  writer.reset();
  EXPECT_TRUE(Fails(store_->Status("second").status(), Code::kNotFound));
  EXPECT_TRUE(Fails(store_->OpenWriter({"third", 5, digest}).status(),
                    Code::kAlreadyExists));
  EXPECT_TRUE(Fails(store_->Status("third").status(), Code::kNotFound));
  EXPECT_EQ(ReadAll(digest), "hello");
}

TEST_P(StoreConformance, OneWriterARef) {
  auto writer = Begin("ref");
  EXPECT_TRUE(Fails(store_->OpenWriter({"ref", 0, {}}).status(),
                    Code::kUnavailable, " locked for "));
  writer.reset();
  writer = Begin("ref");
  ASSERT_TRUE(Ok(writer->Append("hello")));
  ASSERT_TRUE(Ok(writer->Commit({}).status()));
  auto next = Begin("ref");  // The commit has unlocked it.
  EXPECT_EQ(next->Info().value().offset_bytes, 0);
}

TEST_P(StoreConformance, AbortForgets) {
  EXPECT_TRUE(Fails(store_->Abort("ref"), Code::kNotFound, "reference "));
  auto writer = Begin("ref");
  ASSERT_TRUE(Ok(writer->Append("hello")));
  writer.reset();
  ASSERT_TRUE(Ok(store_->Abort("ref")));
  EXPECT_TRUE(
      Fails(store_->Status("ref").status(), Code::kNotFound, "reference "));
  EXPECT_EQ(Begin("ref")->Info().value().offset_bytes, 0);
}

TEST_P(StoreConformance, AbortOfAnOpenIngestSucceeds) {
  auto writer = Begin("ref");
  ASSERT_TRUE(Ok(writer->Append("hello")));
  ASSERT_TRUE(Ok(store_->Abort("ref")));
  EXPECT_TRUE(Fails(store_->Status("ref").status(), Code::kNotFound));
  const bool committed = writer->Commit({}).ok();
  EXPECT_EQ(committed, GetParam().commit_beats_abort);
  writer.reset();
  EXPECT_EQ(store_->Info(Digest::Of("hello")).ok(), committed);
  EXPECT_EQ(Begin("ref")->Info().value().offset_bytes, 0);
}

TEST_P(StoreConformance, AnyStringIsARef) {
  const std::vector<std::string> refs = {
      "default/1/layer-sha256:abc", "..",      "/",
      "../../etc/passwd",           "a b\n\t", "\xc3\xa4\xe2\x82\xac",
      std::string(3000, 'x')};
  for (const std::string& ref : refs) {
    auto writer = Begin(ref, 7);
    ASSERT_TRUE(Ok(writer->Append("x")));
  }
  const auto statuses = store_->ListStatuses();
  ASSERT_TRUE(Ok(statuses.status()));
  std::multiset<std::string> seen;
  for (const IngestInfo& info : *statuses) {
    seen.insert(info.ref);
    EXPECT_EQ(info.offset_bytes, 1);
    EXPECT_EQ(info.total_bytes, 7);
  }
  EXPECT_EQ(seen, std::multiset<std::string>(refs.begin(), refs.end()));
  EXPECT_TRUE(Fails(store_->OpenWriter({"", 0, {}}).status(),
                    Code::kInvalidArgument,
                    "first message must have a reference"));
}

TEST_P(StoreConformance, OtherAlgorithms) {
  for (auto algorithm : {DigestAlgorithm::kSha384, DigestAlgorithm::kSha512}) {
    const std::string data = RandomBytes(100'000);
    const Digest digest = Digest::Of(data, algorithm);
    auto writer = Begin("ref", data.size(), digest);
    ASSERT_TRUE(Ok(writer->Append(data)));
    const auto blob = writer->Commit({.expected = digest});
    if (GetParam().only_sha256) {
      EXPECT_TRUE(Fails(blob.status(), Code::kFailedPrecondition));
      continue;
    }
    ASSERT_TRUE(Ok(blob.status()));
    EXPECT_EQ(blob->digest, digest);
    EXPECT_TRUE(ReadAll(digest) == data);
  }
}

TEST_P(StoreConformance, LabelsOfACommit) {
  if (!GetParam().keeps_labels) GTEST_SKIP() << "this store keeps no labels";
  auto writer = Begin("ref");
  ASSERT_TRUE(Ok(writer->Append("hello")));
  ASSERT_TRUE(Ok(writer->Commit({.labels = {{"a", "b"}}}).status()));
  EXPECT_EQ(store_->Info(Digest::Of("hello")).value().labels,
            (Labels{{"a", "b"}}));
}

TEST_P(StoreConformance, ManyWritersAtOnce) {
  constexpr int kThreads = 8;
  std::atomic<int> same_ok{0};
  std::atomic<int> same_there{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 8; ++i) {
        // Own bytes under an own ref, then everybody's bytes.
        const std::string own = RandomBytes(50'000, 100 * t + i + 1);
        Put(absl::StrCat("own ", t), own);
        EXPECT_TRUE(ReadAll(Digest::Of(own)) == own);
        auto writer = Begin(absl::StrCat("same ", t));
        EXPECT_TRUE(Ok(writer->Append(absl::StrCat("same ", i))));
        const absl::Status status = writer->Commit({}).status();
        status.ok() ? ++same_ok : ++same_there;
        EXPECT_TRUE(status.ok() || absl::IsAlreadyExists(status)) << status;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(same_ok, 8);
  EXPECT_EQ(same_there, 8 * (kThreads - 1));
  EXPECT_TRUE(store_->ListStatuses().value().empty());
}

}  // namespace bulkhead::content
