"""What running containers costs: run, exec, memory, a restart; and small calls.

Each with runc and with crun on both sides. The floor is the bare OCI runtime: what
it alone needs for a container of the spec that our client makes (ADR 20).
"""

import concurrent.futures
import json
import os
import shutil
import subprocess
import time

from bench import measure
from tests.harness import images, proc
from tests.integration import common

OURS = "io.containerd.bulkhead.v1"
AT_ONCE = 8
SPARSE_PAUSE_S = 0.5


def command(side, runtime, image, name, *args, detached=False):
    """run --rm (or -d) of a side's own client with an OCI runtime."""
    if side.ours:
        flags = ["-d"] if detached else ["--rm"]
        return side.client("run", *flags, "--runtime", runtime, "--name", name, image, *args)
    flags = ["-d"] if detached else ["--rm"]
    return side.client("run", *flags, "--runc-binary", runtime, image, name, *args)


def by_ctr(side, image, name, *args):
    """The same client on both with runc, ours with our shim."""
    flags = ["--runtime", OURS] if side.ours else []
    return ["ctr", "--address", side.daemon.address, "-n", side.env["CONTAINERD_NAMESPACE"],
            "run", "--rm", *flags, image, name, *args]


def quiet(args, env):
    done = subprocess.run(args, env=env, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise SystemExit("bench: %r ended with %d\n%s" %
                         (args, done.returncode, done.stderr.decode()[-2000:]))


class Bare:
    """What the OCI runtime does by itself: runs an unpacked busybox with the spec of
    a running container of ours, and execs into that one."""

    def __init__(self, runtime, side, name):
        self.runtime, self.count = runtime, 0
        self.folder = proc.temp_dir()
        layout = images.Layout(os.path.join(self.folder, "layout"))
        images.busybox(layout)
        self.bundle = os.path.join(self.folder, "bundle")
        proc.run(["umoci", "unpack", "--image", layout.path + ":busybox", self.bundle],
                 check=True)
        self.container = side.daemon.cli("inspect", "--format", "{{.Id}}", name,
                                         ns=side.env["CONTAINERD_NAMESPACE"],
                                         check=True).out.strip()
        # The bundle's folder and the runtime's are both named after it.
        here = [d for d, _, _ in os.walk(side.daemon.state)
                if os.path.basename(d) == self.container]
        with open(next(d for d in here if "config.json" in os.listdir(d) and
                       "rootfs" in os.listdir(d)) + "/config.json") as f:
            spec = json.load(f)
        self.root = os.path.dirname(next(d for d in here if {"state.json", "status"} &
                                         set(os.listdir(d))))
        spec["process"]["args"] = ["true"]
        spec["root"]["path"] = os.path.join(self.bundle, "rootfs")
        del spec["linux"]["cgroupsPath"]
        with open(os.path.join(self.bundle, "config.json"), "w") as f:
            json.dump(spec, f)

    def run(self):
        self.count += 1
        return [self.runtime, "--root", self.folder + "/oci", "run", "-b", self.bundle,
                "bh-floor-%d-%d" % (os.getpid(), self.count)]

    def exec(self):
        return [self.runtime, "--root", self.root, "exec", self.container, "true"]

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def alternate(sides, rounds, make, pause=0.0, floor=None):
    """Milliseconds of make(side, n) on each side in turn, and of floor()."""
    times, bare = ([], []), []

    def timed(args, env=None):
        if pause:
            time.sleep(pause)
        return 1000 * measure.Timed(args, [], env).wall

    for n in range(rounds):
        for i, side in enumerate(sides):
            times[i].append(timed(make(side, n), side.env))
        if floor is not None:
            bare.append(timed(floor()))
    return times if floor is None else (*times, bare)


def at_once(side, runtime, image, tag, count):
    """Containers a second, AT_ONCE at a time."""
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda n: quiet(command(side, runtime, image, "%s%d" % (tag, n), "true"),
                                      side.env), range(count)))
    return count / (time.monotonic() - began)


