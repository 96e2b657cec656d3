"""Any process may be killed at any instant: containers run on."""

import os
import re
import signal
import subprocess
import threading
import time
import unittest

from tests.harness import images, proc, suite
from tests.integration import common, test_many


def setUpModule():
    global s, registry, busybox
    registry = common.image_registry()
    busybox = registry.host + "/busybox:latest"
    s = suite.Suite().start()
    s.cli("pull", busybox, check=True)


def tearDownModule():
    s.stop()


def printed(name):
    return [int(n) for n in re.findall(r"(?m)^n=(\d+)$", s.cli("logs", name).out)]


class Kill(unittest.TestCase):
    def test_each_service_in_turn_while_a_container_prints(self):
        # Ends by itself with a code of its own once told to.
        s.cli("run", "-d", "--name", "printer", busybox, "sh", "-c",
              "i=0; while [ ! -e /stop ]; do echo n=$i; i=$((i+1)); sleep 0.02; done; exit 42",
              check=True)
        for service in suite.SERVICES:
            with self.subTest(service=service):
                s.kill_service(service)
                before = printed("printer")
                self.assertTrue(before)
                proc.wait_for(lambda: len(printed("printer")) > len(before), "more output")
                proc.wait_for(lambda: "printer" in s.cli("ps").out, "ps after " + service)
                result = s.cli("run", "--rm", busybox, "echo", "works")
                self.assertEqual((0, "works\n"), (result.code, result.out), repr(result))
        waiter = subprocess.Popen(
            [os.path.join(proc.BIN, "bulkhead"), "wait", "printer"], stdout=subprocess.PIPE,
            text=True, env=dict(os.environ, BULKHEAD_ADDRESS=s.address))
        s.cli("exec", "printer", "touch", "/stop", check=True)
        self.assertEqual("42", waiter.communicate(timeout=20)[0].strip())
        numbers = printed("printer")
        self.assertEqual(list(range(len(numbers))), numbers)  # Nothing lost.
        s.cli("rm", "printer", check=True)

    def test_exit_while_the_runtime_service_is_down(self):
        s.cli("run", "-d", "--name", "gone", busybox, "sh", "-c", "sleep 1; exit 9", check=True)
        pid = s.service_pid("runtime")
        os.kill(pid, signal.SIGSTOP)  # It sees nothing of the exit...
        time.sleep(1.5)
        os.kill(pid, signal.SIGKILL)  # ...and never will.
        proc.wait_for(lambda: s.cli("wait", "gone").out.strip() == "9", "the exit code")
        s.cli("rm", "gone", check=True)

    def test_all_at_once(self):
        s.cli("run", "-d", "--name", "survivor", busybox, "sleep", "1000", check=True)
        before = {service: s.service_pid(service) for service in suite.SERVICES}
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        for service in suite.SERVICES:
            def back(service=service):
                try:
                    return s.service_pid(service) != before[service]
                except (OSError, ValueError):
                    return False
            proc.wait_for(back, service)
        proc.wait_for(lambda: "survivor" in s.cli("ps").out, "ps")
        result = s.cli("exec", "survivor", "echo", "alive")
        self.assertEqual((0, "alive\n"), (result.code, result.out), repr(result))
        s.cli("rm", "-f", "survivor", check=True)

    def test_gateway_again_and_again(self):
        """Clients that come meanwhile all get their answer, and soon."""
        stop, results = threading.Event(), []

        def client(command):
            while not stop.is_set():
                began = time.monotonic()
                result = s.cli(command)
                results.append((time.monotonic() - began, result))

        threads = [threading.Thread(target=client, args=(c,)) for c in ("ps", "images")]
        for thread in threads:
            thread.start()
        longest = []
        for _ in range(4):
            done = len(results)
            s.kill_service("gateway")
            proc.wait_for(lambda: len(results) > done + 2, "answers")
            longest.append(max(took for took, _ in results[done:]))
        stop.set()
        for thread in threads:
            thread.join()
        for took, result in results:
            self.assertEqual(0, result.code, repr(result))
            self.assertLess(took, 15)
        # It is back after a tenth of a second; a client whose connection nobody
        # moves along while it sleeps finds out after five.
        self.assertLess(min(longest), 4)

    def test_shim_killed(self):
        s.cli("run", "-d", "--name", "orphan", busybox, "sleep", "1000", check=True)
        container = s.cli("inspect", "--format", "{{.Id}}", "orphan", check=True).out.strip()
        shims = [pid for pid, line in proc.pids_naming(container)
                 if "containerd-shim-bulkhead" in line]
        self.assertEqual(1, len(shims), shims)
        os.kill(shims[0], signal.SIGKILL)
        proc.wait_for(lambda: "orphan" not in s.cli("ps").out, "the end to be noticed")
        s.cli("rm", "-f", "orphan", check=True)


    def test_between_metadatas_answer_and_the_memo_of_it(self):
        """Metadata has an exit, and nobody who told it remembers that it has: its
        shim dies, too. The exit is told once, with its own code."""
        s.cli("run", "-d", "--name", "unsure", busybox, "sh", "-c",
              "trap 'exit 7' TERM; while :; do sleep 0.05; done", check=True)
        container, pid = s.cli("inspect", "--format", "{{.Id}} {{.State.Pid}}", "unsure",
                               check=True).out.split()
        shim, = [pid for pid, line in proc.pids_naming(container)
                 if "containerd-shim-bulkhead" in line]
        runtime, metadata = s.service_pid("runtime"), s.service_pid("metadata")
        memo = os.path.join(s.state, "io.containerd.runtime.v2.task", "default", container,
                            "bulkhead-exit.json")

        def at_the_memo():
            for task in os.listdir("/proc/%d/task" % runtime):
                with open("/proc/%d/task/%s/wchan" % (runtime, task)) as f:
                    if f.read() == "wait_for_partner":  # It opens a FIFO.
                        return True
            return False

        os.kill(metadata, signal.SIGSTOP)
        try:
            os.kill(int(pid), signal.SIGTERM)
            proc.wait_for(lambda: os.path.exists(memo), "the exit to arrive")
            os.mkfifo(memo + ".tmp")  # Where the service writes that it was told.
        finally:
            os.kill(metadata, signal.SIGCONT)
        proc.wait_for(at_the_memo, "metadata's answer")
        os.unlink(memo + ".tmp")  # It waits on; its next life must not.
        os.kill(runtime, signal.SIGKILL)
        os.kill(shim, signal.SIGKILL)

        def ends(events):
            return [(e["Topic"], e["Event"]["exit_status"]) for e in events
                    if e["Topic"] in ("/tasks/exit", "/tasks/delete") and
                    e["Event"]["container_id"] == container]

        events = test_many.event_log(
            s, lambda events: any(topic == "/tasks/delete" for topic, _ in ends(events)))
        self.assertEqual([("/tasks/exit", 7), ("/tasks/delete", 7)], ends(events))
        s.cli("rm", "unsure", check=True)


class KillDuringPull(unittest.TestCase):
    def test_repeating_the_pull_resumes(self):
        layout = common.image_layout()
        big = images.tar_of(lambda add: [
            add("blob%d" % i, os.urandom(1 << 20)) for i in range(96)])
        layout.image("big", [images.busybox_layer(), big], images.BUSYBOX_CONFIG)
        image = registry.host + "/big:1"
        layout.push("big", image)
        for service in ("distribution", "content", "metadata", "snapshotter"):
            with self.subTest(service=service):
                pull = subprocess.Popen(
                    [os.path.join(proc.BIN, "bulkhead"), "pull", image],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    env=dict(os.environ, BULKHEAD_ADDRESS=s.address))
                proc.wait_for(lambda: s.ctr("content", "active").out.count("layer-") or
                              pull.poll() is not None, "the pull to begin", interval=0.005)
                s.kill_service(service)
                pull.wait(60)
                proc.wait_for(lambda: s.cli("pull", image).code == 0, "a second pull", 60)
                result = s.cli("run", "--rm", image, "sh", "-c", "ls /blob* | wc -l")
                self.assertEqual((0, "96\n"), (result.code, result.out), repr(result))
                s.cli("rmi", image, check=True)


if __name__ == "__main__":
    unittest.main()
