#include "lib/os/landlock.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/os/fd.h"
#include "lib/testing/temp_dir.h"

namespace bulkhead::os {
namespace {

// Runs `body` in a child, which is restricted for good; its exit code.
template <typename Body>
int InChild(Body body) {
  const pid_t pid = fork();
  if (pid == 0) _exit(body());
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Landlock, WritesStayBelowTheFolder) {
  if (!HasLandlock()) GTEST_SKIP() << "the kernel has no Landlock";
  testing::TempDir dir;
  const std::string inside = dir.path() + "/inside";
  const std::string outside = dir.path() + "/outside";
  ASSERT_TRUE(MakeDirs(inside, 0700).ok());
  ASSERT_TRUE(MakeDirs(outside, 0700).ok());
  ASSERT_TRUE(WriteFileAtomic(outside + "/old", "x", 0600).ok());
  const auto handed = Open(outside + "/old", O_RDWR);
  ASSERT_TRUE(handed.ok());
  EXPECT_EQ(0, InChild([&] {
              if (!RestrictWritesTo({inside}).ok()) return 1;
              if (!Open(inside + "/new", O_CREAT | O_WRONLY, 0600).ok())
                return 2;
              if (Open(outside + "/new", O_CREAT | O_WRONLY, 0600).ok())
                return 3;
              if (Open(outside + "/old", O_WRONLY).ok()) return 4;
              if (unlink((outside + "/old").c_str()) == 0) return 5;
              if (mkdir((outside + "/d").c_str(), 0700) == 0) return 6;
              if (!Open(outside + "/old", O_RDONLY).ok())
                return 7;  // Reading goes on.
              // What others have opened can be written.
              if (!PWriteFull(handed->get(), "yy", 2, 0).ok()) return 8;
              if (mount(inside.c_str(), outside.c_str(), nullptr, MS_BIND,
                        nullptr) == 0) {
                return 9;
              }
              return 0;
            }));
  EXPECT_EQ("yy", ReadFile(outside + "/old").value_or(""));
}

int Execute(const std::string& path) {
  const pid_t pid = fork();
  if (pid == 0) {
    execl(path.c_str(), path.c_str(), static_cast<char*>(nullptr));
    _exit(errno == EACCES ? 100 : 101);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Landlock, OnlyWhatIsNamedCanBeExecuted) {
  if (!HasLandlock()) GTEST_SKIP() << "the kernel has no Landlock";
  testing::TempDir dir;
  ASSERT_TRUE(MakeDirs(dir.path() + "/bin", 0700).ok());
  const std::string script = dir.path() + "/bin/script";
  ASSERT_TRUE(WriteFileAtomic(script, "#!/bin/sh\nexit 7\n", 0700).ok());
  const std::vector<std::string> with_shell = {dir.path() + "/bin", "/bin/sh",
                                               "/lib64/ld-linux-x86-64.so.2",
                                               "/lib/ld-linux-aarch64.so.1"};
  EXPECT_EQ(7, InChild([&] {
              if (!RestrictExecutionTo(with_shell).ok()) return 1;
              return Execute(script);
            }));
  EXPECT_EQ(100, InChild([&] {
              if (!RestrictExecutionTo(with_shell).ok()) return 1;
              return Execute("/bin/true");
            }));
  EXPECT_EQ(100, InChild([&] {  // No interpreter.
              if (!RestrictExecutionTo({dir.path() + "/bin"}).ok()) return 1;
              return Execute(script);
            }));
  EXPECT_EQ(100, InChild([&] {
              if (!RestrictExecutionTo({}).ok()) return 1;
              return Execute("/bin/true");
            }));
}

TEST(Landlock, AMissingFolderIsAnError) {
  if (!HasLandlock()) GTEST_SKIP() << "the kernel has no Landlock";
  EXPECT_EQ(0, InChild([] {
              return RestrictWritesTo({"/no/such/folder"}).ok() ? 1 : 0;
            }));
}

}  // namespace
}  // namespace bulkhead::os
