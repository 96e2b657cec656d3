"""The shims alone, without daemons and clients: the same calls over ttrpc to
ours and to Debian's, and the OCI runtime's own commands as the floor."""

import os
import signal
import subprocess
import time

from tests.harness import shim

DEBIAN = "/usr/bin/containerd-shim-runc-v2"


class Clock:
    """Milliseconds of named steps, by side."""

    def __init__(self):
        self.steps = {}

    def time(self, name, side, call, *args, **kwargs):
        began = time.monotonic()
        result = call(*args, **kwargs)
        self.steps.setdefault(name, {}).setdefault(side, []).append(
            1000 * (time.monotonic() - began))
        return result


def round_of_shim(clock, side, box, program):
    """One container's life."""
    name = "%s-%d" % (box.name, box.count)
    bundle = box.bundle(name, box.spec("sleep", "1000"))
    os.mkfifo(os.path.join(bundle, "log"))
    log = os.open(os.path.join(bundle, "log"), os.O_RDWR | os.O_NONBLOCK)
    options = shim.encode({1: shim.OPTIONS, 2: {6: "runc", 7: box.runtime_root}})
    args = ["-namespace", "bht", "-id", name, "-address", box.dir + "/g"]
    env = box.env()

    def command(*more, stdin=None):
        return subprocess.run([program, *args, *more], cwd=bundle, env=env, check=True,
                              input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout

    out = clock.time("start a shim", side, command, "-publish-binary", "/bin/true", "start",
                     stdin=options)
    task = shim.Task(box, name, bundle, out.decode().split("unix://", 1)[1])
    clock.time("create", side, task.create, fields={10: {1: shim.OPTIONS, 2: {
        6: "runc", 7: box.runtime_root}}})
    clock.time("start", side, task.call, "Start")

    def execute():
        task.exec("e", "true")
        task.call("Wait", {2: "e"})
        task.call("Delete", {2: "e"})

    clock.time("exec to its end", side, execute)

    def end():
        task.call("Kill", {3: signal.SIGKILL})
        task.call("Wait")
        task.call("Delete")

    clock.time("kill and delete", side, end)
    try:
        task.call("Shutdown")
    except ConnectionError:
        pass  # Debian's often goes before it has answered.
    clock.time("clean-up command", side, command, "-bundle", bundle, "delete")
    task.client.close()
    os.close(log)


def round_of_runc(clock, box):
    name = "%s-%d" % (box.name, box.count)
    bundle = box.bundle(name, box.spec("sleep", "1000"))

    def runc(*args):
        subprocess.run(["runc", "--root", box.runtime_root + "/floor", *args], check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)

    clock.time("create", "floor", runc, "create", "-b", bundle, name)
    clock.time("start", "floor", runc, "start", name)
    clock.time("exec to its end", "floor", runc, "exec", name, "true")
    clock.time("kill and delete", "floor", runc, "delete", "--force", name)


def bench_shims(report, rounds):
    box = shim.Bench()
    clock = Clock()
    try:
        for _ in range(rounds):
            round_of_shim(clock, "ours", box, shim.SHIM)
            round_of_shim(clock, "theirs", box, DEBIAN)
            round_of_runc(clock, box)
    finally:
        box.close()
        socket_dir = "/run/containerd/s"
        if os.path.isdir(socket_dir) and not os.listdir(socket_dir):
            os.rmdir(socket_dir)
    for name, sides in clock.steps.items():
        report.add("shims alone: " + name, "ms", sides["ours"], sides["theirs"],
                   floor=sides.get("floor"))
