"""Mounts that need the Mounts service: who holds them, and containers on them."""

import json
import os
import subprocess
import unittest

from tests.harness import grpcurl, proc, shim, suite
from tests.harness.grpcurl import field, parse

CONTAINERS = "containerd.services.containers.v1.Containers"
LEASES = "containerd.services.leases.v1.Leases"
MOUNTS = "containerd.services.mounts.v1.Mounts"
TASKS = "containerd.services.tasks.v1.Tasks"
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
NOT_FOUND, ALREADY_EXISTS, UNIMPLEMENTED = 5, 6, 12


def setUpModule():
    global s, call, image
    s = suite.Suite().start()
    unittest.addModuleCleanup(s.stop)
    call = grpcurl.Call(s.address, "default")
    tree = shim.rootfs(s.dir + "/tree")
    for name in ("proc", "sys", "dev"):
        os.makedirs(os.path.join(tree, name), exist_ok=True)
    image = s.dir + "/root.erofs"
    subprocess.run(["mkfs.erofs", image, tree], check=True, capture_output=True)


def mount(kind, source, *options):
    return field(1, kind) + field(2, source) + b"".join(field(4, one) for one in options)


def activate(who, name, mounts, labels=b""):
    return who(MOUNTS, "Activate",
               field(1, name) + b"".join(field(2, one) for one in mounts) + labels)


def is_active(name):
    try:
        info = parse(call(MOUNTS, "Info", field(1, name))[1][0])
    except grpcurl.RpcError as error:
        if error.code != NOT_FOUND:
            raise
        return False
    return info[1][0] == name.encode()


def points():
    return [where for where in proc.mounts_below(s.state + "/snapshotter/mounts")]


class Held(unittest.TestCase):
    """By a lease or by what a label names; the others stay."""

    def activate(self, name, lease=None, labels=b""):
        activate(grpcurl.Call(s.address, "default", lease), name,
                 [mount("erofs", image, "ro", "loop")], labels)

    def deactivate(self, name):
        call(MOUNTS, "Deactivate", field(1, name))

    def back_ref(self, container):
        return field(3, field(1, "containerd.io/gc.bref.container") + field(2, container))

    def test_as_long_as_their_holders(self):
        call(LEASES, "Create", field(1, "holds"))
        call(CONTAINERS, "Create", field(1, field(1, "box") + field(4, field(1, "any")) +
                                         field(5, field(1, SPEC) + field(2, "{}"))))
        self.activate("free")
        self.activate("leased", "holds")
        self.activate("labelled", labels=self.back_ref("box"))
        self.activate("either", "holds", self.back_ref("box"))
        # One that nothing holds goes with the next look, which is of all of them.
        self.activate("orphan", "no-such-lease")
        proc.wait_for(lambda: not is_active("orphan"), "its end", 60)
        self.assertEqual([True] * 4, [is_active(name) for name in
                                      ("free", "leased", "labelled", "either")])
        # Who holds them is remembered.
        s.kill_service("snapshotter")
        call(LEASES, "Delete", field(1, "holds"))
        proc.wait_for(lambda: not is_active("leased"), "the end of what was leased", 60)
        self.assertEqual([True] * 3, [is_active(name) for name in
                                      ("free", "labelled", "either")])
        call(CONTAINERS, "Delete", field(1, "box"))
        for name in ("labelled", "either"):
            proc.wait_for(lambda name=name: not is_active(name), "the end of " + name, 60)
        self.assertTrue(is_active("free"))
        self.deactivate("free")
        self.assertEqual([], points())

    def test_while_metadata_is_away(self):
        call(LEASES, "Create", field(1, "stays"))
        self.activate("kept", "stays")
        s.kill_service("metadata")
        self.activate("orphan", "no-such-lease")
        proc.wait_for(lambda: not is_active("orphan"), "its end", 60)
        self.assertTrue(is_active("kept"))
        self.deactivate("kept")
        call(LEASES, "Delete", field(1, "stays"))


