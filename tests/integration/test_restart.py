"""Restart policies by containerd's labels."""

import os
import signal
import unittest

from tests.harness import proc, suite
from tests.integration import common

LABEL = "containerd.io/restart."


def setUpModule():
    global ours, image
    image = common.image_registry().host + "/busybox:latest"
    ours = suite.Suite()
    unittest.addModuleCleanup(ours.start().stop)
    ours.ctr("images", "pull", "--plain-http", image, check=True)


class Policies(unittest.TestCase):
    def start(self, name, policy, *command):
        """A container that logs to a file, with a policy."""
        log = os.path.join(ours.dir, name + ".log")
        ours.ctr("run", "-d", "--log-uri", "file://" + log,
                 "--label", LABEL + "status=running", "--label", LABEL + "policy=" + policy,
                 "--label", LABEL + "loguri=file://" + log, image, name, *command, check=True)
        self.addCleanup(self.remove, name)
        return log

    def remove(self, name):
        ours.ctr("containers", "label", name, LABEL + "status=stopped", check=True)
        self.end(name)
        proc.wait_for(lambda: self.task(name) in (None, "STOPPED"), "its end")
        ours.ctr("tasks", "rm", "-f", name)
        ours.ctr("containers", "rm", name, check=True)

    def end(self, name):
        ours.ctr("tasks", "kill", "-s", "KILL", name)

    def line(self, name):
        for line in ours.ctr("tasks", "ls").out.splitlines():
            if line.split()[0] == name:
                return line.split()
        return None

    def task(self, name):
        line = self.line(name)
        return line[2] if line else None

    def pid(self, name):
        line = self.line(name)
        return int(line[1]) if line and line[2] == "RUNNING" else None

    def lines(self, log):
        with open(log) as f:
            return f.read().split()

    def new_pid(self, name, old):
        return proc.wait_for(lambda: (lambda p: p if p not in (None, old) else None)(
            self.pid(name)), name + " to be started again")

    def test_always(self):
        log = self.start("always", "always", "sh", "-c", "echo life; exec sleep 1000")
        pid = self.pid("always")
        os.kill(pid, signal.SIGKILL)
        again = self.new_pid("always", pid)
        # Also when the runtime service was away when it ended.
        ours.kill_service("runtime")
        self.assertEqual(again, self.pid("always"))
        os.kill(again, signal.SIGKILL)
        self.new_pid("always", again)
        proc.wait_for(lambda: self.lines(log) == ["life"] * 3, "three lives")
        self.assertIn('"%scount": "2"' % LABEL, ours.ctr("containers", "info", "always").out)

    def test_dead_shim(self):
        self.start("shimless", "always", "sleep", "1000")
        pid = self.pid("shimless")
        with open("/proc/%d/stat" % pid) as f:
            os.kill(int(f.read().rsplit(")", 1)[1].split()[1]), signal.SIGKILL)
        self.new_pid("shimless", pid)

    def test_on_failure(self):
        log = self.start("failing", "on-failure:2", "sh", "-c", "echo try; exit 3")
        proc.wait_for(lambda: len(self.lines(log)) == 3 and self.task("failing") == "STOPPED",
                      "three tries")
        log = self.start("fine", "on-failure", "echo", "once")
        proc.wait_for(lambda: self.task("fine") == "STOPPED", "its end")
        self.assertEqual(["once"], self.lines(log))

    def test_unless_stopped(self):
        self.start("stopped", "unless-stopped", "sleep", "1000")
        pid = self.pid("stopped")
        self.end("stopped")
        self.new_pid("stopped", pid)
        ours.ctr("containers", "label", "stopped", LABEL + "explicitly-stopped=true", check=True)
        self.end("stopped")
        proc.wait_for(lambda: self.task("stopped") == "STOPPED", "its end")
        # Others have been restarted meanwhile, so this one would have been.
        self.start("witness", "always", "true")
        proc.wait_for(lambda: '"%scount": "2"' % LABEL in
                      ours.ctr("containers", "info", "witness").out, "the witness")
        self.assertEqual("STOPPED", self.task("stopped"))


if __name__ == "__main__":
    unittest.main()
