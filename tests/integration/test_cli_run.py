"""run, exec, attach and their kin in Docker's manners; on a terminal where one
makes the difference."""

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

from tests.harness import proc, suite
from tests.integration import common

DETACH = b"\x10\x11"  # ctrl-p ctrl-q


def setUpModule():
    global s, busybox
    busybox = common.image_registry().host + "/busybox:latest"
    s = suite.Suite().start()
    unittest.addModuleCleanup(s.stop)
    s.cli("pull", "-q", busybox, check=True)


def command(*args):
    return [os.path.join(proc.BIN, "bulkhead"), *args]


def environment():
    return dict(os.environ, BULKHEAD_ADDRESS=s.address)


class Terminal:
    """A bulkhead command with a terminal of its own."""

    def __init__(self, *args, size=(24, 80)):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            # As a shell on a terminal does it; what runs us in the background
            # may have them ignored or blocked, and then ^C ends nothing.
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            for number in (signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            os.execve(command()[0], command(*args), environment())
        termios.tcsetwinsize(self.fd, size)
        self.out = b""

    def read(self, timeout):
        if not select.select([self.fd], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.out += data
        return bool(data)

    def expect(self, pattern, timeout=30):
        """Reads until the regular expression is there; forgets what was before."""
        end = time.monotonic() + timeout
        while True:
            match = re.search(pattern, self.out)
            if match:
                self.out = self.out[match.end():]
                return match
            if time.monotonic() > end or not self.read(0.1):
                raise AssertionError("no %r in %r" % (pattern, self.out))

    def type(self, data):
        os.write(self.fd, data)

    def code(self, timeout=30):
        """The exit code, once it has ended; the rest of its output is in `out`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.read(0.1):
            pass
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        while pid == 0:
            if time.monotonic() > end:
                with open("/proc/%d/status" % self.pid) as f:
                    signals = [line for line in f.read().split("\n") if line[:3] == "Sig"]
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError("it does not end: %r %r" % (self.out, signals))
            time.sleep(0.02)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def state(name):
    """running, exited ... and the exit code."""
    return s.cli("ps", "-a", "--filter", "name=" + name, "--format", "{{.Status}}").out.strip()


def remove(name):
    s.cli("rm", "-f", name)


class OnATerminal(unittest.TestCase):
    def test_shell(self):
        t = Terminal("run", "--rm", "-it", busybox, "sh")
        t.expect(rb"# ")
        t.type(b"test -t 0 && test -t 1 && test -t 2 && echo tty=$((40+2)) $TERM\n")
        t.expect(rb"tty=42 xterm")
        t.type(b"exit 9\n")
        self.assertEqual(9, t.code())

    def test_size_and_its_changes(self):
        t = Terminal("run", "--rm", "-it", busybox, "sh", size=(31, 97))
        t.expect(rb"# ")
        t.type(b"stty size\n")
        t.expect(rb"31 97")
        termios.tcsetwinsize(t.fd, (22, 77))
        end = time.monotonic() + 20
        while not re.search(rb"22 77", t.out) and time.monotonic() < end:
            t.type(b"stty size\n")
            t.read(0.3)
        t.expect(rb"22 77")
        t.type(b"exit\n")
        self.assertEqual(0, t.code())
        # An exec has its own terminal.
        s.cli("run", "-d", "--name", "sized", busybox, "sleep", "1000", check=True)
        self.addCleanup(remove, "sized")
        t = Terminal("exec", "-it", "sized", "sh", size=(44, 111))
        t.expect(rb"# ")
        t.type(b"stty size\n")
        t.expect(rb"44 111")
        t.type(b"exit 3\n")
        self.assertEqual(3, t.code())

    def test_interrupt_is_the_programs(self):
        t = Terminal("run", "--rm", "-it", busybox, "sh", "-c",
                     "trap 'echo got-int; exit 6' INT; echo ready; while :; do sleep 0.05; done")
        t.expect(rb"ready")
        t.type(b"\x03")
        t.expect(rb"got-int")
        self.assertEqual(6, t.code())

    def test_detach_and_attach(self):
        for remove_after in (False, True):
            with self.subTest(rm=remove_after):
                name = "left%d" % remove_after
                t = Terminal("run", "-it", *(["--rm"] if remove_after else []), "--name", name,
                             busybox, "sh")
                self.addCleanup(remove, name)
                t.expect(rb"# ")
                t.type(DETACH)
                self.assertEqual(0, t.code())
                self.assertIn("Up", state(name))
                # Twice: detaching leaves it attachable.
                for _ in range(2):
                    t = Terminal("attach", name)
                    t.type(b"echo again=$((40+2))\n")
                    t.expect(rb"again=42")
                    t.type(DETACH)
                    self.assertEqual(0, t.code())
                t = Terminal("attach", name)
                t.type(b"exit 4\n")
                self.assertEqual(4, t.code())
                if remove_after:
                    proc.wait_for(lambda: state(name) == "", "its removal")
                else:
                    proc.wait_for(lambda: "Exited (4)" in state(name), "its end")

    def test_detach_keys_of_ones_own(self):
        t = Terminal("run", "-it", "--rm", "--name", "keys", "--detach-keys", "ctrl-x,q", busybox,
                     "cat")
        self.addCleanup(remove, "keys")
        # A beginning that is none goes through, and so do the usual keys.
        proc.wait_for(lambda: "Up" in state("keys"), "the start")
        t.type(b"\x18z\n")
        t.expect(rb"\^Xz|\x18z")
        t.type(b"\x18q")
        self.assertEqual(0, t.code())
        self.assertIn("Up", state("keys"))
        t = Terminal("exec", "-it", "--detach-keys", "a", "keys", "cat")
        proc.wait_for(lambda: s.cli("top", "keys").out.count("cat") == 2, "the exec")
        t.type(b"a")
        self.assertEqual(0, t.code())
        result = s.cli("run", "--rm", "-i", "--detach-keys", "nonsense", busybox, "true")
        self.assertEqual(125, result.code, repr(result))
        self.assertIn("nonsense", result.err)

    def test_the_terminal_is_as_before(self):
        pid, fd = pty.fork()
        if pid == 0:
            script = ("stty -a > %s/before; %s run --rm -it %s true; stty -a > %s/after" %
                      (s.dir, command()[0], busybox, s.dir))
            os.execve("/bin/sh", ["sh", "-c", script], environment())
        while True:
            try:
                if not os.read(fd, 4096):
                    break
            except OSError:
                break
        os.close(fd)
        os.waitpid(pid, 0)
        with open(s.dir + "/before") as before, open(s.dir + "/after") as after:
            self.assertEqual(before.read(), after.read())


class Pipes(unittest.TestCase):
    def run_bytes(self, *args, data=b"", code=0):
        done = subprocess.run(command(*args), input=data, capture_output=True, timeout=120,
                              env=environment())
        self.assertEqual(code, done.returncode, done)
        return done

    def test_stdin_from_a_pipe(self):
        data = os.urandom(1 << 20)
        self.assertTrue(data == self.run_bytes("run", "--rm", "-i", busybox, "cat",
                                               data=data).stdout)
        self.assertEqual(b"", self.run_bytes("run", "--rm", "-i", busybox, "cat").stdout)
        # It reads only some.
        self.assertEqual(b"abc", self.run_bytes("run", "--rm", "-i", busybox, "head", "-c", "3",
                                                data=b"abc" * 100000).stdout)
        # Without -i there is no input.
        self.assertEqual(b"", self.run_bytes("run", "--rm", busybox, "cat", data=b"x").stdout)
        s.cli("run", "-d", "--name", "piped", busybox, "sleep", "1000", check=True)
        self.addCleanup(remove, "piped")
        self.assertTrue(data == self.run_bytes("exec", "-i", "piped", "cat", data=data).stdout)
        self.assertEqual(b"", self.run_bytes("exec", "piped", "cat", data=b"x").stdout)

    def test_a_terminal_is_not_made_of_a_pipe(self):
        done = self.run_bytes("run", "--rm", "-it", busybox, "true", code=125)
        self.assertIn(b"not a terminal", done.stderr)

    def test_streams_stay_apart_and_whole(self):
        done = self.run_bytes("run", "--rm", busybox, "sh", "-c", "seq 20000; seq 20000 >&2")
        wanted = "".join("%d\n" % i for i in range(1, 20001)).encode()
        self.assertEqual((wanted, wanted), (done.stdout, done.stderr))

    def test_reader_that_goes(self):
        run = subprocess.Popen(command("run", "--rm", "--name", "yes", busybox, "sh", "-c",
                                       "yes | head -n 1000000; exit 5"),
                               stdout=subprocess.PIPE, env=environment())
        self.assertEqual(b"y\n", run.stdout.readline())
        run.stdout.close()
        self.assertEqual(5, run.wait(60))

    def test_signals_are_forwarded(self):
        script = ("for s in INT TERM HUP USR1 USR2; do trap \"echo $s\" $s; done; "
                  "trap 'exit 7' QUIT; echo ready; while :; do sleep 0.02; done")
        for args in (("run", "--rm", busybox), ("exec", "sig")):
            with self.subTest(args=args[0]):
                if args[0] == "exec":
                    s.cli("run", "-d", "--name", "sig", busybox, "sleep", "1000", check=True)
                    self.addCleanup(remove, "sig")
                client = subprocess.Popen(command(*args, "sh", "-c", script),
                                          stdout=subprocess.PIPE, env=environment())
                self.assertEqual(b"ready\n", client.stdout.readline())
                for sig in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT,
                            signal.SIGUSR2):
                    client.send_signal(sig)
                    self.assertEqual(sig.name[3:].encode() + b"\n", client.stdout.readline())
                client.send_signal(signal.SIGQUIT)
                self.assertEqual(7, client.wait(30))
                client.stdout.close()

    def test_three_interrupts_give_up(self):
        client = subprocess.Popen(command("run", "--rm", "--name", "deaf", busybox, "sh", "-c",
                                          "trap '' INT; echo ready; while :; do sleep 0.02; done"),
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  env=environment())
        self.addCleanup(remove, "deaf")
        self.assertEqual(b"ready\n", client.stdout.readline())
        for _ in range(3):
            client.send_signal(signal.SIGINT)
            time.sleep(0.1)
        self.assertNotEqual(0, client.wait(30))
        client.stdout.close()
        client.stderr.close()

    def test_exit_codes(self):
        for args, code in ((("run", "--rm", busybox, "sh", "-c", "exit 0"), 0),
                           (("run", "--rm", busybox, "sh", "-c", "exit 255"), 255),
                           (("run", "--rm", "--no-such-flag", busybox, "true"), 125),
                           (("run", "--rm", "--pull", "never", "no.such/image", "true"), 125),
                           (("run", "--rm", busybox, "/etc/passwd"), 126),
                           (("run", "--rm", busybox, "no-such-command"), 127)):
            with self.subTest(args=args):
                self.assertEqual(code, s.cli(*args).code)
        self.assertNotEqual(0, s.cli("exec", "no-such-container", "true").code)
        s.cli("run", "-d", "--name", "coded", busybox, "sleep", "1000", check=True)
        self.addCleanup(remove, "coded")
        for words, code in ((("sh", "-c", "exit 42"), 42), (("sh", "-c", "kill -9 $$"), 137),
                            (("/etc/passwd",), 126), (("no-such-command",), 127)):
            with self.subTest(words=words):
                self.assertEqual(code, s.cli("exec", "coded", *words).code)
        s.cli("kill", "coded", check=True)
        result = s.cli("exec", "coded", "true")
        self.assertEqual(1, result.code, repr(result))
        self.assertIn("is not running", result.err)

    def test_attach_follows_to_the_end(self):
        s.cli("run", "-d", "-i", "--name", "joined", busybox, "sh", "-c",
              "read a; echo got $a; exit 12", check=True)
        self.addCleanup(remove, "joined")
        # What `attach` is given reaches the process; what it prints comes back.
        client = subprocess.Popen(command("attach", "joined"), stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, env=environment())
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        self.assertEqual(b"got hello\n", client.stdout.readline())
        self.assertEqual(12, client.wait(30))
        client.stdin.close()
        client.stdout.close()


class Options(unittest.TestCase):
    def out(self, *args, **kwargs):
        return s.cli("run", "--rm", *args, check=True, **kwargs).out

    def test_restart_policies(self):
        s.cli("run", "-d", "--restart", "on-failure:2", "--name", "tries", busybox, "sh", "-c",
              "echo try; exit 3", check=True)
        self.addCleanup(remove, "tries")
        proc.wait_for(lambda: s.cli("logs", "tries").out == "try\n" * 3 and
                      "Exited (3)" in state("tries"), "three tries")
        s.cli("run", "-d", "--restart", "always", "--name", "always", busybox, "sleep", "1000",
              check=True)
        self.addCleanup(remove, "always")

        def pid():
            return json.loads(s.cli("inspect", "always", check=True).out)[0]["State"]["Pid"]

        before = pid()
        os.kill(before, signal.SIGKILL)
        proc.wait_for(lambda: pid() not in (0, before), "its return")
        # One that is told to stop stays so; an update changes its policy.
        s.cli("stop", "-t", "0", "always", check=True)
        self.assertIn("Exited", state("always"))
        s.cli("update", "--restart", "no", "always", check=True)
        s.cli("start", "always", check=True)
        os.kill(pid(), signal.SIGKILL)
        proc.wait_for(lambda: "Exited (137)" in state("always"), "its end")
        result = s.cli("run", "--restart", "sometimes", busybox, "true")
        self.assertEqual(125, result.code)
        self.assertIn("sometimes", result.err)
        self.assertEqual(125, s.cli("run", "--rm", "--restart", "always", busybox, "true").code)

    def test_user_namespace(self):
        # The way to a root file system is open to whom it is mapped to.
        os.chmod(s.dir, 0o711)
        out = self.out("--userns", "remap:300000:65536", busybox, "sh", "-c",
                       "cat /proc/self/uid_map /proc/self/gid_map; id -u; touch /f && "
                       "ls -ln /f /bin/busybox | awk '{print $3, $4}'")
        lines = [line.split() for line in out.splitlines()]
        self.assertEqual([["0", "300000", "65536"]] * 2, lines[:2])
        self.assertEqual([["0"], ["0", "0"], ["0", "0"]], lines[2:])
        s.cli("run", "-d", "--userns", "remap", "--name", "shifted", busybox, "sleep", "1000",
              check=True)
        self.addCleanup(remove, "shifted")
        pid = json.loads(s.cli("inspect", "shifted", check=True).out)[0]["State"]["Pid"]
        self.assertNotEqual(0, os.stat("/proc/%d" % pid).st_uid)
        self.assertEqual("0\n", s.cli("exec", "shifted", "id", "-u", check=True).out)
        own = os.readlink("/proc/self/ns/user")
        self.assertEqual(own, self.out("--userns", "host", busybox, "readlink",
                                       "/proc/self/ns/user").strip())
        for text in ("remap:0", "remap:x", "keep", "remap:1:2:3"):
            result = s.cli("run", "--rm", "--userns", text, busybox, "true")
            self.assertEqual(125, result.code, text)
            self.assertIn("--userns", result.err)
        self.assertEqual(125, s.cli("run", "--rm", "--userns", "remap", "--privileged", busybox,
                                    "true").code)

    def test_devices_tmpfs_ulimits(self):
        out = self.out("--device", "/dev/null:/dev/hole:rw", busybox, "sh", "-c",
                       "echo x > /dev/hole; stat -c '%F %t:%T' /dev/hole")
        self.assertEqual("character special file 1:3\n", out)
        result = s.cli("run", "--rm", "--device", "/dev/no-such", busybox, "true")
        self.assertEqual(125, result.code)
        self.assertIn("/dev/no-such", result.err)
        out = self.out("--tmpfs", "/t:size=1m,mode=1750", busybox, "sh", "-c",
                       "grep ' /t ' /proc/mounts; stat -c %a /t; "
                       "dd if=/dev/zero of=/t/f bs=1M count=2 2>&1 | tail -n 1; df -k /t")
        self.assertRegex(out, r"tmpfs /t tmpfs .*size=1024k")
        self.assertIn("\n1750\n", out)
        out = self.out("--ulimit", "nofile=77:99", "--ulimit", "core=0", busybox, "sh", "-c",
                       "ulimit -n; ulimit -Hn; ulimit -c")
        self.assertEqual("77\n99\n0\n", out)
        self.assertEqual(125, s.cli("run", "--rm", "--ulimit", "bogus=1", busybox, "true").code)
        out = self.out("--shm-size", "8m", busybox, "df", "-k", "/dev/shm")
        self.assertIn(" 8192 ", out)

    def test_stop_signal_and_timeout(self):
        s.cli("run", "-d", "--name", "asked", "--stop-signal", "USR1", busybox, "sh", "-c",
              "trap 'exit 8' USR1; trap '' TERM; echo up; while :; do sleep 0.02; done", check=True)
        self.addCleanup(remove, "asked")
        proc.wait_for(lambda: s.cli("logs", "asked").out == "up\n", "the trap")
        s.cli("stop", "asked", check=True)
        self.assertIn("Exited (8)", state("asked"))
        s.cli("run", "-d", "--name", "stubborn", "--stop-timeout", "1", busybox, "sh", "-c",
              "trap '' TERM; echo up; while :; do sleep 0.02; done", check=True)
        self.addCleanup(remove, "stubborn")
        proc.wait_for(lambda: s.cli("logs", "stubborn").out == "up\n", "the trap")
        began = time.monotonic()
        s.cli("stop", "stubborn", check=True)
        self.assertGreater(time.monotonic() - began, 0.9)
        self.assertLess(time.monotonic() - began, 9)
        self.assertIn("Exited (137)", state("stubborn"))
        self.assertEqual(125, s.cli("run", "--stop-signal", "NOSUCH", busybox, "true").code)

    def test_log_options(self):
        s.cli("run", "-d", "--name", "logged", "--log-opt", "max-size=10k", "--log-opt",
              "max-file=3", busybox, "seq", "2000", check=True)
        self.addCleanup(remove, "logged")
        proc.wait_for(lambda: "Exited (0)" in state("logged"), "its end")
        record = json.loads(s.cli("inspect", "logged", check=True).out)[0]
        path = record["LogPath"]
        files = sorted(f for f in os.listdir(os.path.dirname(path)) if f.startswith("json.log"))
        self.assertEqual(["json.log", "json.log.1", "json.log.2"], files)
        for name in files:
            self.assertLessEqual(os.path.getsize(os.path.join(os.path.dirname(path), name)),
                                 10240)
        lines = s.cli("logs", "logged", check=True).out.splitlines()
        # The newest of them, without a gap.
        self.assertEqual([str(n) for n in range(2001 - len(lines), 2001)], lines)
        self.assertGreater(len(lines), 100)
        self.assertEqual(125, s.cli("run", "--log-opt", "max-size=0", busybox, "true").code)
        out = s.cli("logs", "--tail", "2", "-t", "logged", check=True).out.splitlines()
        self.assertEqual(2, len(out))
        self.assertRegex(out[-1], r"^\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d) 2000$")

    def test_logs_follow(self):
        s.cli("run", "-d", "--name", "told", busybox, "sh", "-c",
              "echo one; while [ ! -e /go ]; do sleep 0.02; done; echo two", check=True)
        self.addCleanup(remove, "told")
        follow = subprocess.Popen(command("logs", "-f", "told"), stdout=subprocess.PIPE,
                                  env=environment())
        self.assertEqual(b"one\n", follow.stdout.readline())
        s.cli("exec", "told", "touch", "/go")
        self.assertEqual(b"two\n", follow.communicate(timeout=30)[0])
        self.assertEqual(0, follow.returncode)

    def test_update_reaches_the_cgroup(self):
        s.cli("run", "-d", "--name", "limited", "--memory", "64m", busybox, "sleep", "1000",
              check=True)
        self.addCleanup(remove, "limited")
        s.cli("update", "--memory", "32m", "--pids-limit", "44", "limited", check=True)
        container = s.cli("inspect", "--format", "{{.Id}}", "limited", check=True).out.strip()
        found = {}
        for folder in proc.cgroups_named(container):
            for name in ("memory.limit_in_bytes", "memory.max", "pids.max"):
                if os.path.exists(os.path.join(folder, name)):
                    with open(os.path.join(folder, name)) as f:
                        found[name] = f.read().strip()
        self.assertIn("33554432", found.values())
        self.assertEqual("44", found["pids.max"])
        self.assertNotEqual(0, s.cli("update", "--memory", "32m", "no-such").code)

    def test_wait_rename_and_names(self):
        for i in (3, 4):
            s.cli("run", "-d", "--name", "w%d" % i, busybox, "sh", "-c", "sleep 0.3; exit %d" % i,
                  check=True)
            self.addCleanup(remove, "w%d" % i)
        self.assertEqual("3\n4\n", s.cli("wait", "w3", "w4", check=True).out)
        self.assertEqual("3\n", s.cli("wait", "w3", check=True).out)
        self.assertNotEqual(0, s.cli("rename", "w3", "w4").code)
        s.cli("rename", "w3", "w5", check=True)
        self.addCleanup(remove, "w5")
        self.assertEqual("3\n", s.cli("wait", "w5", check=True).out)
        self.assertNotEqual(0, s.cli("wait", "w3").code)


class Usage(unittest.TestCase):
    """stats and top read like Docker's."""

    @classmethod
    def setUpClass(cls):
        s.cli("run", "-d", "--name", "busy", "--memory", "64m", busybox, "sh", "-c",
              "sleep 1001 & while :; do :; done", check=True)
        cls.addClassCleanup(remove, "busy")

    def test_stats(self):
        head, row = s.cli("stats", "--no-stream", "busy", check=True).out.splitlines()
        self.assertEqual(["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %",
                          "NET I/O", "BLOCK I/O", "PIDS"], re.split(r"\s{2,}", head.strip()))
        cells = re.split(r"\s{2,}", row.strip())
        self.assertRegex(cells[0], r"^[0-9a-f]{12}$")
        self.assertEqual("busy", cells[1])
        self.assertGreater(float(cells[2].rstrip("%")), 1)
        self.assertRegex(cells[3], r"^[0-9.]+[KM]iB / 64MiB$")
        self.assertRegex(cells[4], r"^[0-9.]+%$")
        self.assertEqual("0B / 0B", cells[5])
        self.assertRegex(cells[6], r"^[0-9.]+[kM]?B / [0-9.]+[kM]?B$")
        self.assertEqual("2", cells[7])
        figures = json.loads(s.cli("stats", "--no-stream", "--format", "json", "busy",
                                   check=True).out)
        self.assertEqual("busy", figures["Name"])
        self.assertIn("NetIO", figures)
        self.assertNotEqual(0, s.cli("stats", "--no-stream", "no-such").code)
        s.cli("run", "-d", "--name", "ended", busybox, "true", check=True)
        self.addCleanup(remove, "ended")
        s.cli("wait", "ended", check=True)
        names = ["stats", "--no-stream", "--format", "{{.Name}}"]
        self.assertNotIn("ended", s.cli(*names, check=True).out)
        self.assertIn("ended", s.cli(*names, "-a", check=True).out)

    def test_stats_live(self):
        t = Terminal("stats", "busy")
        t.expect(rb"busy")
        t.expect(rb"\x1b\[H\x1b\[2J[^\x1b]*busy")
        t.type(b"\x03")
        self.assertEqual(-signal.SIGINT, t.code())

    def test_top(self):
        head, *rows = s.cli("top", "busy", check=True).out.splitlines()
        self.assertEqual(["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"], head.split())
        self.assertEqual(2, len(rows))
        sleeper = [row.split() for row in rows if row.endswith("sleep 1001")][0]
        self.assertEqual("root", sleeper[0])
        self.assertTrue(os.path.exists("/proc/" + sleeper[1]))
        self.assertEqual("?", sleeper[5])
        self.assertRegex(sleeper[6], r"^\d\d:\d\d:\d\d$")
        out = s.cli("top", "busy", "-eo", "pid,comm", check=True).out.splitlines()
        self.assertEqual(["PID", "COMMAND"], out[0].split())
        self.assertEqual({"sh", "sleep"}, {line.split()[1] for line in out[1:]})
        result = s.cli("top", "busy", "-eo", "comm")
        self.assertNotEqual(0, result.code)
        self.assertIn("PID", result.err)


if __name__ == "__main__":
    unittest.main()
