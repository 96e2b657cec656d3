"""SIGKILL in mid-pull of a large layer: only what was missing comes again."""

import os
import random
import threading

from tests.harness import fileregistry, images, proc, suite
from tests.integration import test_transfers

MIB = 1 << 20
# What the sockets of six streams can hold, each time somebody is killed.
IN_FLIGHT_MIB = 48


def pull_kill_rounds(rounds, size_mib, seed):
    rng = random.Random(seed)
    folder = proc.temp_dir()
    try:
        for n in range(rounds):
            layout = images.Layout(os.path.join(folder, "l%d" % n))
            layout.image("1", [test_transfers.random_layer(size_mib * MIB)], compression="none")
            service = ("distribution", "content", "metadata")[n % 3]
            rate = rng.choice((0, 100 * MIB, 300 * MIB))
            kills = rng.randint(1, 3)
            _round(layout, service, rate, kills, rng, size_mib)
            proc.clean_up(layout.path)
    finally:
        proc.clean_up(folder)


def _round(layout, service, rate, kills, rng, size_mib):
    points = sorted(rng.randint(1, size_mib - 1) * MIB for _ in range(kills))
    with fileregistry.FileRegistry(rate=rate).load(layout, "big") as reg, suite.Suite() as s:
        layer = test_transfers.layer_of(reg, "big")
        image, wanted = reg.host + "/big:1", list(points)
        reached, killed = threading.Event(), threading.Event()

        def on_sent(digest, offset):
            if digest == layer and wanted and reg.sent[layer] > wanted[0]:
                reached.set()
                killed.wait(60)

        reg.on_sent = on_sent
        for _ in points:
            reached.clear()
            killed.clear()
            pull = threading.Thread(target=s.cli, args=("pull", "-q", image),
                                    kwargs={"timeout": 300})
            pull.start()
            while pull.is_alive() and not reached.wait(0.1):
                pass
            if reached.is_set():
                s.kill_service(service)
            wanted.pop(0)
            killed.set()
            pull.join()
        s.cli("pull", "-q", image, check=True, timeout=300)
        extra = (reg.sent[layer] - os.path.getsize(reg.path(layer))) / MIB
        print("%d MiB, %d x SIGKILL to %s, %s a connection: %.1f MiB sent twice" % (
            size_mib, kills, service, "%d MiB/s" % (rate // MIB) if rate else "no limit",
            extra), flush=True)
        if extra > IN_FLIGHT_MIB * kills:
            raise AssertionError("more was fetched again than was in flight")
