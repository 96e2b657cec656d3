"""Trees of unpacked layers, attribute by attribute, beside containerd and umoci."""

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import time
import unittest

from tests.harness import fileregistry, images, proc, suite, tracee
from tests.harness import registry as registries
from tests.integration import common

CAP_NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")
BEGAN = time.time_ns()
LONG = "long-" + "n" * 240
DEEP = "/".join("directory-%02d" % n for n in range(20))


def make_files(top):
    """A folder with what tools that write archives find on a disk."""
    def path(name):
        return os.path.join(top, name)

    for folder in ("a", "a/b", "c", DEEP):
        os.makedirs(path(folder))
    for name, data, mode in (("a/plain", b"plain\n", 0o644), ("a/setuid", b"x" * 5000, 0o4755),
                             ("a/b/empty", b"", 0o600), ("c/" + LONG, b"long\n", 0o640),
                             (DEEP + "/deep", b"deep\n", 0o444),
                             ("a/caf\u00e9 \u2603", b"name\n", 0o644),
                             ("a/caps", b"capable\n", 0o755)):
        with open(path(name), "wb") as f:
            f.write(data)
        os.chown(path(name), 1000, 100)
        os.chmod(path(name), mode)
    with open(path("a/sparse"), "wb") as f:
        f.write(b"head" * 1024)
        f.seek(5 << 20)
        f.write(b"tail" * 1024)
        f.truncate(9 << 20)
    os.setxattr(path("a/caps"), "security.capability", CAP_NET_RAW)
    os.setxattr(path("a/plain"), "user.note", b"kept\x00\xff")
    os.setxattr(path("c"), "user.folder", b"kept too")
    os.link(path("a/plain"), path("c/linked"))
    os.symlink("plain", path("a/relative"))
    os.symlink("/a/" + LONG, path("a/absolute"))
    os.link(path("a/relative"), path("c/link-of-link"), follow_symlinks=False)
    os.lchown(path("a/relative"), 7, 8)
    os.mkfifo(path("a/fifo"), 0o620)
    os.mknod(path("a/null"), 0o20666, os.makedev(1, 3))
    os.mknod(path("a/disk"), 0o60600, os.makedev(259, 70000))
    os.chown(path("a/b"), 3000000, 3000001)
    os.chmod(path("a/b"), 0o3775)
    os.chmod(path("c"), 0o1777)
    for base, folders, files in os.walk(top, topdown=False):
        for name in folders + files:
            os.utime(os.path.join(base, name), ns=(1600000000123456789, 1600000000987654321),
                     follow_symlinks=False)


def linked_capability():
    """The name with the capability first, a hard link that says nothing of it after."""
    def build(add):
        add("one", b"x", mode=0o755, pax={"SCHILY.xattr.security.capability":
                                          CAP_NET_RAW.decode("utf-8", "surrogateescape")})
        add("two", type=tarfile.LNKTYPE, link="one", mode=0o755)
    return images.tar_of(build)


def archive(args, top):
    return subprocess.run(args, cwd=top, check=True, capture_output=True).stdout


def python_tar(top, kind):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name in sorted(os.listdir(top)):
            tar.add(os.path.join(top, name), arcname=name)
    return out.getvalue()


