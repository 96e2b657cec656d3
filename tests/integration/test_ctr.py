"""Debian's ctr does the same on our gateway as on Debian's containerd."""

import hashlib
import json
import os
import pty
import re
import select
import subprocess
import time
import unittest

from tests.harness import grpcurl, proc, suite
from tests.harness.grpcurl import field
from tests.integration import common

OURS, THEIRS = "bht-ours", "bht-debs"


def setUpModule():
    global ours, theirs, registry, busybox, debian
    registry = common.image_registry()
    busybox = registry.host + "/busybox:latest"
    debian = registry.host + "/debian:12"
    ours = suite.Suite().start()
    theirs = suite.Containerd().start()
    for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
        for image in (busybox, debian):
            daemon.ctr("images", "pull", "--plain-http", image, ns=ns, check=True)


def tearDownModule():
    theirs.stop()
    ours.stop()


class CtrCase(unittest.TestCase):
    maxDiff = None

    def both(self, *args, compare=True, code=None, **kwargs):
        """Runs ctr on both; output and exit code must be the same."""
        results = []
        for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
            result = daemon.ctr(*[a.replace("NS", ns) for a in args], ns=ns, **kwargs)
            result.out = common.normalise(result.out, daemon, ns)
            result.err = common.normalise(result.err, daemon, ns)
            results.append(result)
        mine, reference = results
        self.assertEqual(reference.code, mine.code, "%r\nours: %r\ntheirs: %r" %
                         (args, mine, reference))
        if code is not None:
            self.assertEqual(code, mine.code, repr(mine))
        if compare:
            self.assertEqual(reference.out, mine.out, repr(args))
            self.assertEqual(reference.err, mine.err, repr(args))
        return mine

    def same_set(self, *args, **kwargs):
        """As both(), for output whose order is not promised."""
        results = []
        for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
            result = daemon.ctr(*args, ns=ns, **kwargs)
            self.assertEqual(0, result.code, repr(result))
            lines = common.normalise(result.out, daemon, ns).splitlines()
            results.append(sorted(lines))
        self.assertEqual(results[1], results[0], repr(args))
        return results[0]


class Basics(CtrCase):
    def test_version(self):
        result = ours.ctr("version")
        self.assertEqual(0, result.code, repr(result))
        self.assertRegex(result.out, r"Server:\n  Version:  v2\.")
        self.assertRegex(result.out, r"UUID: [0-9a-f-]{36}")

    def test_plugins(self):
        result = ours.ctr("plugins", "ls")
        self.assertEqual(0, result.code, repr(result))
        self.assertRegex(result.out,
                         r"io.containerd.snapshotter.v1 +overlayfs +linux/amd64 +ok")
        self.assertRegex(result.out, r"io.containerd.runtime.v2 +task +\S+ +ok")

    def test_namespaces(self):
        self.both("namespaces", "create", "bht-x", "a=b", code=0)
        self.both("namespaces", "create", "bht-x", code=1)
        self.both("namespaces", "label", "bht-x", "c=d", code=0)
        self.both("namespaces", "ls")
        self.both("namespaces", "label", "bht-x", "a=", code=0)
        self.both("namespaces", "ls")
        self.both("namespaces", "rm", "bht-x", code=0)
        self.both("namespaces", "rm", "bht-x")
        self.both("namespaces", "create", "-bad", code=1)

    def test_namespace_in_use_is_not_removed(self):
        result = ours.ctr("namespaces", "rm", OURS)
        self.assertNotEqual(0, result.code)
        self.assertIn("must be empty", result.err)

    def test_leases(self):
        self.both("leases", "create", "--id", "l1", "--expires", "1h", code=0)
        self.both("leases", "create", "--id", "l1", code=1)
        for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
            out = daemon.ctr("leases", "ls", ns=ns).out
            self.assertRegex(out, r"l1 +\S+.*containerd.io/gc.expire=")
        self.both("leases", "rm", "--sync", "l1", code=0)
        self.both("leases", "rm", "l1", code=1)


