"""A corpus of hostile layers: refused or confined, the error named, nothing
outside touched, memory bounded."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import threading
import time
import unittest

from tests.harness import badregistry, images, proc, suite
from tests.integration import common

# With BULKHEAD_ENTRIES=1000000 the layer of many files is as large as that.
ENTRIES = int(os.environ.get("BULKHEAD_ENTRIES", "50000"))
FILE, LINK, SYMLINK, CHAR, BLOCK, FOLDER, FIFO = "0123456"
END = bytes(1024)
SNAPSHOTTER_MIB_MAX = 48  # PSS, whatever the layer; zstd's window comes on top.


def header(name, kind=FILE, size=0, link=b"", mode=0o644, uid=0, major=0, minor=0, magic=b"ustar\x0000",
           **fields):
    """One header block; `fields` replace bytes at offsets: at100=b"..." """
    def octal(value, digits):
        return value if isinstance(value, bytes) else b"%0*o\0" % (digits, value)

    name = name if isinstance(name, bytes) else name.encode()
    link = link if isinstance(link, bytes) else link.encode()
    block = bytearray(512)
    for at, field in ((0, name[:100]), (100, octal(mode, 7)), (108, octal(uid, 7)),
                      (116, octal(uid, 7)), (124, octal(size, 11)), (136, octal(1700000000, 11)),
                      (156, kind.encode()), (157, link[:100]), (257, magic),
                      (329, octal(major, 7)), (337, octal(minor, 7))):
        block[at:at + len(field)] = field
    for key, field in fields.items():
        at = int(key[2:])
        block[at:at + len(field)] = field
    if "at148" not in fields:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry(name, data=b"", kind=FILE, **more):
    return header(name, kind, len(data), **more) + data + bytes(-len(data) % 512)


def pax(records, kind="x"):
    data = b""
    for key, value in records:
        body = b" " + key.encode() + b"=" + (value if isinstance(value, bytes) else value.encode()) + b"\n"
        size = len(body) + 1
        while len(b"%d" % size) + len(body) != size:
            size += 1
        data += b"%d" % size + body
    return entry("pax", data, kind)


def gnu_long(kind, text):
    return entry("././@LongLink", text + b"\0", kind, magic=b"ustar  \0")


def packed(command, data):
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def refused(up, outside):
    """Layers that must fail: name -> (tar, what the error says)."""
    victim = outside[1:] + "/victim"
    good = entry("good", b"x" * 700)
    return {
        "dots": (entry(up + victim, b"evil"), "escapes the root"),
        "dots-inside": (entry("a/b/../../../" + victim, b"evil"), "escapes the root"),
        "dots-pax": (pax([("path", up + victim)]) + entry("x", b"evil"), "escapes the root"),
        "dots-gnu": (gnu_long("L", (up + victim).encode()) + entry("x", b"evil"), "escapes the root"),
        "dots-prefix": (header("victim", at345=up.encode()[:60]) + END, "escapes the root"),
        "dots-folder": (entry("../", kind=FOLDER), "escapes the root"),
        "hardlink": (entry("h", kind=LINK, link=up + "etc/passwd"), "escapes the root"),
        "hardlink-absolute": (entry("h", kind=LINK, link=outside + "/victim"), "hard link to"),
        "hardlink-via-symlink": (entry("l", kind=SYMLINK, link=outside) +
                                 entry("h", kind=LINK, link="l/victim"), "hard link to"),
        "hardlink-to-itself": (entry("h", kind=LINK, link="h"), "hard link to"),
        "hardlink-to-folder": (entry("d", kind=FOLDER, mode=0o755) +
                               entry("h", kind=LINK, link="d"), "link"),
        "whiteout-dots": (entry(".wh..."), "invalid whiteout"),
        "whiteout-dot": (entry(".wh.."), "invalid whiteout"),
        "whiteout-nothing": (entry("a/.wh."), "invalid whiteout"),
        "whiteout-escape": (entry("../.wh.victim"), "escapes the root"),
        "device-number": (entry("c", kind=CHAR, major=5000), "device number"),
        "device-folder": (entry("b", kind=BLOCK, major=7) + entry("b/x", b"evil"), "b"),
        "owner": (header("f", uid=b"\xff" * 8) + END, "owner"),
        "type": (entry("v", kind="V"), "entry type 'V'"),
        "multi-volume": (entry("m", b"x" * 100, kind="M"), "entry type 'M'"),
        "size-octal": (header("f", size=b"77777777777\0") + b"short", "layer_bytes_max|unexpected end"),
        "size-base256": (header("f", size=b"\x80" + b"\xff" * 11), "size|number"),
        "size-negative": (header("f", size=b"\xff" * 12) + END, "size"),
        "size-no-number": (header("f", size=b"zz9zz9zz9zz\0") + END, "size"),
        "size-pax": (pax([("size", "9223372036854775807")]) + entry("f", b"x"), "size"),
        "size-pax-minus": (pax([("size", "-5")]) + entry("f", b"x"), "size"),
        "sparse-bomb": (pax([("GNU.sparse.major", "0"), ("GNU.sparse.minor", "1"),
                             ("GNU.sparse.map", "0,0"), ("GNU.sparse.size", "%d" % (1 << 59))]) +
                        entry("f"), "layer_bytes_max"),
        "sparse-overlap": (pax([("GNU.sparse.map", "0,5,2,5"), ("GNU.sparse.size", "100")]) +
                           entry("f", b"x" * 10), "sparse map"),
        "sparse-beyond": (pax([("GNU.sparse.map", "95,10"), ("GNU.sparse.size", "100")]) +
                          entry("f", b"x" * 10), "sparse map"),
        "sparse-lie": (pax([("GNU.sparse.map", "0,5"), ("GNU.sparse.size", "100")]) +
                       entry("f", b"x" * 10), "sparse map"),
        "sparse-old-lie": (header("f", "S", 512, magic=b"ustar  \0", at386=b"%011o\0%011o\0" % (0, 600),
                                  at483=b"%011o\0" % 700) + bytes(512) + END, "sparse map"),
        "sparse-old-endless": (header("f", "S", 0, magic=b"ustar  \0", at482=b"\1",
                                      at483=b"%011o\0" % 700) +
                               (b"%011o\0%011o\0" % (0, 1) * 21 + b"\1" + bytes(7)) * 6000,
                               "sparse map"),
        "checksum": (header("f", at148=b"0000001\0") + END, "checksum"),
        "truncated-header": (good + header("f")[:300], "unexpected end"),
        "truncated-data": (good + header("f", size=5000) + b"x" * 512, "unexpected end"),
        "truncated-pax": (good + pax([("path", "p" * 900)])[:700], "unexpected end"),
        "pax-without-entry": (pax([("path", "p")]), "unexpected end"),
        "pax-garbage": (entry("pax", b"this is no record", "x") + entry("f"), "pax record"),
        "pax-length": (entry("pax", b"99999 path=x\n", "x") + entry("f"), "pax record"),
        "pax-huge": (header("pax", "x", 1 << 30) + bytes(4096), "extended header"),
        "gnu-name-huge": (header("././@LongLink", "L", 1 << 30, magic=b"ustar  \0") + bytes(4096),
                          "extended header"),
        "name-nul": (pax([("path", b"a\0/../../b")]) + entry("f"), "nul"),
        "name-long": (pax([("path", "n" * 300)]) + entry("f"), "name of 300"),
        "name-longer": (pax([("path", "d/" * 2500 + "f")]) + entry("f"), "limit"),
        "deep": (pax([("path", "d/" * 600 + "f")]) + entry("f"), "deeper than"),
        "lone-zero-block": (good + bytes(512) + good, "zero block"),
        "garbage": (bytes(range(256)) * 64, "checksum"),
        "link-loop": (entry("a", kind=SYMLINK, link="b") + entry("b", kind=SYMLINK, link="a") +
                      entry("a/f", b"x"), "a"),
    }


def confined(up, outside):
    """Layers that unpack, or not; what they name outside stays as it is."""
    through = entry("l", kind=SYMLINK, link=outside) + entry("l/victim", b"evil") + entry("l/new", b"x")
    return {
        "absolute": entry(outside + "/victim", b"evil"),
        "symlink": through,
        "symlink-relative": entry("l", kind=SYMLINK, link=up + outside[1:]) + entry("l/victim", b"evil"),
        "symlink-proc": entry("l", kind=SYMLINK, link="/proc/self/root" + outside) +
                        entry("l/victim", b"evil"),
        "symlink-cwd": entry("l", kind=SYMLINK, link="/proc/self/cwd") + entry("l/evil", b"evil"),
        "symlink-fd": entry("l", kind=SYMLINK, link="/proc/self/fd/3") + entry("l/evil", b"evil"),
        "symlink-replaced": entry("l", kind=SYMLINK, link=outside + "/victim") + entry("l", b"evil"),
        "symlink-folder": entry("l", kind=SYMLINK, link=outside) + entry("l", kind=FOLDER, mode=0o777),
        "folder-to-symlink": entry("d", kind=FOLDER, mode=0o755) + entry("d/in", b"x") +
                             entry("d", kind=SYMLINK, link=outside) + entry("d/victim", b"evil"),
        "whiteout": entry("l", kind=SYMLINK, link=outside) + entry("l/.wh.victim"),
        "whiteout-of-symlink": entry("l", kind=SYMLINK, link=outside) + entry(".wh.l"),
        "opaque": entry("l", kind=SYMLINK, link=outside) + entry("l/.wh..wh..opq"),
        "hardlink-to-symlink": entry("l", kind=SYMLINK, link=outside + "/victim") +
                               entry("h", kind=LINK, link="l") + entry("h", b"evil"),
        "chmod-by-hardlink": entry("l", kind=SYMLINK, link=outside + "/victim") +
                             entry("h", kind=LINK, link="l", mode=0o777, uid=1234),
        "duplicates": b"".join(entry("same", b"%d" % n) + entry("same", kind=FOLDER, mode=0o755)
                               for n in range(500)) + entry("same", kind=SYMLINK, link=outside) +
                      entry("same/victim", b"evil"),
        "xattr-overlay": pax([("SCHILY.xattr.trusted.overlay.redirect", outside),
                              ("SCHILY.xattr.trusted.overlay.opaque", "y"),
                              ("SCHILY.xattr.trusted.overlay.metacopy", "")]) +
                         entry("d", kind=FOLDER, mode=0o755),
        "setuid": entry("bin-su", b"#!", mode=0o6755, uid=0),
        "fifo": entry("pipe", kind=FIFO) + entry("pipe", b"data where a FIFO was"),
    }


class Peak(threading.Thread):
    """The largest PSS of a process, sampled."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.kib, self.over = pid, 0, threading.Event()

    def run(self):
        while not self.over.wait(0.01):
            try:
                with open("/proc/%d/smaps_rollup" % self.pid) as f:
                    for line in f:
                        if line.startswith("Pss:"):
                            self.kib = max(self.kib, int(line.split()[1]))
            except OSError:
                return

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.over.set()
        self.join()

    @property
    def mib(self):
        return self.kib / 1024


