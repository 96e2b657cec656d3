"""What only other clients than ctr and ours ask of the runtime side."""

import concurrent.futures
import json
import os
import signal
import time
import unittest

from tests.harness import grpcurl, proc, shim, suite
from tests.harness.grpcurl import field, parse

INTROSPECTION = "containerd.services.introspection.v1.Introspection"
CONTROLLER = "containerd.services.sandbox.v1.Controller"
STORE = "containerd.services.sandbox.v1.Store"
CONTAINERS = "containerd.services.containers.v1.Containers"
TASKS = "containerd.services.tasks.v1.Tasks"
OURS = "io.containerd.bulkhead.v1"


def setUpModule():
    global s, call
    s = suite.Suite().start()
    unittest.addModuleCleanup(s.stop)
    call = grpcurl.Call(s.address, "default")


class PluginInfo(unittest.TestCase):
    def info(self, kind, name, runtime=None):
        message = field(1, kind) + field(2, name)
        if runtime is not None:
            message += field(3, field(1, "containerd.types.RuntimeRequest") +
                             field(2, field(1, runtime)))
        return call(INTROSPECTION, "PluginInfo", message)

    def test_runtime_by_name(self):
        """The gateway passes it on to the runtime service, which asks the shim."""
        answer = self.info("io.containerd.runtime.v2", "task", "io.containerd.bulkhead.v1")
        self.assertEqual(b"task", parse(answer[1][0])[2][0])
        extra = parse(answer[2][0])
        self.assertEqual(b"containerd.types.RuntimeInfo", extra[1][0])
        info = parse(extra[2][0])
        self.assertIn(b"bulkhead", info[1][0])
        # runc's own features are in it.
        features = parse(info[4][0])
        self.assertIn(b"features", features[1][0])
        self.assertIn(b"ociVersionMin", features[2][0])

    def test_without_options(self):
        answer = self.info("io.containerd.runtime.v2", "task")
        self.assertEqual(b"io.containerd.runtime.v2", parse(answer[1][0])[1][0])
        self.assertNotIn(2, answer)

    def test_errors(self):
        for args, code in ((("io.containerd.runtime.v2", "task", "io.containerd.nosuch.v9"), 5),
                           (("io.containerd.runtime.v2", "task", "/no/such/shim"), 5),
                           # 1.6's shim knows no -info.
                           (("io.containerd.runtime.v2", "task", "io.containerd.runc.v2"), 12),
                           (("io.containerd.gc.v1", "scheduler", "x"), 12),
                           (("io.containerd.nosuch.v1", "x"), 5)):
            with self.subTest(args=args):
                with self.assertRaises(grpcurl.RpcError) as raised:
                    self.info(*args)
                self.assertEqual(code, raised.exception.code, raised.exception)


