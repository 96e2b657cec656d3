"""Bad input gets a clear error and leaves nothing behind."""

import os
import subprocess
import tarfile
import unittest

from tests.harness import badregistry, images, proc, registry, suite
from tests.integration import common


def setUpModule():
    global s, reg, busybox
    reg = common.image_registry()
    busybox = reg.host + "/busybox:latest"
    s = suite.Suite().start()
    s.cli("pull", busybox, check=True)


def tearDownModule():
    s.stop()


def held():
    """Everything the suite keeps: image names, blobs, snapshots, containers."""
    return (sorted(s.ctr("images", "ls", "-q").out.split()),
            sorted(line.split()[0] for line in s.ctr("snapshots", "ls").out.splitlines()[1:]),
            sorted(s.ctr("containers", "ls", "-q").out.split()),
            proc.mounts_below(s.dir))


class BadInput(unittest.TestCase):
    def fails(self, *args, saying, code=None, address=None):
        s.cli("gc", check=True)  # What an earlier test removed.
        before = held()
        result = s.cli(*args, timeout=60)
        self.assertNotEqual(0, result.code, repr(result))
        if code is not None:
            self.assertEqual(code, result.code, repr(result))
        for text in saying:
            self.assertIn(text.lower(), (result.err + result.out).lower(), repr(result))
        proc.wait_for(lambda: held() == before, "nothing to be left: %r, was %r" %
                      (held(), before), timeout=15)
        return result

    def test_unknown_image(self):
        self.fails("pull", reg.host + "/none:1", saying=["none:1", "not found"])
        self.fails("run", "--pull", "never", "nobody/has:this", "true", saying=["nobody/has:this"],
                   code=125)

    def test_refused_connection(self):
        port = registry.free_port()
        self.fails("pull", "127.0.0.1:%d/a:1" % port, saying=["127.0.0.1:%d" % port])

    def test_unknown_command(self):
        self.fails("nosuch", saying=["'nosuch' is not a command of bulkhead"], code=2)
        self.fails("snapshot", "nosuch", saying=["nosuch", "bulkhead snapshot --help"], code=2)

    def test_invalid_names(self):
        self.fails("pull", "UPPER/Case:1", saying=["upper/case"])
        self.fails("pull", reg.host + "/x:bad tag", saying=["bad tag"])
        self.fails("run", "--name", "a/b", busybox, "true", saying=["a/b"], code=125)
        self.fails("-n", "-bad-", "images", saying=["-bad-"])

    def bad_registry(self, name, layers, **kwargs):
        # A file of its own, so that no blob is known from another test.
        layers = [images.tar_of(lambda add: add("mark", os.urandom(300000)))] + layers
        layout = images.Layout(os.path.join(s.dir, name))
        layout.image("1", layers, images.BUSYBOX_CONFIG, **kwargs)
        return badregistry.BadRegistry(layout)

    def layer_digest(self, bad, index):
        import json
        manifest = bad.layout.manifests[0]["digest"]
        with open(os.path.join(bad.layout.path, "blobs/sha256", manifest[7:])) as f:
            return json.load(f)["layers"][index]["digest"]

    def test_wrong_digest(self):
        with self.bad_registry("wrong", [images.busybox_layer()]) as bad:
            digest = self.layer_digest(bad, 0)
            with open(os.path.join(bad.layout.path, "blobs/sha256", digest[7:]), "rb") as f:
                data = bytearray(f.read())
            data[-200] ^= 1
            bad.replace[digest] = bytes(data)
            self.fails("pull", bad.host + "/wrong:1", saying=[digest])
            bad.replace.clear()
            s.cli("pull", bad.host + "/wrong:1", check=True)  # Heals by pulling again.
            s.cli("rmi", bad.host + "/wrong:1", check=True)

    def test_truncated_layer(self):
        with self.bad_registry("cut", [images.busybox_layer()]) as bad:
            digest = self.layer_digest(bad, 0)
            bad.cut[digest] = 100000
            self.fails("pull", bad.host + "/cut:1", saying=[digest])
            bad.cut.clear()
            s.cli("pull", bad.host + "/cut:1", check=True)
            s.cli("rmi", bad.host + "/cut:1", check=True)

    def test_layer_with_a_wrong_diff_id(self):
        import json
        layout = images.Layout(os.path.join(s.dir, "diffid"))
        layout.image("1", [images.busybox_layer()])
        # The same manifest with a config that promises another tree.
        entry = layout.manifests[0]
        with open(os.path.join(layout.path, "blobs/sha256", entry["digest"][7:])) as f:
            manifest = json.load(f)
        config = {"architecture": "amd64", "os": "linux", "config": {},
                  "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "a" * 64]}}
        manifest["config"] = layout.blob(json.dumps(config).encode(),
                                         manifest["config"]["mediaType"])
        new = layout.blob(json.dumps(manifest).encode(), entry["mediaType"])
        entry.update(new)
        with badregistry.BadRegistry(layout) as bad:
            self.fails("pull", bad.host + "/diffid:1", saying=["sha256:" + "a" * 64])

    def test_hostile_layers_stay_inside(self):
        outside = os.path.join(s.dir, "outside")
        os.makedirs(outside)
        victim = os.path.join(outside, "victim")
        with open(victim, "w") as f:
            f.write("untouched")
        up = "../" * 40
        symlink, hardlink = tarfile.SYMTYPE, tarfile.LNKTYPE
        layers = {
            "dots": lambda add: add(up + outside[1:] + "/victim", b"evil"),
            "symlink": lambda add: [add("l", type=symlink, link=outside),
                                    add("l/victim", b"evil"), add("l/new", b"evil")],
            "hardlink": lambda add: [add("h", type=hardlink, link=up + victim[1:]),
                                     add("h", b"evil")],
            "via": lambda add: [add("l", type=symlink, link=outside),
                                add("h", type=hardlink, link="l/victim"), add("h", b"evil")],
            "whiteout": lambda add: [add("l", type=symlink, link=outside),
                                     add("l/.wh.victim", b"")],
            "whiteout2": lambda add: add(".wh.." , b""),
            "opaque": lambda add: [add("l", type=symlink, link=outside),
                                   add("l/.wh..wh..opq", b"")],
            "device": lambda add: [add("d", type=tarfile.BLKTYPE, dev=(7, 0)),
                                   add("d/x", b"evil")],
        }
        for name, build in layers.items():
            with self.subTest(layer=name):
                with self.bad_registry("h-" + name,
                                       [images.busybox_layer(), images.tar_of(build)]) as bad:
                    image = bad.host + "/" + name + ":1"
                    result = s.cli("pull", image, timeout=60)
                    with open(victim) as f:
                        self.assertEqual("untouched", f.read())
                    self.assertEqual(["victim"], os.listdir(outside))
                    self.assertEqual(1, os.stat(victim).st_nlink)
                    if result.code == 0:
                        s.cli("rmi", image, check=True)

    def test_unknown_config_key(self):
        for text, key in (("nonsense = 1\n", "nonsense"),
                          ("[gateway]\nadress = '/x'\n", "gateway.adress"),
                          ("[gateway]\nmode = 'x'\n", "gateway.mode")):
            path = os.path.join(s.dir, "bad.toml")
            with open(path, "w") as f:
                f.write(text)
            result = proc.run([os.path.join(proc.BIN, "bulkhead"), "up", "--root",
                               s.dir + "/r2", "--state", s.dir + "/s2", "--config", path])
            self.assertNotEqual(0, result.code, repr(result))
            self.assertIn(key, result.err)
            self.assertIn("bad.toml", result.err)

    def test_missing_oci_runtime(self):
        with suite.Suite("[runtime]\noci_runtime = 'no-such-runc'\n") as other:
            other.cli("pull", busybox, check=True)
            result = other.cli("run", "--rm", busybox, "true")
            self.assertNotEqual(0, result.code)
            self.assertIn("no-such-runc", result.err)
            self.assertEqual("", other.ctr("containers", "ls", "-q").out)
            self.assertEqual([], proc.mounts_below(other.state))
            result = other.cli("run", "--rm", "--runtime", "io.containerd.none.v1", busybox, "true")
            self.assertNotEqual(0, result.code)
            self.assertIn("none", result.err)

    def test_full_disk(self):
        """A root on a small file system: errors that say so, then recovery."""
        image = os.path.join(s.dir, "small.img")
        mountpoint = os.path.join(s.dir, "small")
        os.makedirs(mountpoint)
        with open(image, "wb") as f:
            f.truncate(48 << 20)
        proc.run(["mkfs.ext4", "-q", "-F", image], check=True)
        proc.run(["mount", "-o", "loop", image, mountpoint], check=True)
        try:
            other = suite.Suite()
            other.root = os.path.join(mountpoint, "root")
            with other:
                other.cli("pull", busybox, check=True)
                filler = os.path.join(mountpoint, "filler")
                with open(filler, "wb") as f:
                    try:
                        while True:
                            f.write(b"x" * 65536)
                            f.flush()
                    except OSError:
                        pass
                result = other.cli("pull", reg.host + "/debian:12", timeout=120)
                self.assertNotEqual(0, result.code)
                self.assertIn("no space left", result.err.lower(), repr(result))
                self.assertIn("busybox", other.cli("images", check=True).out)
                self.assertNotIn("debian", other.cli("images", check=True).out)
                os.unlink(filler)
                # Without a restart, what fits works again.
                proc.wait_for(lambda: other.cli("run", "--rm", busybox, "echo", "fits").out ==
                              "fits\n", "room again")
        finally:
            subprocess.run(["umount", "-l", mountpoint], check=False)


if __name__ == "__main__":
    unittest.main()
