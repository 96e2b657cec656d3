// Layers good and hostile, unpacked. Needs root: owners, devices, trusted.*.
#include "services/snapshotter/apply.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "lib/digest/digest.h"
#include "lib/testing/temp_dir.h"
#include "services/snapshotter/tar_for_tests.h"

namespace bulkhead::snapshotter {
namespace {

using ::bulkhead::testing::RandomBytes;
using ::bulkhead::testing::ReadFileOrDie;
using ::bulkhead::testing::TempDir;
using ::bulkhead::testing::WriteFileOrDie;

constexpr char kTar[] = "application/vnd.oci.image.layer.v1.tar";
constexpr char kGzip[] = "application/vnd.oci.image.layer.v1.tar+gzip";

class ApplyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ::umask(0);
    Run(absl::StrCat("mkdir -p -m 0755 ", root_, " ", dir_.Path("outside")));
    WriteFileOrDie(dir_.Path("outside/secret"), "secret");
  }

  static int Run(const std::string& command) {
    return std::system(command.c_str());
  }
  std::vector<os::MountSpec> Bind() const {
    return {{"bind", root_, "", {"rw", "rbind"}}};
  }
  absl::StatusOr<Unpacked> Apply(const std::string& layer,
                                 const char* type = kTar,
                                 bool parallel = false) {
    StringSource source(layer);
    return ApplyLayer(Bind(), source, type, parallel, limits_);
  }
  std::string Path(const std::string& name) const { return root_ + "/" + name; }
  struct stat Stat(const std::string& name) const {
    struct stat st {};
    EXPECT_EQ(::lstat(Path(name).c_str(), &st), 0) << name;
    return st;
  }
  bool Exists(const std::string& name) const {
    struct stat st;
    return ::lstat(Path(name).c_str(), &st) == 0;
  }
  // Whatever a layer did, this must hold.
  void ExpectOutsideUntouched() const {
    EXPECT_EQ(ReadFileOrDie(dir_.Path("outside/secret")), "secret");
    EXPECT_EQ(Run(absl::StrCat("test $(ls -A ", dir_.Path("outside"),
                               " | wc -l) = 1")),
              0);
    EXPECT_NE(::access("/tmp/bh-escaped", F_OK), 0);
  }

  TempDir dir_;
  const std::string root_ = dir_.Path("root");
  ApplyLimits limits_{.temp_dir = dir_.Path("tmp")};
};

TEST_F(ApplyTest, GnuTarsTreeComesOutTheSame) {
  const std::string src = dir_.Path("src");
  ASSERT_EQ(
      Run("set -e; mkdir " + src + "; cd " + src +
          "; mkdir -p a/b/c empty; echo hi > a/f; ln a/f a/hard; ln -s f a/sym;"
          "ln -s /etc/passwd a/abs; mkfifo a/fifo; mknod a/chr c 1 3;"
          "mknod a/blk b 7 9; chown 12:34 a/f a/sym; chmod 4755 a/f;"
          "mkdir -m 3777 sticky; setfattr -n user.k -v value a/b "
          "2>/dev/null||:;"
          "n=$(printf 'x%.0s' $(seq 200)); mkdir -p long/$n/$n;"
          "echo deep > long/$n/$n/$n; ln -s $n/$n long/l; truncate -s 3M sp;"
          "printf end >> sp; head -c 700000 /dev/urandom > big;"
          "touch -d '2001-02-03 04:05:06.123456789' a/f a/b/c;"
          "touch -h -d 2002-03-04 a/sym; touch -d '1960-01-01' old"),
      0);
  for (const char* format :
       {"gnu", "posix", "posix --sparse", "gnu --sparse"}) {
    const std::string out = dir_.Path("layer.tar");
    ASSERT_EQ(Run(absl::StrCat("tar ", format[0] == 'p' ? "--xattrs" : "",
                               " --format=", format, " -C ", src, " -cf ", out,
                               " .")),
              0);
    ASSERT_EQ(Run("rm -rf " + root_ + "; mkdir " + root_), 0);
    const std::string bytes = ReadFileOrDie(out);
    const absl::StatusOr<Unpacked> result = Apply(bytes);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->diff_id, Digest::Of(bytes).str());
    EXPECT_EQ(result->size_bytes, static_cast<int64_t>(bytes.size()));
    // Every attribute of every entry, times to the nanosecond for PAX; "old"
    // is clamped to 1970.
    const std::string list = absl::StrCat(
        "find . -mindepth 1 ! -name old ! -type d -printf "
        "'%P %y %m %U %G %s %l %n ",
        format[0] == 'p' ? "%T@" : "%Ts",
        "\\n' -o -mindepth 1 -type d -printf '%P %y %m %U %G ",
        format[0] == 'p' ? "%T@" : "%Ts",
        "\\n' | sed 's/0000000000$//' | sort");
    EXPECT_EQ(Run(absl::StrCat("(cd ", src, " && ", list, ") > ",
                               dir_.Path("want"), "; (cd ", root_, " && ", list,
                               ") > ", dir_.Path("got"), "; diff ",
                               dir_.Path("want"), " ", dir_.Path("got"))),
              0);
    EXPECT_EQ(Run(absl::StrCat("diff -r --no-dereference --exclude=fifo "
                               "--exclude=chr --exclude=blk ",
                               src, " ", root_)),
              0);
    EXPECT_EQ(Stat("a/f").st_ino, Stat("a/hard").st_ino);
    EXPECT_EQ(Stat("a/chr").st_rdev, makedev(1, 3));
    EXPECT_EQ(Stat("a/blk").st_rdev, makedev(7, 9));
    EXPECT_EQ(Stat("old").st_mtim.tv_sec, 0);
    if (std::string(format).find("sparse") != std::string::npos) {
      EXPECT_LT(Stat("sp").st_blocks * 512, 1 << 20);
    }
  }
}

