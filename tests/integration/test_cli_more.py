"""The command line beyond the main job: volumes, namespaces, copies, archives."""

import io
import json
import os
import subprocess
import tarfile
import unittest

from tests.harness import images, proc, suite
from tests.integration import common


def setUpModule():
    global s, busybox
    busybox = common.image_registry().host + "/busybox:latest"
    s = suite.Suite().start()
    s.cli("pull", "-q", busybox, check=True)


def tearDownModule():
    s.stop()


def run(*args, **kwargs):
    return s.cli("run", "--rm", *args, **kwargs)


class Options(unittest.TestCase):
    def test_named_volume_outlives_its_container(self):
        run("-v", "data:/d", busybox, "sh", "-c", "echo kept > /d/f", check=True)
        self.assertEqual("kept\n", run("-v", "data:/d:ro", busybox, "cat", "/d/f",
                                       check=True).out)
        self.assertNotEqual(0, run("-v", "data:/d:ro", busybox, "touch", "/d/g").code)
        self.assertIn("data", s.cli("volume", "ls", "-q", check=True).out.split())
        s.cli("volume", "rm", "data", check=True)
        self.assertNotIn("data", s.cli("volume", "ls", "-q", check=True).out.split())

    def test_a_new_volume_has_what_the_image_has(self):
        out = run("-v", "filled:/bin", busybox, "ls", "/bin", check=True).out
        self.assertIn("sh", out.split())

    def test_anonymous_volume_goes_with_its_container(self):
        before = s.cli("volume", "ls", "-q", check=True).out
        run("-v", "/scratch", busybox, "touch", "/scratch/x", check=True)
        self.assertEqual(before, s.cli("volume", "ls", "-q", check=True).out)

    def test_namespaces_of_the_host(self):
        own = os.readlink("/proc/self/ns/uts")
        self.assertEqual(own, run("--uts", "host", busybox, "readlink", "/proc/self/ns/uts",
                                  check=True).out.strip())
        pid = run("--pid", "host", busybox, "readlink", "/proc/self/ns/pid", check=True).out
        self.assertEqual(os.readlink("/proc/self/ns/pid"), pid.strip())
        ipc = run("--ipc", "host", busybox, "readlink", "/proc/self/ns/ipc", check=True).out
        self.assertEqual(os.readlink("/proc/self/ns/ipc"), ipc.strip())

    def test_namespaces_of_another_container(self):
        s.cli("run", "-d", "--name", "first", busybox, "sleep", "1000", check=True)
        try:
            script = "readlink /proc/self/ns/net; readlink /proc/self/ns/pid"
            theirs = s.cli("exec", "first", "sh", "-c", script, check=True).out
            joined = run("--network", "container:first", "--pid", "container:first",
                         busybox, "sh", "-c", script, check=True).out
            self.assertEqual(theirs, joined)
        finally:
            s.cli("rm", "-f", "first", check=True)

    def test_limits(self):
        out = run("--sysctl", "net.ipv4.ip_forward=1", "--oom-score-adj", "500",
                  "--group-add", "27", "--dns", "192.0.2.1", "--cpuset-cpus", "0",
                  "--ulimit", "nofile=99", busybox, "sh", "-c",
                  "cat /proc/sys/net/ipv4/ip_forward /proc/self/oom_score_adj /etc/resolv.conf;"
                  "id -G; ulimit -n; grep Cpus_allowed_list /proc/self/status", check=True).out
        lines = out.splitlines()
        self.assertEqual(["1", "500", "nameserver 192.0.2.1"], lines[:3])
        self.assertIn("27", lines[3].split())
        self.assertEqual("99", lines[4])
        self.assertEqual("0", lines[5].split()[-1])

    def test_sysctls_of_the_host_are_refused(self):
        result = run("--sysctl", "kernel.panic=1", busybox, "true")
        self.assertEqual(125, result.code)
        self.assertIn("not a parameter of the container", result.err)

    @unittest.skipUnless(os.path.exists("/usr/bin/docker-init"), "no docker-init")
    def test_init(self):
        out = run("--init", busybox, "cat", "/proc/1/cmdline", check=True).out
        self.assertTrue(out.startswith("/sbin/docker-init\0--\0cat"), out)


