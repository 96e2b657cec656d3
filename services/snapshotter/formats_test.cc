// What layers come as: eStargz, zstd:chunked, GNU's sparse files, and types
// that a configured program has to turn into one of ours.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/digest/digest.h"
#include "lib/testing/temp_dir.h"
#include "services/snapshotter/applier.h"
#include "services/snapshotter/tar_for_tests.h"

namespace bulkhead::snapshotter {
namespace {

using ::bulkhead::testing::RandomBytes;
using ::bulkhead::testing::ReadFileOrDie;
using ::bulkhead::testing::TempDir;
using ::bulkhead::testing::WriteFileOrDie;

constexpr char kTar[] = "application/vnd.oci.image.layer.v1.tar";
constexpr char kGzip[] = "application/vnd.oci.image.layer.v1.tar+gzip";
constexpr char kZstd[] = "application/vnd.oci.image.layer.v1.tar+zstd";

class FormatsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ::umask(0);
    ASSERT_EQ(::mkdir(root_.c_str(), 0755), 0);
  }
  std::string Path(const std::string& name) const { return root_ + "/" + name; }
  bool Exists(const std::string& name) const {
    struct stat st;
    return ::lstat(Path(name).c_str(), &st) == 0;
  }
  std::string Pack(const std::string& command, const std::string& bytes) {
    WriteFileOrDie(dir_.Path("in"), bytes);
    EXPECT_EQ(std::system(absl::StrCat(command, " < ", dir_.Path("in"), " > ",
                                       dir_.Path("out"))
                              .c_str()),
              0);
    return ReadFileOrDie(dir_.Path("out"));
  }
  absl::StatusOr<Unpacked> Apply(
      const std::string& layer, const std::string& type,
      const std::vector<StreamProcessor>& processors = {},
      const Payloads& payloads = {}) {
    StringSource source(layer);
    Applier applier({}, {.temp_dir = dir_.Path("tmp")}, processors);
    return applier.Apply({{"bind", root_, "", {"rw", "rbind"}}}, source, type,
                         false, payloads);
  }

  TempDir dir_;
  const std::string root_ = dir_.Path("root");
};

TEST_F(FormatsTest, EStargzHasNoTableOfContentsInItsTree) {
  const std::string files =
      Encode({".prefetch.landmark", '0', "\xf"}) +
      Encode({"d/", '5', "", "", 0755}) + Encode({"d/f", '0', "data"}) +
      Encode({"d/stargz.index.json", '0', "no table: not at the top"});
  const std::string table =
      Tar({{"stargz.index.json", '0', "{\"version\":1,\"entries\":[]}"}});
  for (const bool subfield : {true, false}) {
    const std::string layer =
        Pack("gzip", files) + Pack("gzip -9", table) + StargzFooter(subfield);
    const auto result = Apply(layer, kGzip);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->diff_id, Digest::Of(files + table).str());
    EXPECT_FALSE(Exists("stargz.index.json"));
    EXPECT_FALSE(Exists(".prefetch.landmark"));
    EXPECT_EQ(ReadFileOrDie(Path("d/f")), "data");
    EXPECT_TRUE(Exists("d/stargz.index.json"));
  }
  // The same files in a plain gzip are just files.
  ASSERT_TRUE(Apply(Pack("gzip", files + table), kGzip).ok());
  EXPECT_TRUE(Exists("stargz.index.json"));
  EXPECT_TRUE(Exists(".prefetch.landmark"));
}

std::string Skippable(const std::string& bytes, int kind = 0) {
  std::string out = "\x50\x2a\x4d\x18";
  out[0] = static_cast<char>(0x50 + kind);
  for (int i = 0; i < 4; ++i) out += static_cast<char>(bytes.size() >> (8 * i));
  return out + bytes;
}

TEST_F(FormatsTest, ZstdChunkedFramesAreNoFiles) {
  const std::string data = RandomBytes(400000);
  const std::string tar = Tar({{"a", '0', data}, {"b", '0', "b"}});
  // A frame for each piece, then the table, its end and the footer.
  const std::string layer =
      Pack("zstd -q", tar.substr(0, 512)) +
      Pack("zstd -q", tar.substr(512, 100000)) +
      Pack("zstd -q", tar.substr(100512)) +
      Skippable(Pack("zstd -q", "{\"version\":1,\"entries\":[]}")) +
      Skippable(RandomBytes(300000), 15) + Skippable(std::string(64, 'F'));
  for (const std::string& each :
       {layer, Skippable("first of all", 3) + layer, layer + Skippable("")}) {
    const auto result = Apply(each, kZstd);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->diff_id, Digest::Of(tar).str());
    EXPECT_EQ(result->size_bytes, static_cast<int64_t>(tar.size()));
    EXPECT_EQ(ReadFileOrDie(Path("a")), data);
  }
  // Cut off anywhere, junk behind, a frame that promises more than comes.
  for (const size_t cut : {size_t{1}, size_t{5}, size_t{63}, size_t{70},
                           size_t{200000}, layer.size() - 20}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        Apply(layer.substr(0, layer.size() - cut), kZstd).status()))
        << cut;
  }
  EXPECT_FALSE(Apply(layer + "junk", kZstd).ok());
  EXPECT_FALSE(
      Apply(layer + std::string("\x5a\x2a\x4d\x18\xff\xff\xff\xff", 8), kZstd)
          .ok());
}

TEST_F(FormatsTest, AZstdWindowOverTheLimitIsRefused) {
  // Header: no content size, no checksum; a window of 2^31 bytes.
  const std::string frame("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00", 9);
  const absl::Status status = Apply(frame, kZstd).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.ToString(), "memory")) << status;
}