TEST_F(ApplyTest, CompressionIsSniffedAndMayHaveSeveralParts) {
  const std::string data = RandomBytes(1 << 20);
  const std::string tar = Tar({{"f", '0', data}});
  WriteFileOrDie(dir_.Path("1"), tar.substr(0, 300000));
  WriteFileOrDie(dir_.Path("2"), tar.substr(300000));
  const std::string digest = Digest::Of(tar).str();
  for (const char* tool : {"gzip -1", "gzip -9", "zstd -q", "cat"}) {
    ASSERT_EQ(Run(absl::StrCat("cd ", dir_.path(), "; (", tool, " < 1; ", tool,
                               " < 2) > packed")),
              0);
    // The type may lie: the bytes tell.
    const auto result = Apply(ReadFileOrDie(dir_.Path("packed")), kGzip);
    ASSERT_TRUE(result.ok()) << tool << ": " << result.status();
    EXPECT_EQ(result->diff_id, digest) << tool;
    EXPECT_EQ(ReadFileOrDie(Path("f")), data) << tool;
  }
  // Every cut of a compressed layer is an error, so is junk after it.
  ASSERT_EQ(Run(absl::StrCat("cd ", dir_.path(), "; gzip < 1 > cut")), 0);
  const std::string packed = ReadFileOrDie(dir_.Path("cut"));
  for (const size_t cut : {size_t{5}, packed.size() / 2, packed.size() - 3}) {
    EXPECT_TRUE(
        absl::IsInvalidArgument(Apply(packed.substr(0, cut), kGzip).status()))
        << cut;
  }
  ASSERT_EQ(Run(absl::StrCat("cd ", dir_.path(), "; cat 1 2 | gzip > whole")),
            0);
  const std::string whole = ReadFileOrDie(dir_.Path("whole"));
  EXPECT_FALSE(Apply(whole + "junk!", kGzip).ok());
  EXPECT_TRUE(Apply(whole + std::string(700, '\0'), kGzip).ok());
  std::string flipped = whole;
  flipped[flipped.size() - 6] ^= 1;  // In the CRC.
  EXPECT_FALSE(Apply(flipped, kGzip).ok());
  EXPECT_TRUE(absl::IsUnimplemented(Apply(tar, "text/plain").status()));
}

TEST_F(ApplyTest, AnEmptyStreamIsAnEmptyLayer) {
  const auto result = Apply("");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->diff_id, Digest::Of("").str());
}

TEST_F(ApplyTest, TrailingBytesCountForTheDiffId) {
  const std::string tar = Tar({{"f"}}) + std::string(5000, 'x');
  const auto result = Apply(tar);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->diff_id, Digest::Of(tar).str());
}

TEST_F(ApplyTest, EveryTruncationIsAnError) {
  const std::string tar = Tar({{"d/", '5', "", "", 0755}, {"f", '0', "data"}});
  for (size_t cut = 1; cut < tar.size() - 1024; cut += 100) {
    if (cut % 512 == 0) continue;
    EXPECT_FALSE(Apply(tar.substr(0, cut)).ok()) << cut;
  }
}

