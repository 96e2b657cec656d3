#include "cli/spec/spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "cli/spec/seccomp.h"

namespace bulkhead::cli {
namespace {

using ::nlohmann::json;
using ::testing::Contains;
using ::testing::IsSupersetOf;
using ::testing::Not;

SpecOptions Minimal() {
  SpecOptions options;
  options.ns = "default";
  options.id = "abc";
  options.args = {"sh"};
  options.env = {"A=b"};
  options.hostname = "boat";
  return options;
}

std::set<std::string> NamespacesOf(const json& spec) {
  std::set<std::string> types;
  for (const json& entry : spec["linux"]["namespaces"]) {
    types.insert(entry["type"].get<std::string>());
  }
  return types;
}

// Names that a rule without conditions allows.
std::set<std::string> AllowedBy(const json& seccomp) {
  std::set<std::string> names;
  for (const json& rule : seccomp["syscalls"]) {
    if (rule["action"] != "SCMP_ACT_ALLOW" || rule.contains("args")) continue;
    for (const json& name : rule["names"]) {
      names.insert(name.get<std::string>());
    }
  }
  return names;
}

TEST(Spec, DefaultsAreConfined) {
  const json spec = MakeSpec(Minimal()).value();
  EXPECT_EQ(spec["linux"]["cgroupsPath"], "/default/abc");
  EXPECT_EQ(spec["hostname"], "boat");
  EXPECT_EQ(spec["process"]["noNewPrivileges"], false);
  EXPECT_FALSE(spec["process"].contains("rlimits"));
  EXPECT_EQ(spec["process"]["capabilities"]["bounding"].size(), 14u);
  EXPECT_TRUE(spec["process"]["capabilities"]["inheritable"].empty());
  EXPECT_TRUE(spec["process"]["capabilities"]["ambient"].empty());
  EXPECT_THAT(spec["linux"]["maskedPaths"], Contains("/proc/kcore"));
  EXPECT_THAT(spec["linux"]["readonlyPaths"], Contains("/proc/sys"));
  EXPECT_TRUE(spec["linux"].contains("seccomp"));
  EXPECT_EQ(NamespacesOf(spec),
            (std::set<std::string>{"pid", "ipc", "uts", "mount", "network"}));
  EXPECT_EQ(spec["linux"]["resources"]["devices"][0]["allow"], false);
  for (const json& mount : spec["mounts"]) {
    if (mount["destination"] == "/sys" ||
        mount["destination"] == "/sys/fs/cgroup") {
      EXPECT_THAT(mount["options"], Contains("ro"));
    }
  }
}

TEST(Spec, HostNetworkSharesOnlyTheNetwork) {
  SpecOptions options = Minimal();
  options.host_network = true;
  options.cgroup2 = true;
  EXPECT_EQ(NamespacesOf(MakeSpec(options).value()),
            (std::set<std::string>{"pid", "ipc", "uts", "mount", "cgroup"}));
}

TEST(Spec, PrivilegedIsUnconfined) {
  SpecOptions options = Minimal();
  options.privileged = true;
  const json spec = MakeSpec(options).value();
  EXPECT_FALSE(spec["linux"].contains("seccomp"));
  EXPECT_FALSE(spec["linux"].contains("maskedPaths"));
  EXPECT_EQ(spec["linux"]["resources"]["devices"][0]["allow"], true);
  EXPECT_GT(spec["linux"]["devices"].size(), 3u);
}

TEST(Spec, OtherUsersHoldNoCapabilities) {
  SpecOptions options = Minimal();
  options.user.uid = 1000;
  options.user.additional_gids = {5};
  const json process = MakeSpec(options).value()["process"];
  EXPECT_EQ(process["capabilities"]["bounding"].size(), 14u);
  EXPECT_TRUE(process["capabilities"]["effective"].empty());
  EXPECT_TRUE(process["capabilities"]["permitted"].empty());
  EXPECT_EQ(process["user"]["additionalGids"], json::array({5}));
}

TEST(Spec, ResourcesAndLimits) {
  SpecOptions options = Minimal();
  options.memory_bytes = 64 << 20;
  options.cpus = 1.5;
  options.cpu_shares = 512;
  options.pids_max = 10;
  options.ulimits = {{"RLIMIT_NOFILE", 10, 20}};
  const json spec = MakeSpec(options).value();
  const json& resources = spec["linux"]["resources"];
  EXPECT_EQ(resources["memory"]["limit"], 64 << 20);
  EXPECT_EQ(resources["cpu"]["quota"], 150000);
  EXPECT_EQ(resources["cpu"]["period"], 100000);
  EXPECT_EQ(resources["cpu"]["shares"], 512);
  EXPECT_EQ(resources["pids"]["limit"], 10);
  EXPECT_EQ(spec["process"]["rlimits"][0]["hard"], 20);
}

TEST(Spec, AUsersMountReplacesOurs) {
  SpecOptions options = Minimal();
  options.mounts = {{"tmpfs", "tmpfs", "/dev/shm", {"size=1m"}}};
  int found = 0;
  const json spec = MakeSpec(options).value();
  for (const json& mount : spec["mounts"]) {
    if (mount["destination"] != "/dev/shm") continue;
    ++found;
    EXPECT_THAT(mount["options"], Contains("size=1m"));
  }
  EXPECT_EQ(found, 1);
}

TEST(Spec, Devices) {
  SpecOptions options = Minimal();
  options.devices = {{"/dev/null", "/dev/nothing", "r"}};
  const json spec = MakeSpec(options).value();
  EXPECT_EQ(spec["linux"]["devices"][0]["path"], "/dev/nothing");
  EXPECT_EQ(spec["linux"]["resources"]["devices"].back()["access"], "r");
  options.devices = {{"/dev/no-such", "/dev/x", "r"}};
  EXPECT_TRUE(absl::IsNotFound(MakeSpec(options).status()));
}

TEST(Capabilities, AddAndDrop) {
  const auto list = [](std::vector<std::string> add,
                       std::vector<std::string> drop) {
    return Capabilities(false, add, drop).value();
  };
  EXPECT_THAT(list({"net_admin"}, {}), Contains("CAP_NET_ADMIN"));
  EXPECT_THAT(list({}, {"CHOWN"}), Not(Contains("CAP_CHOWN")));
  EXPECT_TRUE(list({}, {"ALL"}).empty());
  EXPECT_EQ(list({"CAP_KILL"}, {"all"}), std::vector<std::string>{"CAP_KILL"});
  EXPECT_THAT(list({"ALL"}, {}), IsSupersetOf(DefaultCapabilities()));
  EXPECT_FALSE(Capabilities(false, {"FLY"}, {}).ok());
}

TEST(Seccomp, AllowsWhatProgramsNeed) {
  const std::set<std::string> allowed = AllowedBy(DefaultSeccomp({}));
  EXPECT_THAT(allowed, IsSupersetOf({"read", "write", "openat", "execve",
                                     "futex", "epoll_wait", "statx", "fork",
                                     "arch_prctl", "rseq", "exit_group"}));
}

TEST(Seccomp, RefusesWhatBreaksOut) {
  const std::set<std::string> allowed = AllowedBy(DefaultSeccomp({}));
  for (const char* name :
       {"mount",        "umount2",        "setns",
        "unshare",      "clone",          "clone3",
        "bpf",          "kexec_load",     "init_module",
        "finit_module", "delete_module",  "open_by_handle_at",
        "pivot_root",   "keyctl",         "add_key",
        "request_key",  "userfaultfd",    "perf_event_open",
        "swapon",       "reboot",         "acct",
        "settimeofday", "io_uring_setup", "socket",
        "personality",  "nfsservctl",     "process_madvise",
        "move_pages",   "iopl",           "ioperm",
        "syslog"}) {
    EXPECT_FALSE(allowed.contains(name)) << name;
  }
}

TEST(Seccomp, CapabilitiesBringCalls) {
  const json profile = DefaultSeccomp({"CAP_SYS_ADMIN", "CAP_SYS_CHROOT"});
  EXPECT_THAT(AllowedBy(profile),
              IsSupersetOf({"mount", "setns", "clone3", "bpf", "chroot"}));
  // Without it clone3 must look as if the kernel did not know it.
  bool found = false;
  const json without = DefaultSeccomp({});
  for (const json& rule : without["syscalls"]) {
    if (rule["names"] == json::array({"clone3"})) {
      found = true;
      EXPECT_EQ(rule["errnoRet"], ENOSYS);
    }
  }
  EXPECT_TRUE(found);
}

TEST(Seccomp, Shape) {
  const json profile = DefaultSeccomp({});
  EXPECT_EQ(profile["defaultAction"], "SCMP_ACT_ERRNO");
  // Not x32; calls of other architectures end the process.
  EXPECT_EQ(profile["architectures"],
            json({"SCMP_ARCH_X86_64", "SCMP_ARCH_X86"}));
  std::set<std::string> names;
  for (const json& name : profile["syscalls"][0]["names"]) {
    EXPECT_TRUE(names.insert(name.get<std::string>()).second) << name;
  }
  EXPECT_GT(names.size(), 300u);
  for (const json& rule : profile["syscalls"]) {
    ASSERT_TRUE(rule["names"].is_array());
    if (rule.contains("args")) {
      ASSERT_TRUE(rule["args"].is_array());
      for (const json& arg : rule["args"]) ASSERT_TRUE(arg.is_object());
    }
  }
}

}  // namespace
}  // namespace bulkhead::cli
