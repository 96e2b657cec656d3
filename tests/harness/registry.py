"""Debian's docker-registry on loopback, on a free port, in its own folder."""

import os
import socket
import subprocess
import urllib.request

from tests.harness import proc


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Registry:
    def __init__(self, htpasswd=None, tls=None):
        self.dir = proc.temp_dir()
        self.port = free_port()
        self.host = "127.0.0.1:%d" % self.port
        self.htpasswd, self.tls = htpasswd, tls
        self.log_path = os.path.join(self.dir, "log")
        self.process = None

    def start(self):
        config = os.path.join(self.dir, "config.yml")
        with open(config, "w") as f:
            f.write("version: 0.1\nlog: {accesslog: {disabled: false}, level: info}\n"
                    "storage: {filesystem: {rootdirectory: %s/data}, "
                    "delete: {enabled: true}}\n"
                    "http:\n  addr: %s\n" % (self.dir, self.host))
            if self.tls:
                f.write("  tls: {certificate: %s, key: %s}\n" % self.tls)
            if self.htpasswd:
                f.write("auth: {htpasswd: {realm: tests, path: %s}}\n" % self.htpasswd)
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", config], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, cwd=self.dir)

        def answers():
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", self.port)) == 0

        proc.wait_for(answers, "docker-registry")
        return self

    def requests(self, method, part):
        """How many requests of this method had `part` in their path so far."""
        with open(self.log_path, errors="replace") as f:
            return sum(1 for line in f
                       if '"%s /' % method in line and part in line)

    def get(self, path):
        return urllib.request.urlopen("http://%s%s" % (self.host, path)).read()

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
        proc.clean_up(self.dir)

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc):
        self.stop()
