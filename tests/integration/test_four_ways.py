"""One list of tasks, four ways: each daemon with each shim, driven by ctr.

Debian's containerd with Debian's shim is the reference that a test's
expectations were taken from; every way must meet them.
"""

import functools
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
import unittest

from tests.harness import proc, suite
from tests.integration import common

DEBIAN, OURS = "io.containerd.runc.v2", "io.containerd.bulkhead.v1"
NS = "bht-four"


def setUpModule():
    global suites, image
    image = common.image_registry().host + "/busybox:latest"
    suites = {"ours": suite.Suite(), "theirs": suite.Containerd(path=proc.BIN)}
    for daemon in suites.values():
        unittest.addModuleCleanup(daemon.start().stop)
        daemon.ctr("images", "pull", "--plain-http", image, ns=NS, check=True)


class Way:
    """One daemon with one shim."""

    def __init__(self, daemon, shim):
        self.daemon, self.shim, self.count = suites[daemon], shim, 0
        self.name = daemon[0] + ("d" if shim == DEBIAN else "b")

    def command(self, *args):
        return ["ctr", "--address", self.daemon.address, "-n", NS, *args]

    def ctr(self, *args, **kwargs):
        return proc.run(self.command(*args), **kwargs)

    def run_args(self, *args, options=()):
        self.count += 1
        return self.command("run", "--rm", "--runtime", self.shim, *options, image,
                            "%s-%d" % (self.name, self.count), *args)

    def run(self, *args, options=(), **kwargs):
        return proc.run(self.run_args(*args, options=options), **kwargs)

    def detached(self, *args, options=()):
        self.count += 1
        name = "%s-%d" % (self.name, self.count)
        result = self.ctr("run", "-d", "--runtime", self.shim, *options, image, name, *args)
        if result.code:
            raise AssertionError(repr(result))
        return name

    def task(self, name):
        """The pid and the state of a task, as listed."""
        for line in self.ctr("tasks", "ls").out.splitlines():
            if line.split()[0] == name:
                return line.split()[1:]
        return None

    def wait_stopped(self, name):
        proc.wait_for(lambda: (self.task(name) or ["", ""])[1] == "STOPPED", name + " to end")

    def remove(self, name):
        """Ends it if it runs; the exit code is that of the container."""
        self.ctr("tasks", "kill", "-s", "KILL", "-a", name)
        if self.task(name):
            self.wait_stopped(name)
        result = self.ctr("tasks", "rm", name)
        self.ctr("containers", "rm", name)
        code = re.search(r"non-zero exit code (\d+)", result.err)
        return int(code.group(1)) if code else result.code


def each_way(test):
    """Runs a test for each way; one that fails does not stop the others."""

    @functools.wraps(test)
    def run(self):
        for daemon in ("theirs", "ours"):
            for shim in (DEBIAN, OURS):
                with self.subTest(daemon=daemon, shim=shim):
                    test(self, Way(daemon, shim))

    return run


