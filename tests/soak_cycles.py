"""Cycles of create, start, exec, kill and delete, 8 at a time; also with the
runtime service and the shim built with a sanitizer."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import time

from tests.harness import proc, shim, suite
from tests.integration import common, test_many, test_shim

# What --sanitizer builds; the other programs come from dist/.
TARGETS = {"bulkhead-runtime": "services/runtime/bulkhead-runtime",
           "containerd-shim-bulkhead-v1": "services/runtime/shim/containerd-shim-bulkhead-v1"}
ADDR_NO_RANDOMIZE = 0x0040000  # tsan's shadow does not fit elsewhere.
OPTIONS = {
    # Small quarantine: what is freed is to show as free.
    "asan": "quarantine_size_mb=4:detect_leaks=1:exitcode=66",
    "tsan": "ignore_noninstrumented_modules=1:second_deadlock_stack=1:exitcode=66:suppressions=%s" %
            os.path.join(proc.TOP, "bazel", "sanitizer", "tsan.supp"),
}
# A sanitizer keeps books for each allocation, stack and address.
SANITIZED_GROWTH_KIB_MAX = 64 << 10


def build(sanitizer):
    """Builds the two programs, which takes minutes; returns where they are."""
    env = dict(os.environ, HOME=os.environ.get("HOME", "/root"))
    config = "--config=" + sanitizer
    targets = ["//" + ":".join(path.rsplit("/", 1)) for path in TARGETS.values()]
    subprocess.run(["bazel", "build", config] + targets, check=True, cwd=proc.TOP, env=env)
    return subprocess.run(["bazel", "info", config, "bazel-bin"], check=True, env=env,
                          cwd=proc.TOP, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def programs(sanitizer, built):
    """dist/bin with two programs of `built`; complains about their reports."""
    if sanitizer is None:
        yield
        return
    folder = proc.temp_dir()
    reports = os.path.join(folder, "reports")
    os.mkdir(reports)
    try:
        for name in os.listdir(proc.BIN):
            shutil.copy(os.path.join(proc.BIN, name), os.path.join(folder, name),
                        follow_symlinks=name == "bulkhead")
        for name, path in TARGETS.items():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
            shutil.copy(os.path.join(built, path), os.path.join(folder, name))
        proc.BIN, shim.SHIM = folder, os.path.join(folder, "containerd-shim-bulkhead-v1")
        os.environ[sanitizer.upper() + "_OPTIONS"] = "%s:log_path=%s/%s" % (
            OPTIONS[sanitizer], reports, sanitizer)
        if sanitizer == "tsan":
            ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE)  # Children inherit it.
        yield
        texts = []
        for name in sorted(os.listdir(reports)):
            with open(os.path.join(reports, name), errors="replace") as f:
                texts.append(f.read())
        if texts:
            heads = [line for text in texts for line in text.splitlines()
                     if line.startswith("SUMMARY")]
            raise SystemExit("%s\n%d reports:\n%s" % (texts[0][:20000], len(heads),
                                                     "\n".join(heads)))
        print("%s has nothing to report" % sanitizer)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_program(pid, sanitizer):
    """That what runs is what was built, and would tell us."""
    if sanitizer is None:
        return
    with open("/proc/%d/environ" % pid) as f:
        told = "%s_OPTIONS=%s" % (sanitizer.upper(), OPTIONS[sanitizer]) in f.read()
    with open("/proc/%d/maps" % pid) as f:
        loaded = "lib%s.so" % sanitizer in f.read()
    if not told or not loaded:
        raise SystemExit("bulkhead-runtime does not run with %s" % sanitizer)


def run(count, sanitizer=None, built=None):
    """Through a suite with a shim for each container, and within one shim.
    Complains about what is left, and about memory that grows."""
    if sanitizer and built is None:
        built = build(sanitizer)
    growth = {} if sanitizer is None else {"growth_kib_max": SANITIZED_GROWTH_KIB_MAX}
    with programs(sanitizer, built):
        began = time.monotonic()
        with suite.Suite() as s:
            check_program(s.service_pid("runtime"), sanitizer)
            test_many.image = common.image_registry().host + "/busybox:latest"
            s.ctr("images", "pull", "--plain-http", test_many.image, check=True)
            test_many.stress(s, count, print, **growth)
        print("%d cycles through a suite: nothing left, %d s" %
              (count, time.monotonic() - began), flush=True)
        began = time.monotonic()
        test_shim.stress(count, print, **growth)
        print("%d cycles within one shim: nothing left, %d s" %
              (count, time.monotonic() - began), flush=True)
