"""What the integration tests share: a registry with real images."""

import atexit
import os
import re
import shutil

from tests.harness import images, proc, registry

_shared = {}


def image_registry():
    """One docker-registry with busybox and debian for the whole run."""
    if "registry" not in _shared:
        folder = proc.temp_dir()
        atexit.register(shutil.rmtree, folder, True)
        layout = images.Layout(os.path.join(folder, "layout"))
        images.busybox(layout, "busybox")
        images.busybox(layout, "busybox-zstd", compression="zstd")
        images.debian(layout, "debian")
        _shared["layout"] = layout
        reg = registry.Registry().start()
        atexit.register(reg.stop)
        layout.push("busybox", reg.host + "/busybox:latest")
        layout.push("busybox-zstd", reg.host + "/busybox:zstd")
        layout.push("debian", reg.host + "/debian:12")
        _shared["registry"] = reg
    return _shared["registry"]


def image_layout():
    image_registry()
    return _shared["layout"]


def normalise(text, daemon, ns):
    """What may differ between two daemons that do the same."""
    text = text.replace(daemon.dir, "DIR").replace(ns, "NS")
    text = text.replace("io.containerd.snapshotter.v1.", "").replace(
        "/root/snapshotter/", "/root/")
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[0-9.]*(Z| ?[+-]\d\d:?\d\d( UTC)?)",
                  "TIME", text)
    text = re.sub(r"(Less than a second|About an? (minute|hour)|\d+ (seconds?|minutes?))( ago)?",
                  "AGE", text)
    text = re.sub(r"/snapshots/\d+", "/snapshots/N", text)
    text = re.sub(r"elapsed: *[0-9.]+ ?s", "elapsed", text)
    # ctr prints labels in the random order of a Go map.
    text = re.sub(r"[^\s,]+=[^\s,]*(?:,[^\s]+=?[^\s]*)+",
                  lambda match: ",".join(sorted(match.group().split(","))), text)
    # Column widths follow the longest cell.
    return "\n".join(re.sub(r"\s+", " ", line).strip() for line in text.splitlines())


def let_crun_work():
    """crun refuses a hybrid cgroup host until hugetlb is a version 1 hierarchy."""
    where = "/sys/fs/cgroup/hugetlb"
    if not os.path.isdir("/sys/fs/cgroup/unified") or os.path.ismount(where):
        return
    os.makedirs(where, exist_ok=True)
    # Refused in a cgroup namespace, where crun is content with the folder.
    if proc.run(["mount", "-t", "cgroup", "-o", "hugetlb", "cgroup", where]).code == 0:
        atexit.register(proc.run, ["umount", where])