TEST_F(ApplyTest, NothingLeavesTheRoot) {
  const std::string outside = dir_.Path("outside");
  const std::vector<std::vector<Item>> hostile = {
      {{"../outside/x", '0', "x"}},
      {{"a/../../outside/x", '0', "x"}},
      {{"../outside/.wh.secret"}},
      {{".wh..", '0'}},
      {{".wh...", '0'}},
      {{".wh.", '0'}},
      {{"d/", '5', "", "", 0755}, {"d/.wh..", '0'}},
      {{"h", '1', "", "../outside/secret"}, {"h", '0', "x"}},
      {{"c", '3', "", "", 0666, 0, 4096, 0}},
      {{"v", 'V', ""}},
  };
  for (const auto& items : hostile) {
    const auto result = Apply(Tar(items));
    EXPECT_TRUE(absl::IsInvalidArgument(result.status()))
        << items[0].name << ": " << result.status();
    ExpectOutsideUntouched();
  }
  // Confined instead: the symlink is kept as it is, what goes through it
  // stays in the root.
  const std::vector<std::vector<Item>> confined = {
      {{"l", '2', "", outside}, {"l/x", '0', "x"}},
      {{"m", '2', "", "../../../../" + outside.substr(1)}, {"m/x", '0', "x"}},
      {{"n", '2', "", outside}, {"n/.wh.secret"}, {"n/.wh..wh..opq"}},
      {{"o", '2', "", outside + "/secret"}, {"o", '0', "x"}},
      {{"p", '2', "", outside + "/secret"},
       {"q", '1', "", "p"},
       {"q", '0', "x"}},
      {{"/tmp/bh-escaped", '0', "x"}},
      {{"r", '2', "", "/proc/self/root" + outside}, {"r/x", '0', "x"}},
      {{"s/", '5', "", "", 0755},
       {"s", '2', "", outside},
       {"s/x", '0', "x"},
       {"s", '5', "", "", 0777}},
  };
  for (const auto& items : confined) {
    (void)Apply(Tar(items));  // May refuse.
    ExpectOutsideUntouched();
  }
  EXPECT_TRUE(Exists("tmp/bh-escaped"));
  struct stat st;
  ASSERT_EQ(::stat(outside.c_str(), &st), 0);
  EXPECT_NE(st.st_mode & 07777, 0777u);
}

TEST_F(ApplyTest, HardLinkThroughASymlinkedParentStaysInside) {
  const auto result = Apply(
      Tar({{"l", '2', "", dir_.Path("outside")}, {"h", '1', "", "l/secret"}}));
  EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << result.status();
  struct stat st;
  ASSERT_EQ(::stat(dir_.Path("outside/secret").c_str(), &st), 0);
  EXPECT_EQ(st.st_nlink, 1u);
}

TEST_F(ApplyTest, WhiteoutsDeleteForReal) {
  ASSERT_TRUE(Apply(Tar({{"d/", '5', "", "", 0755},
                         {"d/old", '0', "1"},
                         {"d/sub/", '5', "", "", 0755},
                         {"d/sub/x", '0', "1"},
                         {"gone/", '5', "", "", 0755},
                         {"gone/y", '0', "1"}}))
                  .ok());
  ASSERT_TRUE(Apply(Tar({{".wh.gone"},
                         {"d/new", '0', "2"},
                         {"d/sub/z", '0', "2"},
                         {"d/.wh..wh..opq"},
                         {".wh..wh.plnk/1", '0', "aufs"},
                         {".wh.absent"}}))
                  .ok());
  EXPECT_FALSE(Exists("gone"));
  EXPECT_FALSE(Exists("d/old"));
  EXPECT_FALSE(Exists("d/sub/x"));
  EXPECT_FALSE(Exists(".wh..wh.plnk"));
  EXPECT_TRUE(Exists("d/new"));
  EXPECT_TRUE(Exists("d/sub/z"));
}

TEST_F(ApplyTest, OverlayKeepsWhiteoutsInItsOwnForm) {
  const auto result = Apply(Tar({{".wh.f", '0', "", "", 0644, 77},
                                 {"d/.wh..wh..opq"},
                                 {".wh.n"},
                                 {"n/", '5', "", "", 0755}}),
                            kTar, true);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(S_ISCHR(Stat("f").st_mode));
  EXPECT_EQ(Stat("f").st_rdev, 0u);
  EXPECT_EQ(Stat("f").st_uid, 77u);
  char value[4] = {};
  for (const char* dir : {"d", "n"}) {
    EXPECT_EQ(::getxattr(Path(dir).c_str(), "trusted.overlay.opaque", value, 4),
              1);
    EXPECT_EQ(value[0], 'y');
  }
  EXPECT_EQ(result->extracted.implicit_dirs, std::vector<std::string>{"d"});
}