def history():
    """Layers that change, hide and replace what is below, in all the ways."""
    folder, link = tarfile.DIRTYPE, tarfile.SYMTYPE

    def first(add):
        for name in ("opaque", "opaque/sub", "white", "gone", "gone/sub", "again", "again/sub",
                     "etc", "var", "var/lib", "mode"):
            add(name, type=folder, mode=0o751, uid=5, gid=6, mtime=1500000001)
        for name in ("opaque/old", "opaque/sub/old", "white/x", "white/stays", "gone/sub/f",
                     "again/old", "again/sub/old", "etc/conf", "var/lib/data", "to-dir", "to-link",
                     "mode/f"):
            add(name, name.encode(), mode=0o640, uid=9, gid=9)
        add("to-file", type=folder, mode=0o700)
        add("to-file/inside", b"1")
        add("link", type=link, link="etc")
        add("hard1", b"one inode")
        add("white/hard2", type=tarfile.LNKTYPE, link="hard1")

    def second(add):
        add("opaque", type=folder, mode=0o700, mtime=1500000002)
        add("opaque/before", b"before the marker")
        add("opaque/.wh..wh..opq")
        add("opaque/after", b"after the marker")
        add("white/.wh.x")
        add(".wh.gone")
        add(".wh.again")
        add("to-dir", type=folder, mode=0o711)
        add("to-dir/new", b"2")
        add("to-file", b"a file now", mode=0o600)
        add("to-link", type=link, link="etc/conf")
        add("mode", type=folder, mode=0o1777, uid=1, gid=2, mtime=1500000003)
        # No entries for the folders above it.
        add("var/lib/data", b"newer")
        add("var/lib/fresh/sub/file", b"no parents anywhere", mtime=1500000004)
        # aufs' bookkeeping is not for us.
        add(".wh..wh.plnk", type=folder, mode=0o700)

    def third(add):
        add("again", type=folder, mode=0o750)
        add("again/new", b"a new folder under an old name")
        add("opaque/sub/new", b"the old one must stay hidden")
        add("gone", b"a file now")
        add(".wh.link")
        add(".wh.hard1")
        add("etc/.wh.conf")
        add("etc/conf", b"deleted and made in one layer")

    def fourth(add):
        add(".wh.gone")
        add("white/.wh..wh..opq")
        add("again/.wh.new")
        add("mode/.wh.missing")
        add("./dot/./x/../y", b"a name to clean", mode=0o600)
        add("mode/f", b"last word", uid=70000, gid=80000,
            pax={"mtime": "1500000005.25", "atime": "1500000006.5",
                 "SCHILY.xattr.user.of": "the last layer"})

    return [images.tar_of(layer) for layer in (first, second, third, fourth)]


def tree(root):
    """Every entry by path, with all its attributes. Hard links as groups."""
    entries, groups = {}, {}

    def look(path, key):
        info = os.lstat(path)
        kind = info.st_mode & 0o170000
        content = b""
        if kind == 0o100000:
            with open(path, "rb") as f:
                content = hash(f.read())
            groups.setdefault(info.st_ino, []).append(key)
        attributes = {a: os.getxattr(path, a, follow_symlinks=False)
                      for a in os.listxattr(path, follow_symlinks=False)
                      if not a.startswith(("trusted.overlay", "user.umoci", "user.rootlesscontainers"))}
        entries[key] = {
            "mode": oct(info.st_mode), "owner": (info.st_uid, info.st_gid),
            "device": (os.major(info.st_rdev), os.minor(info.st_rdev)), "mtime": info.st_mtime_ns,
            "size": info.st_size if kind == 0o100000 else 0, "content": content,
            "link": os.readlink(path) if kind == 0o120000 else "",
            "names": info.st_nlink if kind != 0o040000 else 0,
            "xattrs": sorted(attributes.items())}

    for base, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(base, name)
            look(path, os.path.relpath(path, root))
    for names in groups.values():
        for name in names:
            entries[name]["group"] = sorted(names)
    return entries


def differences(ours, theirs, but=()):
    lines = []
    for key in sorted(set(ours) | set(theirs)):
        a, b = ours.get(key), theirs.get(key)
        if a is None or b is None:
            lines.append("%s: only in %s" % (key, "ours" if b is None else "theirs"))
            continue
        # Folders without an entry keep the time they had below with us; containerd
        # leaves them the time of the unpacking.
        skip = set(but) | ({"mtime"} if b["mtime"] > BEGAN and a["mode"].startswith("0o4") else set())
        lines += ["%s: %s %r, theirs %r" % (key, what, a[what], b.get(what)) for what in a
                  if a[what] != b.get(what) and what not in skip]
    return lines


class Snapshot:
    """A mounted snapshot on top of a committed one (an unleased view may vanish)."""

    def __init__(self, daemon, top, snapshotter="overlayfs"):
        self.daemon, self.top, self.snapshotter = daemon, top, snapshotter
        self.key = "look-" + top[-12:]
        self.path = proc.temp_dir()

    def ctr(self, *args, **kwargs):
        return self.daemon.ctr("snapshots", "--snapshotter", self.snapshotter, *args, **kwargs)

    def __enter__(self):
        self.ctr("prepare", self.key, self.top, check=True)
        commands = self.ctr("mounts", self.path, self.key, check=True).out.strip()
        proc.run(["sh", "-ec", commands], check=True)
        return self.path

    def __exit__(self, *exc):
        for where in proc.mounts_below(self.path):
            proc.run(["umount", where], check=True)
        os.rmdir(self.path)
        self.ctr("rm", self.key, check=True)


