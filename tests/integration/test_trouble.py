"""A full disk, a read-only one, no descriptors left, no permission: clear errors while it
lasts, nothing acknowledged is lost, and everything goes on without a restart once the cause is
gone. A whole suite on a small file system of its own."""

import contextlib
import hashlib
import os
import resource
import socket
import subprocess
import time
import unittest

from tests.harness import fileregistry, grpcurl, images, proc, suite
from tests.harness.grpcurl import field

SERVICES = ("content", "metadata", "snapshotter", "distribution", "runtime", "gateway")
DISK_MIB = 96
ROOTED = "containerd.io/gc.root"
OVERLAY = "overlayfs"
CLEAR_WITHIN = 30  # Seconds: no call may hang.


def listing(*path):
    """Names in a folder; none if there is no such folder."""
    try:
        return os.listdir(os.path.join(*path))
    except FileNotFoundError:
        return []


def cpu_s(pid):
    with open("/proc/%d/stat" % pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Trouble(unittest.TestCase):
    def setUp(self):
        self.dir = proc.temp_dir()
        self.addCleanup(proc.run, ["rmdir", self.dir])
        disk = os.path.join(self.dir, "disk")
        with open(disk, "wb") as f:
            f.truncate(DISK_MIB << 20)
        self.addCleanup(os.unlink, disk)
        self.mount = os.path.join(self.dir, "m")
        os.mkdir(self.mount)
        self.addCleanup(os.rmdir, self.mount)
        proc.run(["mkfs.ext4", "-q", "-m", "0", disk], check=True)
        proc.run(["mount", "-o", "loop", disk, self.mount], check=True)
        self.addCleanup(proc.run, ["umount", "-l", self.mount], check=True)
        self.suite = suite.Suite()
        self.suite.root = os.path.join(self.mount, "r")
        self.suite.state = os.path.join(self.mount, "s")
        self.suite.address = os.path.join(self.suite.state, "bulkhead.sock")
        self.registry = fileregistry.FileRegistry()
        self.registry.__enter__()
        self.addCleanup(self.registry.__exit__)
        self.call = grpcurl.Call(self.suite.address, "default")
        self.number = 0
        self.refs = []
        # What was acknowledged.
        self.images, self.leases, self.blobs = set(), set(), {}
        self.containers, self.snapshots = set(), set()
        self.prepare()
        self.suite.start()
        self.addCleanup(self.suite.stop)
        layout = images.Layout(os.path.join(self.suite.dir, "layout"))
        images.busybox(layout)
        self.registry.load(layout, "busybox")
        self.busybox = self.registry.host + "/busybox:busybox"
        self.suite.cli("pull", self.busybox, check=True)
        self.images.add(self.busybox)
        self.pids = self.service_pids()

    def prepare(self):
        """Before the suite starts."""

    def service_pids(self):
        return {name: self.suite.service_pid(name) for name in SERVICES}

    def next(self, kind):
        self.number += 1
        return "%s-%d" % (kind, self.number)

    # --- the stages; each answers with "" or an error, and the name that must be in it ---

    def small_image(self):
        tag = self.next("image")
        layout = images.Layout(os.path.join(self.suite.dir, tag))
        layers = [images.tar_of(lambda add: add("data", os.urandom(30000))) for _ in range(2)]
        layout.image(tag, layers, {})
        self.registry.load(layout, "small")
        return "%s/small:%s" % (self.registry.host, tag), layout.manifests[-1]["digest"]

    def cli(self, *args):
        began = time.monotonic()
        done = self.suite.cli(*args, timeout=2 * CLEAR_WITHIN)
        self.assertLess(time.monotonic() - began, CLEAR_WITHIN, repr(done))
        return "" if done.code == 0 else done.err + done.out + "(%d)" % done.code

    def rpc(self, service, method, message):
        try:
            self.call("containerd.services." + service, method, message, timeout=CLEAR_WITHIN)
        except grpcurl.RpcError as error:
            return "%s: %s" % (error.code, error.message)
        except AssertionError as error:  # curl's.
            if "timed out" in str(error):
                raise
            return str(error)
        return ""

    def pull(self):
        image, _ = self.small_image()
        error = self.cli("pull", image)
        if not error:
            self.images.add(image)
        return error, image

    def unpack(self):
        """Snapshots.Prepare, Diff.Apply and Snapshots.Commit of each layer, by a client."""
        if not self.unpackable:
            self.skipTest("no image left to unpack")
        image, digest = self.unpackable.pop()
        done = self.suite.ctr("snapshots", "unpack", digest, timeout=CLEAR_WITHIN)
        return ("" if done.code == 0 else done.err), ""

    def keep_images_to_unpack(self, count):
        self.unpackable = []
        for _ in range(count):
            image, digest = self.small_image()
            self.suite.cli("pull", "--no-unpack", image, check=True)
            self.images.add(image)
            self.unpackable.append((image, digest))

    def ingest(self, size=100000):
        ref = self.next("ref")
        self.refs.append(ref)
        data = os.urandom(16) * (size // 16)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        # One message: everything, and a label that keeps it.
        error = self.rpc("content.v1.Content", "Write",
                         field(1, 2) + field(2, ref) + field(3, len(data)) + field(4, digest) +
                         field(6, data) + field(7, field(1, ROOTED) + field(2, "x")))
        if not error:
            self.blobs[digest] = data
        return error, ref

    def lease(self, size=30000):
        name = self.next("lease")
        error = self.rpc("leases.v1.Leases", "Create", field(1, name) +
                         field(3, field(1, "padding") + field(2, "x" * size)))
        if not error:
            self.leases.add(name)
        return error, ""

    def create(self, size=30000):
        name = self.next("container")
        error = self.rpc("containers.v1.Containers", "Create", field(1, (
            field(1, name) + field(4, field(1, "io.containerd.runc.v2")) +
            field(5, field(1, "t") + field(2, "x" * size)))))
        if not error:
            self.containers.add(name)
        return error, ""

    def snapshot(self):
        name = self.next("snapshot")
        label = field(1, ROOTED) + field(2, "x")
        error = self.rpc("snapshots.v1.Snapshots", "Prepare",
                         field(1, OVERLAY) + field(2, name) + field(4, label))
        if not error:
            self.snapshots.add(name)
        return error, ""

    def start(self):
        name = self.next("run")
        done = self.suite.cli("run", "--rm", "--name", name, self.busybox, "echo", "works",
                              timeout=2 * CLEAR_WITHIN)
        if done.code == 0:
            self.assertEqual("works\n", done.out)
        return ("" if done.code == 0 else done.err), ""

    STAGES = ("lease", "create", "ingest", "snapshot", "unpack", "pull", "start")

    # --- what is asked of all of them ---

    def during(self, saying, tries=1, stages=STAGES):
        """The errors of each stage, which say what is the matter."""
        errors = {}
        for stage in stages:
            for _ in range(tries):
                error, name = getattr(self, stage)()
                if not error:
                    continue
                self.assertRegex(error.lower(), saying, stage)
                # What was to be written, or the database or service that took nothing of it.
                self.assertTrue(name in error or "database" in error or "content" in error,
                                (stage, name, error))
                errors[stage] = error
                break
        return errors

    def goes_on(self):
        for stage in self.STAGES:
            last = [None]

            def works(stage=stage, last=last):
                last[0], _ = getattr(self, stage)()
                return not last[0]

            try:
                proc.wait_for(works, stage + " to work again", 30, 0.2)
            except AssertionError as late:
                raise AssertionError("%s: %s\n%s" % (late, last[0], self.suite.log()[-3000:]))

    def nothing_lost(self):
        self.assertLessEqual(self.images, set(self.suite.ctr("images", "ls", "-q").out.split()))
        self.assertLessEqual(self.leases, set(self.suite.ctr("leases", "ls", "-q").out.split()))
        listed = self.suite.ctr("snapshots", "ls").out.split()
        self.assertLessEqual(self.snapshots, set(listed))
        listed = self.suite.ctr("containers", "ls", "-q").out.split()
        self.assertLessEqual(self.containers, set(listed))
        for digest, data in self.blobs.items():
            got = subprocess.run(["ctr", "--address", self.suite.address, "content", "get", digest],
                                 capture_output=True, timeout=60)
            self.assertEqual(data, got.stdout, "%s: %s" % (digest, got.stderr))
        fsck = self.suite.cli("fsck")
        self.assertEqual(0, fsck.code, fsck)
        self.assertNotRegex(fsck.out, "DAMAGED|LOST")

    def everything_is_freed(self):
        for name in self.images:
            self.suite.ctr("images", "rm", name)
        for name in self.leases:
            self.suite.ctr("leases", "rm", name)
        for name in self.containers:
            self.suite.ctr("containers", "rm", name)
        for name in self.snapshots:
            self.suite.ctr("snapshots", "rm", name)
        for digest in self.blobs:
            self.suite.ctr("content", "rm", digest)
        # What was cut short can be resumed for a day.
        for ref in self.refs:
            self.rpc("content.v1.Content", "Abort", field(1, ref))
        for name in self.suite.ctr("leases", "ls", "-q").out.split():
            self.suite.ctr("leases", "rm", name)
        gone = self.suite.cli("gc")
        self.assertEqual(0, gone.code, gone)
        content = os.path.join(self.suite.root, "content")
        trees = os.path.join(self.suite.root, "snapshotter", OVERLAY, "snapshots")

        def left():
            return (listing(content, "blobs", "sha256") + listing(content, "ingest") +
                    listing(trees))

        proc.wait_for(lambda: not left(), "everything to be freed; left: %s" % left())

    def after_trouble(self):
        self.goes_on()
        self.assertEqual(self.pids, self.service_pids(), "a service was restarted")
        self.nothing_lost()
        for name in ("content", "metadata", "snapshotter"):
            self.suite.kill_service(name)
        proc.wait_for(lambda: self.suite.cli("images").code == 0, "the suite")
        self.nothing_lost()
        self.everything_is_freed()


class FullDisk(Trouble):
    def test_full_disk(self):
        self.keep_images_to_unpack(6)
        self.during("nothing")
        ballast = os.path.join(self.mount, "ballast")
        with open(ballast, "wb", buffering=0) as f:
            for size in (1 << 20, 4096):
                try:
                    while True:
                        f.write(b"x" * size)
                except OSError:
                    pass
        # The databases' logs have room for some records.
        errors = self.during("no space left|disk is full", tries=400,
                             stages=("lease", "create", "ingest"))
        self.assertEqual({"lease", "create", "ingest"}, set(errors))
        errors = self.during("no space left|disk is full")
        for stage in ("unpack", "pull", "start"):
            self.assertIn(stage, errors)
        self.nothing_lost()
        os.unlink(ballast)
        self.after_trouble()


class NoDescriptors(Trouble):
    """Every service in turn may open no more files."""

    @staticmethod
    def lowest_limit(pid):
        """Below it are the descriptors kept in reserve (eventfds) and as little else as can be."""
        folder = "/proc/%d/fd" % pid
        taken = set(int(fd) for fd in os.listdir(folder))
        reserves = [fd for fd in taken if "eventfd" in os.readlink("%s/%d" % (folder, fd))]
        lowest_free = next(fd for fd in range(len(taken) + 1) if fd not in taken)
        return max([lowest_free] + [fd + 1 for fd in reserves])

    def take_what_is_free(self, name, clients):
        """Connections that say nothing take the numbers that are free below the limit."""
        path = os.path.join(self.suite.state, name, name + ".sock")
        for _ in range(10):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(CLEAR_WITHIN)
            client.connect(path)

    def spins_not(self, name):
        before = cpu_s(self.pids[name])
        time.sleep(1)
        self.assertLess(cpu_s(self.pids[name]) - before, 0.5, name + " spins")

    def is_refused(self):
        """A new client is told why, in HTTP/2's way, and does not hang."""
        with contextlib.ExitStack() as clients:
            for _ in range(100):  # Numbers that were free below the limit are taken first.
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.settimeout(CLEAR_WITHIN)
                client.connect(self.suite.address)
                answer = client.recv(4096)  # SETTINGS, and GOAWAY if that is all.
                if b"Too many open files" in answer:
                    break
            self.assertIn(b"bulkhead-gateway: accept: Too many open files", answer)
            self.assertNotEqual(0, self.suite.cli("images", timeout=2 * CLEAR_WITHIN).code)
            self.spins_not("gateway")

    def test_no_descriptors(self):
        self.keep_images_to_unpack(2 * len(SERVICES))
        for name in SERVICES:
            with self.subTest(service=name):
                pid = self.pids[name]
                old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                free = self.lowest_limit(pid)
                if name == "gateway":  # Its reserve must be below the limit.
                    free = max(int(fd) for fd in os.listdir("/proc/%d/fd" % pid)) + 1
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, old[1]))
                try:
                    if name == "gateway":
                        self.is_refused()
                    else:
                        with contextlib.ExitStack() as clients:
                            self.take_what_is_free(name, clients)
                            self.assertTrue(self.during("too many open files"), name)
                            self.spins_not(name)
                finally:
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, old)
                self.goes_on()
        self.after_trouble()


