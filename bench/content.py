"""One large blob in and out, beside containerd, through the gateway and, for
ours, also through the data socket.

One client of our own (content_client.cc) makes the same calls to both. A write
ends when the commit is answered, so the disk is part of it on both sides. The
floor is one process that writes, hashes and syncs the same.
"""

import os
import subprocess
import time

from bench import measure

CHUNK_KIB = 1024  # As ctr and dockerd send it.
NS = "content"


def build():
    """Builds the client; returns its path."""
    return measure.build_client("bench", "content_client")


def call(client, socket, command, mib):
    done = subprocess.run([client, socket, NS, command, str(mib), str(CHUNK_KIB)],
                          capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit("bench: %s of %s: %s" % (command, socket, done.stderr[-2000:]))
    return float(done.stdout)


def bench_content(report, client, sides, rounds, mib):
    ours, theirs = sides()
    write, read, cpu = ([], []), ([], []), ([], [])
    data_write, data_read, floor = [], [], []
    with ours.daemon, theirs.daemon:
        data = os.path.join(ours.daemon.state, "metadata", "data.sock")
        for n in range(rounds + 1):
            for i, side in enumerate((ours, theirs)):
                before = measure.cpu_s(side.pids())
                wrote = call(client, side.daemon.address, "write", mib)
                used = measure.cpu_s(side.pids()) - before
                got = call(client, side.daemon.address, "read", mib)
                call(client, side.daemon.address, "remove", mib)
                if n > 0:  # The first round only warms up.
                    write[i].append(wrote)
                    cpu[i].append(1000 * used / mib)
                    read[i].append(got)
                if side.ours:
                    wrote, got = (call(client, data, what, mib)
                                  for what in ("data-write", "data-read"))
                    call(client, side.daemon.address, "remove", mib)
                    if n > 0:
                        data_write.append(wrote)
                        data_read.append(got)
                time.sleep(0.5)
            bare = call(client, os.path.join(ours.daemon.dir, "floor"), "floor", mib)
            time.sleep(0.5)
            if n > 0:
                floor.append(bare)
    report.add("content write of %d MiB" % mib, "MiB/s", *write, floor=floor)
    report.add("content write: CPU of daemons", "ms/MiB", *cpu)
    report.add("content read of %d MiB" % mib, "MiB/s", *read)
    report.add("the same by data socket, theirs by API: write", "MiB/s", data_write, write[1])
    report.add("the same by data socket, theirs by API: read", "MiB/s", data_read, read[1])