class Images(CtrCase):
    def test_ls_and_check(self):
        self.both("images", "ls")
        self.both("images", "check")
        self.both("images", "ls", "-q", "name~=debian")

    def test_tag_label_rm(self):
        self.both("images", "tag", busybox, "example.org/copy:1", code=0)
        self.both("images", "tag", busybox, "example.org/copy:1", code=1)
        self.both("images", "label", "example.org/copy:1", "k=v", code=0)
        self.both("images", "ls", "name==example.org/copy:1")
        self.both("images", "rm", "--sync", "example.org/copy:1", code=0)
        self.both("images", "rm", "example.org/copy:1")

    def test_unknown_image(self):
        self.both("images", "pull", "--plain-http", registry.host + "/nope:1",
                  compare=False, code=1)
        self.both("images", "tag", "example.org/none:1", "example.org/x:1", code=1)

    def test_export_import(self):
        for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
            tar = os.path.join(daemon.dir, "export.tar")
            daemon.ctr("images", "export", tar, busybox, ns=ns, check=True)
        # Each imports what the other exported.
        for daemon, other, ns in ((ours, theirs, OURS), (theirs, ours, THEIRS)):
            tar = os.path.join(other.dir, "export.tar")
            result = daemon.ctr("images", "import", "--base-name", "example.org/imported",
                                tar, ns=ns)
            self.assertEqual(0, result.code, repr(result))
        self.both("images", "ls")


def hold_blobs(*digests):
    """A lease on both that keeps blobs nothing else refers to: otherwise they go at the next
    collection, whenever that is. They need not be there yet."""
    for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
        result = daemon.ctr("leases", "create", "--id", "hold", "--expires", "0s", ns=ns)
        if result.code and "already exists" not in result.err:
            raise AssertionError(repr(result))
        call = grpcurl.Call(daemon.address, ns)
        for digest in digests:
            call("containerd.services.leases.v1.Leases", "AddResource",
                 field(1, "hold") + field(2, field(1, digest) + field(2, "content")))


class Content(CtrCase):
    def test_ls(self):
        self.same_set("content", "ls")

    def test_get_fetch_ingest(self):
        digest = ours.ctr("images", "ls", "name==" + busybox, ns=OURS).out.split("\n")[1].split()[2]
        self.both("content", "get", digest, code=0)
        self.both("content", "get", "sha256:" + "0" * 64, code=1)
        data = "some bytes to keep\n"
        hold_blobs("sha256:" + hashlib.sha256(data.encode()).hexdigest())
        self.both("content", "ingest", "ref-1", stdin=data, code=0)
        self.same_set("content", "ls")
        self.both("content", "ingest", "--expected-digest", "sha256:" + "1" * 64, "ref-2",
                  stdin=data, code=1)
        # The failed ingest survives, as it does there.
        self.both("content", "active", compare=False, code=0)
        fetched = self.both("content", "fetch", "--plain-http", registry.host + "/busybox:zstd",
                            compare=False, code=0)
        self.assertIn("done", fetched.out)
        self.same_set("content", "ls")


