"""Many containers: some that print through SIGKILLs of services and shims, and
cycles of create-start-exec-kill-delete after which nothing is left."""

import concurrent.futures
import json
import os
import re
import select
import signal
import subprocess
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


def stress(daemon, cycles, report=None, growth_kib_max=2048):
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
    if after.memory_kib > before.memory_kib + growth_kib_max:
        raise AssertionError("the runtime service grew from %d to %d KiB" %
                             (before.memory_kib, after.memory_kib))


def event_log(daemon, enough):
    """All events that metadata keeps, once enough(events) says so."""
    stream = subprocess.Popen(
        [os.path.join(proc.BIN, "bulkhead"), "events", "--since-seq", "0", "--format", "json"],
        stdout=subprocess.PIPE, env=dict(os.environ, BULKHEAD_ADDRESS=daemon.address))
    data, fd, end = b"", stream.stdout.fileno(), time.monotonic() + 30
    try:
        while time.monotonic() < end:
            if select.select([fd], [], [], 0.2)[0]:
                data += os.read(fd, 1 << 20)
            events = [json.loads(line.split(b" ", 1)[1]) for line in data.split(b"\n")[:-1]]
            if enough(events):
                # Whatever comes now is too much, and must be seen as well.
                while select.select([fd], [], [], 0.3)[0]:
                    data += os.read(fd, 1 << 20)
                return [json.loads(line.split(b" ", 1)[1]) for line in data.split(b"\n")[:-1]]
        raise AssertionError("the event log is not complete: %d events" % len(events))
    finally:
        stream.kill()
        stream.wait()
        stream.stdout.close()


class Many(unittest.TestCase):
    ROUNDS = (["runtime"], ["gateway"], ["metadata"], list(suite.SERVICES))

    def start(self, count):
        """Containers that count in their log, and end with code i when told."""
        script = ("i=0; while [ ! -e /go ]; do echo $i; i=$((i+1)); sleep 0.1; done; "
                  "read code < /go; echo end $i; exit $code")

        def one(i):
            log = os.path.join(ours.dir, "m%d.log" % i)
            ours.ctr("run", "-d", "--runtime", OURS, "--log-uri", "file://" + log, image,
                     "m%d" % i, "sh", "-c", script, check=True)

        in_parallel(one, range(count))

    def end(self, pid, code):
        """Tells one to end; its process sees a whole file or none."""
        path = "/proc/%d/root/go" % pid
        with open(path + ".new", "w") as f:
            f.write("%d\n" % code)
        os.rename(path + ".new", path)

    def check_log(self, i, ended):
        """Not a byte is missing, up to the last if it has ended by itself."""
        with open(os.path.join(ours.dir, "m%d.log" % i)) as f:
            text = f.read()
        if ended:
            text, _, last = text.rpartition("end ")
            self.assertEqual(text.count("\n"), int(last), "m%d" % i)
        numbers = [int(line) for line in text.split()]
        self.assertEqual(list(range(len(numbers))), numbers, "m%d" % i)
        return len(numbers)

    def test_services_die_containers_do_not(self):
        self.start(MANY)
        before = tasks(ours)
        self.assertEqual(MANY, len(before))
        pids = {i: before["m%d" % i][0] for i in range(MANY)}
        shims = {i: parent(pid) for i, pid in pids.items()}
        code = lambda i: i % 255 + 1
        ended = []
        for at, victims in enumerate(self.ROUNDS):
            printed = {i: self.check_log(i, False) for i in pids if i not in ended}
            old = {v: ours.service_pid(v) for v in victims}
            for pid in old.values():
                os.kill(pid, signal.SIGKILL)
            # A tenth of them ends while nobody is there to see it.
            ending = list(range(at, MANY, 10))
            for i in ending:
                self.end(pids[i], code(i))
            ended += ending

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
            proc.wait_for(lambda: all(self.check_log(i, False) > printed[i]
                                      for i in pids if i not in ended), "all to print on")
        proc.wait_for(lambda: all(tasks(ours)["m%d" % i][1] == "STOPPED" for i in ended),
                      "the ends")
        for i in ended:
            self.check_log(i, True)
            result = ours.ctr("tasks", "rm", "m%d" % i)
            self.assertIn("non-zero exit code %d" % code(i), result.err, repr(result))
        # Half of the other shims go: their containers end and are reported.
        rest = [i for i in range(MANY) if i not in ended]
        killed, others = rest[::2], rest[1::2]
        for i in killed:
            os.kill(shims[i], signal.SIGKILL)
        began = time.monotonic()
        proc.wait_for(lambda: len(tasks(ours)) == len(others), "their end")
        proc.wait_for(lambda: not any(os.path.exists("/proc/%d" % pids[i]) for i in killed),
                      "their processes to end")
        print("     SIGKILL of %d shims: all ended and reported after %.2f s" %
              (len(killed), time.monotonic() - began))
        for i in killed:
            self.check_log(i, False)
        for i in others:
            self.end(pids[i], code(i))
        proc.wait_for(lambda: all(tasks(ours)["m%d" % i][1] == "STOPPED" for i in others),
                      "the ends")
        for i in others:
            self.check_log(i, True)
        removed = in_parallel(lambda i: ours.ctr("tasks", "rm", "m%d" % i), others)
        for i, result in zip(others, removed):
            self.assertIn("non-zero exit code %d" % code(i), result.err, repr(result))
        in_parallel(lambda i: ours.ctr("containers", "rm", "m%d" % i, check=True), range(MANY))
        proc.wait_for(lambda: not any(os.path.exists("/proc/%d" % p) for p in shims.values()),
                      "all shims to end")
        for i in range(MANY):
            self.assertEqual([], proc.cgroups_named("m%d" % i))
        self.assertEqual([], [m for m in proc.mounts_below(ours.dir) if "rootfs" in m])
        bundles = os.path.join(ours.state, "io.containerd.runtime.v2.task", "default")
        self.assertEqual([], os.listdir(bundles))
        # Whatever died when: one exit each, with its code, and one deletion.
        names = {"m%d" % i for i in range(MANY)}

        def of(events, topic):
            return [e["Event"] for e in events
                    if e["Topic"] == topic and e["Event"].get("container_id") in names]

        events = event_log(ours, lambda e: len(of(e, "/tasks/delete")) >= MANY)
        exits = sorted((e["container_id"], int(e.get("exit_status", 0)))
                       for e in of(events, "/tasks/exit"))
        self.assertEqual(sorted(("m%d" % i, 137 if i in killed else code(i))
                                for i in range(MANY)), exits)
        self.assertEqual(sorted(names), sorted(e["container_id"]
                                               for e in of(events, "/tasks/delete")))

    def test_cycles_leave_nothing(self):
        stress(ours, CYCLES, report=lambda text: print("     " + text))


if __name__ == "__main__":
    unittest.main()
