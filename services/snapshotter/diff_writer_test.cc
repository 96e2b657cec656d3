// A diff applied to its left side must give its right side.
#include "services/snapshotter/diff_writer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "lib/testing/temp_dir.h"
#include "services/snapshotter/apply.h"

namespace bulkhead::snapshotter {
namespace {

using ::bulkhead::testing::TempDir;
using ::bulkhead::testing::WriteFileOrDie;

class DiffTest : public ::testing::TestWithParam<Compression> {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ASSERT_EQ(
        Run("set -e; mkdir l; cd l; mkdir -p a/b same/deep gone/x; echo 1 > "
            "a/f; echo 2 > a/b/g; echo s > same/deep/s; ln same/deep/s same/t;"
            "touch gone/x/y; ln -s f a/sym; echo e > e; cd ..; cp -a l r;"
            "cd r; echo 22 > a/b/g; rm -r gone a/sym; ln -s b a/sym;"
            "echo new > n; ln n n2; ln same/deep/s z; mkdir -m 1700 d;"
            "mkfifo d/p; mknod d/c c 1 3; rm e; mkdir e; echo i > e/i;"
            "n=$(printf 'x%.0s' $(seq 150)); echo long > d/$n; ln d/$n d/l;"
            "echo u > d/\xc3\xbc; chown 70000:3000000000 n"),
        0);
  }
  int Run(const std::string& command) const {
    return std::system(
        absl::StrCat("cd ", dir_.path(), " && { ", command, "; }").c_str());
  }
  std::string Make() const {
    std::string out;
    const absl::Status status = Compress(
        GetParam(),
        [&](absl::string_view data) {
          out.append(data.data(), data.size());
          return absl::OkStatus();
        },
        [&](const ByteSink& sink) {
          return WriteDiff(dir_.Path("l"), dir_.Path("r"), std::nullopt, sink);
        });
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }
  TempDir dir_;
};

TEST_P(DiffTest, AppliedToTheLeftItGivesTheRight) {
  const std::string layer = Make();
  EXPECT_EQ(layer, Make());  // Reproducible.
  WriteFileOrDie(dir_.Path("layer"), layer);
  FdSource source(os::Open(dir_.Path("layer"), O_RDONLY).value(), layer.size(),
                  true);
  ASSERT_EQ(Run("cp -a l copy"), 0);
  const auto applied =
      ApplyLayer({{"bind", dir_.Path("copy"), "", {"rw"}}}, source,
                 "application/vnd.oci.image.layer.v1.tar+gzip", false, {});
  ASSERT_TRUE(applied.ok()) << applied.status();
  // Links, owners, modes, sizes; times in whole seconds.
  EXPECT_EQ(Run("for t in r copy; do (cd $t; find . -mindepth 1 ! -type d "
                "-printf '%P %y %m %U %G %s %l %n %Ts\\n' -o -mindepth 1 "
                "-type d -printf '%P %y %m %U %G\\n' | sort) > $t.list; done; "
                "diff r.list copy.list && diff -r --no-dereference -x p -x c r "
                "copy"),
            0);
  const char* tool = GetParam() == Compression::kGzip   ? "gzip -dc"
                     : GetParam() == Compression::kZstd ? "zstd -dcq"
                                                        : "cat";
  // What is in it: no unchanged content, whiteouts, no opaque markers.
  EXPECT_EQ(Run(absl::StrCat(tool,
                             " < layer | tar -t > names; grep -qx .wh.gone "
                             "names && ! grep -q wh..opq names && ! grep -qx "
                             "a/f names && grep -qx a/ names")),
            0);
}

INSTANTIATE_TEST_SUITE_P(Each, DiffTest,
                         ::testing::Values(Compression::kNone,
                                           Compression::kGzip,
                                           Compression::kZstd));

TEST(UpperWalk, GivesTheSameBytesAsTheWholeTrees) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  const auto run = [&](const std::string& command) {
    return std::system(
        absl::StrCat("cd ", dir.path(), " && { ", command, "; }").c_str());
  };
  ASSERT_EQ(run("mount -t tmpfs none . && cd . && true"), 0);
  ASSERT_EQ(
      run("set -e; mkdir -p low/a/b/c low/gone/x low/same/deep low/again/old u "
          "w m; echo 1 > low/a/b/c/f; echo 2 > low/a/g; echo 3 > low/same/h; "
          "ln low/same/h low/same/deep/i; touch low/gone/x/y low/again/old/z "
          "low/e; ln -s e low/sym;"
          "mount -t overlay overlay -o lowerdir=low,upperdir=u,workdir=w m;"
          "cd m; echo 11 >> a/b/c/f; chmod 700 same; rm -r gone again; "
          "mkdir -p again/old/new; touch again/old/new/q; rm e; mkdir e; "
          "touch e/1; ln a/g a/g2; echo n > n; ln n a/b/n2; rm sym; "
          "ln -s /x sym; touch passing; rm passing; mknod d c 1 3;"
          "chown 5:6 same/h"),
      0);
  const auto make = [&](const std::string& upper) {
    std::string out;
    const absl::Status status = WriteDiff(
        dir.Path("low"), dir.Path("m"), std::nullopt,
        [&](absl::string_view data) {
          out.append(data.data(), data.size());
          return absl::OkStatus();
        },
        upper);
    EXPECT_TRUE(status.ok()) << status;
    return out;
  };
  const std::string whole = make("");
  EXPECT_GT(whole.size(), 5000u);
  EXPECT_TRUE(whole == make(dir.Path("u")));
  EXPECT_EQ(run("umount m"), 0);
  EXPECT_EQ(std::system(absl::StrCat("umount ", dir.path()).c_str()), 0);
}