class FourWays(unittest.TestCase):
    def expect(self, result, code, out=None):
        self.assertEqual(code, result.code, repr(result))
        if out is not None:
            self.assertEqual(out, result.out, repr(result))

    def exits(self, way):
        """One container that ends with each code: execs cost less."""
        name = way.detached("sleep", "1000")
        codes = list(range(0, 256, 5)) + [1, 2, 126, 127, 128, 129, 137, 143, 254]
        for code in codes[::5]:
            self.expect(way.ctr("tasks", "exec", "--exec-id", "e%d" % code, name, "sh", "-c",
                                "exit %d" % code), code, "")
        for sig in (1, 2, 9, 11, 15):
            self.expect(way.ctr("tasks", "exec", "--exec-id", "s%d" % sig, name, "sh", "-c",
                                "kill -%d $$; sleep 9" % sig), 128 + sig, "")
        self.assertEqual(137, way.remove(name))

    @each_way
    def test_exit_codes(self, way):
        for code in (0, 1, 137, 255):
            self.expect(way.run("sh", "-c", "exit %d" % code), code, "")
        self.expect(way.run("true"), 0, "")
        self.exits(way)

    @each_way
    def test_much_output(self, way):
        lines = "".join("%d\n" % i for i in range(1, 30001))
        self.expect(way.run("seq", "30000"), 0, lines)
        result = way.run("sh", "-c", "seq 5000; seq 5000 >&2")
        self.expect(result, 0, "".join("%d\n" % i for i in range(1, 5001)))
        self.assertEqual(result.out, result.err)

    @each_way
    def test_binary_output_and_stdin(self, way):
        data = bytes(range(256)) * 4096
        done = subprocess.run(way.run_args("cat"), input=data, capture_output=True, timeout=60)
        self.assertEqual((0, b""), (done.returncode, done.stderr))
        self.assertTrue(data == done.stdout, "%d bytes came back" % len(done.stdout))

    @each_way
    def test_slow_and_absent_readers(self, way):
        slow = subprocess.Popen(way.run_args("seq", "40000"), stdout=subprocess.PIPE)
        time.sleep(0.5)  # The pipes are full meanwhile; nothing is waited for.
        out = slow.stdout.read()
        slow.stdout.close()
        self.assertEqual(0, slow.wait(30))
        self.assertEqual(40000, out.count(b"\n"))
        # Nobody wants it.
        name = way.detached("sh", "-c", "seq 100000; exit 3", options=("--null-io",))
        way.wait_stopped(name)
        self.assertEqual(3, way.remove(name))
        # Nobody reads: it blocks when the pipe is full, and can be ended. (With
        # Debian's shim too, which then takes 10 s to let go of the pipe.)
        if way.shim == DEBIAN:
            return
        name = way.detached("sh", "-c", "seq 100000; exit 3")
        self.assertEqual("RUNNING", way.task(name)[1])
        self.assertEqual(137, way.remove(name))

    @each_way
    def test_terminal(self, way):
        pid, fd = pty.fork()
        if pid == 0:
            args = way.run_args("sh", options=("-t",))
            os.execvp(args[0], args)
        out, sent, end = b"", False, time.monotonic() + 30
        while time.monotonic() < end:
            if not select.select([fd], [], [], 1)[0]:
                continue
            try:
                out += os.read(fd, 4096)
            except OSError:
                break
            if b"# " in out and not sent:
                sent = True
                os.write(fd, b"test -t 0 && test -t 2 && echo tty=$((40+2)); exit 9\n")
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        self.assertEqual(9, os.waitstatus_to_exitcode(status), out)
        self.assertIn(b"tty=42", out)

    @each_way
    def test_signals(self, way):
        script = ("trap 'echo usr1' USR1; trap 'exit 5' TERM; echo ready; "
                  "while :; do sleep 0.02; done")
        run = subprocess.Popen(way.run_args("sh", "-c", script), stdout=subprocess.PIPE)
        name = "%s-%d" % (way.name, way.count)
        self.assertEqual(b"ready\n", run.stdout.readline())
        self.expect(way.ctr("tasks", "kill", "-s", "SIGUSR1", name), 0)
        self.assertEqual(b"usr1\n", run.stdout.readline())
        self.expect(way.ctr("tasks", "kill", "-s", "SIGTERM", name), 0)
        self.assertEqual(5, run.wait(30))
        run.stdout.close()

    @each_way
    def test_pause_and_pids(self, way):
        name = way.detached("sh", "-c", "sleep 1000 & exec sleep 1000")
        self.expect(way.ctr("tasks", "pause", name), 0)
        self.assertEqual("PAUSED", way.task(name)[1])
        self.expect(way.ctr("tasks", "resume", name), 0)
        self.assertEqual("RUNNING", way.task(name)[1])
        pids = proc.wait_for(lambda: (lambda p: p if len(p) == 2 else None)(
            re.findall(r"^(\d+)", way.ctr("tasks", "ps", name).out, re.M)), "two processes")
        self.assertIn(way.task(name)[0], pids)
        self.assertEqual(137, way.remove(name))
        self.assertEqual([], proc.cgroups_named(name))

    @each_way
    def test_out_of_memory(self, way):
        result = way.run("tail", "/dev/zero", options=("--memory-limit", "16777216"))
        self.expect(result, 137)

    @each_way
    def test_metrics(self, way):
        name = way.detached("sleep", "1000")
        out = way.ctr("tasks", "metrics", name, check=True).out
        self.assertRegex(out, r"(?s)METRIC.*pids")
        self.assertEqual(137, way.remove(name))

    @each_way
    def test_exec_while_the_container_ends(self, way):
        name = way.detached("sleep", "1000")
        results = []

        def execs():
            for i in range(6):
                results.append(way.ctr("tasks", "exec", "--exec-id", "r%d" % i, name, "true",
                                       timeout=30).code)

        thread = threading.Thread(target=execs)
        thread.start()
        proc.wait_for(lambda: results, "an exec")
        way.ctr("tasks", "kill", "-s", "KILL", name)
        thread.join()
        self.assertEqual(6, len(results))
        way.wait_stopped(name)
        self.assertEqual(137, way.remove(name))

    @each_way
    def test_orphans_are_reaped_and_end(self, way):
        # A grandchild loses its parent inside; first process reaps.
        self.expect(way.run("sh", "-c", "(sleep 0.1 &) ; sleep 0.3; echo done"), 0, "done\n")
        # The first process goes before its children: they end with it.
        name = way.detached("sh", "-c", "sleep 1001 & sleep 1002 & sleep 0.2; exit 4")
        pids = proc.wait_for(lambda: re.findall(
            r"^(\d+)", way.ctr("tasks", "ps", name).out, re.M), "processes")
        way.wait_stopped(name)
        proc.wait_for(lambda: not any(os.path.exists("/proc/" + p) for p in pids),
                      "all processes to end")
        self.assertEqual(4, way.remove(name))

    @each_way
    def test_failures_leave_nothing(self, way):
        result = way.run("no-such-command")
        self.assertEqual(1, result.code)
        self.assertIn("no-such-command", result.err)
        self.assertIsNone(way.task("%s-%d" % (way.name, way.count)))

    @each_way
    def test_dead_shim(self, way):
        name = way.detached("sleep", "1000")
        pid = int(way.task(name)[0])
        with open("/proc/%d/stat" % pid) as f:
            shim = int(f.read().rsplit(")", 1)[1].split()[1])
        os.kill(shim, signal.SIGKILL)
        proc.wait_for(lambda: not os.path.exists("/proc/%d" % pid), "the container's end")
        proc.wait_for(lambda: way.task(name) is None, "the task's end")
        self.expect(way.ctr("containers", "rm", name), 0)
        proc.wait_for(lambda: not proc.cgroups_named(name), "the cgroups")


if __name__ == "__main__":
    unittest.main()
