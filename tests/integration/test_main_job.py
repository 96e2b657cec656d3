"""The main job, as a person does it: pull a real image and run it."""

import json
import os
import re
import time
import unittest
import urllib.request

from tests.harness import proc, suite
from tests.integration import common


def setUpModule():
    global s, registry, busybox, debian
    registry = common.image_registry()
    busybox = registry.host + "/busybox:latest"
    debian = registry.host + "/debian:12"
    s = suite.Suite().start()
    s.cli("pull", busybox, check=True)
    s.cli("pull", debian, check=True)


def tearDownModule():
    s.stop()


class Pull(unittest.TestCase):
    def test_images_lists_what_was_pulled(self):
        out = s.cli("images", check=True).out
        self.assertIn(registry.host + "/busybox", out)
        self.assertIn(registry.host + "/debian", out)

    def test_tree_is_what_the_layers_say(self):
        """The unpacked tree equals what umoci makes of the same image."""
        layout = common.image_layout()
        bundle = os.path.join(s.dir, "umoci")
        proc.run(["umoci", "unpack", "--image", layout.path + ":debian", bundle], check=True)
        view = os.path.join(s.dir, "view")
        os.makedirs(view)
        chain = s.ctr("snapshots", "ls").out.splitlines()[1:]
        # The top of the debian image: the committed snapshot without children.
        parents = {line.split()[1] for line in chain}
        tops = [line.split()[0] for line in chain if line.split()[0] not in parents]
        found = False
        for i, top in enumerate(tops):
            mounts = s.ctr("snapshots", "view", "v%d" % i, top)
            self.assertEqual(0, mounts.code, repr(mounts))
            command = s.ctr("snapshots", "mounts", view, "v%d" % i, check=True).out.split()
            proc.run(command, check=True)
            try:
                if os.path.exists(os.path.join(view, "usr/bin/bash")):
                    found = True
                    self.assertEqual(tree(os.path.join(bundle, "rootfs")), tree(view))
            finally:
                proc.run(["umount", view], check=True)
                s.ctr("snapshots", "rm", "v%d" % i)
        self.assertTrue(found)

    def test_second_pull_fetches_no_layer(self):
        before = registry.requests("GET", "/blobs/")
        s.cli("pull", debian, check=True)
        self.assertEqual(before, registry.requests("GET", "/blobs/"))

    def test_removing_an_image_frees_everything(self):
        with suite.Suite() as other:
            other.cli("pull", debian, check=True)
            other.cli("rmi", debian, check=True)

            def files():
                return [os.path.join(base, name)
                        for folder in ("content/blobs", "content/ingest",
                                       "snapshotter/overlayfs/snapshots")
                        for base, _, names in os.walk(os.path.join(other.root, folder))
                        for name in names]

            proc.wait_for(lambda: not files(), "bytes to be freed: %r" % files()[:5])
            self.assertEqual("", other.ctr("content", "ls", "-q").out)

    def test_zstd(self):
        image = registry.host + "/busybox:zstd"
        s.cli("pull", image, check=True)
        result = s.cli("run", "--rm", image, "echo", "from zstd")
        self.assertEqual((0, "from zstd\n"), (result.code, result.out), repr(result))
        s.cli("rmi", image, check=True)


def tree(root):
    """Every entry with its attributes; times to the second for folders too."""
    entries = {}
    for base, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(base, name)
            info = os.lstat(path)
            key = os.path.relpath(path, root)
            link = os.readlink(path) if os.path.islink(path) else ""
            size = info.st_size if not os.path.isdir(path) else 0
            attributes = {a: os.getxattr(path, a, follow_symlinks=False)
                          for a in os.listxattr(path, follow_symlinks=False)
                          if not a.startswith(("trusted.overlay", "user.umoci"))}
            entries[key] = (oct(info.st_mode), info.st_uid, info.st_gid, info.st_rdev, size,
                            info.st_nlink if not os.path.isdir(path) else 0, link,
                            int(info.st_mtime), sorted(attributes.items()))
    return entries


