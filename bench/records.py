"""Records and garbage collection, beside containerd, through the gateway.

One client of our own (records_client.cc) makes the same calls to both. Both
sides fsync every change; a busy disk slows both, so ratios are what counts.
"""

import os
import shutil
import subprocess
import time

from bench import measure

BLOBS, SNAPSHOTS = 5000, 2000  # Of the timed collection.
MANY = 10000  # Of each, for the collection beside creates.


def build():
    """Builds the client; returns its path."""
    return measure.build_client("bench", "records_client")


def call(client, side, ns, *command):
    done = subprocess.run([client, side.daemon.address, ns] + [str(x) for x in command],
                          capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit("bench: %s on %s: %s" % (command, side.daemon.name, done.stderr[-2000:]))
    return [float(x) for x in done.stdout.split()]


def floor(client, folder, clients, seconds):
    """What metadata's database does by itself with records of that size."""
    path = os.path.join(folder, "floor")
    done = subprocess.run([client, path, "-", "floor", str(clients), str(seconds)],
                          capture_output=True, text=True, check=True)
    shutil.rmtree(path)
    return float(done.stdout)


def bench_records(report, client, sides, rounds, seconds):
    ours, theirs = sides()
    with ours.daemon, theirs.daemon:
        both = (ours, theirs)
        creates = {1: ([], []), 16: ([], [])}
        refused = {1: ([], []), 16: ([], [])}
        floors = {1: [], 16: []}
        for n in range(rounds):
            for clients, found in creates.items():
                for i, side in enumerate(both):
                    found[i].extend(call(client, side, "creates%d" % n, "creates", clients, seconds))
                    refused[clients][i].extend(
                        call(client, side, "creates%d" % n, "refused", clients, seconds))
                floors[clients].append(floor(client, ours.daemon.dir, clients, seconds))
        for clients, found in creates.items():
            report.add("durable container creates, clients: %d" % clients, "/s", *found,
                       floor=floors[clients])
            report.add("creates that are refused, clients: %d" % clients, "/s", *refused[clients])
        for count in (5000, 10000):
            found = ([], [])
            for n in range(rounds):
                for i, side in enumerate(both):
                    found[i].extend(call(client, side, "list", "list", count, 3))
            report.add("Images.List of %d" % count, "ms", *found)
    bench_collect(report, client, sides)


def bench_collect(report, client, sides):
    """In fresh suites: nothing but the garbage is there."""
    ours, theirs = sides()
    with ours.daemon, theirs.daemon:
        took = ([], [])
        for i, side in enumerate((ours, theirs)):
            call(client, side, "gc", "fill", BLOBS, SNAPSHOTS)
            time.sleep(1)
            took[i].extend(call(client, side, "gc", "collect"))
        report.add("collection of %d blobs, %d snapshots" % (BLOBS, SNAPSHOTS), "s", *took)
        longest, median, took = ([], []), ([], []), ([], [])
        for i, side in enumerate((ours, theirs)):
            call(client, side, "beside", "fill", MANY, MANY)
            time.sleep(1)
            found = call(client, side, "beside", "collect-beside")
            longest[i].append(found[0])
            median[i].append(found[1])
            took[i].append(found[3])
        what = "collection of %d of each beside creates" % MANY
        report.add(what, "s", *took)
        report.add(what + ": longest create", "ms", *longest)
        report.add(what + ": median create", "ms", *median)
