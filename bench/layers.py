"""Unpacking, removing, committing and measuring layers, beside containerd.

The blobs are there before the clock starts: nothing but the unpacking is in
the times. Both sides are driven by Debian's ctr.
"""

import os
import subprocess
import time

from bench import measure
from tests.harness import images, proc

FILES = 2000  # Of the container whose changes are committed.


def _ctr(side, *args):
    return ["ctr", "--address", side.daemon.address, "-n", "bench"] + list(args)


def _run(side, *args):
    return subprocess.run(_ctr(side, *args), check=True, capture_output=True, text=True).stdout


def _fetch(side, image):
    _run(side, "content", "fetch", "--plain-http", image)


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


def bench_layers(report, reg, sides, rounds, tags, kind=""):
    """`kind` says in the report which snapshotter of ours it was."""
    for tag in tags:
        image = reg.host + "/" + tag + ":1"
        wall, cpu, peak = ([], []), ([], []), ([], [])
        for n in range(rounds + 1):
            for i, side in enumerate(sides()):
                with side.daemon:
                    _fetch(side, image)
                    if n == rounds:
                        peak[i].append(measure.PeakMemory(_unpack(side, image), side.pids,
                                                          side.env).peak)
                        continue
                    timed = measure.Timed(_unpack(side, image), side.pids(), side.env)
                    wall[i].append(timed.wall)
                    cpu[i].append(timed.cpu)
        report.add(kind + "unpack, %s: wall" % tag, "s", *wall)
        report.add(kind + "unpack, %s: CPU of daemons and client" % tag, "s", *cpu)
        report.add(kind + "unpack, %s: peak memory of daemons" % tag, "MiB PSS", *peak)
    commit, usage, remove, gone = ([], []), ([], []), ([], []), ([], [])
    image = reg.host + "/" + tags[-1] + ":1"
    for _ in range(rounds):
        for i, side in enumerate(sides()):
            with side.daemon:
                subprocess.run(_unpack(side, image), check=True, capture_output=True)
                _fill(side, "work", _top(side))
                for _ in range(5):
                    usage[i].append(1000 * measure.Timed(
                        _snapshots(side, "usage", "work"), [], side.env).wall)
                commit[i].append(1000 * measure.Timed(
                    _snapshots(side, "commit", "done", "work"), [], side.env).wall)
                _do(side, "rm", "done")
                began = time.monotonic()
                remove[i].append(measure.Timed(_ctr(side, "images", "rm", "--sync", image), [],
                                               side.env).wall)
                _wait_deleted(side)
                gone[i].append(time.monotonic() - began)
    report.add(kind + "usage of a snapshot of %d files: wall" % FILES, "ms", *usage)
    report.add(kind + "commit of %d files: wall" % FILES, "ms", *commit)
    report.add(kind + "remove an image, %s: wall" % tags[-1], "s", *remove)
    report.add(kind + "remove an image, %s: gone from the disk" % tags[-1], "s", *gone)


def push(layout, reg, layers, one):
    """The images: `one` layer in both encodings, and `layers` in both."""
    tags = []
    for encoding in ("gzip", "zstd"):
        for name, content in (("one-layer", [one]), ("six-layers", layers)):
            tag = name + "-" + encoding
            layout.image(tag, content, compression=encoding)
            layout.push(tag, reg.host + "/" + tag + ":1")
            tags.append(tag)
    return tags