class NoPermission(Trouble):
    """Folders that may not be written: content and metadata have no capability that would let
    them ignore modes."""

    def refused(self, folder, stages, tries=1):
        mode = os.stat(folder).st_mode & 0o7777
        os.chmod(folder, 0o500)
        try:
            errors = self.during("permission denied", tries=tries, stages=stages)
            self.assertEqual(0, self.suite.ctr("images", "ls").code, "reads must go on")
        finally:
            os.chmod(folder, mode)
        return errors

    def test_no_permission(self):
        self.keep_images_to_unpack(4)
        content = os.path.join(self.suite.root, "content")
        for folder in (os.path.join(content, "ingest"), os.path.join(content, "blobs", "sha256")):
            errors = self.refused(folder, ("ingest", "pull"))
            self.assertEqual({"ingest", "pull"}, set(errors), folder)
        self.goes_on()
        # The database needs a new file once its log is full.
        errors = self.refused(os.path.join(self.suite.root, "metadata", "db"),
                              ("lease", "create"), tries=400)
        self.assertIn("database", errors["lease"])
        self.assertIn("database", errors["create"])
        self.after_trouble()


class ReadOnly(Trouble):
    """Folders that are mounted read-only for a while."""

    FOLDERS = {"r/content": ("ingest", "pull"),
               "r/snapshotter/overlayfs/snapshots": ("snapshot", "unpack", "pull", "start"),
               "s/io.containerd.runtime.v2.task": ("start",)}

    def prepare(self):
        for folder in self.FOLDERS:
            path = os.path.join(self.mount, folder)
            os.makedirs(path)
            os.chmod(path, 0o700)
            proc.run(["mount", "--bind", path, path], check=True)
            self.addCleanup(proc.run, ["umount", "-l", path], check=True)

    def test_read_only(self):
        self.keep_images_to_unpack(2 * len(self.FOLDERS) + 2)
        for folder, stages in self.FOLDERS.items():
            with self.subTest(folder=folder):
                path = os.path.join(self.mount, folder)
                proc.run(["mount", "-o", "remount,bind,ro", path], check=True)
                try:
                    errors = self.during("read-only file system")
                    self.assertEqual(set(stages), set(errors))
                    self.assertEqual(0, self.suite.ctr("images", "ls").code, "reads must go on")
                finally:
                    proc.run(["mount", "-o", "remount,bind,rw", path], check=True)
                self.goes_on()
        self.after_trouble()


if __name__ == "__main__":
    unittest.main()
