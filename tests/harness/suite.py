"""One whole suite of ours, or a private Debian containerd, in a folder."""

import json
import os
import shutil
import signal
import subprocess

from tests.harness import proc

SERVICES = ("content", "snapshotter", "metadata", "distribution", "runtime",
            "metrics", "gateway")


class Daemon:
    """What both have: a socket, and clients that talk to it."""

    def __init__(self):
        self.dir = proc.temp_dir()
        self.root = os.path.join(self.dir, "root")
        self.state = os.path.join(self.dir, "run")
        self.log_path = os.path.join(self.dir, "log")
        self.process = None
        self.address = None
        self.keep = False  # The folder, when it ends.

    def ctr(self, *args, ns="default", **kwargs):
        """Debian's ctr, pointed at this daemon."""
        return proc.run(["ctr", "--address", self.address, "--namespace", ns]
                        + list(args), **kwargs)

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def _containers(self):
        for ns in self.ctr("namespaces", "ls", "-q").out.split():
            for task in self.ctr("tasks", "ls", "-q", ns=ns).out.split():
                self.ctr("tasks", "kill", "-s", "KILL", "-a", task, ns=ns)
                self.ctr("tasks", "rm", "-f", task, ns=ns)

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc):
        self.stop()


class Suite(Daemon):
    """`bulkhead up` with its own root and state."""

    name = "bulkhead"

    def __init__(self, config=""):
        super().__init__()
        self.address = os.path.join(self.state, "bulkhead.sock")
        self.config_path = os.path.join(self.dir, "config.toml")
        with open(self.config_path, "w") as f:
            f.write(config)

    def start(self, timeout=30):
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen(
                [os.path.join(proc.BIN, "bulkhead"), "up", "--root", self.root,
                 "--state", self.state, "--config", self.config_path],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def ready():
            if self.process.poll() is not None:
                raise AssertionError("bulkhead up ended with %d:\n%s" %
                                     (self.process.returncode, self.log()))
            return "bulkhead is ready" in self.log()

        proc.wait_for(ready, "bulkhead up; its log:\n" + self.log(), timeout)
        return self

    def cli(self, *args, ns=None, **kwargs):
        env = dict(kwargs.pop("env", None) or {})
        env["BULKHEAD_ADDRESS"] = self.address
        if ns:
            env["CONTAINERD_NAMESPACE"] = ns
        return proc.run([os.path.join(proc.BIN, "bulkhead")] + list(args),
                        env=env, **kwargs)

    def service_pid(self, service):
        with open(os.path.join(self.state, service, "pid")) as f:
            return int(f.read())

    def kill_service(self, service):
        """SIGKILL; returns once `up` has another one running and ready."""
        before = self.service_pid(service)
        os.kill(before, signal.SIGKILL)

        def back():
            try:
                pid = self.service_pid(service)
            except (OSError, ValueError):
                return False
            return pid != before and os.path.exists("/proc/%d" % pid)

        proc.wait_for(back, service + " to be restarted")
        proc.wait_for(lambda: self.ctr("version").code == 0, "the suite")

    def stop(self):
        """Ends containers and the suite; complains about leftovers."""
        problems = []
        if self.process is not None and self.process.poll() is None:
            self._containers()
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                problems.append("bulkhead up ignored SIGTERM for 20 s")
                self.process.kill()
                self.process.wait()
        log = self.log() if os.path.exists(self.log_path) else ""
        problems += proc.clean_up(self.dir, self.keep)
        if problems:
            raise AssertionError("left behind:\n  %s\nend of the log:\n%s" %
                                 ("\n  ".join(problems), log[-3000:]))


class Containerd(Daemon):
    """Debian's containerd with its own root, state and socket."""

    name = "containerd"

    def __init__(self, config="", path=None, disabled=()):
        super().__init__()
        self.address = os.path.join(self.state, "c.sock")
        self.extra = config
        self.path = path
        self.disabled = ["io.containerd.grpc.v1.cri"] + list(disabled)

    def start(self):
        os.makedirs(self.dir, exist_ok=True)
        config = os.path.join(self.dir, "config.toml")
        with open(config, "w") as f:
            f.write('version = 2\nroot = "%s"\nstate = "%s"\n'
                    'disabled_plugins = %s\n'
                    '[grpc]\naddress = "%s"\n[ttrpc]\naddress = "%s.ttrpc"\n%s' %
                    (self.root, self.state, json.dumps(self.disabled), self.address,
                     self.address, self.extra))
        env = dict(os.environ)
        if self.path:
            env["PATH"] = self.path + ":" + env["PATH"]
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen(
                [shutil.which("containerd"), "--config", config], env=env,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        proc.wait_for(lambda: self.ctr("version").code == 0, "containerd")
        return self

    def pid(self):
        return self.process.pid

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self._containers()
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        proc.clean_up(self.dir, self.keep)