def setUpModule():
    global s, outside, victim
    # Small enough to be reached, for the bombs.
    s = suite.Suite("[snapshotter]\nlayer_bytes_max = %d\n" % (1 << 30)).start()
    outside = os.path.join(s.dir, "outside")
    os.makedirs(outside)
    victim = os.path.join(outside, "victim")
    with open(victim, "w") as f:
        f.write("untouched")
    os.chmod(victim, 0o640)


def tearDownModule():
    s.stop()


def snapshots():
    return sorted(line.split()[0] for line in s.ctr("snapshots", "ls").out.splitlines()[1:])


class Hostile(unittest.TestCase):
    counter = 0

    def pull(self, blob, media_type=images.GZIP, diff_id=None):
        """Pulls an image of this one blob; the result of the command."""
        Hostile.counter += 1
        name = "h%d" % Hostile.counter
        layout = images.Layout(os.path.join(s.dir, name))
        config = layout.blob(json.dumps({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id or "sha256:" + "0" * 64]}}).encode(),
            "application/vnd.oci.image.config.v1+json")
        layer = layout.blob(blob, media_type)
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = layout.blob(json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config,
                                           "layers": [layer]}).encode(), kind)
        manifest["annotations"] = {"org.opencontainers.image.ref.name": "1"}
        layout.manifests.append(manifest)
        with badregistry.BadRegistry(layout) as registry:
            result = s.cli("pull", "-q", registry.host + "/" + name + ":1", timeout=300)
            if result.code == 0:
                s.cli("rmi", registry.host + "/" + name + ":1", check=True)
        shutil.rmtree(layout.path)
        return result

    def untouched(self):
        with open(victim) as f:
            self.assertEqual("untouched", f.read())
        info = os.stat(victim)
        self.assertEqual((0o100640, 1, 0), (info.st_mode, info.st_nlink, info.st_uid))
        self.assertEqual(["victim"], os.listdir(outside))
        self.assertEqual(0o40755, os.stat(outside).st_mode)
        self.assertEqual([], [m for m in proc.mounts_below(s.dir)])

    def fails(self, blob, saying, media_type=images.GZIP):
        result = self.pull(blob, media_type)
        self.assertNotEqual(0, result.code, repr(result))
        self.assertTrue(any(word in result.err.lower() for word in saying.lower().split("|")),
                        "%r not in %r" % (saying, result))
        self.untouched()
        return result

    def test_refused(self):
        for name, (tar, saying) in refused("../" * 40, outside).items():
            with self.subTest(name):
                end = b"" if "unexpected end" in saying else END
                self.fails(gzip.compress(tar + end, 1), saying)
        proc.wait_for(lambda: snapshots() == [], "no snapshot to be left", 15)

    def test_confined(self):
        for name, tar in confined("../" * 40, outside).items():
            with self.subTest(name):
                tar += END
                result = self.pull(gzip.compress(tar, 1),
                                   diff_id="sha256:" + hashlib.sha256(tar).hexdigest())
                self.untouched()
                self.assertIn(result.code, (0, 1), repr(result))
                if result.code:
                    self.assertRegex(result.err, "entry \"|hard link|invalid")
        proc.wait_for(lambda: snapshots() == [], "no snapshot to be left", 15)

    def test_bad_compression(self):
        tar = entry("f", os.urandom(100000)) + END
        zipped, zst = packed(["gzip"], tar), packed(["zstd", "-q"], tar)
        for name, blob, saying in (
                ("gzip-cut", zipped[:-9], "gzip: unexpected end"),
                ("gzip-bit", zipped[:50000] + b"\xff" * 40 + zipped[50040:], "gzip|checksum"),
                ("gzip-crc", zipped[:-6] + b"\0\0" + zipped[-4:], "gzip"),
                ("gzip-junk", zipped + b"junk", "after the end"),
                ("gzip-header-only", b"\x1f\x8b\x08", "gzip"),
                ("gzip-header-flags", b"\x1f\x8b\x08\xff" + bytes(6) + b"\xff\xff" + bytes(70000), "gzip"),
                ("zstd-cut", zst[:-9], "zstd: unexpected end"),
                ("zstd-junk", zst + b"junk", "zstd"),
                ("zstd-header-only", zst[:4], "zstd"),
                ("zstd-skippable-short", b"\x50\x2a\x4d\x18\xff\xff\xff\x7f" + bytes(100), "zstd"),
                ("zstd-window", b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(60), "zstd")):
            with self.subTest(name):
                self.fails(blob, saying)

    def test_bombs(self):
        """Gigabytes of nothing: stopped at layer_bytes_max, or small on disk."""
        pid = s.service_pid("snapshotter")
        nothing = bytes(1 << 20)

        def bomb(command, head):
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            out = []
            reader = threading.Thread(target=lambda: out.append(child.stdout.read()))
            reader.start()
            child.stdin.write(head)
            for _ in range(1200):
                child.stdin.write(nothing)
            child.stdin.close()
            reader.join()
            child.wait()
            child.stdout.close()
            return out[0]

        for name, command in (("gzip", ["gzip", "-1"]), ("zstd", ["zstd", "-q", "-1"])):
            # Behind the end of the archive, where no entry counts it.
            with self.subTest(name), Peak(pid) as peak:
                blob = bomb(command, entry("f", b"x") + END)
                self.assertLess(len(blob), 8 << 20)
                self.fails(blob, "layer_bytes_max")
            self.assertLess(peak.mib, SNAPSHOTTER_MIB_MAX)
        blob = packed(["gzip", "-1"], header("f", size=(1 << 30) + 1) + bytes(4096))
        self.fails(blob, "layer_bytes_max")
        # A window of 128 MiB is what zstd --long makes: allowed, and given back.
        self.assertEqual(pid, s.service_pid("snapshotter"))

    def test_many_entries(self):
        """As many files as there are, folders too: memory does not follow."""
        pid = s.service_pid("snapshotter")
        template = header("0" * 20)

        def named(name, kind):
            block = bytearray(template)
            block[0:20] = name.ljust(20, b"\0")
            block[156:157] = kind
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            return bytes(block)

        child = subprocess.Popen(["gzip", "-1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        out = []
        reader = threading.Thread(target=lambda: out.append(child.stdout.read()))
        reader.start()
        digest = hashlib.sha256()
        blocks = []
        for n in range(ENTRIES):
            blocks.append(named(b"d%03d/f%07d" % (n % 1000, n), b"0"))
            if len(blocks) == 10000 or n == ENTRIES - 1:
                piece = b"".join(blocks)
                digest.update(piece)
                child.stdin.write(piece)
                blocks = []
        digest.update(END)
        child.stdin.write(END)
        child.stdin.close()
        reader.join()
        child.wait()
        child.stdout.close()
        began = time.monotonic()
        with Peak(pid) as peak:
            result = self.pull(out[0], diff_id="sha256:" + digest.hexdigest())
        self.assertEqual(0, result.code, repr(result))
        print("     %d entries in %.1f s, snapshotter's peak %.1f MiB PSS" %
              (ENTRIES, time.monotonic() - began, peak.mib), flush=True)
        self.assertLess(peak.mib, SNAPSHOTTER_MIB_MAX)
        proc.wait_for(lambda: snapshots() == [], "the snapshot to be gone", 120)


if __name__ == "__main__":
    unittest.main()