def top_of(layout, tag):
    """The chain id of an image's last layer."""
    import hashlib
    entry = [m for m in layout.manifests
             if m["annotations"]["org.opencontainers.image.ref.name"] == tag][0]

    def blob(digest):
        with open(os.path.join(layout.path, "blobs", "sha256", digest[7:])) as f:
            return json.load(f)

    config = blob(blob(entry["digest"])["config"]["digest"])
    chain = ""
    for diff in config["rootfs"]["diff_ids"]:
        chain = diff if not chain else "sha256:" + hashlib.sha256(
            (chain + " " + diff).encode()).hexdigest()
    return chain


def setUpModule():
    global folder, layout, registry, ours, pulled, theirs, trees
    folder = proc.temp_dir()
    layout = images.Layout(os.path.join(folder, "layout"))
    files = os.path.join(folder, "files")
    os.makedirs(files)
    make_files(files)
    every = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--sort=name"]
    for tag, tar in (
            ("gnutar-pax", archive(["tar", "-c", "--format=posix"] + every + ["."], files)),
            ("gnutar-sparse", archive(["tar", "-c", "-S", "--format=posix"] + every + ["a", "c"],
                                      files)),
            ("gnutar-gnu", archive(["tar", "-c", "--format=gnu", "--numeric-owner", "."], files)),
            ("bsdtar-pax", archive(["bsdtar", "-cf", "-", "--format", "pax", "--no-read-sparse",
                                    "--numeric-owner", "."], files)),
            ("bsdtar-sparse", archive(["bsdtar", "-cf", "-", "--format", "pax", "a"], files)),
            ("bsdtar-gnutar", archive(["bsdtar", "-cf", "-", "--format", "gnutar",
                                       "--no-read-sparse", "."], files)),
            ("python-pax", python_tar(files, tarfile.PAX_FORMAT)),
            ("python-gnu", python_tar(files, tarfile.GNU_FORMAT))):
        layout.image(tag, [tar])
    layout.image("history", history())
    layout.image("history-zstd", history(), compression="zstd")
    layout.image("linked", [linked_capability()])
    registry = registries.Registry().start()
    for entry in layout.manifests:
        tag = entry["annotations"]["org.opencontainers.image.ref.name"]
        layout.push(tag, registry.host + "/" + tag + ":1")
    ours, pulled = suite.Suite().start(), suite.Suite().start()
    theirs = suite.Containerd().start()


def tearDownModule():
    for each in (ours, pulled, theirs, registry):
        each.stop()
    shutil.rmtree(folder)


