"""Pulls and pushes, beside Debian's containerd and `skopeo copy`.

Unshaped: docker-registry on loopback. Shaped: a registry of ours that answers
each request after 50 ms and sends 100 MB/s a connection.
"""

import concurrent.futures
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import tarfile
import time

from bench import measure
from tests.harness import fileregistry, images, proc, registry

RATE = 100_000_000
LATENCY = 0.05
SMALL_IMAGES = 20
SHAPED = ("shaped-six", "shaped-one")
CASES = ("gzip", "zstd", "one", "small", "push", "fetch") + SHAPED


def _big_layer(layout, tag, size):
    """One uncompressed layer of `size` bytes that nothing compresses."""
    path = os.path.join(layout.path, "big")
    with tarfile.open(path, "w") as tar:
        for n in range(max(1, size >> 25)):
            info = tarfile.TarInfo("data/f%d" % n)
            info.size = 32 << 20
            tar.addfile(info, io.BytesIO(os.urandom(info.size)))
    with open(path, "rb") as f:
        digest = "sha256:" + hashlib.file_digest(f, "sha256").hexdigest()
    length = os.path.getsize(path)
    os.rename(path, os.path.join(layout.path, "blobs", "sha256", digest[7:]))
    layer = {"mediaType": images.GZIP[:-5], "digest": digest, "size": length}
    config = layout.blob(json.dumps({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest]}}).encode(),
        "application/vnd.oci.image.config.v1+json")
    manifest = layout.blob(json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer]}).encode(),
        "application/vnd.oci.image.manifest.v1+json")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": tag}
    layout.manifests.append(manifest)
    with open(os.path.join(layout.path, "index.json"), "w") as f:
        json.dump({"schemaVersion": 2, "manifests": layout.manifests}, f)


def _bytes_of(layout, tag):
    return sum(layer["size"] for layer in layout.layers(tag))


def _skopeo(source):
    """The bytes into a folder, nothing unpacked."""
    folder = proc.temp_dir()
    try:
        return measure.Timed(["skopeo", "copy", "-q", "--src-tls-verify=false",
                              "docker://" + source, "dir:" + os.path.join(folder, "d")], [])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _bare_tools(layout, tag):
    """What the unpacking and keeping of an image takes without any of us: its
    blobs copied and hashed, beside two layers at a time through gzip or zstd and
    tar, everything synced. Its seconds; nothing is downloaded."""
    folder = proc.temp_dir()
    blobs = [os.path.join(layout.path, "blobs", "sha256", layer["digest"][7:])
             for layer in sorted(layout.layers(tag), key=lambda layer: -layer["size"])]

    def keep():
        for blob in blobs:
            copy = shutil.copy(blob, folder)
            subprocess.run(["sha256sum", copy], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["sync", "-f", folder], check=True)

    def unpack(number, blob):
        tree = os.path.join(folder, str(number))
        os.mkdir(tree)
        with open(blob, "rb") as data, \
                subprocess.Popen([tag, "-dc"], stdin=data, stdout=subprocess.PIPE) as inflate:
            subprocess.run(["tar", "-xf", "-", "-C", tree], stdin=inflate.stdout, check=True)
        if inflate.returncode != 0:
            raise SystemExit("bench: %s failed" % tag)
        subprocess.run(["sync", "-f", tree], check=True)

    try:
        subprocess.run(["cat"] + blobs, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["sync", "-f", folder], check=True)
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(1) as keeper, \
                concurrent.futures.ThreadPoolExecutor(2) as pool:
            kept = keeper.submit(keep)
            list(pool.map(unpack, range(len(blobs)), blobs))
            kept.result()
        return time.monotonic() - began
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _children_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class _Many:
    """Many commands at once: wall and CPU as measure.Timed has them."""

    def __init__(self, commands, daemons, env=None):
        before = measure.cpu_s(daemons) + _children_cpu()
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(len(commands)) as pool:
            done = list(pool.map(lambda c: subprocess.run(
                c, env=env, stdin=subprocess.DEVNULL, capture_output=True), commands))
        self.wall = time.monotonic() - began
        self.cpu = measure.cpu_s(daemons) + _children_cpu() - before
        for each in done:
            if each.returncode != 0:
                raise SystemExit("bench: %r\n%s" % (each.args, each.stderr.decode()[-2000:]))


def _fetch(side, image):
    """Everything into the content store, nothing unpacked."""
    if side.ours:
        return side.client("pull", "-q", "--no-unpack", image)
    return side.client("content", "fetch", "--plain-http", image)


def _compare(report, what, rounds, sides, work, other=None, peak=True):
    """work(side) runs once in a fresh daemon and returns a Timed."""
    wall, cpu, memory, others = ([], []), ([], []), ([], []), []
    for _ in range(rounds):
        for i, side in enumerate(sides()):
            with side.daemon:
                timed = work(side)
                wall[i].append(timed.wall)
                cpu[i].append(timed.cpu)
        if other:
            others.append(other())
        print("    %s: wall %.2f %.2f, CPU %.2f %.2f%s" % (
            what, wall[0][-1], wall[1][-1], cpu[0][-1], cpu[1][-1],
            ", skopeo %.2f %.2f" % (others[-1].wall, others[-1].cpu) if other else ""),
            flush=True)
    peak = peak and report.with_peak
    if peak:
        for i, side in enumerate(sides()):
            with side.daemon:
                watch = measure.Watch(side.pids)
                with watch:
                    work(side)
                memory[i].append(watch.peak)
    skopeo = [t.wall for t in others]
    report.add(what + ": wall", "s", *wall, skopeo=skopeo)
    report.add(what + ": CPU", "s", *cpu, skopeo=[t.cpu for t in others])
    if peak:
        report.add(what + ": peak memory of daemons", "MiB PSS", *memory)
    return measure.median(wall[0])