class Snapshots(CtrCase):
    def test_ls_tree_info_usage(self):
        self.same_set("snapshots", "ls")
        self.both("snapshots", "tree")
        names = [line.split()[0] for line in
                 ours.ctr("snapshots", "ls", ns=OURS, check=True).out.splitlines()[1:]]
        self.assertTrue(names)
        for name in names:
            mine = json.loads(self.both("snapshots", "info", name, compare=False, code=0).out)
            reference = json.loads(common.normalise(
                theirs.ctr("snapshots", "info", name, ns=THEIRS).out, theirs, THEIRS))
            self.assertEqual(reference, mine)

    def test_usage_is_the_same(self):
        rows = []
        for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
            out = daemon.ctr("snapshots", "usage", "-b", ns=ns, check=True).out
            rows.append(sorted(line.split() for line in out.splitlines()))
        for mine, reference in zip(rows[0], rows[1]):
            self.assertEqual(reference[0], mine[0])
            if reference[0].startswith("sha256"):
                # Folders may have other sizes on disk; files have not.
                self.assertEqual(reference[2], mine[2], "inodes of " + mine[0])
                self.assertLess(abs(int(reference[1]) - int(mine[1])),
                                0.05 * int(reference[1]) + 65536)

    def test_prepare_mounts_commit_rm(self):
        top = [line.split()[0] for line in
               ours.ctr("snapshots", "ls", ns=OURS, check=True).out.splitlines()[1:]][-1]
        self.both("snapshots", "prepare", "work", top, code=0)
        mounts = self.both("snapshots", "mounts", "/mnt", "work", compare=False, code=0)
        self.assertIn("mount -t overlay overlay /mnt -o", mounts.out)
        self.both("snapshots", "prepare", "work", top, code=1)
        self.both("snapshots", "commit", "done", "work", code=0)
        self.both("snapshots", "mounts", "/mnt", "done", compare=False, code=1)
        self.both("snapshots", "view", "look", "done", code=0)
        self.both("snapshots", "rm", "done", compare=False, code=1)  # Has a child.
        self.both("snapshots", "rm", "look", code=0)
        self.both("snapshots", "rm", "done", code=0)
        self.both("snapshots", "rm", "done", compare=False, code=1)