class Trees(unittest.TestCase):
    maxDiff = None

    def compare(self, tag, umoci=True, but=(), image=None, layout=None):
        layout = layout or globals()["layout"]
        image = image or registry.host + "/" + tag + ":1"
        self.assertEqual(0, pulled.cli("pull", "-q", image).code)  # Layers in parallel.
        for daemon in (ours, theirs):  # Diff.Apply, each on its parent.
            done = daemon.ctr("images", "pull", "--plain-http", image)
            self.assertEqual(0, done.code, repr(done))
        top = top_of(layout, tag)
        with Snapshot(theirs, top) as view:
            reference = tree(view)
        self.assertGreater(len(reference), 5)
        for daemon, how in ((ours, "Diff.Apply"), (pulled, "pull")):
            with Snapshot(daemon, top) as view:
                self.assertEqual([], differences(tree(view), reference, but), how)
        if umoci:
            bundle = os.path.join(folder, "umoci-" + tag)
            proc.run(["umoci", "unpack", "--image", layout.path + ":" + tag, bundle], check=True)
            self.assertEqual([], differences(tree(os.path.join(bundle, "rootfs")), reference,
                                             but), "umoci")
            shutil.rmtree(bundle)
        return reference

    def test_tools(self):
        for tag in ("gnutar-pax", "gnutar-gnu", "gnutar-sparse", "bsdtar-pax", "bsdtar-sparse",
                    "bsdtar-gnutar", "python-pax", "python-gnu"):
            with self.subTest(tag):
                self.compare(tag)

    def test_history(self):
        self.compare("history-zstd", umoci=False)
        reference = self.compare("history", umoci=False)
        bundle = os.path.join(folder, "umoci-history")
        proc.run(["umoci", "unpack", "--image", layout.path + ":history", bundle], check=True)
        found = differences(tree(os.path.join(bundle, "rootfs")), reference)
        # Where a folder has no entry and what it was named by is hidden, containerd
        # and we still give it the hidden one's owner and mode.
        self.assertEqual([], [d for d in found if not d.startswith("opaque/sub:")], "umoci")

    def test_images(self):
        host, shared = common.image_registry().host, common.image_layout()
        self.compare("busybox", image=host + "/busybox:latest", layout=shared)
        # What umoci makes of it is test_main_job's to compare.
        self.compare("debian", image=host + "/debian:12", layout=shared, umoci=False)

    def test_capability_survives_a_hard_link(self):
        """containerd's chown of the second name strips it."""
        pulled.cli("pull", "-q", registry.host + "/linked:1", check=True)
        with Snapshot(pulled, top_of(layout, "linked")) as view:
            for name in ("one", "two"):
                self.assertEqual(CAP_NET_RAW,
                                 os.getxattr(os.path.join(view, name), "security.capability"))

    def test_holes_stay(self):
        """containerd writes them out; we do not."""
        image = registry.host + "/gnutar-sparse:1"
        pulled.cli("pull", "-q", image, check=True)
        with Snapshot(pulled, top_of(layout, "gnutar-sparse")) as view:
            info = os.stat(os.path.join(view, "a/sparse"))
            self.assertEqual(9 << 20, info.st_size)
            self.assertLess(info.st_blocks * 512, 64 << 10)


def change(root):
    """What a container does to its root file system."""
    def path(name):
        return os.path.join(root, name)

    os.remove(path("opaque/before"))
    shutil.rmtree(path("again"))
    os.makedirs(path("again/sub"))
    os.chmod(path("var"), 0o700)
    os.chown(path("var"), 44, 45)
    with open(path("mode/f"), "ab") as f:
        f.write(b" and more")
    os.rename(path("opaque/after"), path("opaque/renamed"))
    os.link(path("etc/conf"), path("etc/second"))
    os.symlink("conf", path("etc/link"))
    os.mknod(path("etc/null"), 0o20666, os.makedev(1, 3))
    os.mkfifo(path("etc/fifo"))
    os.makedirs(path("new/" + DEEP))
    with open(path("new/" + LONG), "wb") as f:
        f.write(bytes(range(256)) * 400)
    os.chown(path("new/" + LONG), 3000000, 1)
    with open(path("new/caps"), "wb") as f:
        f.write(b"x")
    os.setxattr(path("new/caps"), "security.capability", CAP_NET_RAW)
    os.remove(path("to-dir/new"))
    os.rmdir(path("to-dir"))
    with open(path("to-dir"), "wb") as f:
        f.write(b"a file again")
    os.remove(path("to-file"))
    os.mkdir(path("to-file"))
    for base, folders, files in os.walk(root):
        for name in folders + files:
            os.utime(os.path.join(base, name), (1600000000, 1600000000), follow_symlinks=False)


