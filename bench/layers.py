"""Unpacking, removing, committing and measuring layers, beside containerd.

The blobs are there before the clock starts: nothing but the unpacking is in
the times. Both sides are driven by Debian's ctr, one layer after another as it
does; the pull of `--only pull` unpacks layers at once.

Each round has a fresh folder, kept to the end: on ext4 a tree that is written
within minutes of a large removal takes many times as long.
"""

import contextlib
import glob
import os
import shutil
import subprocess
import time

from bench import measure
from tests.harness import images, proc

FILES = 2000  # Of the container whose changes are committed.
IMAGES = ("one-layer-gzip", "one-layer-zstd", "six-layers-gzip", "six-layers-zstd")
# usage, commit: of a container's changes. remove: the image, by `--sync`, which
# answers when its files are gone. chain: the image's snapshots, one by one from
# the top, by a client of our own; the answers do not wait for the disk.
CHAIN = "chain"
SMALL = ("usage", "commit", "remove", CHAIN)
ROWS = IMAGES + SMALL
USAGES = 5  # A round.


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


def _chain(side):
    """The snapshots there are, each before its parent."""
    lines = [line.split() for line in _do(side, "ls").splitlines()[1:]]
    parents = {line[0]: line[1] if len(line) == 3 else "" for line in lines}
    tops = set(parents) - set(parents.values())
    assert len(tops) == 1, parents
    chain = list(tops)
    while parents[chain[-1]]:
        chain.append(parents[chain[-1]])
    return chain


def _folders(side):
    """Where the snapshotter keeps its snapshots."""
    found = glob.glob(side.daemon.root + "/**/*%s/snapshots" % side.snapshotter, recursive=True)
    assert len(found) == 1, found
    return found[0]


def _wait_deleted(folder):
    """Until what was removed is gone from the disk too."""
    proc.wait_for(lambda: not os.listdir(folder), "removed snapshots to vanish", 60, 0.005)


class _Figures:
    """Of one kind of work: (ours, theirs) of each measure, as rows of the report."""

    def __init__(self):
        self.kept = {}

    def add(self, side, measured, value):
        self.kept.setdefault(measured, ([], []))[side].append(value)

    def report(self, report, what):
        for (name, unit), figures in self.kept.items():
            report.add("%s: %s" % (what, name), unit, *figures)


WALL, WALL_MS = ("wall", "s"), ("wall", "ms")
CPU, CPU_MS = ("CPU of daemons and client", "s"), ("CPU of daemons and client", "ms")
PEAK = ("peak memory of daemons", "MiB PSS")
GONE = ("gone from the disk", "s")
GONE_CPU = ("CPU until it is gone", "s")
# Beside containerd's GONE and GONE_CPU.
FLOOR = ("floor, two rm at once", "s")
FLOOR_CPU = ("CPU of the floor", "s")


def _measure(side, i, figures, with_peak, command, unit=1):
    """One command: its peak memory, or its times."""
    if with_peak:
        figures.add(i, PEAK, measure.PeakMemory(command, side.pids, side.env).peak)
        return
    timed = measure.Timed(command, side.pids(), side.env)
    figures.add(i, WALL if unit == 1 else WALL_MS, unit * timed.wall)
    figures.add(i, CPU if unit == 1 else CPU_MS, unit * timed.cpu)


def _measure_removal(side, i, figures, with_peak, command):
    """`command` prints its own milliseconds, or nothing: then its wall time counts."""
    folder = _folders(side)
    os.sync()
    pids = side.pids()
    before, began = measure.cpu_s(pids), time.monotonic()
    with measure.Watch(side.pids) if with_peak else contextlib.nullcontext() as watch:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        wall = time.monotonic() - began
        _wait_deleted(folder)
    if with_peak:
        figures.add(i, PEAK, watch.peak)
        return
    if done.stdout.replace(".", "").strip().isdigit():
        figures.add(i, WALL_MS, float(done.stdout))
    else:
        figures.add(i, WALL, wall)
    figures.add(i, GONE, time.monotonic() - began)
    figures.add(i, GONE_CPU, measure.cpu_s(pids) - before)