class Containers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        s.cli("run", "-d", "--name", "c", busybox, "sleep", "1000", check=True)

    @classmethod
    def tearDownClass(cls):
        s.cli("rm", "-f", "c")

    def test_copy_there_and_back(self):
        source = os.path.join(s.dir, "source")
        os.makedirs(os.path.join(source, "sub"))
        with open(os.path.join(source, "sub", "f"), "w") as f:
            f.write("hello")
        os.symlink("/etc/passwd", os.path.join(source, "link"))
        s.cli("cp", source, "c:/tmp", check=True)
        self.assertEqual("hello", s.cli("exec", "c", "cat", "/tmp/source/sub/f", check=True).out)
        back = os.path.join(s.dir, "back")
        s.cli("cp", "c:/tmp/source/.", back, check=True)
        self.assertEqual(["link", "sub"], sorted(os.listdir(back)))
        self.assertEqual("/etc/passwd", os.readlink(os.path.join(back, "link")))
        s.cli("cp", "c:/tmp/source/sub/f", os.path.join(s.dir, "g"), check=True)
        with open(os.path.join(s.dir, "g")) as f:
            self.assertEqual("hello", f.read())

    def test_links_do_not_lead_out(self):
        outside = os.path.join(s.dir, "outside")
        os.makedirs(outside)
        s.cli("exec", "c", "ln", "-s", outside, "/way-out", check=True)
        victim = os.path.join(s.dir, "victim")
        with open(victim, "w") as f:
            f.write("x")
        s.cli("cp", victim, "c:/way-out/evil")
        self.assertEqual([], os.listdir(outside))

    def test_copy_from_a_stopped_one(self):
        s.cli("run", "--name", "stopped", busybox, "sh", "-c", "echo late > /f", check=True)
        target = os.path.join(s.dir, "late")
        s.cli("cp", "stopped:/f", target, check=True)
        with open(target) as f:
            self.assertEqual("late\n", f.read())
        s.cli("cp", target, "stopped:/h", check=True)
        self.assertEqual("late\n", s.cli("diff", "stopped", check=True) and
                         s.cli("export", "stopped", "-o", target + ".tar", check=True) and
                         tarfile.open(target + ".tar").extractfile("h").read().decode())
        s.cli("rm", "stopped", check=True)

    def test_copy_streams(self):
        """`cp` with "-", as docker's: tar archives in and out."""
        s.cli("exec", "c", "sh", "-ec", "mkdir -p /st/sub; echo one > /st/sub/f; ln /st/sub/f /st/g; "
              "ln -s sub/f /st/link; ln -s /st/sub /to-sub; chown 7:8 /st/g; chmod 4750 /st/g; "
              "mkfifo /st/pipe", check=True)
        bulkhead = os.path.join(proc.BIN, "bulkhead")
        env = dict(os.environ, BULKHEAD_ADDRESS=s.address)

        def stream(*args, data=None, code=0):
            done = subprocess.run([bulkhead, "cp"] + list(args), env=env, input=data,
                                  capture_output=True)
            self.assertEqual(code, done.returncode, done.stderr)
            return done.stdout

        def members(data):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                return {m.name: (m.type, m.mode, m.uid, m.gid, m.linkname) for m in tar}

        out = stream("c:/st", "-")
        got = members(out)
        self.assertEqual({"st", "st/g", "st/link", "st/pipe", "st/sub", "st/sub/f"}, set(got))
        self.assertEqual((tarfile.REGTYPE, 0o4750, 7, 8, ""), got["st/g"])
        self.assertEqual((tarfile.LNKTYPE, "st/g"), (got["st/sub/f"][0], got["st/sub/f"][4]))
        self.assertEqual((tarfile.SYMTYPE, "sub/f"), (got["st/link"][0], got["st/link"][4]))
        self.assertEqual({".", "./f"}, set(members(stream("c:/st/sub/.", "-"))))
        # A link itself, and what it leads to under its name.
        self.assertEqual(tarfile.SYMTYPE, members(stream("c:/to-sub", "-"))["to-sub"][0])
        self.assertEqual({"to-sub", "to-sub/f"}, set(members(stream("-L", "c:/to-sub", "-"))))
        followed = os.path.join(s.dir, "followed")
        os.mkdir(followed)
        stream("-L", "c:/st/link", followed)
        with open(os.path.join(followed, "link")) as f:
            self.assertEqual("one\n", f.read())
        self.assertFalse(os.path.islink(os.path.join(followed, "link")))
        # In again, elsewhere: with owners or as root's.
        s.cli("exec", "c", "mkdir", "/in1", "/in2", check=True)
        stream("-", "c:/in1", data=out)
        stream("-a", "-", "c:/in2", data=out)
        look = s.cli("exec", "c", "stat", "-c", "%n %a %u %g %h", "/in1/st/g", "/in2/st/g",
                     check=True).out
        self.assertEqual("/in1/st/g 4750 0 0 2\n/in2/st/g 4750 7 8 2\n", look)
        self.assertEqual("one\n", s.cli("exec", "c", "cat", "/in2/st/link", check=True).out)
        # Nothing climbs; a folder must be there; junk is refused.
        bad = images.tar_of(lambda add: add("../up", b"x"))
        stream("-", "c:/in1", data=bad, code=1)
        stream("-", "c:/nowhere", data=out, code=1)
        stream("-", "c:/in1", data=b"no archive at all" * 100, code=1)
        self.assertNotEqual(0, s.cli("exec", "c", "ls", "/up").code)
        outside = os.path.join(s.dir, "outside-tar")
        os.makedirs(outside)
        s.cli("exec", "c", "ln", "-s", outside, "/in1/out", check=True)
        subprocess.run([bulkhead, "cp", "-", "c:/in1"], env=env, capture_output=True,
                       input=images.tar_of(lambda add: add("out/x", b"x")))  # May refuse.
        self.assertEqual([], os.listdir(outside))

    def test_export_of_running_and_stopped(self):
        s.cli("run", "--name", "ex", busybox, "sh", "-ec", "echo data > /new; rm /bin/vi; "
              "ln /new /hard; chown 5:6 /new", check=True)
        archive = os.path.join(s.dir, "ex.tar")
        for name in ("ex", "c"):
            s.cli("export", "-o", archive, name, check=True)
            with tarfile.open(archive) as tar:
                names = set(tar.getnames())
                self.assertIn("bin/busybox", names)
                self.assertFalse([n for n in names if "/.wh." in "/" + n])
                if name == "ex":
                    self.assertNotIn("bin/vi", names)
                    self.assertEqual((5, 6), (tar.getmember("new").uid, tar.getmember("new").gid))
        s.cli("rm", "ex", check=True)

    def test_commit_changes(self):
        s.cli("run", "--name", "ch", busybox, "true", check=True)
        s.cli("commit", "-c", 'CMD ["echo", "from", "cmd"]', "-c", "ENV A=1 B='two words'", "-c",
              "LABEL x=y", "-c", "EXPOSE 80 53/udp", "-c", "WORKDIR /tmp", "--change", "USER 33",
              "ch", "local/ch:1", check=True)
        self.assertEqual("from cmd\n", run("--pull", "never", "local/ch:1").out)
        self.assertEqual("two words /tmp 33\n", run(
            "--pull", "never", "local/ch:1", "sh", "-c", 'echo "$B" "$PWD" $(id -u)').out)
        refused = s.cli("commit", "-c", "RUN true", "ch", "local/ch:2")
        self.assertNotEqual(0, refused.code)
        self.assertIn("RUN is none of CMD", refused.err)
        s.cli("rm", "ch", check=True)

    def test_images_have_short_names(self):
        names = ("docker.io/library/short:1", "docker.io/some/body:2", "ghcr.io/a/b:3",
                 "import-2026-11-26:busybox")
        for name in names:
            s.ctr("images", "tag", busybox, name, check=True)
        listed = s.cli("images", "--format", "{{.Repository}} {{.Tag}}", check=True).out
        for line in ("short 1", "some/body 2", "ghcr.io/a/b 3", "import-2026-11-26 busybox"):
            self.assertIn(line, listed.splitlines())
        s.ctr("images", "rm", *names, check=True)

    def test_diff_and_commit(self):
        s.cli("run", "--name", "changed", busybox, "sh", "-c",
              "echo new > /new; rm /bin/vi; chmod 700 /tmp", check=True)
        lines = s.cli("diff", "changed", check=True).out.splitlines()
        self.assertIn("A /new", lines)
        self.assertIn("D /bin/vi", lines)
        s.cli("commit", "-m", "test", "changed", "local/changed:1", check=True)
        out = run("--pull", "never", "local/changed:1", "sh", "-c",
                  "cat /new; ls /bin/vi 2>/dev/null", check=False).out
        self.assertEqual("new\n", out)
        s.cli("rm", "changed", check=True)

    def test_rename_and_update(self):
        s.cli("run", "-d", "--name", "old", busybox, "sleep", "1000", check=True)
        s.cli("rename", "old", "renamed", check=True)
        self.assertIn("renamed", s.cli("ps", "--format", "{{.Names}}", check=True).out)
        s.cli("update", "--pids-limit", "55", "renamed", check=True)
        spec = json.loads(s.cli("inspect", "renamed", check=True).out)[0]["Spec"]
        self.assertEqual(55, spec["linux"]["resources"]["pids"]["limit"])
        s.cli("rm", "-f", "renamed", check=True)


class Restarts(unittest.TestCase):
    def test_reads_outlive_a_restart(self):
        """No command that only reads fails while a service is away."""
        for service in ("metadata", "runtime"):
            os.kill(s.service_pid(service), 9)
            for _ in range(3):
                s.cli("ps", "-a", check=True)
                s.cli("images", check=True)
            proc.wait_for(lambda: s.ctr("version").code == 0, "the suite")


if __name__ == "__main__":
    unittest.main()