TEST_F(ApplyTest, MissingParentsTakeAfterTheLowerLayers) {
  const std::string lower = dir_.Path("lower");
  ASSERT_EQ(Run(absl::StrCat("mkdir -p ", lower, "/v/w ", dir_.Path("work"),
                             "; chmod 1777 ", lower, "/v; chown 5:6 ", lower,
                             "/v/w; touch -d 2003-01-01 ", lower, "/v/w")),
            0);
  StringSource source(Tar({{"v/w/f", '0', "x"}, {"other/f", '0', "x"}}));
  const auto result = ApplyLayer({{"overlay",
                                   "overlay",
                                   "",
                                   {"workdir=" + dir_.Path("work"),
                                    "upperdir=" + root_, "lowerdir=" + lower}}},
                                 source, kTar, false, limits_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(Stat("v").st_mode & 07777, 01777u);
  EXPECT_EQ(Stat("v/w").st_uid, 5u);
  EXPECT_EQ(Stat("v/w").st_gid, 6u);
  struct stat st;
  ASSERT_EQ(::stat((lower + "/v/w").c_str(), &st), 0);
  EXPECT_EQ(Stat("v/w").st_mtim.tv_sec, st.st_mtim.tv_sec);
  EXPECT_EQ(Stat("other").st_mode & 07777, 0755u);
}

TEST_F(ApplyTest, OtherMountsAreMountedForTheTime) {
  ASSERT_EQ(Run(absl::StrCat("mkdir -p ", root_, "/sub ", root_, "/b")), 0);
  StringSource source(Tar({{"f", '0', "x"}}));
  const auto result = ApplyLayer({{"bind", root_ + "/sub", "", {"rw", "rbind"}},
                                  {"bind", root_ + "/b", "", {"rw", "bind"}}},
                                 source, kTar, false, limits_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(Exists("b/f"));
  EXPECT_EQ(Run("grep -q " + dir_.path() + " /proc/self/mounts"), 256);
  EXPECT_TRUE(
      absl::IsInvalidArgument(ApplyLayer({{"bind", root_, "", {"ro", "rbind"}}},
                                         source, kTar, false, limits_)
                                  .status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      ApplyLayer({}, source, kTar, false, limits_).status()));
}

TEST_F(ApplyTest, AttributesComeInTheRightOrder) {
  const std::string pax =
      PaxRecord("SCHILY.xattr.security.capability",
                std::string("\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20)) +
      PaxRecord("SCHILY.xattr.trusted.overlay.opaque", "y") +
      PaxRecord("mtime", "1234567890.987654321");
  const auto result =
      Apply(Tar({{"x", 'x', pax}, {"f", '0', "x", "", 06755, 42}}));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(Stat("f").st_mode & 07777, 06755u);  // chown would clear these.
  EXPECT_EQ(Stat("f").st_mtim.tv_nsec, 987654321);
  char value[64];
  EXPECT_EQ(::getxattr(Path("f").c_str(), "security.capability", value, 64),
            20);
  EXPECT_LT(::getxattr(Path("f").c_str(), "trusted.overlay.opaque", value, 64),
            0);
}

TEST_F(ApplyTest, WhatADirectoryHandsDownIsUndone) {
  // Set-group-id, and a default ACL: user::rwx, group::r-x, other::---.
  std::string acl("\2\0\0\0", 4);
  for (const auto& [tag, rights] :
       {std::pair{1, 7}, std::pair{4, 5}, std::pair{0x20, 0}}) {
    acl += std::string({static_cast<char>(tag), 0, static_cast<char>(rights), 0,
                        '\xff', '\xff', '\xff', '\xff'});
  }
  const std::string pax =
      PaxRecord("SCHILY.xattr.system.posix_acl_default", acl);
  const auto result = Apply(Tar({{"g/", '5', "", "", 02775, 50},
                                 {"g/f", '0', "x", "", 0664},
                                 {"x", 'x', pax},
                                 {"a/", '5', "", "", 0755},
                                 {"a/f", '0', "x", "", 0666},
                                 {"l", '2', "", "a"},
                                 {"l/f2", '0', "x", "", 0666},
                                 {"b/", '5', "", "", 0755},
                                 {"l", '2', "", "b"},
                                 {"l/f3", '0', "x", "", 0666},
                                 {"b/", '5', "", "", 02755, 50},
                                 {"b/f4", '0', "x", "", 0604},
                                 {"b/f5", '0', "x", "", 04755, 1},
                                 {"b/f6", '0', "x", "", 0444}}));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(Stat("g/f").st_gid, 0u);
  EXPECT_EQ(Stat("g/f").st_mode & 07777, 0664u);
  for (const char* name : {"a/f", "a/f2", "b/f3"}) {
    EXPECT_EQ(Stat(name).st_mode & 07777, 0666u) << name;
  }
  EXPECT_EQ(Stat("b/f4").st_gid, 0u);
  EXPECT_EQ(Stat("b/f4").st_mode & 07777, 0604u);
  EXPECT_EQ(Stat("b/f5").st_mode & 07777, 04755u);
  EXPECT_EQ(Stat("b/f5").st_uid, 1u);
  EXPECT_EQ(Stat("b/f6").st_mode & 07777, 0444u);
}

// Somebody renames and swaps folders and symlinks while the layer is unpacked.
TEST_F(ApplyTest, RenamesMeanwhileLeadNowhere) {
  const std::string outside = dir_.Path("outside");
  ASSERT_EQ(Run(absl::StrCat("mkdir -p ", root_, "/d/e/f; ln -s ", outside, " ",
                             root_, "/l; ln -s ", outside, " ", root_, "/d/m")),
            0);
  std::atomic<bool> over{false};
  std::thread swapping([&] {
    while (!over) {
      for (const auto& [a, b] : {std::pair{"d", "l"}, std::pair{"d/e", "d/m"},
                                 std::pair{"l/e", "l/m"}}) {
        (void)::renameat2(AT_FDCWD, Path(a).c_str(), AT_FDCWD, Path(b).c_str(),
                          RENAME_EXCHANGE);
      }
    }
  });
  std::vector<Item> items;
  for (int i = 0; i < 3000; ++i) {
    const std::string n = std::to_string(i);
    items.push_back({"d/e/f/" + n, '0', "x", "", 0777});
    items.push_back({"d/" + n, '0', "x"});
    items.push_back({"d/e/.wh.secret"});
    items.push_back({"d/secret", '1', "", "d/e/secret"});
    items.push_back({"d/.wh.secret"});
    items.push_back({"d/e/", '5', "", "", 0700, 3});
  }
  for (int round = 0; round < 3; ++round) (void)Apply(Tar(items));  // May fail.
  // One at a time, so that a failure does not end the rest.
  for (int i = 0; i < 60; ++i) (void)Apply(Tar({items[i]}));
  over = true;
  swapping.join();
  ExpectOutsideUntouched();
  struct stat st;
  ASSERT_EQ(::stat(outside.c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 0u);
}

TEST_F(ApplyTest, LimitsAreNamed) {
  auto expect_limit = [&](const std::string& layer, const std::string& word) {
    const absl::Status status = Apply(layer).status();
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_NE(status.ToString().find(word), std::string::npos) << status;
  };
  limits_.layer_entries_max = 2;
  expect_limit(Tar({{"1"}, {"2"}, {"3"}}), "layer_entries_max");
  limits_.layer_entries_max = 100;
  limits_.layer_bytes_max = 1000;
  expect_limit(Tar({{"1", '0', std::string(2000, 'x')}}), "layer_bytes_max");
  // A sparse file of 1 EiB in a few bytes.
  const std::string bomb = PaxRecord("GNU.sparse.major", "0") +
                           PaxRecord("GNU.sparse.map", "0,0") +
                           PaxRecord("GNU.sparse.size", "1000000000000000");
  expect_limit(Tar({{"x", 'x', bomb}, {"1"}}), "layer_bytes_max");
  limits_.layer_bytes_max = 1 << 20;
  expect_limit(
      Tar({{"x", 'x', PaxRecord("path", std::string(5000, 'p'))}, {"1"}}),
      "name");
  expect_limit(Tar({{"x", 'x', std::string((1 << 20) + 1, 'p')}}),
               "extended header");
}

// Resident memory of this process, in MiB.
int64_t ResidentMib() {
  const std::string text = ReadFileOrDie("/proc/self/statm");
  return std::strtoll(text.c_str() + text.find(' '), nullptr, 10) *
             ::sysconf(_SC_PAGESIZE) >>
         20;
}

// `count` times the same bytes, then the end: a layer that is never all there.
class RepeatingSource : public LayerSource {
 public:
  RepeatingSource(std::string bytes, int64_t count)
      : bytes_(std::move(bytes)),
        left_(static_cast<int64_t>(bytes_.size()) * count) {}
  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    size_t done = 0;
    while (done < size && left_ > 0) {
      const int64_t at = left_ % static_cast<int64_t>(bytes_.size());
      const size_t from = at == 0 ? 0 : bytes_.size() - at;
      const size_t n =
          std::min<int64_t>(left_, std::min(size - done, bytes_.size() - from));
      std::memcpy(out + done, bytes_.data() + from, n);
      left_ -= n;
      done += n;
    }
    return done;
  }

 private:
  const std::string bytes_;
  int64_t left_;
};

TEST_F(ApplyTest, AMillionEntriesTakeNoMemory) {
  const int64_t before = ResidentMib();
  RepeatingSource source(Encode({.name = "d/", .type = '5', .mode = 0755}),
                         20000);
  absl::StatusOr<Unpacked> result =
      ApplyLayer(Bind(), source, kTar, false, limits_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->extracted.entries, 20000);
  // Names of entries that leave nothing behind.
  RepeatingSource nothing(Encode({.name = "./", .type = '5'}), 1000000);
  result = ApplyLayer(Bind(), nothing, kTar, false, limits_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->extracted.entries, 1000000);
  EXPECT_LT(ResidentMib() - before, 32);
}

TEST_F(ApplyTest, DuplicatesDeepNamesAndBadSums) {
  std::vector<Item> items;
  for (int i = 0; i < 2000; ++i) {
    items.push_back(i % 2 == 0 ? Item{"same/x", '0', std::to_string(i)}
                               : Item{"same/x", '5'});
  }
  items.push_back({"same/x", '0', "last"});
  ASSERT_TRUE(Apply(Tar(items)).ok());
  EXPECT_EQ(ReadFileOrDie(Path("same/x")), "last");
  // As deep as a name may be, and one deeper; made, then found again.
  std::string deep;
  for (int i = 0; i < 511; ++i) deep += "d/";
  std::string pax = PaxRecord("path", deep + "f");
  absl::Status status =
      Apply(Tar({{"x", 'x', pax}, {"1"}, {"x", 'x', pax}, {"1"}})).status();
  EXPECT_TRUE(status.ok()) << status;
  for (int i = 0; i < 1500; ++i) deep += "d/";
  pax = PaxRecord("path", deep + "f");
  status = Apply(Tar({{"x", 'x', pax}, {"1"}})).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  // Symlinks that lead nowhere yet, each deep, to the next.
  items.clear();
  std::string far;
  for (int i = 0; i < 30; ++i) far += "q/";
  for (int i = 0; i < 50; ++i) {
    items.push_back(
        {absl::StrCat("l", i), '2', "", absl::StrCat("l", i + 1, "/", far)});
  }
  items.push_back({"l0/x", '0', "x"});
  EXPECT_TRUE(absl::IsInvalidArgument(Apply(Tar(items)).status()));
  // One wrong bit anywhere in a header.
  for (const size_t at : {0, 100, 124, 149, 156, 257, 400}) {
    std::string bad = Tar({{"sum", '0', "data"}});
    bad[at] ^= 1;
    EXPECT_TRUE(absl::IsInvalidArgument(Apply(bad).status())) << at;
  }
  // Sizes that run over.
  for (const char* size :
       {"-1", "9223372036854775807", "99999999999999999999"}) {
    const absl::Status refused =
        Apply(Tar({{"x", 'x', PaxRecord("size", size)}, {"1"}})).status();
    EXPECT_FALSE(refused.ok()) << size;
  }
}

TEST(ConfinedWorkers, CanDoNothingButTheirWork) {
  for (const Worker worker :
       {Worker::kInflate, Worker::kExtract, Worker::kFill}) {
    std::thread([worker] {
      const absl::Status status = ConfineWorker(worker);
      ASSERT_TRUE(status.ok()) << status;
      const auto refused = [](long call, long a = 0, long b = 0, long c = 0,
                              long d = 0, long e = 0) {
        errno = 0;
        return ::syscall(call, a, b, c, d, e) == -1 &&  // NOLINT(raw-syscall)
               errno == EPERM;
      };
      EXPECT_TRUE(refused(SYS_socket, AF_INET, SOCK_STREAM));
      EXPECT_TRUE(refused(SYS_socket, AF_UNIX, SOCK_STREAM));
      EXPECT_TRUE(refused(SYS_connect, 0));
      EXPECT_TRUE(refused(SYS_ptrace, PTRACE_TRACEME));
      EXPECT_TRUE(refused(SYS_process_vm_readv, ::getpid()));
      EXPECT_TRUE(refused(SYS_kill, ::getpid(), 0));
      EXPECT_TRUE(refused(SYS_mount));
      EXPECT_TRUE(refused(SYS_umount2));
      EXPECT_TRUE(refused(SYS_fsopen));
      EXPECT_TRUE(refused(SYS_open_tree));
      EXPECT_TRUE(refused(SYS_unshare, CLONE_NEWUSER));
      EXPECT_TRUE(refused(SYS_setns));
      EXPECT_TRUE(refused(SYS_clone, SIGCHLD));
      EXPECT_TRUE(refused(SYS_execve));
      EXPECT_TRUE(refused(SYS_bpf));
      EXPECT_TRUE(refused(SYS_io_uring_setup));
      EXPECT_TRUE(refused(SYS_keyctl));
      EXPECT_TRUE(refused(SYS_kexec_load));
      EXPECT_TRUE(refused(SYS_init_module));
      EXPECT_TRUE(refused(SYS_reboot));
      EXPECT_TRUE(refused(SYS_chroot));
      EXPECT_TRUE(refused(SYS_setuid));
      EXPECT_TRUE(refused(SYS_prctl, PR_SET_DUMPABLE));
      if (worker != Worker::kExtract) {
        EXPECT_TRUE(refused(SYS_openat, AT_FDCWD));
        EXPECT_TRUE(refused(SYS_unlinkat, AT_FDCWD));
      }
    }).join();
  }
}

TEST(ConfinedWorkers, HoldFewCapabilities) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  const auto caps_of = [](Worker worker) {
    std::atomic<pid_t> tid{0};
    std::atomic<bool> over{false};
    std::thread thread([&] {
      const pid_t self = ::gettid();
      if (ConfineWorker(worker).ok())
        tid = self;
      else
        tid = -1;
      while (!over) std::this_thread::yield();
    });
    while (tid == 0) std::this_thread::yield();
    const std::string status =
        ReadFileOrDie(absl::StrCat("/proc/self/task/", tid.load(), "/status"));
    over = true;
    thread.join();
    std::vector<std::string> out;
    for (const char* key :
         {"CapPrm:\t", "CapEff:\t", "NoNewPrivs:\t", "Seccomp:\t"}) {
      const size_t at = status.find(key) + std::strlen(key);
      out.push_back(status.substr(at, status.find('\n', at) - at));
    }
    return out;
  };
  EXPECT_EQ(caps_of(Worker::kInflate),
            (std::vector<std::string>{"0000000000000000", "0000000000000000",
                                      "1", "2"}));
  // chown, fowner, fsetid.
  EXPECT_EQ(caps_of(Worker::kFill),
            (std::vector<std::string>{"0000000000000019", "0000000000000019",
                                      "1", "2"}));
  // chown, dac_override, fowner, fsetid, sys_admin, mknod, setfcap.
  EXPECT_EQ(caps_of(Worker::kExtract),
            (std::vector<std::string>{"000000008820001b", "000000008820001b",
                                      "1", "2"}));
}

TEST_F(ApplyTest, WhatALinkSaysOfAFileCountsAfterIt) {
  std::vector<Item> items;
  for (int i = 0; i < 200; ++i) {
    const std::string name = absl::StrCat("f", i);
    items.push_back({name, '0', RandomBytes(i * 40)});
    items.push_back({.name = name + "l",
                     .type = '1',
                     .link = name,
                     .mode = 0600 + i % 8,
                     .uid = 1 + i});
  }
  ASSERT_TRUE(Apply(Tar(items)).ok());
  for (int i = 0; i < 200; ++i) {
    const struct stat st = Stat(absl::StrCat("f", i));
    EXPECT_EQ(st.st_mode & 07777, 0600u + i % 8);
    EXPECT_EQ(st.st_uid, 1u + i);
    EXPECT_EQ(st.st_nlink, 2u);
    EXPECT_EQ(st.st_mtim.tv_sec, 1000000000);
  }
}

TEST_F(ApplyTest, AFullDiskIsToldWithTheFilesName) {
  const std::string layer = Tar({{"small", '0', "x"},
                                 {"too-large", '0', RandomBytes(2 << 20)},
                                 {"after", '0', "x"}});
  StringSource source(layer);
  const absl::Status status = ApplyLayer({{"tmpfs", "tmpfs", "", {"size=1m"}}},
                                         source, kTar, false, limits_)
                                  .status();
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.ToString().find("No space left"), std::string::npos);
  EXPECT_NE(status.ToString().find("entry \"too-large\""), std::string::npos)
      << status;
}

TEST_F(ApplyTest, WhatATreeTakesIsCounted) {
  std::vector<Item> items = {
      {"d/", '5', "", "", 0755},
      {"d/f", '0', RandomBytes(300000)},
      {"d/l", '1', "", "d/f"},
      {"implicit/deeper/f", '0', "x"},
      {"s", '2', "", std::string(90, 's')},
      {"p", '6'},
      {".wh.gone", '0'},
      {"d/f", '0', "", "", 0644},
  };
  const auto count = [&](const std::vector<Item>& layer) {
    const auto result = Apply(Tar(layer), kTar, true);
    EXPECT_TRUE(result.ok()) << result.status();
    return std::make_pair(result->extracted.inodes, result->extracted.blocks);
  };
  const auto replaced = items.back();
  items.pop_back();
  const auto counted = count(items);
  FILE* found = ::popen(absl::StrCat("find ", root_,
                                     " -printf '%i %b\\n' | sort -u | awk '{b+="
                                     "$2} END {print NR, b}'")
                            .c_str(),
                        "r");
  long inodes = 0;
  long blocks = 0;
  EXPECT_EQ(std::fscanf(found, "%ld %ld", &inodes, &blocks), 2);
  ::pclose(found);
  EXPECT_EQ(counted.first, inodes);
  EXPECT_EQ(counted.second, blocks);
  // A tree that was there before, or in which a file took another's place.
  EXPECT_EQ(count({replaced}).first, -1);
}

TEST_F(ApplyTest, AGrowingFileIsFollowedToItsEnd) {
  const std::string data = RandomBytes(3 << 20);
  const std::string tar = Tar({{"f", '0', data}});
  os::UniqueFd fd(
      ::open(dir_.Path("in").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  FdSource source(os::Dup(fd.get()).value(), 0, false);
  absl::StatusOr<Unpacked> result = absl::UnknownError("");
  std::thread applying(
      [&] { result = ApplyLayer(Bind(), source, kGzip, false, limits_); });
  for (size_t at = 0; at < tar.size();) {
    const size_t n = std::min<size_t>(100000, tar.size() - at);
    ASSERT_TRUE(os::PWriteFull(fd.get(), tar.data() + at, n, at).ok());
    at += n;
    ASSERT_TRUE(source.Advance(at).ok());
  }
  EXPECT_FALSE(source.Advance(1).ok());
  ASSERT_TRUE(source.Finish(tar.size()).ok());
  applying.join();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->diff_id, Digest::Of(tar).str());
  EXPECT_EQ(ReadFileOrDie(Path("f")), data);
}

TEST_F(ApplyTest, WhatCannotBeWrittenMeanwhileFailsTheLayer) {
  const std::string tar = Tar({{"f", '0', RandomBytes(3 << 20)}});
  os::UniqueFd fd(
      ::open(dir_.Path("in").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_TRUE(os::PWriteFull(fd.get(), tar.data(), tar.size(), 0).ok());
  FdSource source(std::move(fd), static_cast<int64_t>(tar.size()), false);
  int calls = 0;
  EarlySync early{1 << 20, [&] {
                    ++calls;
                    EXPECT_TRUE(source.Finish(tar.size()).ok());
                    return absl::DataLossError("syncfs");
                  }};
  const auto result = UnpackLayer(source, kTar, root_, {}, nullptr, early);
  EXPECT_TRUE(absl::IsDataLoss(result.status())) << result.status();
  EXPECT_EQ(calls, 1);
}

TEST_F(ApplyTest, ABadStartEndsTheWaitForMore) {
  os::UniqueFd fd(
      ::open(dir_.Path("in").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_TRUE(
      os::PWriteFull(fd.get(), std::string(1 << 20, 'x').data(), 1 << 20, 0)
          .ok());
  FdSource source(std::move(fd), 1 << 20, false);  // Never finished.
  EXPECT_TRUE(absl::IsInvalidArgument(
      ApplyLayer(Bind(), source, kTar, false, limits_).status()));
}

}  // namespace
}  // namespace bulkhead::snapshotter
