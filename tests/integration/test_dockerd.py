"""The Docker Engine, a containerd client that predates Bulkhead by years.

Each scene runs three ways: Debian's dockerd on Debian's containerd (the
reference), on our suite with Debian's shim, and on our suite with our shim in
the place of the one that dockerd asks for.
"""

import concurrent.futures
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
import unittest

from tests.harness import docker, images, proc, suite

WAYS = ("theirs", "ours", "shim")
_docker = {}
_daemon = {}


def setUpModule():
    folder = proc.temp_dir()
    tar = os.path.join(folder, "busybox.tar")
    with open(tar, "wb") as f:
        f.write(images.busybox_layer())
    unittest.addModuleCleanup(proc.clean_up, folder)
    # dockerd 20.10 knows one runtime: our shim takes its name.
    shims = os.path.join(folder, "shims")
    os.mkdir(shims)
    os.symlink(os.path.join(proc.BIN, "containerd-shim-bulkhead-v1"),
               os.path.join(shims, "containerd-shim-runc-v2"))
    _daemon["theirs"] = suite.Containerd()
    _daemon["ours"] = suite.Suite()
    _daemon["shim"] = suite.Suite('[runtime]\nshim_paths = ["%s"]\n' % shims)
    for way in WAYS:
        unittest.addModuleCleanup(_daemon[way].start().stop)
        engine = _docker[way] = docker.Docker(_daemon[way])
        unittest.addModuleCleanup(engine.stop)
        engine.start()
        engine("import", "--change", "ENV PATH=/bin", tar, "bb:1", check=True)


class Engine(unittest.TestCase):
    maxDiff = None

    def ways(self):
        return [_docker[way] for way in WAYS]

    def same(self, *args, code=None, stdin=None):
        """One command on all three: the same output and exit code."""
        def one(way):
            result = _docker[way](*args, stdin=stdin)
            # Whether the client still waits then is a matter of timing.
            err = re.sub(r"(?m)^time=.*error waiting for container.*\n", "",
                         re.sub(r"[0-9a-f]{64}", "ID", result.err))
            return result.code, result.out, err

        with concurrent.futures.ThreadPoolExecutor() as pool:
            results = list(pool.map(one, WAYS))
        for way, result in zip(WAYS, results):
            self.assertEqual(results[0], result, "%s: %r" % (way, args))
            if code is not None:
                self.assertEqual(code, result[0], "%s: %r %r" % (way, args, result))
        return results[0][1]

    def check(self, engine, *args, code=0, **kwargs):
        """Its output; `code` None takes any exit code."""
        result = engine(*args, **kwargs)
        if code is not None:
            self.assertEqual(code, result.code, repr(result))
        return result.out

    def state(self, engine, name, field):
        return self.check(engine, "inspect", "-f", "{{.State.%s}}" % field, name).strip()

    def started(self, engine, *args):
        return self.check(engine, "run", "-d", "--network", "none", *args).strip()