class Run(unittest.TestCase):
    def run_ok(self, *args, code=0, **kwargs):
        result = s.cli("run", "--rm", *args, **kwargs)
        self.assertEqual(code, result.code, repr(result))
        return result

    def test_output_and_exit_codes(self):
        result = self.run_ok(busybox, "sh", "-c", "echo out; echo err >&2; exit 3", code=3)
        self.assertEqual(("out\n", "err\n"), (result.out, result.err))
        self.run_ok(busybox, "sh", "-c", "sh -c 'kill -9 $$; :'; exit $?", code=137)
        self.run_ok(busybox, "no-such-command", code=127)
        self.run_ok(busybox, "/etc/passwd", code=126)
        self.run_ok("--no-such-flag", busybox, "true", code=125)
        self.assertEqual("hello\n", self.run_ok("-i", busybox, "cat", stdin="hello\n").out)

    def test_debian_image(self):
        result = self.run_ok(debian, "bash", "-c", "cat /etc/motd; ls /usr/bin | wc -l; "
                                                  "python3.11 -c 'print(6*7)'")
        self.assertIn("made by the tests\n", result.out)
        self.assertIn("\n42\n", result.out)

    def test_options(self):
        out = self.run_ok("-e", "A=b", "-w", "/home", "-u", "www", "--hostname", "box",
                          "--read-only", busybox, "sh", "-c",
                          "echo $A $FROM_IMAGE; pwd; id; hostname; touch /x 2>&1; true").out
        self.assertIn("b yes\n/home\nuid=33(www) gid=33(www) groups=33(www),44(extra)\nbox\n", out)
        self.assertIn("Read-only file system", out)
        folder = os.path.join(s.dir, "shared")
        os.makedirs(folder)
        self.run_ok("-v", folder + ":/data", busybox, "sh", "-c", "echo kept > /data/f")
        with open(os.path.join(folder, "f")) as f:
            self.assertEqual("kept\n", f.read())
        out = self.run_ok("--memory", "64m", "--pids-limit", "50", busybox, "sh", "-c",
                          "cat /proc/self/cgroup; cat /sys/fs/cgroup/memory/memory.limit_in_bytes "
                          "/sys/fs/cgroup/memory.max 2>/dev/null; true").out
        self.assertTrue(out)

    def test_default_container_is_confined(self):
        out = self.run_ok(busybox, "sh", "-c",
                          "grep -E 'Seccomp:|CapEff|NoNewPrivs' /proc/self/status; "
                          "cat /proc/kcore 2>/dev/null | head -c 1 | wc -c; "
                          "unshare -m true 2>&1; echo $?").out
        self.assertRegex(out, r"Seccomp:\s+2")
        self.assertRegex(out, r"CapEff:\s+00000000a80425fb")
        self.assertRegex(out, r"(?m)^0$")
        self.assertNotRegex(out, r"(?m)\A0\Z")

    def test_background_life(self):
        result = s.cli("run", "-d", "--name", "web", busybox, "sh", "-c",
                       "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.05; done")
        self.assertEqual(0, result.code, repr(result))
        self.assertRegex(result.out.strip(), r"^[0-9a-f]{64}$")
        self.assertIn("web", s.cli("ps", check=True).out)
        proc.wait_for(lambda: "line 3" in s.cli("logs", "web").out, "logs")
        result = s.cli("exec", "web", "sh", "-c", "echo inside; exit 5")
        self.assertEqual((5, "inside\n"), (result.code, result.out), repr(result))
        inspected = json.loads(s.cli("inspect", "web", check=True).out)
        self.assertTrue(inspected)
        stats = s.cli("stats", "--no-stream", "web", check=True).out
        self.assertIn("web", stats)
        self.assertIn("sleep", s.cli("top", "web", check=True).out)
        s.cli("pause", "web", check=True)
        self.assertIn("Paused", s.cli("ps", check=True).out)
        s.cli("unpause", "web", check=True)
        self.assertNotEqual(0, s.cli("rm", "web").code)
        s.cli("stop", "-t", "1", "web", check=True)
        self.assertNotIn("web", s.cli("ps", check=True).out)
        self.assertIn("web", s.cli("ps", "-a", check=True).out)
        s.cli("start", "web", check=True)
        self.assertIn("web", s.cli("ps", check=True).out)
        s.cli("rm", "-f", "web", check=True)
        self.assertNotIn("web", s.cli("ps", "-a", check=True).out)

    def test_names_are_taken_once(self):
        s.cli("run", "-d", "--name", "once", busybox, "sleep", "100", check=True)
        result = s.cli("run", "-d", "--name", "once", busybox, "true")
        self.assertEqual(125, result.code, repr(result))
        self.assertIn("once", result.err)
        s.cli("kill", "once", check=True)
        self.assertEqual("137", s.cli("wait", "once").out.strip())
        s.cli("rm", "once", check=True)

    def test_crun(self):
        common.let_crun_work()
        result = s.cli("run", "--rm", "--runtime", "crun", busybox, "sh", "-c", "echo c; exit 5")
        self.assertEqual((5, "c\n"), (result.code, result.out), repr(result))

    def test_debians_shim(self):
        result = s.cli("run", "--rm", "--runtime", "io.containerd.runc.v2", busybox, "sh", "-c",
                       "echo d; exit 6")
        self.assertEqual((6, "d\n"), (result.code, result.out), repr(result))

    def test_namespaces_are_apart(self):
        self.assertNotIn("busybox", s.cli("images", ns="other").out)
        s.cli("pull", busybox, ns="other", check=True)
        self.assertIn("busybox", s.cli("images", ns="other").out)
        s.cli("rmi", busybox, ns="other", check=True)


class Whole(unittest.TestCase):
    def test_info_and_version(self):
        self.assertIn("bulkhead", s.cli("version", check=True).out.lower())
        self.assertIn("overlayfs", s.cli("info", check=True).out)

    def test_metrics_page(self):
        s.cli("run", "-d", "--name", "m", busybox, "sleep", "100", check=True)
        try:
            text = proc.run(["curl", "-s", "--unix-socket",
                             os.path.join(s.state, "metrics", "http.sock"),
                             "http://localhost/v1/metrics"], check=True).out
            self.assertRegex(text, r"grpc_server_handled_total\{[^}]*grpc_code=\"OK\"")
            self.assertRegex(text, r"container_(memory_usage_usage_bytes|memory_usage_bytes)\{")
            for service in suite.SERVICES:
                self.assertRegex(text, r'bulkhead_service_up\{[^}]*"%s"[^}]*\} 1' % service)
        finally:
            s.cli("rm", "-f", "m", check=True)

    def test_two_suites_side_by_side(self):
        with suite.Suite() as other:
            other.cli("pull", busybox, check=True)
            for each in (s, other):
                each.cli("run", "-d", "--name", "twin", busybox, "sleep", "100", check=True)
            for each in (s, other):
                self.assertIn("twin", each.cli("ps", check=True).out)
                each.cli("rm", "-f", "twin", check=True)

    def test_help_everywhere(self):
        for command in ("", "pull", "run", "exec", "ps", "logs", "rm", "up", "images"):
            result = s.cli(*([command] if command else []), "--help")
            self.assertEqual(0, result.code, repr(result))
            self.assertIn("Usage", result.out + result.err)


if __name__ == "__main__":
    unittest.main()
