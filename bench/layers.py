"""Unpacking, removing, committing and measuring layers, beside containerd.

The blobs are there before the clock starts: nothing but the unpacking is in
the times. Both sides are driven by Debian's ctr, one layer after another as it
does; the pull of `--only pull` unpacks layers at once.

Each round has a fresh folder, kept to the end: on ext4 a tree that is written
within minutes of a large removal takes many times as long.
"""

import os
import shutil
import subprocess
import time

from bench import measure
from tests.harness import images, proc

FILES = 2000  # Of the container whose changes are committed.
IMAGES = ("one-layer-gzip", "one-layer-zstd", "six-layers-gzip", "six-layers-zstd")
SMALL = "small"  # Commit, usage and removal.
ROWS = IMAGES + (SMALL,)


def _ctr(side, *args):
    return ["ctr", "--address", side.daemon.address, "-n", "bench"] + list(args)


def _run(side, *args):
    return subprocess.run(_ctr(side, *args), check=True, capture_output=True, text=True).stdout


def _unpack(side, image):
    return _ctr(side, "images", "pull", "--plain-http", "--snapshotter", side.snapshotter, image)


def _snapshots(side, *args):
    return _ctr(side, "snapshots", "--snapshotter", side.snapshotter, *args)


def _do(side, *args):
    return subprocess.run(_snapshots(side, *args), check=True, capture_output=True,
                          text=True).stdout


def _fill(side, key, parent):
    """A container's writable layer with FILES files in it."""
    where = proc.temp_dir()
    _do(side, "prepare", key, parent)
    mount = _do(side, "mounts", where, key)
    subprocess.run(["sh", "-ec", mount], check=True)
    try:
        for n in range(FILES):
            folder = os.path.join(where, "made/%02d" % (n % 40))
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, "f%d" % n), "wb") as f:
                f.write(b"%d" % n * 4000)
    finally:
        subprocess.run(["umount", where], check=True)
        os.rmdir(where)


def _top(side):
    lines = [line.split() for line in _do(side, "ls").splitlines()[1:]]
    parents = {line[1] for line in lines if len(line) == 3}
    return [line[0] for line in lines if line[0] not in parents][0]


def _wait_deleted(side):
    """Until what was removed is gone from the disk too."""
    def gone():
        for base, folders, _ in os.walk(side.daemon.root):
            if os.path.basename(base) == "snapshots" and folders:
                return False
        return True

    proc.wait_for(gone, "removed snapshots to vanish", 60, 0.005)


def _bench_unpack(report, pair, rounds, image, what):
    wall, cpu, peak = ([], []), ([], []), ([], [])
    for n in range(rounds + 1):
        for i, side in enumerate(pair()):
            with side.daemon:
                _run(side, "content", "fetch", "--plain-http", image)
                os.sync()  # What was written before is nobody's work here.
                if n == rounds:
                    peak[i].append(measure.PeakMemory(_unpack(side, image), side.pids,
                                                      side.env).peak)
                    continue
                timed = measure.Timed(_unpack(side, image), side.pids(), side.env)
                wall[i].append(timed.wall)
                cpu[i].append(timed.cpu)
    report.add(what + ": wall", "s", *wall)
    report.add(what + ": CPU of daemons and client", "s", *cpu)
    report.add(what + ": peak memory of daemons", "MiB PSS", *peak)


def _bench_small(report, pair, rounds, image, kind):
    commit, usage, remove, gone = ([], []), ([], []), ([], []), ([], [])
    for _ in range(rounds):
        for i, side in enumerate(pair()):
            with side.daemon:
                subprocess.run(_unpack(side, image), check=True, capture_output=True)
                _fill(side, "work", _top(side))
                for _ in range(5):
                    usage[i].append(1000 * measure.Timed(
                        _snapshots(side, "usage", "work"), [], side.env).wall)
                commit[i].append(1000 * measure.Timed(
                    _snapshots(side, "commit", "done", "work"), [], side.env).wall)
                _do(side, "rm", "done")
                os.sync()
                began = time.monotonic()
                remove[i].append(measure.Timed(_ctr(side, "images", "rm", "--sync", image), [],
                                               side.env).wall)
                _wait_deleted(side)
                gone[i].append(time.monotonic() - began)
    report.add(kind + "usage of a snapshot of %d files: wall" % FILES, "ms", *usage)
    report.add(kind + "commit of %d files: wall" % FILES, "ms", *commit)
    report.add(kind + "remove the image: wall", "s", *remove)
    report.add(kind + "remove the image: gone from the disk", "s", *gone)


def bench_layers(report, reg, sides, rounds, rows, kind=""):
    """`kind` says in the report which snapshotter of ours it was."""
    kept = []

    def pair():
        made = sides()
        for side in made:
            side.daemon.keep = True
            kept.append(side.daemon.dir)
        return made

    try:
        for tag in IMAGES:
            if tag in rows:
                _bench_unpack(report, pair, rounds, reg.host + "/" + tag + ":1",
                              kind + "unpack, " + tag)
        if SMALL in rows:
            _bench_small(report, pair, rounds, reg.host + "/" + IMAGES[-1] + ":1", kind)
    finally:
        for folder in kept:
            shutil.rmtree(folder, ignore_errors=True)


def push(where, reg, tree_layers, size_mib, rows):
    """The images that `rows` need: one layer and six, in both encodings. The
    layout is made in the folder `where` if it is not there yet."""
    path = os.path.join(where, "layout-%d" % size_mib)
    done = os.path.join(path, "complete")
    if not os.path.exists(done):
        layout = images.Layout(path)
        one, six = tree_layers(size_mib, 1), tree_layers(size_mib, 6)
        for tag in IMAGES:
            layout.image(tag, one if tag.startswith("one") else six,
                         compression=tag.rsplit("-", 1)[1])
        open(done, "w").close()
    for tag in IMAGES:
        if tag in rows or (SMALL in rows and tag == IMAGES[-1]):
            proc.run(["skopeo", "copy", "-q", "--dest-tls-verify=false",
                      "oci:%s:%s" % (path, tag), "docker://%s/%s:1" % (reg.host, tag)],
                     check=True, timeout=300)
