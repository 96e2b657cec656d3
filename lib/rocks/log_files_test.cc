// Logs that end with zeros: what a kill or a power failure leaves of them.
#include "lib/rocks/log_files.h"

#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <sys/stat.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "lib/rocks/healing_db.h"
#include "lib/testing/temp_dir.h"

namespace bulkhead::rocks {
namespace {

using testing::RandomBytes;
using testing::ReadFileOrDie;
using testing::TempDir;
using testing::WriteFileOrDie;

// More than one of the 32 KiB blocks that a log is made of, and no whole number
// of pages.
constexpr size_t kRecordBytes = 40'001;

rocksdb::Options Options() {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  return options;
}

std::unique_ptr<HealingDb> Open(const std::string& path) {
  std::unique_ptr<HealingDb> db;
  const rocksdb::Status status = HealingDb::Open(Options(), path, &db);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return db;
}

void Put(HealingDb& db, const std::string& key, const std::string& value) {
  rocksdb::WriteBatch batch;
  ASSERT_TRUE(batch.Put(key, value).ok());
  rocksdb::WriteOptions options;
  options.sync = true;
  const rocksdb::Status status = db.Write(options, &batch);
  ASSERT_TRUE(status.ok()) << status.ToString();
}

// Empty: it is not there.
std::string Get(HealingDb& db, const std::string& key) {
  const HealingDb::Use use(db);
  if (!use.status().ok()) {
    ADD_FAILURE() << use.status().ToString();
    return "";
  }
  std::string value;
  const rocksdb::Status status = use->Get(rocksdb::ReadOptions(), key, &value);
  EXPECT_TRUE(status.ok() || status.IsNotFound()) << status.ToString();
  return status.ok() ? value : "";
}

// The newest log of the database at `path`.
std::string LogOf(const std::string& path) {
  std::string newest;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    const std::string name = entry.path().string();
    if (name.ends_with(".log") && name > newest) newest = name;
  }
  return newest;
}

struct stat StatOf(const std::string& path) {
  struct stat st = {};
  EXPECT_EQ(::stat(path.c_str(), &st), 0) << path;
  return st;
}

TEST(LogFiles, RecordsGoIntoZerosThatAreThere) {
  const TempDir dir;
  const auto db = Open(dir.Path("db"));
  ASSERT_NE(db, nullptr);
  Put(*db, "a", RandomBytes(kRecordBytes, 1));
  const std::string log = LogOf(dir.Path("db"));
  const struct stat before = StatOf(log);
  EXPECT_GE(before.st_size, static_cast<off_t>(kLogAheadBytes));
  // Not a hole: that would be allocated at each sync.
  EXPECT_GE(before.st_blocks * 512, static_cast<off_t>(kLogAheadBytes));
  Put(*db, "b", RandomBytes(kRecordBytes, 2));
  EXPECT_EQ(StatOf(log).st_size, before.st_size);
  // And on, when they are used up.
  for (int i = 0; i < 20; ++i) Put(*db, "c", RandomBytes(kRecordBytes, 3));
  EXPECT_GT(StatOf(log).st_size, before.st_size);
}

TEST(LogFiles, AClosedLogHasNoTail) {
  const TempDir dir;
  std::string log;
  {
    const auto db = Open(dir.Path("db"));
    ASSERT_NE(db, nullptr);
    Put(*db, "a", "short");
    log = LogOf(dir.Path("db"));
  }
  EXPECT_LT(StatOf(log).st_size, 1000);
  const auto again = Open(dir.Path("db"));
  ASSERT_NE(again, nullptr);
  EXPECT_EQ(Get(*again, "a"), "short");
}

// Every page of the last record may be lost, in every way.
TEST(LogFiles, ATornRecordTakesNothingWithIt) {
  const TempDir dir;
  const std::string first = RandomBytes(kRecordBytes, 1);
  const std::string last = RandomBytes(kRecordBytes, 2);
  const auto db = Open(dir.Path("db"));
  ASSERT_NE(db, nullptr);
  Put(*db, "first", first);
  const std::string log = LogOf(dir.Path("db"));
  const std::string before = ReadFileOrDie(log);
  Put(*db, "last", last);
  const std::string after = ReadFileOrDie(log);
  ASSERT_EQ(before.size(), after.size());

  size_t begin = 0;
  while (before[begin] == after[begin]) ++begin;
  size_t end = after.size();
  while (before[end - 1] == after[end - 1]) --end;
  ASSERT_GT(end - begin, kRecordBytes);

  constexpr size_t kPage = 4096;
  std::vector<std::string> torn = {after};  // Nothing lost: killed.
  for (size_t page = begin / kPage * kPage; page < end; page += kPage) {
    const size_t from = std::max(page, begin);
    const size_t to = std::min(page + kPage, end);
    std::string one = after;  // This page alone.
    one.replace(from, to - from, before, from, to - from);
    torn.push_back(one);
    std::string rest = after;  // It and all that follow.
    rest.replace(from, end - from, before, from, end - from);
    torn.push_back(rest);
    torn.push_back(after.substr(0, from));  // The length too.
  }
  ASSERT_GT(torn.size(), 30u);
  for (size_t i = 0; i < torn.size(); ++i) {
    const std::string copy = dir.Path("copy" + std::to_string(i));
    std::filesystem::copy(dir.Path("db"), copy);
    WriteFileOrDie(LogOf(copy), torn[i]);
    const auto opened = Open(copy);
    ASSERT_NE(opened, nullptr) << i;
    EXPECT_EQ(Get(*opened, "first"), first) << i;
    const std::string got = Get(*opened, "last");
    EXPECT_TRUE(got.empty() || got == last) << i;
    EXPECT_EQ(got == last, i == 0) << i;
    Put(*opened, "next", first);
    EXPECT_EQ(Get(*opened, "next"), first);
  }
}

}  // namespace
}  // namespace bulkhead::rocks