class Running(CtrCase):
    def test_output_and_exit_codes(self):
        for script, code in (("echo out; echo err >&2", 0), ("exit 3", 3), ("sh -c 'kill -9 $$; :'; exit $?", 137),
                             ("exit 255", 255)):
            self.both("run", "--rm", busybox, "r1", "sh", "-c", script, code=code)

    def test_missing_command(self):
        mine = self.both("run", "--rm", busybox, "r2", "no-such-command", compare=False, code=1)
        self.assertIn("no-such-command", mine.err)
        self.both("containers", "ls")
        self.same_set("snapshots", "ls")

    def test_our_shim_through_ctr(self):
        result = ours.ctr("run", "--rm", "--runtime", "io.containerd.bulkhead.v1", busybox,
                          "r3", "sh", "-c", "echo hi; exit 7", ns=OURS)
        self.assertEqual((7, "hi\n"), (result.code, result.out), repr(result))

    def test_our_shim_under_debians_containerd(self):
        with suite.Containerd(path=proc.BIN) as other:
            other.ctr("images", "pull", "--plain-http", busybox, check=True, ns=OURS)
            for _ in range(2):
                result = other.ctr("run", "--rm", "--runtime", "io.containerd.bulkhead.v1",
                                   busybox, "r4", "sh", "-c", "echo hi; exit 7", ns=OURS)
                self.assertEqual((7, "hi\n"), (result.code, result.out), repr(result))
            other.ctr("run", "-d", "--runtime", "io.containerd.bulkhead.v1", busybox, "r5",
                      "sleep", "1000", ns=OURS, check=True)
            self.assertIn("RUNNING", other.ctr("tasks", "ls", ns=OURS).out)
            result = other.ctr("tasks", "exec", "--exec-id", "e", "r5", "sh", "-c",
                               "echo in; exit 4", ns=OURS)
            self.assertEqual((4, "in\n"), (result.code, result.out), repr(result))

    def test_terminal(self):
        for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
            self.assertIn("tty yes", self.in_terminal(
                daemon, ns, "run", "--rm", "-t", busybox, "r6", "sh", "-c",
                "test -t 0 && test -t 1 && echo tty yes"))

    def in_terminal(self, daemon, ns, *args):
        pid, fd = pty.fork()
        if pid == 0:
            os.execvp("ctr", ["ctr", "--address", daemon.address, "-n", ns] + list(args))
        out, end = b"", time.monotonic() + 30
        while time.monotonic() < end:
            if not select.select([fd], [], [], 1)[0]:
                continue
            try:
                data = os.read(fd, 4096)
            except OSError:
                break
            if not data:
                break
            out += data
        os.close(fd)
        os.waitpid(pid, 0)
        return out.decode(errors="replace")

    def test_detached_life(self):
        self.both("run", "-d", "--label", "who=tests", busybox, "life", "sleep", "1000", code=0)
        self.both("containers", "ls")
        for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
            self.assertRegex(daemon.ctr("tasks", "ls", ns=ns).out, r"life +\d+ +RUNNING")
        mine = self.both("containers", "info", "life", compare=False, code=0)
        reference = theirs.ctr("containers", "info", "life", ns=THEIRS)
        a, b = json.loads(mine.out), json.loads(common.normalise(reference.out, theirs, THEIRS))
        self.assertEqual(b, a)
        self.both("containers", "label", "life", "a=b", code=0)
        self.both("tasks", "exec", "--exec-id", "x1", "life", "sh", "-c", "echo in; exit 4", code=4)
        self.both("tasks", "exec", "--exec-id", "x2", "life", "no-such", compare=False, code=1)
        self.both("tasks", "pause", "life", code=0)
        for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
            self.assertRegex(daemon.ctr("tasks", "ls", ns=ns).out, r"life +\d+ +PAUSED")
        self.both("tasks", "resume", "life", code=0)
        for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
            self.assertRegex(daemon.ctr("tasks", "ps", "life", ns=ns).out, r"\d+ +-")
            metrics = daemon.ctr("tasks", "metrics", "--format", "json", "life", ns=ns)
            self.assertEqual(0, metrics.code, repr(metrics))
        self.both("containers", "rm", "life", compare=False, code=1)  # It runs.
        self.both("tasks", "kill", "-s", "SIGKILL", "life", code=0)
        for daemon, ns in ((ours, OURS), (theirs, THEIRS)):
            proc.wait_for(lambda: re.search(r"life +\d+ +STOPPED",
                                            daemon.ctr("tasks", "ls", ns=ns).out), "the end")
        self.both("tasks", "rm", "life", compare=False, code=0)
        self.both("containers", "rm", "life", code=0)
        self.both("containers", "ls")
        self.both("containers", "info", "life", code=1)


class Events(CtrCase):
    def topics(self, daemon, ns):
        stream = subprocess.Popen(["ctr", "--address", daemon.address, "events"],
                                  stdout=subprocess.PIPE, text=True)
        try:
            # The subscription is up once a first event arrives.
            seen = []

            def first():
                daemon.ctr("leases", "create", ns=ns)
                daemon.ctr("namespaces", "create", "bht-e")
                daemon.ctr("namespaces", "rm", "bht-e")
                return select.select([stream.stdout], [], [], 0.2)[0]

            proc.wait_for(first, "events")
            result = daemon.ctr("run", "--rm", busybox, "ev", "true", ns=ns)
            self.assertEqual(0, result.code, repr(result))
            end = time.monotonic() + 10
            while time.monotonic() < end:
                line = stream.stdout.readline()
                parts = line.split()
                topic = next((p for p in parts if p.startswith("/")), "")
                if ns in parts and not topic.startswith("/namespaces"):
                    seen.append(topic)
                if topic == "/containers/delete":
                    break
            return seen
        finally:
            stream.terminate()
            stream.wait()
            stream.stdout.close()

    def test_run_publishes_the_same(self):
        mine = self.topics(ours, OURS)
        reference = self.topics(theirs, THEIRS)
        self.assertEqual(sorted(reference), sorted(mine))
        order = [t for t in mine if t.startswith("/tasks")]
        self.assertEqual(["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"], order)


if __name__ == "__main__":
    unittest.main()