class Run(Engine):
    def run_same(self, *args, **kwargs):
        return self.same("run", "--rm", "--network", "none", *args, **kwargs)

    def test_output_and_exit_codes(self):
        self.run_same("bb:1", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
        self.run_same("bb:1", "sh", "-c", "sh -c 'kill -9 $$; :'; exit $?", code=137)
        self.run_same("bb:1", "no-such-command", code=127)
        self.run_same("bb:1", "/etc/passwd", code=126)
        self.run_same("bb:1", "seq", "20000", code=0)

    def test_stdin(self):
        self.assertEqual("a\nb\n", self.run_same("-i", "bb:1", "cat", stdin="a\nb\n", code=0))
        text = "x" * 99 + "\n"
        self.assertEqual("100000\n", self.run_same("-i", "bb:1", "wc", "-c",
                                                   stdin=text * 1000, code=0))

    def test_terminal(self):
        for engine in self.ways():
            pid, fd = pty.fork()
            if pid == 0:
                args = engine.command("run", "--rm", "-it", "--network", "none", "bb:1", "sh")
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
                    os.write(fd, b"test -t 0 && echo tty=$((40+2)); exit 9\n")
            os.close(fd)
            _, status = os.waitpid(pid, 0)
            self.assertEqual(9, os.waitstatus_to_exitcode(status), out)
            self.assertIn(b"tty=42", out)

    def test_limits(self):
        for engine in self.ways():
            name = self.started(engine, "--memory", "64m", "--cpus", "0.5", "--pids-limit",
                                "50", "bb:1", "sleep", "1000")
            out = self.check(engine, "exec", name, "sh", "-c", "cd /sys/fs/cgroup; "
                             "cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us "
                             "2>/dev/null || cat memory.max pids.max cpu.max")
            self.assertRegex(out, r"^67108864\n50\n50000")
            self.check(engine, "update", "--memory", "128m", "--memory-swap", "128m", name)
            out = self.check(engine, "exec", name, "sh", "-c", "cat /sys/fs/cgroup/memory/"
                             "memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max")
            self.assertEqual("134217728\n", out)
            self.check(engine, "rm", "-f", name)

    def test_out_of_memory(self):
        for engine in self.ways():
            name = self.started(engine, "--memory", "16m", "--memory-swap", "16m", "bb:1",
                                "sh", "-c", "tail /dev/zero")
            self.assertEqual("137\n", self.check(engine, "wait", name))
            proc.wait_for(lambda: self.state(engine, name, "OOMKilled") == "true", "OOMKilled", 5)
            self.check(engine, "rm", name)

    def test_published_port(self):
        for engine in self.ways():
            name = self.check(engine, "run", "-d", "-p", "127.0.0.1::80", "bb:1", "sh", "-c",
                              "mkdir /w; echo web > /w/index.html; exec httpd -f -p 80 -h /w").strip()
            address = self.check(engine, "port", name, "80").strip()
            reply = proc.wait_for(
                lambda: proc.run(engine.inside("curl", "-s", "-m", "2",
                                               "http://" + address + "/")).out, "the web server")
            self.assertEqual("web\n", reply)
            self.check(engine, "rm", "-f", name)


    def test_detached_and_removed(self):
        """-d, --rm: gone when it ends, with everything of it in the daemon."""
        for engine in self.ways():
            name = self.started(engine, "--rm", "bb:1", "sh", "-c",
                                "while [ ! -e /go ]; do sleep 0.02; done; exit 3")
            self.assertEqual("running", self.state(engine, name, "Status"))
            tasks = engine.daemon.ctr("tasks", "ls", "-q", ns="docker").out.split()
            self.assertIn(name, tasks)
            waiter = subprocess.Popen(engine.command("wait", name), stdout=subprocess.PIPE,
                                      text=True)
            self.check(engine, "exec", name, "touch", "/go", code=None)
            self.assertEqual("3\n", waiter.communicate(timeout=30)[0])
            proc.wait_for(lambda: name not in self.check(engine, "ps", "-aq", "--no-trunc"),
                          "its removal")
            proc.wait_for(lambda: name not in engine.daemon.ctr(
                "containers", "ls", "-q", ns="docker").out.split(), "its record's removal")

    def test_interactive_with_a_terminal_resized(self):
        """-i -t: the client's window is the container's, also after a change."""
        for engine in self.ways():
            pid, fd = pty.fork()
            if pid == 0:
                args = engine.command("run", "--rm", "-it", "--network", "none", "bb:1", "sh")
                os.execvp(args[0], args)
            termios.tcsetwinsize(fd, (33, 99))
            out, step, end = b"", 0, time.monotonic() + 40
            while time.monotonic() < end:
                if select.select([fd], [], [], 0.2)[0]:
                    try:
                        out += os.read(fd, 4096)
                    except OSError:
                        break
                if step == 0 and b"# " in out:
                    termios.tcsetwinsize(fd, (22, 77))
                    step = 1
                if step == 1 and b"22 77" not in out:
                    # The prompt may be there before docker listens for the signal.
                    os.kill(pid, signal.SIGWINCH)
                    os.write(fd, b"stty size\n")
                    time.sleep(0.1)
                if step == 1 and b"22 77" in out:
                    os.write(fd, b"exit 4\n")
                    step = 2
            os.close(fd)
            if time.monotonic() >= end:
                os.kill(pid, signal.SIGKILL)  # It would wait for ever.
            _, status = os.waitpid(pid, 0)
            self.assertEqual(4, os.waitstatus_to_exitcode(status), out)
            self.assertEqual(2, step, out)

    def test_bridge_network_between_containers(self):
        for engine in self.ways():
            web = self.check(engine, "run", "-d", "bb:1", "sh", "-c",
                             "mkdir /w; echo hi > /w/i; exec httpd -f -p 80 -h /w").strip()
            address = self.check(engine, "inspect", "-f", "{{.NetworkSettings.IPAddress}}",
                                 web).strip()
            self.assertTrue(address.startswith("10.231.7."), address)
            reply = proc.wait_for(lambda: engine(
                "run", "--rm", "bb:1", "wget", "-qO-", "http://%s/i" % address).out,
                                  "the other container")
            self.assertEqual("hi\n", reply)
            self.check(engine, "rm", "-f", web)


class Life(Engine):
    def test_exec_logs_top_stats(self):
        for engine in self.ways():
            name = self.started(engine, "bb:1", "sh", "-c",
                                "echo started; echo warned >&2; exec sleep 1000")
            self.check(engine, "exec", name, "sh", "-c", "exit 3", code=3)
            self.assertEqual("in\n", self.check(engine, "exec", "-i", name, "cat", stdin="in\n"))
            self.check(engine, "exec", name, "no-such", code=126)
            logs = proc.wait_for(lambda: (lambda r: r if r.out and r.err else None)(
                engine("logs", name)), "logs")
            self.assertEqual(("started\n", "warned\n"), (logs.out, logs.err))
            self.assertIn("sleep 1000", self.check(engine, "top", name))
            stats = json.loads(self.check(engine, "stats", "--no-stream", "--format",
                                          "{{json .}}", name))
            self.assertRegex(stats["MemUsage"], r"^[0-9.]+[KM]iB / ")
            self.assertEqual("1", stats["PIDs"])
            self.check(engine, "rm", "-f", name)

    def test_pause_restart_kill_wait(self):
        for engine in self.ways():
            name = self.started(engine, "bb:1", "sh", "-c",
                                "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done")
            proc.wait_for(lambda: engine("logs", name).out == "up\n", "the trap")
            self.check(engine, "pause", name)
            self.assertEqual("paused", self.state(engine, name, "Status"))
            self.check(engine, "unpause", name)
            before = self.state(engine, name, "Pid")
            self.check(engine, "restart", "-t", "5", name)
            self.assertNotEqual(before, self.state(engine, name, "Pid"))
            proc.wait_for(lambda: engine("logs", name).out == "up\nup\n", "the second trap")
            self.check(engine, "stop", "-t", "5", name)
            self.assertEqual("5", self.state(engine, name, "ExitCode"))
            self.check(engine, "start", name)
            waiter = subprocess.Popen(engine.command("wait", name), stdout=subprocess.PIPE,
                                      text=True)
            self.check(engine, "kill", name)
            self.assertEqual("137\n", waiter.communicate(timeout=20)[0])
            self.check(engine, "rm", name)

    def test_signals(self):
        """kill with signals that are caught; stop with the container's own."""
        for engine in self.ways():
            name = self.started(engine, "--stop-signal", "USR2", "bb:1", "sh", "-c",
                                "trap 'echo usr1' USR1; trap 'echo usr2; exit 9' USR2; echo up; "
                                "while :; do sleep 0.05; done")
            proc.wait_for(lambda: engine("logs", name).out == "up\n", "the traps")
            self.check(engine, "kill", "-s", "USR1", name)
            proc.wait_for(lambda: engine("logs", name).out == "up\nusr1\n", "the signal")
            self.assertEqual("running", self.state(engine, name, "Status"))
            self.check(engine, "stop", "-t", "10", name)
            self.assertEqual("9", self.state(engine, name, "ExitCode"))
            self.assertEqual("up\nusr1\nusr2\n", engine("logs", name).out)
            self.check(engine, "rm", name)

    def test_logs_follow_and_tail(self):
        for engine in self.ways():
            name = self.started(engine, "bb:1", "sh", "-c",
                                "seq 100; while [ ! -e /go ]; do sleep 0.02; done; echo last")
            proc.wait_for(lambda: engine("logs", name).out.endswith("100\n"), "logs")
            self.assertEqual("99\n100\n", self.check(engine, "logs", "--tail", "2", name))
            follow = subprocess.Popen(engine.command("logs", "-f", "--tail", "1", name),
                                      stdout=subprocess.PIPE, text=True)
            self.assertEqual("100\n", follow.stdout.readline())
            self.check(engine, "exec", name, "touch", "/go", code=None)
            self.assertEqual("last\n", follow.communicate(timeout=30)[0])
            self.check(engine, "rm", name)

    def test_stats_stream_and_top_of_many(self):
        for engine in self.ways():
            name = self.started(engine, "--memory", "64m", "bb:1", "sh", "-c",
                                "sleep 1001 & sleep 1002 & exec sleep 1003")
            titles, *rows = self.check(engine, "top", name, "-eo", "pid,args").splitlines()
            self.assertEqual(["PID", "COMMAND"], titles.split())
            self.assertEqual({"sleep 1001", "sleep 1002", "sleep 1003"},
                             {" ".join(row.split()[1:]) for row in rows})
            stats = json.loads(self.check(engine, "stats", "--no-stream", "--format",
                                          "{{json .}}", name))
            self.assertEqual("3", stats["PIDs"])
            self.assertIn("64MiB", stats["MemUsage"])
            self.check(engine, "rm", "-f", name)

    def test_events(self):
        seen = []
        for engine in self.ways():
            since = self.check(engine, "info", "-f", "{{.SystemTime}}").strip()
            self.check(engine, "run", "--rm", "--name", "ev", "--network", "none", "bb:1", "true")
            out = self.check(engine, "events", "--since", since, "--until",
                             str(time.time() + 0.01), "--filter", "container=ev",
                             "--format", "{{.Type}} {{.Action}}")
            seen.append(sorted(set(out.splitlines())))
        self.assertEqual(seen[0], seen[1])
        self.assertEqual(seen[0], seen[2])
        self.assertIn("container die", seen[0])

    def test_restart_policy(self):
        for engine in self.ways():
            name = self.started(engine, "--restart", "on-failure:2", "bb:1", "sh", "-c",
                                "echo try; exit 4")
            proc.wait_for(lambda: self.state(engine, name, "Status") == "exited" and
                          self.state(engine, name, "ExitCode") == "4" and
                          engine("logs", name).out == "try\n" * 3, "three tries")
            self.check(engine, "rm", name)


    def test_restart_policy_unless_stopped(self):
        for engine in self.ways():
            name = self.started(engine, "--restart", "unless-stopped", "bb:1", "sleep", "1000")
            pid = self.state(engine, name, "Pid")
            os.kill(int(pid), signal.SIGKILL)
            proc.wait_for(lambda: self.state(engine, name, "Status") == "running" and
                          self.state(engine, name, "Pid") not in (pid, "0"), "its return")
            self.check(engine, "stop", "-t", "0", name)
            self.assertEqual("exited", self.state(engine, name, "Status"))
            self.check(engine, "rm", name)


class Restart(Engine):
    """dockerd, and our runtime service, go and come back; containers run on."""

    def test_live_restore(self):
        for engine in self.ways():
            name = self.started(engine, "--restart", "always", "bb:1", "sh", "-c",
                                "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done")
            pid = self.state(engine, name, "Pid")
            if engine.daemon.name == "bulkhead":
                engine.daemon.kill_service("runtime")
            self.check(engine, "exec", name, "true")
            engine.stop_daemon()
            if engine.daemon.name == "bulkhead":
                engine.daemon.kill_service("runtime")
            engine.start()
            self.assertEqual(("running", pid), (self.state(engine, name, "Status"),
                                                self.state(engine, name, "Pid")))
            self.assertEqual("in\n", self.check(engine, "exec", name, "echo", "in"))
            count = len(engine("logs", name).out.splitlines())
            proc.wait_for(lambda: len(engine("logs", name).out.splitlines()) > count, "output")
            numbers = [int(line) for line in engine("logs", name).out.split()]
            self.assertEqual(list(range(len(numbers))), numbers)
            # The policy brings it back when its process dies.
            os.kill(int(pid), signal.SIGKILL)
            proc.wait_for(lambda: self.state(engine, name, "Status") == "running" and
                          self.state(engine, name, "Pid") not in (pid, "0"), "the policy")
            self.check(engine, "rm", "-f", name)

    def test_exit_while_dockerd_is_away(self):
        for engine in self.ways():
            name = self.started(engine, "bb:1", "sh", "-c",
                                "while [ ! -e /go ]; do sleep 0.02; done; exit 6")
            pid = int(self.state(engine, name, "Pid"))
            engine.stop_daemon(signal.SIGKILL)
            with open("/proc/%d/root/go" % pid, "w"):
                pass
            proc.wait_for(lambda: not os.path.exists("/proc/%d" % pid), "the exit")
            engine.start()
            proc.wait_for(lambda: self.state(engine, name, "Status") == "exited", "its end")
            self.assertEqual("6", self.state(engine, name, "ExitCode"))
            self.check(engine, "rm", name)


if __name__ == "__main__":
    unittest.main()
