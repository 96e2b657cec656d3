"""Side by side with Debian's containerd, alternating; prints median ratios.

Both sides use the same registry, the same OCI runtime and fresh folders. The
machine is noisy: the ratio (ours / containerd's) is what counts; below 1 we
are faster or smaller.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

from bench import content as content_bench
from bench import journal
from bench import layers as layers_bench
from bench import measure
from bench import records as records_bench
from bench import registries as registries_bench
from bench import shims as shims_bench
from bench import tasks as tasks_bench
from tests.harness import images, proc, registry, suite

NS = "bench"


class Side:
    def __init__(self, daemon):
        self.daemon = daemon
        self.ours = isinstance(daemon, suite.Suite)
        self.snapshotter = "overlayfs"
        self.env = dict(os.environ, BULKHEAD_ADDRESS=daemon.address, CONTAINERD_NAMESPACE=NS)

    def pids(self):
        return measure.descendants(self.daemon.process.pid)

    def client(self, *args):
        if self.ours:
            return [os.path.join(proc.BIN, "bulkhead")] + list(args)
        return ["ctr", "--address", self.daemon.address, "-n", NS] + list(args)

    def pull(self, image):
        return (self.client("pull", "-q", image) if self.ours else
                self.client("images", "pull", "--plain-http", image))

    def run(self, image, name, *command):
        return (self.client("run", "--rm", "--name", name, image, *command) if self.ours else
                self.client("run", "--rm", image, name, *command))

    def run_detached(self, image, name, *command):
        return (self.client("run", "-d", "--name", name, image, *command) if self.ours else
                self.client("run", "-d", image, name, *command))

    def exec(self, name, number, *command):
        return (self.client("exec", name, *command) if self.ours else
                self.client("tasks", "exec", "--exec-id", "e%d" % number, name, *command))

    def shims(self):
        marker = "containerd-shim-"
        return [pid for pid, line in proc.pids_naming(self.daemon.address)
                if marker in line.split(" ")[0]]


def sides():
    return Side(suite.Suite()), Side(suite.Containerd())


def erofs_sides():
    """Our erofs beside containerd's overlayfs: 1.6 has nothing like it."""
    ours = Side(suite.Suite('[snapshotter]\nsnapshotters = ["erofs"]\n'))
    ours.snapshotter = "erofs"
    return ours, Side(suite.Containerd())


