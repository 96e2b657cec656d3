"""Debian's dockerd on top of a suite of ours or on Debian's containerd."""

import os
import shutil
import signal
import subprocess

from tests.harness import proc

CLIENT = "/usr/bin/docker"  # Debian's, whatever else is installed.


class Docker:
    """One dockerd with every folder, socket and bridge of its own.

    It lives in a network namespace of its own, so its bridge and its iptables
    rules touch nobody else's and vanish with it.
    """

    def __init__(self, daemon, subnet="10.231.7.1/24"):
        self.daemon = daemon
        self.dir = os.path.join(daemon.dir, "d")
        self.socket = os.path.join(self.dir, "d.sock")
        self.log_path = os.path.join(self.dir, "log")
        self.subnet = subnet
        self.netns = None
        self.process = None

    def start(self):
        os.makedirs(self.dir, exist_ok=True)
        with open(os.path.join(self.dir, "daemon.json"), "w") as f:
            f.write("{}")  # Not /etc/docker's.
        if self.netns is None:
            # Holds the namespace while dockerd is restarted.
            self.netns = subprocess.Popen(
                ["unshare", "-n", "sh", "-c",
                 "ip link set lo up && echo up && exec cat"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if self.netns.stdout.readline() != b"up\n":
                raise AssertionError("no network namespace")
        path = lambda name: os.path.join(self.dir, name)
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen(
                self.inside(
                    shutil.which("dockerd"), "--containerd", self.daemon.address,
                    "--containerd-namespace", "docker",
                    "--containerd-plugins-namespace", "docker-plugins",
                    "--data-root", path("data"), "--exec-root", path("exec"),
                    "--pidfile", path("pid"), "--host", "unix://" + self.socket,
                    "--config-file", path("daemon.json"), "--bip", self.subnet,
                    "--live-restore", "--shutdown-timeout", "5"),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def ready():
            if self.process.poll() is not None:
                raise AssertionError("dockerd ended:\n" + self.log()[-3000:])
            return self("version").code == 0

        proc.wait_for(ready, "dockerd", 30)
        return self

    def inside(self, *command):
        """`command` in dockerd's network namespace."""
        return ["nsenter", "--net=/proc/%d/ns/net" % self.netns.pid, *command]

    def __call__(self, *args, **kwargs):
        return proc.run(self.command(*args), **kwargs)

    def command(self, *args):
        return [CLIENT, "--config", self.dir, "-H", "unix://" + self.socket, *args]

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def stop_daemon(self, how=signal.SIGTERM):
        """Ends dockerd alone; containers run on."""
        self.process.send_signal(how)
        self.process.wait(30)

    def stop(self):
        """Removes the containers, ends dockerd, its bridge and its mounts."""
        if self.process is not None and self.process.poll() is None:
            ids = self("ps", "-aq").out.split()
            if ids:
                self("rm", "-f", *ids)
            self.stop_daemon()
        if self.netns is not None:
            self.netns.stdin.close()
            self.netns.wait(10)
            self.netns.stdout.close()
        # dockerd leaves the namespace files of its sandboxes and its data root
        # mounted; that is its way, not a leak of ours.
        for where in proc.mounts_below(self.dir):
            subprocess.run(["umount", "-l", where], check=False)

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc):
        self.stop()