class Diffs(unittest.TestCase):
    maxDiff = None

    def diff(self, daemon, left, right, *args):
        out = os.path.join(folder, "diff")
        done = subprocess.run(["sh", "-c", 'exec "$@" >' + out, "sh", "ctr", "--address",
                               daemon.address, "snapshots", "diff"] + list(args) + [left, right],
                              capture_output=True, text=True)
        self.assertEqual(0, done.returncode, done.stderr)
        with open(out, "rb") as f:
            return f.read()

    def unpacked(self, tag, layers):
        """The tree of layers, made by Debian's containerd."""
        layout.image(tag, layers)
        image = registry.host + "/" + tag + ":1"
        layout.push(tag, image)
        theirs.ctr("images", "pull", "--plain-http", image, check=True)
        with Snapshot(theirs, top_of(layout, tag)) as view:
            return tree(view)

    def test_same_tree_as_containerd_makes(self):
        layers = history()
        layout.image("below", layers)
        layout.push("below", registry.host + "/below:1")
        top = top_of(layout, "below")
        made = []
        for daemon in (ours, theirs):
            daemon.ctr("images", "pull", "--plain-http", registry.host + "/below:1", check=True)
            snapshot = Snapshot(daemon, top)
            with snapshot as root:
                change(root)
                actual = tree(root)
                kind = "application/vnd.oci.image.layer.v1.tar"
                packed = self.diff(daemon, top, snapshot.key)
                plain = self.diff(daemon, top, snapshot.key, "--media-type", kind)
                if daemon is ours:
                    again = self.diff(daemon, top, snapshot.key, "--media-type", kind)
                    self.assertEqual(plain, again, "the same bytes every time")
                    # containerd 1.6 gives whiteouts the time of the day.
                    self.assertEqual(plain, gzip.decompress(packed))
            made.append((actual, plain))
        names = []
        for _, plain in made:
            with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
                names.append({(m.name, m.type, m.linkname, m.mode, m.uid, m.gid, m.size)
                              for m in tar if "/.wh." not in "/" + m.name})
        self.assertEqual(names[1], names[0])
        results = [self.unpacked("diff-%d" % i, layers + [plain])
                   for i, (_, plain) in enumerate(made)]
        self.assertEqual([], differences(results[0], results[1], ("mtime",)))
        # containerd's layer (Go's archive/tar, no entries for what is unchanged), by others.
        name = registry.host + "/diff-1:1"
        pulled.cli("pull", "-q", name, check=True)
        ours.ctr("images", "pull", "--plain-http", name, check=True)
        for daemon, how in ((ours, "Diff.Apply"), (pulled, "pull")):
            with Snapshot(daemon, top_of(layout, "diff-1")) as view:
                self.assertEqual([], differences(tree(view), results[1]), how)
        bundle = os.path.join(folder, "umoci-diff-1")
        proc.run(["umoci", "unpack", "--image", layout.path + ":diff-1", bundle], check=True)
        found = differences(tree(os.path.join(bundle, "rootfs")), results[1])
        self.assertEqual([], [d for d in found if not d.startswith("opaque/sub:")], "umoci")
        # Of xattrs only capabilities are packed, as containerd does it.
        self.assertEqual([], [d for d in differences(results[0], made[0][0], ("mtime",))
                              if not d.startswith("mode/f: xattrs")])