class Sandboxes(unittest.TestCase):
    def test_what_is_not_there(self):
        for method in ("Stop", "Shutdown", "Status"):
            call(CONTROLLER, method, field(1, "nobody") + field(10, "shim"))
        for method in ("Start", "Platform", "Wait", "Metrics", "Create"):
            with self.assertRaises(grpcurl.RpcError) as raised:
                call(CONTROLLER, method, field(1, "nobody") + field(10, "shim"))
            self.assertEqual(5, raised.exception.code, method)
        with self.assertRaises(grpcurl.RpcError) as raised:
            call(CONTROLLER, "Create", field(1, "nobody"))
        self.assertEqual(3, raised.exception.code)

    def record(self, name, runtime):
        spec = field(1, "types.containerd.io/opencontainers/runtime-spec/1/Spec") + field(
            2, json.dumps({"ociVersion": "1.0.2"}))
        call(STORE, "Create", field(1, field(1, name) + field(2, field(1, runtime)) +
                                    field(3, spec) + field(10, "shim")))
        self.addCleanup(call, STORE, "Delete", field(1, name))

    def controller(self, method, name, more=b""):
        return call(CONTROLLER, method, field(1, name) + more + field(10, "shim"))

    def shims(self, name):
        return [pid for pid, line in proc.pids_naming(s.dir) if "-id %s " % name in line + " "]

    def start_pod(self, name):
        """A pod with a pid namespace for each container; its number."""
        self.record(name, OURS)
        pod = field(2, "podhost") + field(8, field(2, field(1, field(2, 1))))
        self.controller("Create", name, field(3, field(1, "runtime.v1.PodSandboxConfig") +
                                              field(2, pod)))
        return self.controller("Start", name)[2][0]

    def start_member(self, pod, pod_pid, name, *args):
        namespaces = [{"type": "mount"}, {"type": "pid"}] + [
            {"type": kind, "path": "/proc/%d/ns/%s" % (pod_pid, ns)}
            for kind, ns in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"))]
        rootfs = shim.rootfs(s.dir + "/rootfs-" + name)
        spec = {"ociVersion": "1.0.2", "root": {"path": rootfs},
                "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": list(args),
                            "env": ["PATH=/bin"]},
                "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
                "linux": {"cgroupsPath": "/bh-%d/%s" % (os.getpid(), name),
                          "namespaces": namespaces}}
        any_spec = field(1, "types.containerd.io/opencontainers/runtime-spec/1/Spec") + field(
            2, json.dumps(spec))
        call(CONTAINERS, "Create", field(1, field(1, name) + field(4, field(1, OURS)) +
                                         field(5, any_spec) + field(11, pod)))
        self.addCleanup(call, CONTAINERS, "Delete", field(1, name))
        call(TASKS, "Create", field(1, name) + field(5, "file://%s/%s.log" % (s.dir, name)))
        return call(TASKS, "Start", field(1, name))[1][0]

    def test_pod_in_our_shim(self):
        """Controller, Store, Tasks and our shim's two services together."""
        pod_pid = self.start_pod("pod1")
        status = self.controller("Status", "pod1")
        self.assertEqual((pod_pid, b"SANDBOX_READY"), (status[2][0], status[3][0]))
        platform = parse(self.controller("Platform", "pod1")[1][0])
        self.assertEqual(b"linux", platform[1][0])
        pid = self.start_member("pod1", pod_pid, "member1", "sh", "-c",
                                "hostname; while :; do sleep 0.05; done")
        # One shim has both, and they share what a pod shares.
        [shim_pid] = self.shims("pod1")
        self.assertEqual([], self.shims("member1"))
        for kind in ("net", "ipc", "uts"):
            self.assertEqual(os.readlink("/proc/%d/ns/%s" % (pod_pid, kind)),
                             os.readlink("/proc/%d/ns/%s" % (pid, kind)))
        log = os.path.join(s.dir, "member1.log")
        proc.wait_for(lambda: open(log).read() == "podhost\n", "its output")
        # Both are found again.
        s.kill_service("runtime")
        status = self.controller("Status", "pod1")
        self.assertEqual((pod_pid, b"SANDBOX_READY"), (status[2][0], status[3][0]))
        process = parse(call(TASKS, "Get", field(1, "member1"))[1][0])
        self.assertEqual((pid, 2), (process[3][0], process[4][0]))
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            pod_end = pool.submit(self.controller, "Wait", "pod1")
            member_end = pool.submit(call, TASKS, "Wait", field(1, "member1"))
            self.controller("Stop", "pod1", field(2, 5))
            self.assertEqual(137, pod_end.result()[1][0])
            self.assertEqual(137, member_end.result()[1][0])
        self.assertEqual(b"SANDBOX_NOTREADY", self.controller("Status", "pod1")[3][0])
        self.assertEqual(137, call(TASKS, "Delete", field(1, "member1"))[3][0])
        self.controller("Shutdown", "pod1")
        proc.wait_for(lambda: not os.path.exists("/proc/%d" % shim_pid), "the shim's end")
        self.assertFalse(os.path.exists("/proc/%d" % pod_pid))
        bundles = os.path.join(s.state, "io.containerd.sandbox.controller.v1.shim", "default")
        self.assertEqual([], os.listdir(bundles))

    def test_pod_whose_shim_is_killed(self):
        pod_pid = self.start_pod("pod2")
        pid = self.start_member("pod2", pod_pid, "member2", "sleep", "1000")
        [shim_pid] = self.shims("pod2")
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            pod_end = pool.submit(self.controller, "Wait", "pod2")
            member_end = pool.submit(call, TASKS, "Wait", field(1, "member2"))
            self.assertEqual(b"SANDBOX_READY", self.controller("Status", "pod2")[3][0])
            time.sleep(1)  # Nothing tells that both have been asked.
            os.kill(shim_pid, signal.SIGKILL)
            self.assertEqual(255, pod_end.result()[1][0])
            self.assertEqual(137, member_end.result()[1][0])
        for one in (pod_pid, pid):
            proc.wait_for(lambda one=one: not os.path.exists("/proc/%d" % one), "its end")
        self.controller("Shutdown", "pod2")

    def test_shim_without_the_service(self):
        """Debian's shim of 1.6 has no sandboxes: refused, and nothing is left."""
        self.record("pod3", "io.containerd.runc.v2")
        with self.assertRaises(grpcurl.RpcError) as raised:
            self.controller("Create", "pod3")
        self.assertEqual(12, raised.exception.code, raised.exception)
        proc.wait_for(lambda: not self.shims("pod3"), "its shim's end")
        bundles = os.path.join(s.state, "io.containerd.sandbox.controller.v1.shim", "default")
        self.assertNotIn("pod3", os.listdir(bundles))


if __name__ == "__main__":
    unittest.main()