def _tree_kib(path):
    return int(subprocess.run(["du", "-s", path], check=True, capture_output=True,
                              text=True).stdout.split()[0])


def _measure_floor(side, figures):
    """What the kernel takes: the same folders deleted by two `rm` at once, no daemon."""
    folder = _folders(side)
    shares = [[], []]
    loads = [0, 0]
    sizes = {path: _tree_kib(path)
             for path in (os.path.join(folder, name) for name in os.listdir(folder))}
    for path in sorted(sizes, key=sizes.get, reverse=True):
        least = loads.index(min(loads))
        shares[least].append(path)
        loads[least] += sizes[path]
    os.sync()
    script = " & ".join("rm -rf " + " ".join(share) for share in shares) + " & wait"
    timed = measure.Timed(["sh", "-c", script], [])
    assert not os.listdir(folder), folder
    figures.add(0, FLOOR, timed.wall)
    figures.add(0, FLOOR_CPU, timed.cpu)


def _bench_unpack(report, pair, rounds, image, what):
    figures = _Figures()
    for n in range(rounds + report.with_peak):
        for i, side in enumerate(pair()):
            with side.daemon:
                _run(side, "content", "fetch", "--plain-http", image)
                os.sync()  # What was written before is nobody's work here.
                _measure(side, i, figures, n == rounds, _unpack(side, image))
    figures.report(report, what)


def _bench_small(report, pair, rounds, image, kind, rows, client):
    usage, commit, remove, chain = [_Figures() for _ in SMALL]
    for n in range(rounds + report.with_peak):
        last = n == rounds
        for i, side in enumerate(pair() if set(rows) & set(SMALL) - {CHAIN} else ()):
            with side.daemon:
                subprocess.run(_unpack(side, image), check=True, capture_output=True)
                if "usage" in rows or "commit" in rows:
                    _fill(side, "work", _chain(side)[0])
                    for _ in range(USAGES):
                        _measure(side, i, usage, last, _snapshots(side, "usage", "work"), 1000)
                    _measure(side, i, commit, last,
                             _snapshots(side, "commit", "done", "work"), 1000)
                    _do(side, "rm", "done")
                if "remove" in rows:
                    _measure_removal(side, i, remove, last,
                                     _ctr(side, "images", "rm", "--sync", image))
        if "remove" in rows and not last:
            side = pair()[0]
            with side.daemon:
                subprocess.run(_unpack(side, image), check=True, capture_output=True)
            _measure_floor(side, remove)
            for measured, beside in ((FLOOR, GONE), (FLOOR_CPU, GONE_CPU)):
                remove.add(1, measured, remove.kept[beside][1][-1])
        if CHAIN not in rows:
            continue
        for i, side in enumerate(pair()):  # Neither has just collected.
            with side.daemon:
                subprocess.run(_unpack(side, image), check=True, capture_output=True)
                keys = _chain(side)
                for key in keys:  # No collection is to come first.
                    _do(side, "label", key, "containerd.io/gc.root=bench")
                _measure_removal(side, i, chain, last, [
                    client, side.daemon.address, "bench", "remove", side.snapshotter] + keys)
    usage.report(report, kind + "usage of a snapshot of %d files" % FILES)
    commit.report(report, kind + "commit of %d files" % FILES)
    remove.report(report, kind + "remove the image")
    chain.report(report, kind + "remove its snapshots")


def bench_layers(report, reg, sides, rounds, rows, client, kind=""):
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
        if any(row in rows for row in SMALL):
            _bench_small(report, pair, rounds, reg.host + "/" + IMAGES[-1] + ":1", kind, rows,
                         client)
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
        if tag in rows or (tag == IMAGES[-1] and any(row in rows for row in SMALL)):
            proc.run(["skopeo", "copy", "-q", "--dest-tls-verify=false",
                      "oci:%s:%s" % (path, tag), "docker://%s/%s:1" % (reg.host, tag)],
                     check=True, timeout=300)
