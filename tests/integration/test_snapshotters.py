"""Snapshotters end to end: EROFS, and swapped with containerd's in both directions."""

import collections
import json
import os
import shutil
import signal
import subprocess
import tarfile
import unittest

from tests.harness import images, proc, suite
from tests.harness import registry as registries
from tests.integration import common
from tests.integration.test_layers import (Snapshot, archive, differences, history, make_files,
                                           top_of, tree)

EROFS = ('[snapshotter]\nsnapshotters = ["overlayfs", "native", "erofs"]\n'
         "upperdir_label = true\n")


def mount_points():
    with open("/proc/self/mountinfo") as f:
        return sorted(line.split()[4] for line in f)


def images_below(root):
    found = []
    for base, _, files in os.walk(os.path.join(root, "snapshotter", "erofs", "snapshots")):
        found += [os.path.join(base, name) for name in files if name == "layer.erofs"]
    return found


class Erofs(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.folder = proc.temp_dir()
        cls.layout = images.Layout(os.path.join(cls.folder, "layout"))
        files = os.path.join(cls.folder, "files")
        os.makedirs(files)
        make_files(files)
        cls.layout.image("sparse", [archive(
            ["tar", "-c", "-S", "--format=posix", "--xattrs", "--xattrs-include=*",
             "--numeric-owner", "--sort=name", "."], files)])
        cls.layout.image("history", history(), compression="zstd")
        cls.registry = registries.Registry().start()
        for tag in ("sparse", "history"):
            cls.layout.push(tag, "%s/%s:1" % (cls.registry.host, tag))
        cls.before = mount_points()
        cls.suite = suite.Suite(EROFS).start()

    @classmethod
    def tearDownClass(cls):
        # What is active keeps the images below it mounted.
        cls.suite.cli("gc", check=True)
        cls.suite.stop()
        cls.registry.stop()
        shutil.rmtree(cls.folder)
        left = sorted((collections.Counter(mount_points()) -
                       collections.Counter(cls.before)).elements())
        if left:
            raise AssertionError("still mounted: %s" % left)

    def test_trees_are_overlayfs_own(self):
        shared = common.image_layout()
        host = common.image_registry().host
        for tag, image, layout in (
                ("history", self.registry.host + "/history:1", self.layout),
                ("sparse", self.registry.host + "/sparse:1", self.layout),
                ("busybox", host + "/busybox:latest", shared),
                ("debian", host + "/debian:12", shared)):
            with self.subTest(tag):
                self.suite.cli("pull", "-q", image, check=True)
                self.suite.cli("pull", "-q", "--snapshotter", "erofs", image, check=True)
                top = top_of(layout, tag)
                with Snapshot(self.suite, top) as view:
                    reference = tree(view)
                with Snapshot(self.suite, top, "erofs") as view:
                    self.assertEqual([], differences(tree(view), reference))
        made = images_below(self.suite.root)
        # Four layers, and three images with at least one.
        self.assertGreaterEqual(len(made), 7)
        for image in made:
            proc.run(["fsck.erofs", image], check=True)

    def test_upper_directories_are_told_where_asked_for(self):
        """By overlayfs alone, where its files are; it is nothing that a client can set."""
        label = "containerd.io/snapshot/overlay.upperdir"
        for snapshotter in ("overlayfs", "erofs"):
            def call(*args):
                return self.suite.ctr("snapshots", "--snapshotter", snapshotter, *args, check=True)
            call("prepare", "upper")
            labels = json.loads(call("info", "upper").out).get("Labels") or {}
            if snapshotter == "overlayfs":
                self.assertTrue(os.path.isdir(labels[label]), labels)
                self.assertIn("/overlayfs/snapshots/", labels[label])
            else:
                self.assertNotIn(label, labels)
            call("rm", "upper")

    def test_containers_through_a_killed_snapshotter(self):
        image = common.image_registry().host + "/busybox:latest"
        cli = self.suite.cli
        cli("pull", "-q", "--snapshotter", "erofs", image, check=True)
        out = cli("run", "--rm", "--snapshotter", "erofs", image, "sh", "-c",
                  "echo new >/new; rm /bin/wget; cat /new; ls /bin/wget", timeout=60)
        self.assertIn("new", out.out)
        self.assertNotEqual(0, out.code)
        cli("run", "-d", "--name", "stays", "--snapshotter", "erofs", image, "sleep", "600",
            check=True)
        self.suite.kill_service("snapshotter")
        self.assertEqual("hi\n", cli("exec", "stays", "echo", "hi", check=True).out)
        cli("run", "--rm", "--snapshotter", "erofs", image, "true", check=True)
        cli("rm", "-f", "stays", check=True)

    def test_snapshot_commands(self):
        image = common.image_registry().host + "/busybox:latest"
        cli = self.suite.cli
        cli("pull", "-q", image, check=True)
        cli("run", "-d", "--name", "seen", image, "sh", "-c",
            "echo x >/added; rm /bin/wget; sleep 600", check=True)
        lines = cli("snapshot", "ls", "--format", "json", check=True).out.splitlines()
        rows = [json.loads(line) for line in lines]
        active = [row for row in rows if row["Kind"] == "active"]
        self.assertEqual(1, len(active), rows)
        key, parent = active[0]["Name"], active[0]["Parent"]
        self.assertIn(key, cli("snapshot", "tree", check=True).out)
        short = parent[len("sha256:"):][:12]
        self.assertIn(short, cli("snapshot", "ls", check=True).out)
        proc.wait_for(lambda: "A /added" in cli("snapshot", "diff", key, check=True).out,
                      "the container's change")
        self.assertIn("D /bin/wget", cli("snapshot", "diff", key).out)
        self.assertIn("A /bin", cli("snapshot", "diff", short, check=True).out)
        used = json.loads(cli("snapshot", "usage", "--format", "json", short, check=True).out)
        self.assertGreater(int(used["Size"]), 100000)
        where = proc.temp_dir()
        done = cli("snapshot", "mount", short, where, check=True)
        self.assertTrue(os.path.exists(where + "/bin/busybox"), done)
        view = done.err.split()[-1]
        self.assertNotEqual(0, cli("snapshot", "rm", short).code)  # It has children.
        proc.run(["umount", where], check=True)
        os.rmdir(where)
        cli("snapshot", "rm", view, check=True)
        missing = cli("snapshot", "usage", "nothing-of-that-name")
        self.assertEqual(1, missing.code)
        self.assertIn("nothing-of-that-name", missing.err)
        cli("rm", "-f", "seen", check=True)


class OursInContainerd(unittest.TestCase):
    """Content store and snapshotter of ours as plugins of Debian's containerd."""

    def start(self, snapshotter):
        where = proc.temp_dir()
        self.addCleanup(lambda: self.assertEqual([], proc.clean_up(where)))
        config = os.path.join(where, "config.toml")
        with open(config, "w") as f:
            f.write('[snapshotter]\nsnapshotters = ["%s"]\n' % snapshotter)
        sockets = {}
        for name, program in (("content", ["bulkhead", "content"]),
                              ("snapshotter", ["bulkhead-snapshotter"])):
            with open(os.path.join(where, name + ".log"), "w") as log:
                process = subprocess.Popen(
                    [os.path.join(proc.BIN, program[0])] + program[1:] +
                    ["--config", config, "--root", where + "/root", "--state", where + "/run"],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self.addCleanup(process.wait)
            self.addCleanup(process.terminate)
            sockets[name] = "%s/run/%s/%s.sock" % (where, name, name)
            proc.wait_for(lambda s=sockets[name]: os.path.exists(s), name)
        containerd = suite.Containerd(
            '[proxy_plugins.ours]\ntype = "snapshot"\naddress = "%s"\n'
            '[proxy_plugins.blobs]\ntype = "content"\naddress = "%s"\n' %
            (sockets["snapshotter"], sockets["content"]),
            disabled=["io.containerd.content.v1.content"])
        self.addCleanup(containerd.stop)
        return where, containerd.start()

    def pull_run_remove(self, snapshotter):
        image = common.image_registry().host + "/debian:12"
        where, containerd = self.start(snapshotter)
        ctr = containerd.ctr
        ctr("images", "pull", "--plain-http", "--snapshotter", "ours", image, check=True)
        self.assertTrue(os.listdir(where + "/root/content"))
        done = ctr("run", "--rm", "--snapshotter", "ours", image, "one", "/bin/sh", "-c",
                   "echo inside; ls /etc/debian_version", check=True)
        self.assertEqual("inside\n/etc/debian_version\n", done.out)
        listed = ctr("snapshots", "--snapshotter", "ours", "ls", check=True).out
        self.assertIn("Committed", listed)
        ctr("images", "rm", "--sync", image, check=True)
        ctr("content", "prune", "references", check=False)  # Runs the collector.
        proc.wait_for(lambda: len(ctr("snapshots", "--snapshotter", "ours", "ls").out
                                  .splitlines()) == 1, "the snapshots to go")

        def folders():
            return os.listdir("%s/root/snapshotter/%s/snapshots" % (where, snapshotter))

        proc.wait_for(lambda: folders() == [], "the folders to go")
        blobs = [f for _, _, files in os.walk(where + "/root/content/blobs") for f in files]
        self.assertEqual([], blobs)

    def test_overlayfs(self):
        self.pull_run_remove("overlayfs")

    def test_erofs(self):
        self.pull_run_remove("erofs")


class TheirsInOurs(unittest.TestCase):
    """containerd's own overlayfs snapshotter behind its socket, in place of ours."""

    def test_by_config_and_reload(self):
        theirs = suite.Containerd(
            # It knows nothing of what refers to its snapshots.
            '[plugins."io.containerd.gc.v1.scheduler"]\nmutation_threshold = 0\n'
            'deletion_threshold = 0\nschedule_delay = "1h"\nstartup_delay = "1h"\n')
        theirs.start()
        self.addCleanup(theirs.stop)
        ours = suite.Suite('[snapshotter]\nsnapshotters = ["native"]\n')
        ours.start()
        self.addCleanup(ours.stop)
        image = common.image_registry().host + "/busybox:latest"
        refused = ours.ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", image)
        self.assertIn("snapshotter not loaded: overlayfs", refused.err)
        with open(ours.config_path, "a") as f:
            f.write('[proxy_plugins.overlayfs]\ntype = "snapshot"\naddress = "%s"\n' %
                    theirs.address)
        ours.process.send_signal(signal.SIGHUP)

        def pulled():
            return ours.ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs",
                            image).code == 0

        proc.wait_for(pulled, "the new snapshotter", timeout=30, interval=0.5)
        done = ours.ctr("run", "--rm", "--snapshotter", "overlayfs", image, "one", "/bin/echo",
                        "inside", check=True)
        self.assertEqual("inside\n", done.out)
        listed = theirs.ctr("snapshots", "ls", check=True).out
        self.assertIn("default/", listed)  # Our keys, wrapped, in its store.
        ours.ctr("images", "rm", "--sync", image, check=True)
        proc.wait_for(lambda: "Committed" not in theirs.ctr("snapshots", "ls").out,
                      "the snapshots to go there, too", timeout=30)


if __name__ == "__main__":
    unittest.main()