def _unshaped(report, sides, rounds, cases, layout):
    with registry.Registry() as reg, registry.Registry() as target:
        for tag in [c for c in ("gzip", "zstd", "one") if c in cases] + \
                (["gzip"] if ("push" in cases or "fetch" in cases) and "gzip" not in cases else []):
            layout.push(tag, reg.host + "/" + tag + ":1")
        for tag, name in (("gzip", "six layers, gzip"), ("zstd", "six layers, zstd"),
                          ("one", "one large layer")):
            if tag not in cases:
                continue
            image = "%s/%s:1" % (reg.host, tag)
            _compare(report, "pull, " + name, rounds, sides,
                     lambda side, image=image: measure.Timed(side.pull(image), side.pids(),
                                                             side.env),
                     lambda image=image: _skopeo(image))
            if tag != "one":
                bare = [_bare_tools(layout, tag) for _ in range(rounds)]
                print("    bare tools (%s and tar, two at a time, and the blobs kept): %s, "
                      "median %.2f s" % (tag, " ".join("%.2f" % t for t in bare),
                                         measure.median(bare)), flush=True)
        if "fetch" in cases:
            image = reg.host + "/gzip:1"
            _compare(report, "fetch without unpacking, six layers, gzip", rounds, sides,
                     lambda side: measure.Timed(_fetch(side, image), side.pids(), side.env),
                     lambda: _skopeo(image))
        if "small" in cases:
            names = []
            for n in range(SMALL_IMAGES):
                names.append("%s/small%d:1" % (reg.host, n))
                layout.push("small%d" % n, names[-1])
            _compare(report, "pull, %d small images at once" % SMALL_IMAGES, rounds, sides,
                     lambda side: _Many([side.pull(name) for name in names], side.pids(),
                                        side.env))
        if "push" in cases:
            source, count, registrys = reg.host + "/gzip:1", [0], []

            def watched(side, command):
                before = measure.cpu_s([target.process.pid])
                timed = measure.Timed(command, side.pids(), side.env)
                registrys.append(measure.cpu_s([target.process.pid]) - before)
                return timed

            def push(side):
                subprocess.run(side.pull(source), env=side.env, check=True, capture_output=True)
                count[0] += 1
                copy = "%s/copy%d:1" % (target.host, count[0])
                if side.ours:
                    return watched(side, side.client("push", "-q", source, copy))
                subprocess.run(side.client("images", "tag", source, copy), check=True,
                               capture_output=True)
                return watched(side, side.client("images", "push", "--plain-http", copy))

            def skopeo_push():
                count[0] += 1
                return measure.Timed(["skopeo", "copy", "-q", "--dest-tls-verify=false",
                                      "oci:%s:gzip" % layout.path,
                                      "docker://%s/copy%d:1" % (target.host, count[0])], [])

            _compare(report, "push, six layers, gzip", rounds, sides, push, skopeo_push,
                     peak=False)
            print("    the registry itself used %.2f s of CPU for each: on %d cores no push "
                  "takes less than %.2f s" % (
                      measure.median(registrys), os.cpu_count(),
                      measure.median(registrys) / os.cpu_count()), flush=True)


def _shaped(report, sides, rounds, cases, layout):
    with fileregistry.FileRegistry(latency=LATENCY, rate=RATE) as reg:
        reg.load(layout, "shaped")
        for case, tag, name in (("shaped-six", "gzip", "six layers, gzip"),
                                ("shaped-one", "one", "one large layer")):
            if case not in cases:
                continue
            image = "%s/shaped:%s" % (reg.host, tag)
            wall = _compare(report, "shaped pull, " + name, rounds, sides,
                            lambda side: measure.Timed(side.pull(image), side.pids(), side.env),
                            lambda: _skopeo(image), peak=False)
            size = _bytes_of(layout, tag)
            print("    %.0f MB over one connection %.2f s, over six %.2f s; ours: %.2f x, %.2f x" %
                  (size / 1e6, size / RATE, size / RATE / 6, wall / (size / RATE),
                   wall / (size / RATE / 6)), flush=True)


def _make_images(layout, cases, tree_layers, size_mib, layer_mib):
    wanted = set()
    if set(cases) & {"gzip", "push", "fetch", "shaped-six"}:
        wanted.add("gzip")
    if "zstd" in cases:
        wanted.add("zstd")
    missing = [tag for tag in sorted(wanted) if not layout.has(tag)]
    if missing:
        layers = tree_layers(size_mib, 6)
        for tag in missing:
            layout.image(tag, layers, compression=tag)
    if set(cases) & {"one", "shaped-one"} and not layout.has("one"):
        _big_layer(layout, "one", layer_mib << 20)
    if "small" in cases and not layout.has("small0"):
        base = images.tar_of(lambda add: add("base", os.urandom(2 << 20)))
        for n in range(SMALL_IMAGES):
            own = images.tar_of(lambda add: add("own", os.urandom(1 << 20)))
            layout.image("small%d" % n, [base, own])


def bench_registries(report, sides, rounds, cases, tree_layers, size_mib, layer_mib, keep=None):
    """With `keep`, the images are made there once and used again; without
    rounds nothing else is done."""
    unknown = set(cases) - set(CASES)
    if unknown:
        raise SystemExit("bench: no such case: %s" % ", ".join(sorted(unknown)))
    folder = keep or proc.temp_dir()
    try:
        layout = images.Layout(os.path.join(folder, "layout"))
        _make_images(layout, cases, tree_layers, size_mib, layer_mib)
        if not rounds:
            return
        if set(cases) - set(SHAPED):
            _unshaped(report, sides, rounds, cases, layout)
        if set(cases) & set(SHAPED):
            _shaped(report, sides, rounds, cases, layout)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