TEST_F(FormatsTest, GnuSparseFilesWithManyHoles) {
  const std::string src = dir_.Path("src");
  ASSERT_EQ(std::system(
                absl::StrCat("mkdir ", src, "; cd ", src,
                             "; for i in $(seq 0 3 120); do printf 'data%d' $i"
                             " | dd of=many bs=1 seek=$((i*65536)) conv=notrunc"
                             " status=none; done; truncate -s 20M many;"
                             " truncate -s 5M hole; printf x > one")
                    .c_str()),
            0);
  for (const char* how : {"--format=gnu", "--format=posix --sparse-version=0.0",
                          "--format=posix --sparse-version=0.1",
                          "--format=posix --sparse-version=1.0"}) {
    ASSERT_EQ(std::system(absl::StrCat("rm -rf ", root_, "; mkdir ", root_,
                                       "; tar -S ", how, " -C ", src, " -cf ",
                                       dir_.Path("tar"), " .")
                              .c_str()),
              0);
    const auto result = Apply(ReadFileOrDie(dir_.Path("tar")), kTar);
    ASSERT_TRUE(result.ok()) << how << ": " << result.status();
    for (const char* name : {"many", "hole", "one"}) {
      EXPECT_EQ(
          std::system(
              absl::StrCat("cmp ", src, "/", name, " ", Path(name)).c_str()),
          0)
          << how;
    }
    struct stat st;
    ASSERT_EQ(::stat(Path("many").c_str(), &st), 0);
    EXPECT_LT(st.st_blocks * 512, 2 << 20) << how;
  }
}

// Between processors a thread is waited for, whatever goes wrong.
TEST_F(FormatsTest, StreamProcessorsChain) {
  const std::string tar = Tar({{"f", '0', "data"}});
  const std::string swapped = Pack("tr 'a-z' 'b-za'", Pack("gzip", tar));
  const std::vector<StreamProcessor> processors = {
      {"one", {"test/swapped"}, "test/still+gzip", "tr", {"b-za", "a-z"}, {}},
      {"two",
       {"test/other", "test/still+gzip"},
       kGzip,
       "/bin/sh",
       {"-c",
        "cat <&3 > $SEEN; printf '%s' \"$STREAM_PROCESSOR_MEDIATYPE\" > "
        "$SEEN.type; grep CapEff /proc/self/status > $SEEN.caps; cat"},
       {"SEEN=" + dir_.Path("seen")}},
  };
  auto result =
      Apply(swapped, "test/swapped", processors, {{"two", "the payload"}});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->diff_id, Digest::Of(tar).str());
  EXPECT_EQ(ReadFileOrDie(Path("f")), "data");
  EXPECT_EQ(ReadFileOrDie(dir_.Path("seen")), "the payload");
  EXPECT_EQ(ReadFileOrDie(dir_.Path("seen.type")), "test/still+gzip");
  EXPECT_EQ(ReadFileOrDie(dir_.Path("seen.caps")),
            "CapEff:\t0000000000000000\n");
  // A large layer, and a type nobody accepts.
  const std::string large = Tar({{"l", '0', RandomBytes(5 << 20)}});
  result = Apply(Pack("tr 'a-z' 'b-za'", large), "test/swapped",
                 {{"one", {"test/swapped"}, kTar, "tr", {"b-za", "a-z"}, {}}});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->diff_id, Digest::Of(large).str());
  EXPECT_TRUE(
      absl::IsUnimplemented(Apply(tar, "test/none", processors).status()));
}

TEST_F(FormatsTest, StreamProcessorsThatFailAreNamed) {
  const std::string tar = Tar({{"f", '0', RandomBytes(1 << 20)}});
  const auto with = [&](const std::string& script) {
    return Apply(tar, "test/x",
                 {{"it", {"test/x"}, kTar, "/bin/sh", {"-c", script}, {}}})
        .status();
  };
  absl::Status status = with("echo wrong key >&2; exit 3");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnknown) << status;
  EXPECT_TRUE(absl::StrContains(status.ToString(),
                                "stream processor it ended with 3: wrong key"))
      << status;
  status = with("head -c 700; exit 4");  // Cut off.
  EXPECT_TRUE(absl::StrContains(status.ToString(), "ended with 4")) << status;
  status = with("cat; exit 5");  // All there, but not well.
  EXPECT_TRUE(absl::StrContains(status.ToString(), "ended with 5")) << status;
  status = with("cat; kill -SEGV $$");
  EXPECT_TRUE(absl::StrContains(status.ToString(), "signal 11")) << status;
  // Endless noise, on both outputs.
  status = with("yes >&2; yes");
  EXPECT_FALSE(status.ok());
  status = with("yes");
  EXPECT_TRUE(absl::StrContains(status.ToString(), "invalid tar")) << status;
  status = with("head -c 1024 /dev/zero; cat > /dev/null");  // Reads it all.
  EXPECT_TRUE(status.ok()) << status;
  status = with("exec <&-; head -c 1024 /dev/zero");  // Reads nothing.
  EXPECT_TRUE(status.ok()) << status;
  status = Apply(tar, "test/x",
                 {{"it", {"test/x"}, kTar, "/no/such/program", {}, {}}})
               .status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  status = Apply(tar, "test/x", {{"it", {"test/x"}, "test/x", "cat", {}, {}}})
               .status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
}

}  // namespace
}  // namespace bulkhead::snapshotter
