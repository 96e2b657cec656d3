"""What only other clients than ctr and ours ask of the runtime side."""

import unittest

from tests.harness import grpcurl, suite
from tests.harness.grpcurl import field, parse

INTROSPECTION = "containerd.services.introspection.v1.Introspection"
CONTROLLER = "containerd.services.sandbox.v1.Controller"


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


if __name__ == "__main__":
    unittest.main()