def bench_speed(report, sides, image, rounds, runtime):
    for side in sides:
        quiet(command(side, runtime, image, "x" + runtime, "sleep", "1000", detached=True),
              side.env)
    bare = Bare(runtime, sides[0], "x" + runtime)
    try:
        report.add("run --rm back-to-back, %s" % runtime, "ms", *alternate(
            sides, rounds, lambda s, n: command(s, runtime, image, "b%s%d" % (runtime, n),
                                                "true"), floor=bare.run))
        if runtime == "runc":  # ctr has crun only for Debian's shim.
            report.add("run --rm by ctr on both, runc", "ms", *alternate(
                sides, rounds, lambda s, n: by_ctr(s, image, "c%d" % n, "true"), floor=bare.run))
        report.add("run --rm sparse, %s" % runtime, "ms", *alternate(
            sides, max(3, rounds // 2),
            lambda s, n: command(s, runtime, image, "s%s%d" % (runtime, n), "true"),
            pause=SPARSE_PAUSE_S, floor=bare.run))
        rates, floor = ([], []), []
        count = AT_ONCE * 4
        for n in range(3):
            for i, side in enumerate(sides):
                rates[i].append(at_once(side, runtime, image, "p%s%d-" % (runtime, n), count))
            began = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda args: quiet(args, None), [bare.run()
                                                               for _ in range(count)]))
            floor.append(count / (time.monotonic() - began))
        report.add("run --rm, %d at once, %s (more is better)" % (AT_ONCE, runtime),
                   "containers/s", *rates, floor=floor)
        report.add("exec, %s" % runtime, "ms", *alternate(
            sides, rounds, lambda s, n: s.exec("x" + runtime, n, "true"), floor=bare.exec))
        for side in sides:
            end(side, ["x" + runtime])
    finally:
        bare.close()


def end(side, names):
    def one(name):
        if side.ours:
            quiet(side.client("rm", "-f", name), side.env)
            return
        subprocess.run(side.client("tasks", "kill", "-s", "KILL", name), env=side.env,
                       capture_output=True)
        proc.wait_for(lambda: subprocess.run(side.client("tasks", "rm", name), env=side.env,
                                             capture_output=True).returncode == 0, name)
        quiet(side.client("containers", "rm", name), side.env)

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, names))


def bench_many(report, sides, image, most):
    """Memory with 1, 10, 100 containers; then the daemons restart."""
    for side in sides:
        side.names = []
    for count in (1, 10, most):
        for side in sides:
            fresh = ["k%d" % n for n in range(len(side.names), count)]
            with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda name, side=side: quiet(command(
                    side, "runc", image, name, "sleep", "1000", detached=True), side.env),
                              fresh))
            side.names += fresh
        time.sleep(3)
        each = [[measure.pss_mib(s.shims()) / count] for s in sides]
        report.add("shim, %d containers" % count, "MiB PSS each", *each)
    daemons = [[measure.pss_mib(set(s.pids()) - set(s.shims()))] for s in sides]
    report.add("daemons, %d containers" % most, "MiB PSS", *daemons)
    took = ([], [])
    for _ in range(3):
        for i, side in enumerate(sides):
            side.daemon.process.terminate()
            side.daemon.process.wait()
            open(side.daemon.log_path, "w").close()
            began = time.monotonic()
            side.daemon.start()
            proc.wait_for(lambda: side.daemon.ctr(
                "tasks", "ls", "-q", ns=side.env["CONTAINERD_NAMESPACE"]).out.count("\n") == most,
                          "all tasks", 60)
            took[i].append(1000 * (time.monotonic() - began))
    report.add("restart until %d tasks are listed" % most, "ms", *took)
    for side in sides:
        end(side, side.names)


def build():
    """Builds the client that makes small calls; returns its path."""
    return measure.build_client("services/gateway", "latency_tool")


def bench_calls(report, sides, rounds, tool):
    ours, theirs = sides
    report.add("ctr version: wall", "ms", *alternate(
        sides, rounds * 3, lambda s, n: ["ctr", "--address", s.daemon.address, "version"]))
    direct = os.path.join(ours.daemon.state, "metadata", "metadata.sock")
    times = {direct: [], ours.daemon.address: [], theirs.daemon.address: []}
    out = subprocess.run([tool, *times], capture_output=True, text=True, check=True).stdout
    for line in out.splitlines():
        path, _, text = line.rpartition(": p50 ")
        times[path].append(float(text.split()[0]))
    report.add("unary call p50 (floor: not through the gateway)", "us",
               times[ours.daemon.address], times[theirs.daemon.address], floor=times[direct])


# Slices, so that each fits into a few quiet minutes.
SLICES = ("calls", "runc", "crun", "many")


def bench_tasks(report, make_sides, image, rounds, slices=SLICES, tool=None, most=100):
    unknown = set(slices) - set(SLICES)
    if unknown:
        raise SystemExit("bench: no slice %s of tasks: %s" %
                         (", ".join(sorted(unknown)), ", ".join(SLICES)))
    if "calls" in slices and tool is None:
        tool = build()
    common.let_crun_work()
    sides = make_sides()
    with sides[0].daemon, sides[1].daemon:
        for side in sides:
            quiet(side.pull(image), side.env)
        if "calls" in slices:
            bench_calls(report, sides, rounds, tool)
        for runtime in ("runc", "crun"):
            if runtime in slices:
                bench_speed(report, sides, image, rounds, runtime)
        if "many" in slices:
            bench_many(report, sides, image, most)
        for wait in (0, 2, 10):
            time.sleep(wait)
            report.add("daemons, %d s after all this" % wait, "MiB PSS",
                       *[[measure.pss_mib(set(s.pids()) - set(s.shims()))] for s in sides])
