"""Images nobody runs go, by age and while the disk is too full; those in use stay and run."""

import os
import time
import unittest

from tests.harness import fileregistry, grpcurl, images, proc, suite
from tests.harness.grpcurl import field

MIB = 1 << 20


class Retention(unittest.TestCase):
    def setUp(self):
        self.registry = fileregistry.FileRegistry()
        self.registry.__enter__()
        self.addCleanup(self.registry.__exit__)

    def begin(self, config):
        self.suite = suite.Suite("[metadata]\n" + config)
        return self.suite

    def add_image(self, tag, size):
        """An image with busybox and so many random bytes; its digests."""
        layout = images.Layout(os.path.join(self.suite.dir, tag))
        layout.image(tag, [images.busybox_layer(),
                           images.tar_of(lambda add: add("data", os.urandom(size)))],
                     images.BUSYBOX_CONFIG)
        self.registry.load(layout, "some")
        name = "%s/some:%s" % (self.registry.host, tag)
        self.suite.cli("pull", name, check=True)
        return name

    def age(self, name):
        """As if it had been pulled yesterday: young ones are spared."""
        yesterday = int(time.time()) - 86400
        call = grpcurl.Call(self.suite.address, "default")
        call("containerd.services.images.v1.Images", "Update",
             field(1, field(1, name) + field(2, field(1, "old") + field(2, "yes"))) +
             field(2, field(1, "labels.old")) + field(3, field(1, yesterday)))

    def names(self):
        return set(self.suite.ctr("images", "ls", "-q").out.split())

    def blob_bytes(self):
        folder = os.path.join(self.suite.root, "content", "blobs", "sha256")
        return sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))

    def test_by_age(self):
        with self.begin("retention_unused_max = '4s'\nretention_namespaces = ['default']\n") as s:
            used, pinned, idle, young = (self.add_image(tag, MIB)
                                         for tag in ("used", "pinned", "idle", "young"))
            s.cli("create", "--name", "keeps-it", used, "true", check=True)
            s.ctr("images", "label", pinned, "bulkhead/pinned=yes", check=True)
            before = self.blob_bytes()
            for name in (used, pinned, idle):
                self.age(name)
            proc.wait_for(lambda: idle not in self.names(), "the idle image to go", 40, 0.3)
            proc.wait_for(lambda: self.blob_bytes() <= before - MIB, "its bytes to go", 20, 0.3)
            # Many passes later.
            time.sleep(3)
            self.assertEqual({used, pinned, young}, self.names())
            self.assertIn("unused for", s.log())
            self.assertEqual("works\n", s.cli("run", "--rm", used, "echo", "works").out)
            s.cli("rm", "keeps-it", check=True)
            self.assertEqual(0, s.cli("fsck", check=True).code)

    def test_by_free_space(self):
        folder = proc.temp_dir()
        self.addCleanup(os.rmdir, folder)
        disk, mount = os.path.join(folder, "disk"), os.path.join(folder, "m")
        with open(disk, "wb") as f:
            f.truncate(160 * MIB)
        self.addCleanup(os.unlink, disk)
        os.mkdir(mount)
        self.addCleanup(os.rmdir, mount)
        proc.run(["mkfs.ext4", "-q", "-m", "0", disk], check=True)
        proc.run(["mount", "-o", "loop", disk, mount], check=True)
        self.addCleanup(proc.run, ["umount", "-l", mount], check=True)
        self.begin("retention_free_min_percent = 50\n")
        self.suite.root = os.path.join(mount, "r")
        with self.suite as s:
            used = self.add_image("used", 8 * MIB)
            s.cli("create", "--name", "keeps-it", used, "true", check=True)
            # 16 MiB each, packed and unpacked: with all of them it is too full.
            idle = [self.add_image("idle%d" % i, 8 * MIB) for i in range(5)]
            for name in [used] + idle:
                self.age(name)

            def free():
                stat = os.statvfs(mount)
                return 100 * stat.f_bavail / stat.f_blocks

            self.assertLess(free(), 50)
            # It looks at its start, and every minute.
            s.kill_service("metadata")
            proc.wait_for(lambda: free() >= 50, "room on the disk", 60, 0.5)
            time.sleep(1)
            names = self.names()
            self.assertIn(used, names)
            left = names & set(idle)
            self.assertLess(len(left), len(idle))
            self.assertGreater(len(left), 0, "more went than had to")
            self.assertEqual("works\n", s.cli("run", "--rm", used, "echo", "works").out)
            s.cli("rm", "keeps-it", check=True)
            self.assertEqual(0, s.cli("fsck", check=True).code)


if __name__ == "__main__":
    unittest.main()
