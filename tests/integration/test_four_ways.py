"""One list of tasks, four ways: each daemon with each shim, driven by ctr.

Debian's containerd with Debian's shim is the reference that a test's
expectations were taken from; every way must meet them.
"""

import functools
import itertools
import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import tempfile
import threading
import time
import unittest

from tests.harness import grpcurl, proc, suite
from tests.integration import common

DEBIAN, OURS = "io.containerd.runc.v2", "io.containerd.bulkhead.v1"
NS = "bht-four"
# Each of the 256 codes and every signal takes minutes: `./dev soak --codes`.
ALL_CODES = bool(os.environ.get("BULKHEAD_ALL_CODES"))


def setUpModule():
    global suites, image
    image = common.image_registry().host + "/busybox:latest"
    suites = {"ours": suite.Suite(), "theirs": suite.Containerd(path=proc.BIN)}
    for daemon in suites.values():
        unittest.addModuleCleanup(daemon.start().stop)
        daemon.ctr("images", "pull", "--plain-http", image, ns=NS, check=True)


_count = itertools.count(1)  # No test sees another's containers.


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
        self.count = next(_count)
        return self.command("run", "--rm", "--runtime", self.shim, *options, image,
                            "%s-%d" % (self.name, self.count), *args)

    def run(self, *args, options=(), **kwargs):
        return proc.run(self.run_args(*args, options=options), **kwargs)

    def detached(self, *args, options=()):
        self.count = next(_count)
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

    def update(self, name, resources):
        """Tasks.Update, which ctr has no command for: by gRPC."""
        update = grpcurl.Call(self.daemon.address, NS)
        update("containerd.services.tasks.v1.Tasks", "Update",
               grpcurl.field(1, name) + grpcurl.field(2, grpcurl.field(
                   1, "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources") +
                   grpcurl.field(2, resources)))

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


