"""Many containers: some that print through SIGKILLs of services and shims, and
cycles of create-start-exec-kill-delete after which nothing is left."""

import concurrent.futures
import os
import re
import signal
import time
import unittest

from tests.harness import proc, suite
from tests.integration import common

OURS = "io.containerd.bulkhead.v1"
# More for a long look: BULKHEAD_MANY=100 BULKHEAD_CYCLES=2000.
MANY = int(os.environ.get("BULKHEAD_MANY", "40"))
CYCLES = int(os.environ.get("BULKHEAD_CYCLES", "60"))
ADOPTED_MAX = 2.0  # Seconds.


def setUpModule():
    global ours, image
    image = common.image_registry().host + "/busybox:latest"
    ours = suite.Suite()
    unittest.addModuleCleanup(ours.start().stop)
    ours.ctr("images", "pull", "--plain-http", image, check=True)


def in_parallel(work, items):
    """work(item) for all, 8 at a time; the first exception comes out."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, items))


def tasks(daemon):
    """Name to pid and state."""
    result = daemon.ctr("tasks", "ls")
    if result.code:
        return {}
    return {line.split()[0]: (int(line.split()[1]), line.split()[2])
            for line in result.out.splitlines()[1:]}


def parent(pid):
    with open("/proc/%d/stat" % pid) as f:
        return int(f.read().rsplit(")", 1)[1].split()[1])


def cycle(daemon, name):
    def ctr(*args):
        return daemon.ctr(*args, check=True)

    ctr("run", "-d", "--null-io", "--runtime", OURS, common.image_registry().host +
        "/busybox:latest", name, "sleep", "1000")
    out = ctr("tasks", "exec", "--exec-id", "e", name, "echo", name).out
    if out != name + "\n":
        raise AssertionError("exec in %s printed %r" % (name, out))
    ctr("tasks", "kill", "-s", "KILL", name)
    proc.wait_for(lambda: daemon.ctr("tasks", "rm", name).code == 0, name + " to end")
    ctr("containers", "rm", name)


class Counts:
    """What one suite holds: all of it must come back to where it was."""

    def __init__(self, daemon):
        pid = daemon.service_pid("runtime")
        self.processes = len([line for _, line in proc.pids_naming(daemon.dir)
                              if "containerd-shim" in line or "runc" in line])
        self.mounts = len([m for m in proc.mounts_below(daemon.dir) if "rootfs" in m])
        self.descriptors = len(os.listdir("/proc/%d/fd" % pid))
        self.bundles = sum(len(folders) + len(files) for _, folders, files in os.walk(
            os.path.join(daemon.state, "io.containerd.runtime.v2.task")))
        self.sockets = len(os.listdir(os.path.join(daemon.state, "s")))
        with open("/proc/%d/status" % pid) as f:
            self.memory_kib = int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))


def settled(daemon, before):
    """Waits until all but memory is back to `before`; returns the counts."""
    def same():
        now = Counts(daemon)
        left = {k: (v, getattr(now, k)) for k, v in vars(before).items()
                if k not in ("memory_kib", "descriptors") and v != getattr(now, k)}
        # A connection or two of gRPC may come or go.
        if now.descriptors > before.descriptors + 3:
            left["descriptors"] = (before.descriptors, now.descriptors)
        same.left = left
        return None if left else now

    try:
        return proc.wait_for(same, "", 5)
    except AssertionError:
        raise AssertionError("left behind (before, after): %r" % same.left)


def stress(daemon, cycles, report=None):
    """Cycles, 8 at a time; complains about whatever is left."""
    warm = min(24, cycles // 2)
    in_parallel(lambda i: cycle(daemon, "w%d" % i), range(warm))
    time.sleep(0.1)
    before = Counts(daemon)
    in_parallel(lambda i: cycle(daemon, "c%d" % i), range(cycles - warm))
    after = settled(daemon, before)
    for i in (0, cycles - warm - 1):
        if proc.cgroups_named("c%d" % i):
            raise AssertionError("cgroups left: %r" % proc.cgroups_named("c%d" % i))
    if report:
        report("memory of the runtime service: %d KiB, then %d" %
               (before.memory_kib, after.memory_kib))
    if after.memory_kib > before.memory_kib + 2048:
        raise AssertionError("the runtime service grew from %d to %d KiB" %
                             (before.memory_kib, after.memory_kib))


class Many(unittest.TestCase):
    def start(self, count):
        """Containers that count in their log, and end with code i when told."""
        script = ("i=0; while [ ! -e /go ]; do echo $i; i=$((i+1)); sleep 0.1; done; "
                  "read code < /go; exit $code")

        def one(i):
            log = os.path.join(ours.dir, "m%d.log" % i)
            ours.ctr("run", "-d", "--runtime", OURS, "--log-uri", "file://" + log, image,
                     "m%d" % i, "sh", "-c", script, check=True)

        in_parallel(one, range(count))

    def test_services_die_containers_do_not(self):
        self.start(MANY)
        before = tasks(ours)
        self.assertEqual(MANY, len(before))
        shims = {parent(pid) for pid, _ in before.values()}
        for victims in (["runtime"], ["gateway"], ["metadata"], list(suite.SERVICES)):
            old = {v: ours.service_pid(v) for v in victims}
            for pid in old.values():
                os.kill(pid, signal.SIGKILL)
            if victims == ["runtime"]:
                # A tenth of them ends meanwhile.
                for i in range(0, MANY, 10):
                    path = "/proc/%d/root/go" % before["m%d" % i][0]
                    with open(path + ".new", "w") as f:
                        f.write("%d\n" % (i + 1))
                    os.rename(path + ".new", path)

            def back():
                try:
                    return all(ours.service_pid(v) != pid for v, pid in old.items())
                except (OSError, ValueError):
                    return False

            proc.wait_for(back, "%r to be restarted" % victims, interval=0.005)
            began = time.monotonic()
            proc.wait_for(lambda: len(tasks(ours)) == MANY, "all tasks", 10)
            took = time.monotonic() - began
            print("     SIGKILL of %s: %d tasks back after %.2f s" %
                  (", ".join(victims), MANY, took))
            self.assertLess(took, ADOPTED_MAX)
            self.assertEqual({name: pid for name, (pid, _) in before.items()},
                             {name: pid for name, (pid, _) in tasks(ours).items()})
        proc.wait_for(lambda: all(tasks(ours)["m%d" % i][1] == "STOPPED"
                                  for i in range(0, MANY, 10)), "the ends")
        for i in range(MANY):
            with open(os.path.join(ours.dir, "m%d.log" % i)) as f:
                numbers = [int(line) for line in f.read().split()]
            self.assertEqual(list(range(len(numbers))), numbers, "m%d" % i)
        for i in range(0, MANY, 10):
            result = ours.ctr("tasks", "rm", "m%d" % i)
            self.assertIn("non-zero exit code %d" % (i + 1), result.err, repr(result))
        # Half of the shims go: their containers end and are reported.
        rest = [i for i in range(MANY) if i % 10]
        killed = rest[::2]
        for i in killed:
            os.kill(parent(before["m%d" % i][0]), signal.SIGKILL)
        proc.wait_for(lambda: len(tasks(ours)) == len(rest) - len(killed), "their end")
        proc.wait_for(lambda: not any(os.path.exists("/proc/%d" % before["m%d" % i][0])
                                      for i in killed), "their processes to end")
        in_parallel(lambda i: ours.ctr("tasks", "kill", "-s", "KILL", "m%d" % i),
                    [i for i in rest if i not in killed])
        in_parallel(lambda i: proc.wait_for(
            lambda: ours.ctr("tasks", "rm", "m%d" % i).code == 0, "its end"),
                    [i for i in rest if i not in killed])
        in_parallel(lambda i: ours.ctr("containers", "rm", "m%d" % i, check=True), range(MANY))
        proc.wait_for(lambda: not any(os.path.exists("/proc/%d" % p) for p in shims),
                      "all shims to end")
        self.assertEqual([], proc.cgroups_named("m1"))
        self.assertEqual([], [m for m in proc.mounts_below(ours.dir) if "rootfs" in m])

    def test_cycles_leave_nothing(self):
        stress(ours, CYCLES, report=lambda text: print("     " + text))


if __name__ == "__main__":
    unittest.main()
