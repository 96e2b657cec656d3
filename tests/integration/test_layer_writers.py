"""Layers as the programs write them that make images: Go's (umoci, skopeo) and
Docker's; and a whole Debian. Trees compared as in test_layers."""

import json
import os
import shutil
import subprocess
import tarfile
import unittest

from tests.harness import docker, images, proc, registry as registries, suite
from tests.integration.test_layers import (CAP_NET_RAW, LONG, Snapshot, differences, make_files,
                                           top_of, tree)


def setUpModule():
    global folder, registry, ours, pulled, theirs
    folder = proc.temp_dir()
    registry = registries.Registry().start()
    ours, pulled = suite.Suite().start(), suite.Suite().start()
    theirs = suite.Containerd().start()


def tearDownModule():
    for each in (ours, pulled, theirs, registry):
        each.stop()
    shutil.rmtree(folder)


def layout_of(path):
    """An OCI layout that another program has written."""
    layout = images.Layout(path)
    with open(os.path.join(path, "index.json")) as f:
        layout.manifests = json.load(f)["manifests"]
    return layout


class Writers(unittest.TestCase):
    maxDiff = None

    def compare(self, path, tag, name, umoci=True, but=()):
        """The image `tag` of a layout: the same tree with containerd, with our
        Diff.Apply, with our pull and with umoci."""
        layout = layout_of(path)
        image = registry.host + "/" + name + ":1"
        layout.push(tag, image)
        pulled.cli("pull", "-q", image, check=True)
        for daemon in (ours, theirs):
            daemon.ctr("images", "pull", "--plain-http", image, check=True, timeout=300)
        top = top_of(layout, tag)
        with Snapshot(theirs, top) as view:
            reference = tree(view)
        for daemon, how in ((ours, "Diff.Apply"), (pulled, "pull")):
            with Snapshot(daemon, top) as view:
                self.assertEqual([], differences(tree(view), reference, but), name + ", " + how)
        if umoci:
            bundle = os.path.join(folder, "bundle-" + name)
            proc.run(["umoci", "unpack", "--image", path + ":" + tag, bundle], check=True,
                     timeout=300)
            self.assertEqual([], differences(tree(os.path.join(bundle, "rootfs")), reference, but),
                             name + ", umoci")
            shutil.rmtree(bundle)
        return reference

    def test_umoci_and_skopeo(self):
        """Two layers by umoci (Go's archive/tar), the second with whiteouts; then
        packed again by skopeo, in gzip and in zstd."""
        path = os.path.join(folder, "umoci")
        image, bundle = path + ":1", os.path.join(folder, "umoci-bundle")
        proc.run(["umoci", "init", "--layout", path], check=True)
        proc.run(["umoci", "new", "--image", image], check=True)
        proc.run(["umoci", "unpack", "--image", image, bundle], check=True)
        root = os.path.join(bundle, "rootfs")
        make_files(root)
        proc.run(["umoci", "repack", "--image", image, "--refresh-bundle", bundle], check=True)
        shutil.rmtree(os.path.join(root, "a/b"))
        os.remove(os.path.join(root, "c", LONG))
        os.remove(os.path.join(root, "a/relative"))
        with open(os.path.join(root, "a/relative"), "w") as f:
            f.write("no link any more")
        os.chmod(os.path.join(root, "a"), 0o711)
        proc.run(["umoci", "repack", "--image", image, bundle], check=True)
        shutil.rmtree(bundle)
        reference = self.compare(path, "1", "umoci")
        self.assertNotIn("c/" + LONG, reference)
        self.assertIn(("security.capability", CAP_NET_RAW), reference["a/caps"]["xattrs"])
        for kind in ("gzip", "zstd"):
            again = os.path.join(folder, "skopeo-" + kind)
            proc.run(["skopeo", "copy", "-q", "--dest-compress", "--dest-compress-format", kind,
                      "oci:" + image, "oci:" + again + ":1"], check=True)
            self.assertEqual(reference, self.compare(again, "1", "skopeo-" + kind,
                                                     umoci=kind == "gzip"))

    def test_docker(self):
        """What `docker commit` and `docker save` make: files, links, whiteouts, a
        folder made anew in the place of another, in several layers."""
        tar = os.path.join(folder, "base.tar")
        with open(tar, "wb") as f:
            f.write(images.busybox_layer())
        steps = ("mkdir -p /d/e /d/f /gone /again/old; echo 1 > /d/e/1; echo 2 > /d/f/2; ln /d/e/1 "
                 "/d/f/1; ln -s ../e/1 /d/f/link; mkfifo -m 620 /d/fifo; chmod 4755 /d/f/2; "
                 "chown 70000:70001 /d/e; chmod 1777 /d/f; echo x > /gone/x; echo x > /again/old/x; "
                 "dd if=/dev/urandom of=/d/big bs=65536 count=20 2>/dev/null; chown 5:6 /d/big; "
                 "mkdir -p /d/" + "/".join(["n" * 60] * 6) + "; echo > /d/" + "n" * 200 + "; "
                 "touch -d '2001-02-03 04:05:06' /d/e/1 /d/f",
                 "rm -r /gone /d/f/link /home/notes; rm -r /again; mkdir /again; echo y > /again/new; "
                 "mv /d/e /d/moved; echo more >> /d/big; rm /d/fifo; echo z > /d/fifo",
                 "rm /d/f/2; chmod 700 /d; ln /d/big /again/big; echo back > /gone")
        with suite.Containerd() as below, docker.Docker(below, "10.231.9.1/24") as engine:
            engine("import", "--change", "ENV PATH=/bin", tar, "i:0", check=True)
            for n, step in enumerate(steps):
                engine("run", "--name", "c%d" % n, "--net=none", "i:%d" % n, "/bin/sh", "-ec", step,
                       check=True)
                engine("commit", "c%d" % n, "i:%d" % (n + 1), check=True)
            saved = os.path.join(folder, "saved.tar")
            engine("save", "-o", saved, "i:%d" % len(steps), check=True)
        # The layers as they are in the archive, uncompressed.
        path = os.path.join(folder, "docker")
        layout = images.Layout(path)
        with tarfile.open(saved) as archive:
            manifest = json.load(archive.extractfile("manifest.json"))[0]
            layers = [archive.extractfile(name).read() for name in manifest["Layers"]]
        self.assertEqual(len(steps) + 1, len(layers))
        layout.image("1", layers)
        # Folders that a layer says nothing of are told apart by umoci.
        reference = self.compare(path, "1", "docker", umoci=False)
        for gone in ("again/old", "d/e", "d/f/2", "d/f/link", "home/notes"):
            self.assertNotIn(gone, reference)
        self.assertEqual(["again/big", "d/big"], reference["d/big"]["group"])
        # And as skopeo makes an image of the archive.
        path = os.path.join(folder, "docker-skopeo")
        proc.run(["skopeo", "copy", "-q", "docker-archive:" + saved, "oci:" + path + ":1"], check=True)
        self.assertEqual(reference, self.compare(path, "1", "docker-skopeo", umoci=False))


def debootstrapped(self):
    """A folder that debootstrap has filled, in one layer of GNU tar's. (Without
    it, test_layers has a Debian made of the installed packages.)"""
    root = os.environ["BULKHEAD_DEBIAN_ROOT"]
    path = os.path.join(folder, "debian")
    layout = images.Layout(path)
    tar = subprocess.run(["tar", "-c", "--format=posix", "--xattrs", "--xattrs-include=*",
                          "--numeric-owner", "--sort=name", "."], cwd=root, check=True,
                         stdout=subprocess.PIPE).stdout
    layout.image("1", [tar])
    reference = self.compare(path, "1", "debian")
    self.assertGreater(len(reference), 5000)
    print("     %d entries" % len(reference), flush=True)


# No test at all where there is no such folder: nothing is skipped.
if os.environ.get("BULKHEAD_DEBIAN_ROOT"):
    Writers.test_debootstrap = debootstrapped


if __name__ == "__main__":
    unittest.main()