class Events:
    """What a daemon says happens, while it is open."""

    def __init__(self, way):
        self.way = way

    def __enter__(self):
        self.process = subprocess.Popen(self.way.command("events"), stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL)
        self.lines, self.fd = b"", self.process.stdout.fileno()
        # It listens once it has told of something.
        probe = "probe-%s-%d" % (self.way.name, self.way.count)
        end = time.monotonic() + 20
        while probe.encode() not in self.lines and time.monotonic() < end:
            self.way.ctr("namespaces", "create", probe)
            self.way.ctr("namespaces", "rm", probe)
            self._read(0.1)
        return self

    def _read(self, timeout):
        while select.select([self.fd], [], [], timeout)[0]:
            data = os.read(self.fd, 65536)
            if not data:
                return
            self.lines += data
            timeout = 0

    def until(self, container, topic):
        """The topics of a container's events up to `topic`."""
        def found():
            self._read(0.1)
            topics = []
            for line in self.lines.decode(errors="replace").splitlines():
                match = re.search(r" (/[a-z/-]+) (\{.*\})", line)
                if not match or not match.group(1).startswith("/tasks/"):
                    continue
                if json.loads(match.group(2)).get("container_id") == container:
                    topics.append(match.group(1))
            return topics if topic in topics else None

        return proc.wait_for(found, "%s of %s in:\n%s" % (
            topic, container, self.lines.decode(errors="replace")[-2000:]))

    def __exit__(self, *exc):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def zombies(parent):
    """Children of a process that nobody has waited for."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % pid) as f:
                state, ppid = f.read().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if state == "Z" and int(ppid) == parent:
            found.append(int(pid))
    return found


def bind(host):
    """Options of ctr for a folder of the machine at /host."""
    return ("--mount", "type=bind,src=%s,dst=/host,options=rbind:rw" % host)


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

    @each_way
    def test_exit_codes_of_first_processes(self, way):
        for code in (0, 1, 137, 255):
            self.expect(way.run("sh", "-c", "exit %d" % code), code, "")
        # It is gone before anybody asks: nothing but its code is left.
        self.expect(way.run("true"), 0, "")
        # Killed behind everybody's back.
        name = way.detached("sleep", "1000")
        os.kill(int(way.task(name)[0]), signal.SIGKILL)
        way.wait_stopped(name)
        self.assertEqual(137, way.remove(name))

    @each_way
    def test_every_exit_code_and_signal_of_execs(self, way):
        """0 to 255 and all signals that end a process, each seen by a client."""
        name = way.detached("sleep", "1000")
        codes = range(256) if ALL_CODES else (
            0, 1, 2, 3, 7, 63, 64, 125, 126, 127, 128, 129, 130, 137, 143, 192, 254, 255)
        signals = (1, 2, 3, 4, 6, 7, 8, 9, 11, 13, 14, 15, 31, 34, 64) if ALL_CODES else (
            1, 2, 3, 6, 9, 11, 15, 34, 64)
        wanted = [("e%d" % code, "exit %d" % code, code) for code in codes]
        # The shell itself ignores SIGQUIT; what it executes does not.
        wanted += [("s%d" % sig, "exec timeout -s 3 0.1 sleep 9" if sig == signal.SIGQUIT else
                    "kill -%d $$; sleep 9" % sig, 128 + sig) for sig in signals]
        for exec_id, script, code in wanted:
            self.expect(way.ctr("tasks", "exec", "--exec-id", exec_id, name, "sh", "-c", script),
                        code, "")
        self.assertEqual(137, way.remove(name))

    @each_way
    def test_much_output(self, way):
        lines = "".join("%d\n" % i for i in range(1, 30001))
        self.expect(way.run("seq", "30000"), 0, lines)
        result = way.run("sh", "-c", "seq 5000; seq 5000 >&2")
        self.expect(result, 0, "".join("%d\n" % i for i in range(1, 5001)))
        self.assertEqual(result.out, result.err)

    def assert_same(self, expected, got, what):
        """Says which bytes of a stream are wrong, not all of them."""
        if expected == got:
            return
        first = next((i for i, pair in enumerate(zip(expected, got)) if pair[0] != pair[1]),
                     min(len(expected), len(got)))
        part = "tail" if expected.startswith(got) else \
            "head" if expected.endswith(got) else \
            "middle" if len(got) < len(expected) and \
            expected.endswith(got[first:]) else "content"
        self.fail("%s: %d of %d bytes, the first difference at %d: the %s is wrong" % (
            what, len(got), len(expected), first, part))

    @each_way
    def test_binary_output_and_stdin(self, way):
        data = random.Random(1).randbytes(1 << 20)  # No part is like another.
        with tempfile.TemporaryDirectory(prefix="bh-", dir="/tmp") as host:
            # What it received can be told from what came back.
            script = "tee /host/received"
            if way.shim == DEBIAN:
                # ctr closes its streams when it hears of the exit, whatever is in them
                # (see test_exits_wait_for_readers), and this shim tells it at once.
                script += "; while [ ! -e /host/read ]; do sleep 0.02; done"
            process = subprocess.Popen(
                way.run_args("sh", "-c", script, options=bind(host)),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            late = threading.Timer(60, process.kill)
            late.start()

            def write():
                with process.stdin:
                    process.stdin.write(data)

            writer = threading.Thread(target=write)
            writer.start()
            out = process.stdout.read(len(data))
            with open(os.path.join(host, "read"), "wb"):
                pass
            out += process.stdout.read()
            err = process.stderr.read()
            process.stdout.close()
            process.stderr.close()
            writer.join()
            code = process.wait()
            late.cancel()
            self.assertEqual((0, b""), (code, err))
            with open(os.path.join(host, "received"), "rb") as f:
                received = f.read()
            self.assert_same(data, received, "the container received")
            self.assert_same(received, out, "of what the container wrote came back")

    @each_way
    def test_exits_wait_for_readers(self, way):
        # More than fits into our pipe (64 KiB) and ctr's buffer (32 KiB): the rest is in
        # the FIFO when the process ends. ctr 1.6 closes that as soon as it hears of the
        # exit. Debian's shim tells it at once, and then the rest is lost, whichever daemon
        # it is (which is not wrong enough to ask for); ours tells it when all was read.
        size = 140 * 1024
        data = b"0123456789abcde\n" * (size // 16)
        with tempfile.TemporaryDirectory(prefix="bh-", dir="/tmp") as host:
            with open(os.path.join(host, "data"), "wb") as f:
                f.write(data)
            process = subprocess.Popen(way.run_args(
                "sh", "-c", "while [ ! -e /host/go ]; do sleep 0.02; done; exec cat /host/data",
                options=bind(host)), stdout=subprocess.PIPE)
            name = "%s-%d" % (way.name, way.count)
            proc.wait_for(lambda: (way.task(name) or ["", ""])[1] == "RUNNING", "the start")
            pid = way.task(name)[0]
            with open(os.path.join(host, "go"), "wb"):
                pass
            proc.wait_for(lambda: not os.path.exists("/proc/" + pid), "the end")
            out = process.stdout.read()
            process.stdout.close()
            self.assertEqual(0, process.wait(30))
            if way.shim == OURS:
                self.assert_same(data, out, "what came back")
            else:
                self.assertTrue(data.startswith(out))

    @each_way
    def test_slow_and_absent_readers(self, way):
        slow = subprocess.Popen(way.run_args("sh", "-c", "seq 400000; echo over >&2"),
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        # All pipes on the way fill up, and the process waits for its reader.
        name = "%s-%d" % (way.name, way.count)
        proc.wait_for(lambda: way.task(name) is not None, "the start")
        out = b""
        for _ in range(20):
            out += os.read(slow.stdout.fileno(), 1000)
            time.sleep(0.005)
        self.assertEqual([], select.select([slow.stderr], [], [], 0)[0], "it is not over yet")
        out += slow.stdout.read()
        self.assertEqual(b"over\n", slow.stderr.read())
        slow.stdout.close()
        slow.stderr.close()
        self.assertEqual(0, slow.wait(30))
        self.assertEqual("".join("%d\n" % i for i in range(1, 400001)).encode(), out)
        # A reader that goes away: the process is none the worse for it.
        gone = subprocess.Popen(way.run_args("sh", "-c", "while [ ! -e /go ]; do echo x; done; "
                                             "exit 11"), stdout=subprocess.PIPE)
        name = "%s-%d" % (way.name, way.count)
        self.assertEqual(b"x\n", gone.stdout.readline())
        os.kill(gone.pid, signal.SIGKILL)
        gone.stdout.close()
        gone.wait()
        # The end may be quicker than the report of this.
        way.ctr("tasks", "exec", "--exec-id", "go", name, "touch", "/go")
        if way.shim == DEBIAN:
            way.ctr("tasks", "kill", "-s", "KILL", name)  # Its copying is stuck now.
        way.wait_stopped(name)
        self.assertIn(way.remove(name), (11, 137))
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
        with Events(way) as events:
            result = way.run("tail", "/dev/zero", options=("--memory-limit", "16777216"))
            self.expect(result, 137)
            name = "%s-%d" % (way.name, way.count)
            topics = events.until(name, "/tasks/delete")
        self.assertIn("/tasks/oom", topics)
        self.assertLess(topics.index("/tasks/oom"), topics.index("/tasks/exit"))

    @each_way
    def test_events_are_complete_and_in_order(self, way):
        with Events(way) as events:
            self.expect(way.run("true"), 0)
            name = "%s-%d" % (way.name, way.count)
            self.assertEqual(["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"],
                             events.until(name, "/tasks/delete"))
            name = way.detached("sleep", "1000")
            self.expect(way.ctr("tasks", "exec", "--exec-id", "e", name, "true"), 0)
            self.expect(way.ctr("tasks", "pause", name), 0)
            self.expect(way.ctr("tasks", "resume", name), 0)
            self.assertEqual(137, way.remove(name))
            self.assertEqual(
                ["/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started",
                 "/tasks/exit", "/tasks/paused", "/tasks/resumed", "/tasks/exit",
                 "/tasks/delete"], events.until(name, "/tasks/delete"))

    @each_way
    def test_update(self, way):
        name = way.detached("sleep", "1000", options=("--memory-limit", "67108864"))
        resources = json.dumps({"memory": {"limit": 33554432}, "pids": {"limit": 17}})
        way.update(name, resources)
        limits = {}
        for folder in proc.cgroups_named(name):
            for file in ("memory.limit_in_bytes", "memory.max", "pids.max"):
                path = os.path.join(folder, file)
                if os.path.exists(path):
                    with open(path) as f:
                        limits[file] = f.read().strip()
        self.assertIn("33554432", (limits.get("memory.limit_in_bytes"), limits.get("memory.max")))
        self.assertEqual("17", limits["pids.max"])
        self.assertEqual(137, way.remove(name))

    @each_way
    def test_pids_limit_holds(self, way):
        name = way.detached("sleep", "1000")
        way.update(name, json.dumps({"pids": {"limit": 4}}))
        result = way.ctr("tasks", "exec", "--exec-id", "forks", name, "sh", "-c",
                         "sleep 0.5 & sleep 0.5 & sleep 0.5 & sleep 0.5 & wait")
        self.assertNotEqual(0, result.code, repr(result))
        # runc's own init may be what is refused a thread, and says nothing then.
        self.assertRegex(result.err, "(?i)fork|temporarily unavailable|read init-p")
        self.assertEqual(137, way.remove(name))

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
    def test_zombies_are_reparented_and_reaped(self, way):
        """What an exec leaves behind goes to the container's first process or to
        the shim; nothing stays a zombie once its keeper reaps."""
        script = "while :; do wait; sleep 0.05; done"
        name = way.detached("sh", "-c", script)
        init = int(way.task(name)[0])
        self.expect(way.ctr("tasks", "exec", "--exec-id", "z", name, "sh", "-c",
                            "(sleep 0.2; exit 3) & (sleep 0.3) & exit 0"), 0)
        proc.wait_for(lambda: len(re.findall(
            r"^\d+", way.ctr("tasks", "ps", name).out, re.M)) <= 2, "the orphans to end")
        proc.wait_for(lambda: not zombies(init), "zombies to be reaped")
        with open("/proc/%d/stat" % init) as f:
            shim = int(f.read().rsplit(")", 1)[1].split()[1])
        proc.wait_for(lambda: not zombies(shim), "the shim's zombies to be reaped")
        self.assertEqual(137, way.remove(name))

    @each_way
    def test_exec_in_one_that_has_ended(self, way):
        name = way.detached("sh", "-c", "exit 8")
        way.wait_stopped(name)
        result = way.ctr("tasks", "exec", "--exec-id", "late", name, "true")
        self.assertNotEqual(0, result.code, repr(result))
        self.assertRegex(result.err, "cannot exec in a stopped|is not running")
        self.assertEqual(8, way.remove(name))

    @each_way
    def test_stdin_ends_and_signals_of_a_terminal(self, way):
        run = subprocess.Popen(way.run_args("sh", "-c", "read a; read b; echo $a-$b; "
                                            "read c || echo end"),
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        run.stdin.write(b"one\ntwo\n")
        run.stdin.flush()
        self.assertEqual(b"one-two\n", run.stdout.readline())
        self.assertEqual((b"end\n", None), run.communicate(timeout=30))
        self.assertEqual(0, run.returncode)
        # What the user types reaches the terminal's foreground process: ^C.
        pid, fd = pty.fork()
        if pid == 0:
            args = way.run_args("sh", "-c", "trap 'echo got-int; exit 6' INT; echo ready; "
                                "while :; do sleep 0.05; done", options=("-t",))
            os.execvp(args[0], args)
        out, sent, end = b"", False, time.monotonic() + 30
        while time.monotonic() < end:
            if not select.select([fd], [], [], 1)[0]:
                continue
            try:
                out += os.read(fd, 4096)
            except OSError:
                break
            if b"ready" in out and not sent:
                sent = True
                os.write(fd, b"\x03")
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        self.assertEqual(6, os.waitstatus_to_exitcode(status), out)
        self.assertIn(b"got-int", out)

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
