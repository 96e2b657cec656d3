"""`./dev demo`: the main job, shown step by step, and cleaned up."""

import os
import pty
import re
import shutil
import subprocess
import sys
import time

from tests.harness import images, proc, registry, suite

BOLD, DIM, END = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def title(text):
    print("\n%s== %s%s" % (BOLD, text, END), flush=True)


class Demo:
    def __init__(self, s):
        self.suite = s
        self.env = dict(os.environ, BULKHEAD_ADDRESS=s.address, TERM="xterm")
        self.program = os.path.join(proc.BIN, "bulkhead")

    def show(self, *args, code=0, terminal=False, shown=None):
        """Runs `bulkhead ARGS` in view; ends the demo if it fails."""
        print("%s$ bulkhead %s%s" % (BOLD, " ".join(shown or args), END), flush=True)
        if terminal:
            ended = self.in_terminal(args)
        else:
            ended = subprocess.run([self.program] + list(args), env=self.env,
                                   stdin=subprocess.DEVNULL).returncode
        if ended != code:
            raise SystemExit("demo: `bulkhead %s` ended with %d, not %d; the suite's log:\n%s" %
                             (" ".join(args), ended, code, self.suite.log()[-4000:]))
        if code:
            print("%s(exit code %d)%s" % (DIM, ended, END), flush=True)

    def in_terminal(self, args):
        """On a terminal of its own, so that progress bars show everywhere."""
        pid, fd = pty.fork()
        if pid == 0:
            os.execve(self.program, [self.program] + list(args), self.env)
        while True:
            try:
                data = os.read(fd, 65536)
            except OSError:
                break
            if not data:
                break
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        os.close(fd)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def demo(s, reg):
    d = Demo(s)
    busybox, debian = reg.host + "/busybox:latest", reg.host + "/debian:12"

    title("Pull, with progress")
    d.show("pull", busybox, terminal=True)
    d.show("pull", debian, terminal=True)
    d.show("images")

    title("Run: output and exit code are the process's")
    d.show("run", "--rm", busybox, "echo", "hello from a container")
    d.show("run", "--rm", debian, "bash", "-c",
           "echo \"$(find / -xdev -type f | wc -l) files\"; exit 3", code=3)

    title("Run in the background")
    d.show("run", "-d", "--name", "web", "--memory", "64m", "--pids-limit", "50", busybox, "sh",
           "-c", "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.2; done")
    d.show("ps")
    time.sleep(1)
    d.show("exec", "web", "ps")
    d.show("logs", "--tail", "3", "web")
    d.show("stats", "--no-stream", "web")

    title("Any compartment may die while containers run on")
    pid = s.service_pid("runtime")
    print("%s$ kill -9 %d%s   # bulkhead-runtime" % (BOLD, pid, END), flush=True)
    s.kill_service("runtime")
    d.show("ps")

    title("Metrics")
    socket = os.path.join(s.state, "metrics", "http.sock")
    print("%s$ curl --unix-socket .../metrics/http.sock http://localhost/v1/metrics%s" % (BOLD, END))
    text = proc.run(["curl", "-s", "--unix-socket", socket, "http://localhost/v1/metrics"],
                    check=True).out
    wanted = re.compile(r"^(bulkhead_service_up|container_memory_usage_usage_bytes|"
                        r"container_memory_usage_bytes|container_cpu_total_nanoseconds|"
                        r"container_pids_current|container_cpu_usage_usec)")
    lines = [line for line in text.splitlines() if wanted.match(line)]
    if not lines:
        raise SystemExit("demo: the metrics page has no figures:\n" + text[:2000])
    print("\n".join(lines[:12]))
    print("... %d lines in all" % len(text.splitlines()), flush=True)

    title("Stop and remove")
    d.show("stop", "-t", "1", "web")
    d.show("ps", "-a")
    d.show("rm", "web")
    d.show("rmi", busybox, debian)
    d.show("images")


def main():
    began = time.monotonic()
    print("A registry (Debian's docker-registry) and a suite, in temporary folders of their own.")
    folder = proc.temp_dir()
    try:
        layout = images.Layout(os.path.join(folder, "layout"))
        images.busybox(layout)
        images.debian(layout)
        with registry.Registry() as reg:
            layout.push("busybox", reg.host + "/busybox:latest")
            layout.push("debian", reg.host + "/debian:12")
            with suite.Suite() as s:
                print("$ bulkhead up --root %s --state %s" % (s.root, s.state))
                print("\n".join(line for line in s.log().splitlines() if "is ready" in line))
                demo(s, reg)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("""
%sThat was the main job, in %.0f s. Nothing is left running.%s

To start Bulkhead for good, under systemd:
  sudo cp -r dist/bin/* /usr/bin/ && sudo cp -r dist/lib/* /usr/lib/
  sudo install -D -m 644 dist/etc/bulkhead/config.toml /etc/bulkhead/config.toml
  sudo systemd-sysusers && sudo systemd-tmpfiles --create
  sudo systemctl daemon-reload && sudo systemctl enable --now bulkhead.target
or without systemd:
  sudo dist/bin/bulkhead up

Then pull from a public registry and run:
  sudo bulkhead pull docker.io/library/alpine:latest
  sudo bulkhead run --rm -it docker.io/library/alpine:latest
""" % (BOLD, time.monotonic() - began, END))


if __name__ == "__main__":
    main()
