"""Processes, temporary folders and what they leave behind."""

import os
import shutil
import signal
import subprocess
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(TOP, "dist", "bin")

# A shell without job control has what it starts with & ignore these, and so would
# every program that we start: ^C would end none, and containers of daemons that
# hand it on (containerd's do) would not die of SIGQUIT.
for _number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT
                      else signal.SIG_DFL)


def wait_for(condition, what, timeout=20.0, interval=0.02):
    """Polls until condition() is true; its last value comes back."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("timed out waiting for " + what)
        time.sleep(interval)


class Result:
    def __init__(self, args, code, out, err):
        self.args, self.code, self.out, self.err = args, code, out, err

    def __repr__(self):
        return "%r -> %d\nstdout: %s\nstderr: %s" % (
            self.args, self.code, self.out[-2000:], self.err[-2000:])


def run(args, env=None, stdin=None, timeout=120, check=False):
    """Runs a command to its end; text in and out."""
    full = dict(os.environ)
    full.update(env or {})
    try:
        done = subprocess.run(args, env=full, input=stdin, capture_output=True,
                              timeout=timeout, text=True, errors="replace")
    except subprocess.TimeoutExpired as late:
        raise AssertionError("timed out after %ss: %r\nstdout: %s\nstderr: %s" %
                             (timeout, args, late.stdout, late.stderr))
    result = Result(args, done.returncode, done.stdout, done.stderr)
    if check and result.code != 0:
        raise AssertionError("failed: %r" % result)
    return result


def temp_dir():
    """A folder with a short path: socket paths end at 107 bytes."""
    return tempfile.mkdtemp(prefix="bh-", dir="/tmp")


def pids_naming(text):
    """Processes whose command line or working folder names `text`."""
    found = []
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) == os.getpid():
            continue
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as f:
                line = f.read().replace(b"\0", b" ").decode(errors="replace")
            cwd = os.readlink("/proc/%s/cwd" % pid)
        except OSError:
            continue
        if text in line or cwd.startswith(text):
            found.append((int(pid), line.strip()))
    return found


def mounts_below(path):
    below = []
    with open("/proc/self/mounts") as f:
        for line in f:
            where = line.split(" ")[1].replace("\\040", " ")
            if where == path or where.startswith(path + "/"):
                below.append(where)
    return sorted(below, key=len, reverse=True)


def cgroups_named(name):
    found = []
    for base, folders, _ in os.walk("/sys/fs/cgroup"):
        for folder in folders:
            if folder == name:
                found.append(os.path.join(base, folder))
    return found


def end_process(pid, timeout=5.0):
    """SIGTERM, then SIGKILL; returns when the process is gone."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            return
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                with open("/proc/%d/stat" % pid) as f:
                    if f.read().rsplit(")", 1)[1].split()[0] == "Z":
                        return
            except OSError:
                return
            time.sleep(0.02)


def clean_up(path, keep=False):
    """Ends what still names `path`, unmounts below it, removes it unless `keep`.

    Returns what it found running or mounted: leftovers, for the caller to
    complain about.
    """
    left = []
    for pid, line in pids_naming(path):
        left.append("process %d: %s" % (pid, line))
        end_process(pid, timeout=1.0)
    for where in mounts_below(path):
        left.append("mount " + where)
        subprocess.run(["umount", "-l", where], check=False)
    if not keep:
        shutil.rmtree(path, ignore_errors=True)
    return left
