#include "lib/os/remove_tree.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <functional>

#include "absl/strings/str_cat.h"
#include "lib/os/fd.h"
#include "lib/testing/temp_dir.h"

namespace bulkhead::os {
namespace {

bool Exists(const std::string& path) {
  struct stat info;
  return ::lstat(path.c_str(), &info) == 0;
}

void Touch(const std::string& path) {
  ASSERT_TRUE(Open(path, O_WRONLY | O_CREAT, 0600).ok()) << path;
}

class RemoveTreeTest : public ::testing::TestWithParam<std::function<bool()>> {
 protected:
  testing::TempDir dir_;
};

// 40 folders, and below each a chain of four.
TEST_P(RemoveTreeTest, NothingIsLeftAndNoLinkFollowed) {
  const std::string kept = dir_.Path("kept");
  ASSERT_TRUE(MakeDirs(kept, 0700).ok());
  Touch(kept + "/file");
  const std::string tree = dir_.Path("tree");
  for (int i = 0; i < 40; ++i) {
    std::string path = absl::StrCat(tree, "/a/b/", i);
    ASSERT_TRUE(MakeDirs(path, 0700).ok());
    ASSERT_EQ(::symlink(kept.c_str(), (path + "/link").c_str()), 0);
    for (int depth = 0; depth < 4; ++depth) {
      for (const char* name : {"/x", "/y"}) Touch(path + name);
      path += "/d";
      ASSERT_TRUE(MakeDirs(path, 0700).ok());
    }
  }
  ASSERT_EQ(::symlink(kept.c_str(), (tree + "/a/b/link").c_str()), 0);
  ASSERT_TRUE(RemoveAllParallel(tree, GetParam()).ok());
  EXPECT_FALSE(Exists(tree));
  EXPECT_TRUE(Exists(kept + "/file"));
}

TEST_P(RemoveTreeTest, WideAndFlatTrees) {
  const std::string tree = dir_.Path("tree");
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(MakeDirs(absl::StrCat(tree, "/", i, "/in"), 0700).ok());
    Touch(absl::StrCat(tree, "/", i, "/in/file"));
    Touch(absl::StrCat(tree, "/f", i));
  }
  ASSERT_TRUE(RemoveAllParallel(tree, GetParam()).ok());
  EXPECT_FALSE(Exists(tree));
}

TEST_P(RemoveTreeTest, WhatIsNoFolder) {
  EXPECT_TRUE(RemoveAllParallel(dir_.Path("never-was"), GetParam()).ok());
  Touch(dir_.Path("file"));
  EXPECT_TRUE(RemoveAllParallel(dir_.Path("file"), GetParam()).ok());
  EXPECT_FALSE(Exists(dir_.Path("file")));
  const std::string kept = dir_.Path("kept");
  ASSERT_TRUE(MakeDirs(kept, 0700).ok());
  ASSERT_EQ(::symlink(kept.c_str(), dir_.Path("link").c_str()), 0);
  EXPECT_TRUE(RemoveAllParallel(dir_.Path("link"), GetParam()).ok());
  EXPECT_TRUE(Exists(kept));
  EXPECT_FALSE(Exists(dir_.Path("link")));
}

INSTANTIATE_TEST_SUITE_P(
    Helps, RemoveTreeTest,
    ::testing::Values([] { return true; }, [] { return false; },
                      [n = 0]() mutable { return ++n % 2 == 0; }));

}  // namespace
}  // namespace bulkhead::os