class Roots(unittest.TestCase):
    """Containers whose root file system is image files."""

    def rootfs(self, writable):
        return [mount("erofs", image, "ro", "loop"),
                mount("mkfs/ext4", writable, "loop", "X-containerd.mkfs.size=16777216",
                      "X-containerd.mkfs.fs=ext4"),
                mount("format/mkdir/overlay", "overlay",
                      "X-containerd.mkdir.path={{ mount 1 }}/upper:0755",
                      "X-containerd.mkdir.path={{ mount 1 }}/work:0755",
                      "lowerdir={{ mount 0 }}", "upperdir={{ mount 1 }}/upper",
                      "workdir={{ mount 1 }}/work")]

    def create(self, name, runtime, *args):
        spec = {"ociVersion": "1.0.2", "root": {"path": "rootfs"},
                "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": list(args),
                            "env": ["PATH=/bin"]},
                "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
                "linux": {"cgroupsPath": "/bh-%d/%s" % (os.getpid(), name),
                          "namespaces": [{"type": "mount"}, {"type": "pid"}]}}
        call(CONTAINERS, "Create", field(1, field(1, name) + field(4, field(1, runtime)) +
                                         field(5, field(1, SPEC) + field(2, json.dumps(spec)))))
        self.addCleanup(call, CONTAINERS, "Delete", field(1, name))

    def create_task(self, name, writable):
        mounts = b"".join(field(3, one) for one in self.rootfs(writable))
        log = "file://%s/%s.log" % (s.dir, name)
        call(TASKS, "Create", field(1, name) + mounts + field(5, log) + field(6, log))

    def run_it(self, name, writable, meanwhile=None):
        """The container's exit code and output, from Create to Delete."""
        self.create_task(name, writable)
        self.assertTrue(is_active(name))
        self.assertEqual(2, len(points()))
        if meanwhile:
            meanwhile()
        call(TASKS, "Start", field(1, name))
        code = call(TASKS, "Wait", field(1, name)).get(1, [0])[0]
        call(TASKS, "Delete", field(1, name))
        self.assertFalse(is_active(name))
        self.assertEqual([], points())
        with open("%s/%s.log" % (s.dir, name)) as log:
            return code, log.read()

    def test_with_our_shim_and_with_debians(self):
        for number, runtime in enumerate(("io.containerd.bulkhead.v1", "io.containerd.runc.v2")):
            with self.subTest(runtime=runtime):
                name, writable = "files%d" % number, "%s/rw%d.img" % (s.dir, number)
                self.create(name, runtime, "sh", "-c",
                            "ls /new 2>/dev/null; echo hello >/new; grep -c ' / overlay ' /proc/mounts; exit 3")
                self.assertEqual((3, "1\n"), self.run_it(name, writable))
                os.unlink("%s/%s.log" % (s.dir, name))
                # What was written is in the file.
                self.assertEqual((3, "/new\n1\n"), self.run_it(name, writable))

    def test_the_runtime_is_killed_meanwhile(self):
        self.create("killed", "io.containerd.bulkhead.v1", "true")
        self.assertEqual((0, ""), self.run_it("killed", s.dir + "/killed.img",
                                              lambda: s.kill_service("runtime")))

    def test_a_create_that_fails_leaves_nothing(self):
        self.create("fails", "io.containerd.bulkhead.v1", "/no/such/program")
        with self.assertRaises(grpcurl.RpcError):
            self.create_task("fails", s.dir + "/fails.img")
            call(TASKS, "Start", field(1, "fails"))
        proc.wait_for(lambda: not is_active("fails"), "its end")
        self.assertEqual([], points())

    def test_a_name_that_is_taken_stays_its_owners(self):
        activate(call, "taken", [mount("erofs", image, "ro", "loop")])
        self.create("taken", "io.containerd.bulkhead.v1", "true")
        with self.assertRaises(grpcurl.RpcError) as raised:
            self.create_task("taken", s.dir + "/taken.img")
        self.assertEqual(ALREADY_EXISTS, raised.exception.code, raised.exception)
        self.assertTrue(is_active("taken"))
        call(MOUNTS, "Deactivate", field(1, "taken"))

    def test_plain_mounts_are_not_asked_for(self):
        tree = shim.rootfs(s.dir + "/plain")
        self.create("plain", "io.containerd.bulkhead.v1", "true")
        call(TASKS, "Create", field(1, "plain") + field(3, mount("bind", tree, "rbind", "rw")))
        self.assertFalse(is_active("plain"))
        call(TASKS, "Delete", field(1, "plain"))
        with self.assertRaises(grpcurl.RpcError) as raised:
            activate(call, "plain", [mount("bind", tree, "rbind", "rw")])
        self.assertEqual(UNIMPLEMENTED, raised.exception.code)


if __name__ == "__main__":
    unittest.main()