TEST(SourceDate, CapsModificationTimesAndMakesLayersTheSame) {
  TempDir dir;
  const auto run = [&](const std::string& command) {
    return std::system(
        absl::StrCat("cd ", dir.path(), " && ", command).c_str());
  };
  ASSERT_EQ(run("mkdir l r && echo old > r/old && touch -d @1000 r/old && "
                "echo new > r/new && mkdir r/d && ln -s new r/link"),
            0);
  const auto make = [&] {
    std::string out;
    const absl::Status status =
        WriteDiff(dir.Path("l"), dir.Path("r"), int64_t{5000},
                  [&](absl::string_view data) {
                    out.append(data.data(), data.size());
                    return absl::OkStatus();
                  });
    EXPECT_TRUE(status.ok()) << status;
    return out;
  };
  const std::string layer = make();
  WriteFileOrDie(dir.Path("layer"), layer);
  EXPECT_EQ(run("test $(tar -tvf layer --full-time --utc | "
                "grep -c '1970-01-01 01:23:20') = 3"),  // 5000 seconds.
            0);
  EXPECT_EQ(run("tar -tvf layer --full-time --utc | "
                "grep -q '1970-01-01 00:16:40.* old'"),
            0);
  // Made again at another time.
  ASSERT_EQ(run("touch -d @2000000000 r/new r/d && touch -h -d @9000 r/link"),
            0);
  EXPECT_TRUE(layer == make());
}

TEST(UpperWalk, OnlyWhereTheLayersAreTheSame) {
  const os::MountSpec top{"overlay",
                          "overlay",
                          "",
                          {"workdir=/w", "upperdir=/u", "lowerdir=/a:/b"}};
  const os::MountSpec below{"overlay", "overlay", "", {"lowerdir=/a:/b"}};
  EXPECT_EQ(UpperOf({below}, {top}), "/u");
  EXPECT_EQ(UpperOf({{"bind", "/a", "", {"ro"}}},
                    {{"overlay", "o", "", {"upperdir=/u", "lowerdir=/a"}}}),
            "/u");
  EXPECT_EQ(UpperOf({{"bind", "/a", "", {"ro"}}}, {top}), "");
  EXPECT_EQ(UpperOf({top}, {top}), "");
  EXPECT_EQ(UpperOf({below}, {below}), "");
  EXPECT_EQ(UpperOf({}, {top}), "");
}

TEST(ReadOnlyMounts, UpperBecomesTheFirstLower) {
  const auto mounts = ReadOnlyMounts(
      {{"overlay",
        "overlay",
        "",
        {"workdir=/w", "upperdir=/u", "lowerdir=/a:/b", "index=off"}},
       {"bind", "/x", "", {"rw", "rbind"}}});
  EXPECT_EQ(mounts[0].options,
            (std::vector<std::string>{"lowerdir=/u:/a:/b", "index=off"}));
  EXPECT_EQ(mounts[1].options, (std::vector<std::string>{"rbind", "ro"}));
}

}  // namespace
}  // namespace bulkhead::snapshotter