def tree_layers(total_mib, count):
    """Layers of real files of this host, about total_mib in all."""
    budget = total_mib * (1 << 20) / count
    layers, files, used = [], [], 0
    for base, _, names in os.walk("/usr"):
        for name in sorted(names):
            path = os.path.join(base, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            size = os.path.getsize(path)
            if size > 32 << 20:
                continue
            files.append(path)
            used += size
            if used >= budget:
                chosen = files

                def build(add, chosen=chosen):
                    for each in chosen:
                        add(each.lstrip("/"), source=each)

                layers.append(images.tar_of(build))
                files, used = [], 0
                if len(layers) == count:
                    return layers
    return layers


class Report:
    def __init__(self):
        self.rows = []
        self.with_peak = True

    def add(self, what, unit, ours, theirs, floor=None, skopeo=None):
        row = {"what": what, "unit": unit, "ours": measure.median(ours),
               "containerd": measure.median(theirs), "rounds": len(ours)}
        row["ratio"] = row["ours"] / row["containerd"] if row["containerd"] else 0
        if floor:
            row["floor"] = measure.median(floor)
        note = "   floor %.3f" % row["floor"] if floor else ""
        if skopeo:
            row["skopeo"] = measure.median(skopeo)
            note += "   skopeo %.3f" % row["skopeo"]
        self.rows.append(row)
        print("%-44s %10.3f %10.3f %7.2fx%s" % (
            what + ", " + unit, row["ours"], row["containerd"], row["ratio"], note), flush=True)


def bench_pull(report, reg, rounds, tag):
    image = reg.host + "/" + tag + ":1"
    wall, cpu, peak = ([], []), ([], []), ([], [])
    for _ in range(rounds):
        for i, side in enumerate(sides()):
            with side.daemon:
                timed = measure.Timed(side.pull(image), side.pids(), side.env)
                wall[i].append(timed.wall)
                cpu[i].append(timed.cpu)
    for i, side in enumerate(sides()):
        with side.daemon:
            peak[i].append(measure.PeakMemory(side.pull(image), side.pids, side.env).peak)
    report.add("cold pull, %s: wall" % tag, "s", *wall)
    report.add("cold pull, %s: CPU of daemons and client" % tag, "s", *cpu)
    report.add("cold pull, %s: peak memory of daemons" % tag, "MiB PSS", *peak)


def bare_runc(reg, rounds):
    """The floor: runc run on an unpacked busybox, by itself."""
    folder = proc.temp_dir()
    times = []
    try:
        layout = images.Layout(os.path.join(folder, "layout"))
        images.busybox(layout)
        bundle = os.path.join(folder, "bundle")
        proc.run(["umoci", "unpack", "--image", layout.path + ":busybox", bundle], check=True)
        config = os.path.join(bundle, "config.json")
        with open(config) as f:
            spec = json.load(f)
        spec["process"]["args"], spec["process"]["terminal"] = ["true"], False
        with open(config, "w") as f:
            json.dump(spec, f)
        for i in range(rounds):
            began = time.monotonic()
            subprocess.run(["runc", "--root", folder + "/runc", "run", "-b", bundle,
                            "bh-floor-%d-%d" % (os.getpid(), i)], check=True,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            times.append((time.monotonic() - began) * 1000)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return times


def bench_run(report, reg, rounds):
    busybox = reg.host + "/busybox:1"
    ours, theirs = sides()
    with ours.daemon, theirs.daemon:
        time.sleep(2)
        idle = [[measure.pss_mib(s.pids())] for s in (ours, theirs)]
        report.add("idle suite, before any work", "MiB PSS", *idle)
        for side in (ours, theirs):
            subprocess.run(side.pull(busybox), env=side.env, check=True, capture_output=True)
        version, run, exec_ms = ([], []), ([], []), ([], [])
        for n in range(rounds):
            for i, side in enumerate((ours, theirs)):
                run[i].append(1000 * measure.Timed(
                    side.run(busybox, "r%d" % n, "true"), [], side.env).wall)
        report.add("run --rm, own client, runc: wall", "ms", *run, floor=bare_runc(reg, rounds))
        run = ([], [])
        for n in range(rounds):
            for i, side in enumerate((ours, theirs)):
                args = ["ctr", "--address", side.daemon.address, "-n", NS, "run", "--rm"]
                if side.ours:
                    args += ["--runtime", "io.containerd.bulkhead.v1"]
                run[i].append(1000 * measure.Timed(
                    args + [busybox, "c%d" % n, "true"], [], side.env).wall)
        report.add("run --rm, ctr on both, runc: wall", "ms", *run)
        for side in (ours, theirs):
            subprocess.run(side.run_detached(busybox, "keep", "sleep", "1000"), env=side.env,
                           check=True, capture_output=True)
        for n in range(rounds):
            for i, side in enumerate((ours, theirs)):
                exec_ms[i].append(1000 * measure.Timed(
                    side.exec("keep", n, "true"), [], side.env).wall)
        report.add("exec, own client: wall", "ms", *exec_ms)
        for n in range(rounds):
            for i, side in enumerate((ours, theirs)):
                version[i].append(1000 * measure.Timed(
                    ["ctr", "--address", side.daemon.address, "version"], [], side.env).wall)
        report.add("ctr version: wall", "ms", *version)
        shim = [[measure.pss_mib(s.shims()) / max(1, len(s.shims()))] for s in (ours, theirs)]
        report.add("shim, one container", "MiB PSS each", *shim)
        for side in (ours, theirs):
            for n in range(9):
                subprocess.run(side.run_detached(busybox, "k%d" % n, "sleep", "1000"),
                               env=side.env, check=True, capture_output=True)
        shim = [[measure.pss_mib(s.shims()) / max(1, len(s.shims()))] for s in (ours, theirs)]
        report.add("shim, ten containers", "MiB PSS each", *shim)
        idle = [[measure.pss_mib(set(s.pids()) - set(s.shims()))] for s in (ours, theirs)]
        report.add("suite, after all this", "MiB PSS", *idle)


def main():
    parser = argparse.ArgumentParser(prog="sudo ./dev bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="of each small measurement")
    parser.add_argument("--pull-rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=400, metavar="MIB",
                        help="of the pulled image, unpacked")
    parser.add_argument("--only", choices=("pull", "run", "layers", "overlayfs", "erofs",
                                           "registries", "shims", "tasks", "records",
                                           "collect", "content"),
                        help="layers: overlayfs and erofs")
    parser.add_argument("--rows", default=",".join(layers_bench.ROWS),
                        help="of the layers [%(default)s]")
    parser.add_argument("--cases", default=",".join(registries_bench.CASES),
                        help="of the registries [%(default)s]")
    parser.add_argument("--tasks", default=",".join(tasks_bench.SLICES),
                        help="slices of the tasks [%(default)s]")
    parser.add_argument("--latency-tool", help="//services/gateway:latency_tool, built before")
    parser.add_argument("--records-client", help="//bench:records_client, built before")
    parser.add_argument("--images", metavar="FOLDER",
                        help="make the images of layers and registries there once and use "
                        "them again; with --pull-rounds 0 do nothing else")
    parser.add_argument("--no-peak", action="store_true",
                        help="of layers and registries: without the rounds for peak memory")
    parser.add_argument("--layer-size", type=int, default=1024, metavar="MIB",
                        help="of the one large layer of the registries")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--journal", type=int, metavar="GIB",
                        help="on a fresh ext4 with a journal, of so many GiB, in place of /tmp")
    args = parser.parse_args()
    if args.journal and journal.INSIDE not in os.environ:
        # Outside: a Bazel server would keep that /tmp.
        layers = args.only in ("layers", "overlayfs", "erofs")
        if args.only in (None, "records", "collect") or (
                layers and layers_bench.CHAIN in args.rows and not args.records_client):
            records_bench.build()
        if args.only in (None, "content"):
            content_bench.build()
        return journal.run(args.journal)
    folder = proc.temp_dir()
    report = Report()
    report.with_peak = not args.no_peak
    try:
        layout = images.Layout(os.path.join(folder, "layout"))
        images.busybox(layout)
        with registry.Registry() as reg:
            layout.push("busybox", reg.host + "/busybox:1")
            print("%-44s %10s %10s %8s" % ("", "ours", "containerd", "ratio"))
            if args.only in (None, "layers", "overlayfs", "erofs"):
                rows = args.rows.split(",")
                for row in rows:
                    if row not in layers_bench.ROWS:
                        parser.error("--rows: there is no %r" % row)
                client = (args.records_client or records_bench.build()
                          if layers_bench.CHAIN in rows else None)
                layers_bench.push(args.images or folder, reg, tree_layers, args.size, rows)
                if args.only != "erofs" and args.pull_rounds:
                    layers_bench.bench_layers(report, reg, sides, args.pull_rounds, rows,
                                              client)
                if args.only != "overlayfs" and args.pull_rounds:
                    layers_bench.bench_layers(report, reg, erofs_sides, args.pull_rounds, rows,
                                              client, "erofs: ")
            if args.only in (None, "pull"):
                layers = tree_layers(args.size, 6)
                for tag in ("gzip", "zstd"):
                    layout.image(tag, layers, compression=tag)
                    layout.push(tag, reg.host + "/" + tag + ":1")
                del layers
                for tag in ("gzip", "zstd"):
                    bench_pull(report, reg, args.pull_rounds, tag)
            if args.only in (None, "registries"):
                registries_bench.bench_registries(report, sides, args.pull_rounds,
                                                  args.cases.split(","), tree_layers, args.size,
                                                  args.layer_size, args.images)
            if args.only in (None, "tasks"):
                tasks_bench.bench_tasks(report, sides, reg.host + "/busybox:1", args.rounds,
                                        args.tasks.split(","), args.latency_tool)
            if args.only in (None, "shims"):
                shims_bench.bench_shims(report, args.rounds)
            if args.only in (None, "records"):
                records_bench.bench_records(report, records_bench.build(), sides, 3, 3)
            if args.only in (None, "content"):
                content_bench.bench_content(report, content_bench.build(), sides,
                                            args.pull_rounds, 1024)
            if args.only == "collect":
                records_bench.bench_collect(report, records_bench.build(), sides)
            if args.only in (None, "run"):
                bench_run(report, reg, args.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(report.rows, f, indent=1)


if __name__ == "__main__":
    sys.exit(main())
