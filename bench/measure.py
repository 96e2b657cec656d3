"""Wall time, CPU time and memory of the daemons under measurement."""

import os
import resource
import statistics
import subprocess
import threading
import time

from tests.harness import proc

TICK = os.sysconf("SC_CLK_TCK")


def build_client(package, name):
    """Builds a client of ours, as what is shipped is built; returns its path."""
    env = dict(os.environ, HOME=os.environ.get("HOME", "/root"))
    subprocess.run(["bazel", "build", "--config=opt", "//%s:%s" % (package, name)], check=True,
                   cwd=proc.TOP, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    bin_dir = subprocess.run(["bazel", "info", "--config=opt", "bazel-bin"], check=True, env=env,
                             cwd=proc.TOP, capture_output=True, text=True).stdout.strip()
    return os.path.join(bin_dir, package, name)


def descendants(pid):
    """The process and its children, of whatever depth."""
    children = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % entry) as f:
                parent = int(f.read().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(entry))
    found, queue = [], [pid]
    while queue:
        one = queue.pop()
        found.append(one)
        queue += children.get(one, [])
    return found


def cpu_s(pids):
    """User and system seconds, ended children included."""
    total = 0
    for pid in pids:
        try:
            with open("/proc/%d/stat" % pid) as f:
                fields = f.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += sum(int(x) for x in fields[11:15])
    return total / TICK


def pss_mib(pids):
    total = 0
    for pid in pids:
        try:
            with open("/proc/%d/smaps_rollup" % pid) as f:
                for line in f:
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        except OSError:
            continue
    return total / 1024


class Timed:
    """Wall seconds of a command, and CPU seconds of it and the daemons."""

    def __init__(self, args, daemons, env=None, ok=(0,)):
        before = cpu_s(daemons)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.monotonic()
        done = subprocess.run(args, env=env, stdin=subprocess.DEVNULL, capture_output=True)
        self.wall = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu = (cpu_s(daemons) - before + after.ru_utime - usage.ru_utime +
                    after.ru_stime - usage.ru_stime)
        if done.returncode not in ok:
            raise SystemExit("bench: %r ended with %d\n%s" %
                             (args, done.returncode, done.stderr.decode()[-2000:]))


class PeakMemory:
    """The highest sum of PSS while a command runs, sampled every 20 ms."""

    def __init__(self, args, daemon_pids, env=None):
        self.peak = 0
        child = subprocess.Popen(args, env=env, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None:
            self.peak = max(self.peak, pss_mib(daemon_pids()))
            time.sleep(0.02)


class Watch:
    """The highest sum of PSS inside a `with`, sampled every 20 ms."""

    def __init__(self, daemon_pids):
        self.peak, self.pids, self.over = 0, daemon_pids, threading.Event()

    def __enter__(self):
        def look():
            while not self.over.wait(0.02):
                self.peak = max(self.peak, pss_mib(self.pids()))

        self.thread = threading.Thread(target=look)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.over.set()
        self.thread.join()


def median(values):
    return statistics.median(values)
