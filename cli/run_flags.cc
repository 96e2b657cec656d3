// The flags that `run` and `create` share.
#include "cli/command.h"
#include "cli/commands.h"
#include "cli/run_options.h"

namespace bulkhead::cli {

void DeclareRunFlags(Command& command, RunOptions* o) {
  command.Flag("-i,--interactive", &o->interactive, "Pass on standard input")
      .Flag("-t,--tty", &o->tty, "Give the process a terminal")
      .Flag("--rm", &o->remove, "Remove the container when it ends")
      .Flag("--privileged", &o->privileged,
            "All capabilities and devices, no confinement")
      .Flag("--read-only", &o->read_only, "Read-only root file system")
      .Flag("--plain-http", &o->plain_http, "Pull without TLS")
      .Option("--name", &o->name, "Name [random]")
      .Option("-e,--env", &o->env, "Environment variable", "KEY[=VALUE]")
      .Option("--env-file", &o->env_files, "Variables from a file", "FILE")
      .Option("-w,--workdir", &o->workdir, "Working directory", "DIR")
      .Option("-u,--user", &o->user, "User", "USER[:GROUP]")
      .Option("--mount", &o->mounts, "Mount",
              "type=bind,src=A,dst=B[,readonly]")
      .Option("-v,--volume", &o->volumes,
              "Bind mount a host folder, or a named volume (made if it is not "
              "there), or an anonymous one",
              "[HOST:|NAME:]PATH[:ro]")
      .Option("--tmpfs", &o->tmpfs, "Memory file system", "PATH[:OPTIONS]")
      .Option("-m,--memory", &o->memory, "Memory limit", "BYTES[k|m|g]")
      .Option("--cpus", &o->cpus, "Processors, such as 1.5")
      .Option("-c,--cpu-shares", &o->cpu_shares, "Weight (1024 is normal)")
      .Option("--pids-limit", &o->pids_max, "Most processes; -1: no limit")
      .Option("--cap-add", &o->cap_add, "Add a capability", "CAP")
      .Option("--cap-drop", &o->cap_drop, "Drop a capability", "CAP")
      .Option("--network,--net", &o->network,
              "none: only loopback (the default); host: the host's; "
              "container:NAME: another container's. There is no bridge yet",
              "none|host|container:NAME")
      .Option("--dns", &o->dns, "Name server in resolv.conf", "ADDRESS")
      .Option("--dns-search", &o->dns_search, "Search domain", "DOMAIN")
      .Option("--restart", &o->restart,
              "Start it again when it ends: no, on-failure[:N], always, "
              "unless-stopped",
              "POLICY")
      .Flag("--init", &o->init, "An init that reaps and forwards signals")
      .Option("--pid", &o->pid, "Process ids: the host's, or a container's",
              "host|container:NAME")
      .Option("--ipc", &o->ipc, "IPC and /dev/shm: own, or shared",
              "private|host|container:NAME")
      .Option("--uts", &o->uts, "Host name: the host's", "host")
      .Option("--userns", &o->userns,
              "User ids: the host's (the default), or shifted to a range of "
              "/etc/subuid or one given",
              "host|remap[:FIRST[:COUNT]]")
      .Option("--sysctl", &o->sysctls, "Kernel parameter", "KEY=VALUE")
      .Option("--log-opt", &o->log_options, "max-size or max-file of the log",
              "KEY=VALUE")
      .Option("--memory-swap", &o->memory_swap,
              "Memory and swap together [twice --memory]; -1: no limit",
              "BYTES[k|m|g]")
      .Option("--cpuset-cpus", &o->cpuset_cpus, "Processors, such as 0-2,4",
              "LIST")
      .Option("--oom-score-adj", &o->oom_score,
              "-1000 to 1000: who goes first when memory is short", "N")
      .Option("--group-add", &o->groups, "Another group", "GROUP")
      .Flag("--env-host", &o->env_host, "All variables of this command")
      .Option("--stop-timeout", &o->stop_timeout, "Grace of `stop` [10]",
              "SECONDS")
      .Option("--hostname", &o->hostname, "Host name [short id]")
      .Option("-l,--label", &o->labels, "Label", "KEY=VALUE")
      .Option("--snapshotter", &o->snapshotter, "Snapshotter [overlayfs]")
      .Option("--runtime", &o->runtime,
              "OCI runtime (runc, crun, a path) or shim (io.containerd...)")
      .Option("--pull", &o->pull, "When to pull", "always|missing|never")
      .Option("--platform", &o->platform, "Platform", "OS/ARCH")
      .Option("--ulimit", &o->ulimits, "Limit", "NAME=SOFT[:HARD]")
      .Option("--security-opt", &o->security,
              "seccomp=unconfined or no-new-privileges", "OPTION")
      .Option("--stop-signal", &o->stop_signal, "Signal of `stop`", "SIGNAL")
      .Option("--device", &o->devices, "Device", "HOST[:PATH][:rwm]")
      .Option("--shm-size", &o->shm_size, "Size of /dev/shm [64m]", "BYTES")
      .Option("--detach-keys", &o->detach_keys, "Keys that detach", "KEYS")
      .Option("--cidfile", &o->cid_file, "Write the id to a file", "FILE")
      .OptionalOption("--entrypoint", &o->entrypoint, &o->entrypoint_set,
                      "Replaces the image's entrypoint", "PROGRAM")
      .Rest("IMAGE [COMMAND [ARG...]]", &o->rest, 1)
      .Complete(Completes::kImages);
}

}  // namespace bulkhead::cli