class Privileges(unittest.TestCase):
    """What the snapshotter process cannot do, and less its threads while they unpack. (The
    whole list of the threads' calls: ConfinedWorkers in apply_test.cc.)"""

    def test_capabilities_and_network(self):
        pid = ours.service_pid("snapshotter")
        with open("/proc/%d/status" % pid) as f:
            status = dict(line.split(":\t", 1) for line in f.read().splitlines() if ":\t" in line)
        # chown, dac_override, dac_read_search, fowner, fsetid, setgid, setuid, sys_admin,
        # mknod, setfcap: no net_admin, net_raw, sys_ptrace, sys_module, sys_boot, kill ...
        allowed = sum(1 << n for n in (0, 1, 2, 3, 4, 6, 7, 21, 27, 31))
        for kind in ("CapEff", "CapPrm", "CapBnd"):
            self.assertEqual(0, int(status[kind], 16) & ~allowed, kind)
        for kind in ("CapInh", "CapAmb"):
            self.assertEqual(0, int(status[kind], 16), kind)
        self.assertEqual("1", status["NoNewPrivs"].strip())
        self.assertNotEqual(os.readlink("/proc/self/ns/net"), os.readlink("/proc/%d/ns/net" % pid))
        with open("/proc/%d/net/dev" % pid) as f:
            devices = {line.split(":")[0].strip() for line in f.readlines()[2:]}
        self.assertLessEqual(devices - {"lo"}, {"sit0", "tunl0", "ip6tnl0", "gre0", "gretap0",
                                                "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"})
        with open("/proc/%d/net/route" % pid) as f:
            self.assertEqual([], f.readlines()[1:], "no routes")

    def workers(self):
        """Of an unpack under way: thread id -> its capabilities."""
        pid, found = pulled.service_pid("snapshotter"), {}
        for tid in os.listdir("/proc/%d/task" % pid):
            try:
                with open("/proc/%d/task/%s/status" % (pid, tid)) as f:
                    status = dict(line.split(":\t", 1) for line in f.read().splitlines()
                                  if ":\t" in line)
            except OSError:
                continue
            if status["Seccomp"].strip() == "2":
                found[int(tid)] = int(status["CapEff"], 16)
        return found

    def test_workers_in_a_running_pull(self):
        """The registry stops in mid-layer; the unpacking threads are then made to
        try what an intruder would."""
        data = os.urandom(8 << 20)
        layout.image("held", [images.tar_of(lambda add: add("data", data))])
        layer = next(digest for digest, size in self.blobs("held") if size > 4 << 20)
        begun, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)
        held = fileregistry.FileRegistry().load(layout, "held", {"held"})

        def on_sent(digest, _):
            if digest == layer:
                begun.set()
                go_on.wait(120)

        held.on_sent = on_sent
        with held:
            out = []
            pulling = threading.Thread(target=lambda: out.append(
                pulled.cli("pull", "-q", held.host + "/held:held", timeout=180)))
            pulling.start()
            self.assertTrue(begun.wait(60))
            proc.wait_for(lambda: len(self.workers()) == 3, "three confined threads", 30)
            workers = self.workers()
            none = [tid for tid, capabilities in workers.items() if capabilities == 0]
            self.assertEqual(1, len(none), "the one that inflates has no capability")
            # chown, fowner, fsetid.
            filling = [tid for tid, capabilities in workers.items()
                       if capabilities == sum(1 << n for n in (0, 3, 4))]
            self.assertEqual(1, len(filling), "the one that fills files has three")
            # chown, dac_override, fowner, fsetid, mknod, setfcap; sys_admin for trusted.*.
            allowed = sum(1 << n for n in (0, 1, 3, 4, 21, 27, 31))
            for tid, capabilities in workers.items():
                self.assertEqual(0, capabilities & ~allowed)
                self.attempt(tid, may_open=tid not in none + filling)
            go_on.set()
            pulling.join()
        self.assertEqual(0, out[0].code, out[0])
        with Snapshot(pulled, top_of(layout, "held")) as view:
            with open(os.path.join(view, "data"), "rb") as f:
                self.assertTrue(f.read() == data, "what was unpacked meanwhile")

    def blobs(self, tag):
        entry = [m for m in layout.manifests
                 if m["annotations"]["org.opencontainers.image.ref.name"] == tag][0]
        with open(os.path.join(layout.path, "blobs", "sha256", entry["digest"][7:])) as f:
            return [(each["digest"], each["size"]) for each in json.load(f)["layers"]]

    def attempt(self, tid, may_open):
        made = {}
        with tracee.Tracee(tid) as thread:
            def call(name, number, *args):
                made[name] = thread.call(number, *args)

            call("open", tracee.OPEN, b"/etc/hostname", os.O_RDONLY, 0)
            if made["open"] >= 0:
                thread.call(tracee.CLOSE, made["open"])
            # Where a call would be let through, the answer would be another than EPERM.
            call("socket", tracee.SOCKET, 2, 1, 0)
            call("connect", tracee.CONNECT, -1, 0, 0)
            call("execve", tracee.EXECVE, b"/nonexistent/program", 0, 0)
            call("kill", tracee.KILL, os.getpid(), 0)
            call("ptrace", tracee.PTRACE, 0x4206, os.getpid(), 0, 0)
            call("mount", tracee.MOUNT, b"none", b"/nonexistent", b"tmpfs", 0, 0)
            call("umount", tracee.UMOUNT, b"/nonexistent", 0)
            call("unshare", tracee.UNSHARE, 0x00020000)
            call("setns", tracee.SETNS, -1, 0)
            call("chroot", tracee.CHROOT, b"/nonexistent")
            call("setuid", tracee.SETUID, 1)
            call("bpf", tracee.BPF, 0, 0, 0)
            call("open_by_handle_at", tracee.OPEN_BY_HANDLE_AT, -1, 0, 0)
            call("rename", tracee.RENAME, b"/nonexistent/a", b"/nonexistent/b")
        opened = made.pop("open")
        if may_open:
            self.assertGreaterEqual(opened, 0)
        else:
            self.assertEqual(-1, opened, "open")
        self.assertEqual({}, {name: answer for name, answer in made.items() if answer != -1})
