"""The shim by itself: every way to start it, and what its services promise."""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time
import unittest

from tests.harness import proc, shim

# More for a long look: BULKHEAD_CYCLES=2000, or ./dev soak --cycles.
CYCLES = int(os.environ.get("BULKHEAD_CYCLES", "40"))

# runc for a shim that must not need one: writes down how it was called, and
# plays a container that sleeps.
FAKE_RUNC = r"""#!/bin/sh
here=$(dirname "$0")
printf '%s\n' "$*" >> $here/calls
pid_file= work= image= command=
while [ $# -gt 0 ]; do
  case $1 in
    create|start|restore|checkpoint|delete|kill|resume|pause) command=$1 ;;
    --pid-file) pid_file=$2 ;;
    --work-path) work=$2 ;;
    --image-path) image=$2 ;;
    --log) log=$2 ;;
  esac
  shift
done
[ ! -e $here/fail-$command ] || {
  echo '{"level":"error","msg":"criu failed: type NOTIFY errno 0"}' >> $log
  [ -z "$work" ] || echo why > $work/dump.log
  exit 1
}
case $command in
  create|restore)
    echo "printed by $command"
    sh -c 'while :; do sleep 0.05; [ ! -e '$here'/end ] || exit 9; done' >/dev/null 2>&1 &
    printf %s $! > $pid_file ;;
  checkpoint) echo an image > $image/pages ;;
  kill) touch $here/end ;;
esac
"""


def read(path):
    with open(path) as f:
        return f.read()


def setUpModule():
    global bench
    bench = shim.Bench()
    unittest.addModuleCleanup(bench.close)


class Case(unittest.TestCase):
    def refused(self, code, text, call, *args, **kwargs):
        with self.assertRaises(shim.Refused) as caught:
            call(*args, **kwargs)
        self.assertEqual((code, text), (caught.exception.code, caught.exception.text))

    def task(self, *args, **changes):
        name = "%s-%d" % (bench.name, bench.count)
        task = bench.start(name, bench.spec(*args, **changes))
        self.addCleanup(task.end)
        return task


class Bootstrap(Case):
    """Section 2 of containerd's shim protocol, in all its generations."""

    def check(self, name, flags, stdin, env, expect):
        bundle = bench.bundle(name, bench.spec("true"))
        args = ["-namespace", "bht", "-id", name, "-address", "/nowhere",
                "-publish-binary", "/usr/bin/containerd", *flags, "start"]
        code, out = bench.command(bundle, *args, stdin=stdin, **env)
        self.assertEqual(0, code, out)
        path = bench.socket_path(name)
        expect(out, "unix://" + path)
        # Found again by the file that daemons up to 2.2 read, private, and
        # serving both versions.
        with open(os.path.join(bundle, "address")) as f:
            self.assertEqual("unix://" + path, f.read())
        self.assertEqual(0o600, os.stat(path).st_mode & 0o777)
        self.assertEqual(0o700, os.stat(bench.sockets).st_mode & 0o777)
        client = shim.Client(path)
        self.addCleanup(client.close)
        pid = client("Connect", {1: name}, shim.TASK2).number(1)
        self.assertEqual(pid, client("Connect", {1: name}, shim.TASK3).number(1))
        # A second start finds the first.
        code, again = bench.command(bundle, *args, stdin=stdin, **env)
        self.assertEqual((0, out), (code, again))
        self.assertEqual(pid, client("Connect", {1: name}).number(1))
        with open("/proc/%d/cmdline" % pid, "rb") as f:
            line = f.read().split(b"\0")
        self.assertIn(name.encode(), line)
        self.assertNotIn(b"start", line)
        # A group of its own, nothing of ours as its output.
        self.assertEqual(pid, os.getpgid(pid))
        self.assertEqual("/dev/null", os.readlink("/proc/%d/fd/1" % pid))
        client("Shutdown", {1: name})
        proc.wait_for(lambda: not os.path.exists(path), "the shim to end")

    def test_1_6(self):
        def plain(out, address):
            self.assertEqual(address, out.decode())

        self.check("b16", [], b"", {}, plain)
        options = shim.encode({1: shim.OPTIONS, 2: {6: "runc"}})
        self.check("b16o", ["-debug"], options, {"GOMAXPROCS": "2"}, plain)

    def test_1_7_to_2_2(self):
        def as_json(out, address):
            self.assertEqual({"version": 2, "address": address, "protocol": "ttrpc"},
                             json.loads(out))

        options = shim.encode({1: shim.OPTIONS, 2: {6: "runc"}})
        for stdin in (b"", options):
            self.check("b17", [], stdin, {"MAX_SHIM_VERSION": "2", "GOMAXPROCS": "2"}, as_json)

    def test_2_3(self):
        def as_result(out, address):
            result = shim.Fields(out)
            self.assertEqual((3, address, "ttrpc"),
                             (result.number(1), result.text(2), result.text(3)))

        params = shim.encode({
            1: "b23", 2: "bht", 3: -4, 4: "2.3.0", 5: os.path.join(bench.dir, "events"),
            6: "/nowhere", 7: "/usr/bin/containerd", 9: bench.sockets,
            8: [{1: {1: "other.Extension", 2: "x"}}, {1: {1: shim.OPTIONS, 2: {6: "runc"}}}]})
        self.check("b23", [], params, {"MAX_SHIM_VERSION": "2", "TTRPC_ADDRESS": "",
                                       "BULKHEAD_SHIM_SOCKET_DIR": "/nowhere"}, as_result)

    def test_what_it_is(self):
        bundle = bench.bundle("info")
        for flag in ("-v", "--version"):
            code, out = bench.command(bundle, flag)
            self.assertEqual(0, code)
            self.assertRegex(out.decode(), r"^\S+:\n  Version:  \S+\n  Revision: ")
        for stdin in (b"", shim.encode({1: shim.OPTIONS, 2: {6: "runc"}})):
            code, out = bench.command(bundle, "-info", stdin=stdin)
            self.assertEqual(0, code)
            info = shim.Fields(out)
            self.assertEqual("io.containerd.bulkhead.v1", info.text(1))
            features = info.message(4)
            self.assertEqual("types.containerd.io/opencontainers/runtime-spec/1/features/Features",
                             features.text(1))
            self.assertIn("prestart", json.loads(features.text(2))["hooks"])

    def test_bad_calls(self):
        bundle = bench.bundle("bad", bench.spec("true"))
        for args, text in ((["-id", "x", "start"], "shim namespace cannot be empty"),
                           (["-namespace", "n", "dance"], "unknown action dance"),
                           (["-namespace", "n", "-nonsense", "start"],
                            "flag provided but not defined: -nonsense"),
                           (["-namespace", "n", "-id", "x"], "no socket to serve")):
            code, out = bench.command(bundle, *args)
            self.assertEqual(1, code)
            self.assertIn(text, out.decode())
        options = shim.encode({1: shim.OPTIONS, 2: {3: "/no-such-group"}})
        code, out = bench.command(bundle, "-namespace", "bht", "-id", "cg", "start",
                                  stdin=options)
        self.assertEqual(1, code)
        self.assertIn("failed to join shim to cgroup: cgroup /no-such-group", out.decode())
        self.assertFalse(os.path.exists(bench.socket_path("cg", "")))

    def test_shim_cgroup(self):
        base = "/sys/fs/cgroup/memory" if os.path.isdir("/sys/fs/cgroup/memory") else \
            "/sys/fs/cgroup"
        group = os.path.join(base, bench.name)
        os.mkdir(group)
        self.addCleanup(lambda: proc.wait_for(lambda: os.rmdir(group) or True, "rmdir"))
        options = shim.encode({1: shim.OPTIONS, 2: {3: "/" + bench.name}})
        task = bench.start("grouped", bench.spec("true"), stdin=options)
        with open(os.path.join(group, "cgroup.procs")) as f:
            self.assertIn(str(task.shim_pid()), f.read().split())
        task.end()

    def test_dead_shims_name_is_taken_over(self):
        task = bench.start("twice", bench.spec("true"))
        self.addCleanup(task.client.close)
        pid = task.shim_pid()
        os.kill(pid, signal.SIGKILL)
        proc.wait_for(lambda: shim.gone(pid), "its end")
        self.assertTrue(os.path.exists(task.path))  # A killed shim leaves it.
        task = bench.start("twice")
        self.addCleanup(task.end)
        self.assertNotEqual(pid, task.shim_pid())

    def test_group_of_a_pod(self):
        """Both annotations; the first of them wins."""
        for annotations in ({"io.kubernetes.cri.sandbox-id": "pod-g"},
                            {"io.containerd.runc.v2.group": "pod-g",
                             "io.kubernetes.cri.sandbox-id": "other"}):
            pod = bench.start("pod-g", bench.spec("true"))
            spec = bench.spec("sh", "-c", "exit 5", annotations=annotations)
            one = bench.start("in-g-%d" % bench.count, spec)
            self.assertEqual((pod.path, pod.shim_pid()), (one.path, one.shim_pid()))
            self.assertEqual(5, one.run())
            # As long as a container is left, nobody shuts it down.
            pod.create()
            one.call("Delete")
            one.call("Shutdown")
            one.client.close()
            self.assertEqual(1, pod.call("State").number(4))
            pod.end()


class Tasks(Case):
    def test_both_versions_answer_the_same(self):
        task = self.task("sleep", "1000")
        task.create()
        for service in (shim.TASK2, shim.TASK3):
            task.service = service
            self.assertEqual(1, task.call("State").number(4))
        self.refused(12, "service containerd.task.v4.Task", task.client, "State", {},
                     "containerd.task.v4.Task")
        self.refused(12, "method Dance", task.call, "Dance")

    def test_wrong_states_are_told_in_containerds_words(self):
        task = self.task("sleep", "1000")
        for method in ("State", "Start", "Delete", "Pids", "Pause", "Resume", "Kill", "Exec",
                       "Wait", "Stats", "Update", "CloseIO", "ResizePty", "Checkpoint"):
            self.refused(5, "container not created", task.call, method)
        self.assertEqual(0, task.call("Connect").number(2))
        task.create()
        self.refused(6, "container " + task.name, task.create)
        self.refused(2, "cannot pause task in created state", task.call, "Pause")
        self.refused(2, "cannot checkpoint a task in created state", task.call, "Checkpoint",
                     {2: "/tmp"})
        self.refused(5, "process does not exist e", task.call, "State", {2: "e"})
        task.call("Start")
        self.refused(2, "cannot start a running process", task.call, "Start")
        self.refused(2, "cannot delete a running process", task.call, "Delete")
        task.exec("e", "sleep", "1000", start=False)
        self.refused(6, "id e", task.exec, "e", "true")
        self.refused(9, "process not created", task.call, "Kill", {2: "e", 3: 9})
        task.call("Pause")
        self.refused(2, "cannot exec in a paused state", task.exec, "e2", "true")
        self.assertEqual(4, task.call("State").number(4))
        task.call("Resume")
        task.call("Kill", {3: 9})
        self.assertEqual(137, task.call("Wait").number(1))
        self.refused(9, "container %s init process is not running" % task.name,
                     task.call, "Start", {2: "e"})
        self.refused(2, "cannot exec in a stopped state", task.exec, "e3", "true")
        self.refused(2, "cannot resume a stopped container", task.call, "Resume")
        self.refused(2, "cannot checkpoint a stopped container", task.call, "Checkpoint",
                     {2: "/tmp"})
        self.refused(5, "process already finished", task.call, "Kill", {3: 9})

    def test_hostile_frames(self):
        task = self.task("true")
        client = shim.Client(task.path)
        # Too long: drained, answered, and the connection lives.
        client.last += 2
        client.socket.sendall(struct.pack(">IIBB", (4 << 20) + 1, client.last, 1, 0))
        client.socket.sendall(b"x" * ((4 << 20) + 1))
        self.refused(8, "message length 4194305 exceed maximum message size of 4194304",
                     client.receive, client.last)
        self.assertGreater(client("Connect", {1: task.name}).number(1), 0)
        # An unknown type is ignored; even and old stream ids are refused.
        client.socket.sendall(struct.pack(">IIBB", 3, 99, 77, 0) + b"abc")
        client.socket.sendall(struct.pack(">IIBB", 0, 2, 1, 0))
        self.refused(3, "StreamID must be odd for client initiated streams", client.receive, 2)
        client.socket.sendall(struct.pack(">IIBB", 0, 3, 1, 0))
        self.refused(3, "StreamID cannot be re-used", client.receive, 3)
        self.refused(3, "malformed request", client.receive,
                     client.send("State", raw=b"\xff\xff\xff"))
        self.assertGreater(client("Connect", {1: task.name}).number(1), 0)
        client.close()

    def test_exits_come_in_order(self):
        """Init's end waits for the ends of its execs, and Delete for both."""
        task = self.task("sleep", "1000")
        task.create()
        task.call("Start")
        for name in ("a", "b"):
            task.exec(name, "sleep", "1000")
        waits = [task.client.send("Wait", {1: task.name, 2: name}) for name in ("a", "b", "")]
        task.call("Kill", {3: 9})
        self.assertEqual([137] * 3, [task.client.receive(w).number(1) for w in waits])
        task.call("Delete")
        task.call("Shutdown")
        proc.wait_for(lambda: "/tasks/delete" in self.told(task), "the last event")
        told = self.told(task)
        self.assertEqual(["/tasks/create", "/tasks/start"], told[:2])
        self.assertEqual(["/tasks/exit"] * 3 + ["/tasks/delete"], told[-4:])
        exits = [event.text(2) for topic, _, event in bench.events.seen
                 if topic == "/tasks/exit" and event.text(1) == task.name]
        self.assertEqual(task.name, exits[-1])

    def told(self, task):
        return [topic for topic, _, event in list(bench.events.seen)
                if event.text(1) == task.name]

    def test_out_of_memory(self):
        task = self.task("sh", "-c", "tail /dev/zero",
                         linux={"resources": {"memory": {"limit": 16 << 20, "swap": 16 << 20}}})
        self.assertEqual(137, task.run())
        proc.wait_for(lambda: "/tasks/exit" in self.told(task), "the exit")
        told = self.told(task)
        self.assertIn("/tasks/oom", told)
        self.assertLess(told.index("/tasks/oom"), told.index("/tasks/exit"))

    def test_a_stuck_reader_delays_delete_ten_seconds(self):
        task = self.task("sleep", "1000")
        task.create()
        task.call("Start")
        out = os.path.join(bench.dir, "held")
        # What it left behind keeps its output open.
        task.exec("e", "sh", "-c", "sleep 1000 & exit 3", out="file://" + out)
        self.assertEqual(3, task.call("Wait", {2: "e"}).number(1))
        began = time.monotonic()
        self.assertEqual(3, task.call("Delete", {2: "e"}).number(2))
        self.assertGreater(time.monotonic() - began, 9)
        self.assertLess(time.monotonic() - began, 20)

    def test_sigterm_tells_what_is_queued(self):
        task = self.task("sleep", "1000")
        task.create()
        pid = task.shim_pid()
        os.kill(pid, signal.SIGUSR1)  # Tells its state, and lives.
        self.assertEqual(1, task.call("State").number(4))
        os.kill(pid, signal.SIGTERM)
        proc.wait_for(lambda: shim.gone(pid), "its end")
        self.assertIn("/tasks/create", self.told(task))
        self.assertFalse(os.path.exists(task.path))
        code, out = bench.command(task.bundle, "-namespace", "bht", "-id", task.name, "-bundle",
                                  task.bundle, "delete")
        self.assertEqual(0, code, out)
        self.assertEqual(137, shim.Fields(out).number(2))

    def test_stats(self):
        task = self.task("sleep", "1000")
        task.create()
        task.call("Start")
        any_ = task.call("Stats").message(1)
        memory = any_.message(2).message(4)
        if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
            self.assertEqual("io.containerd.cgroups.v2.Metrics", any_.text(1))
            in_use = memory.number(32)
        else:
            self.assertEqual("io.containerd.cgroups.v1.Metrics", any_.text(1))
            in_use = memory.message(33).number(2)
        self.assertGreaterEqual(in_use, 4096)
        self.assertGreater(any_.message(2).message(2).number(1), 0)  # Processes.


class Logs(Case):
    """Logs that the shim itself writes."""

    def test_cri_format(self):
        path = os.path.join(bench.dir, "cri", "c.log")
        uri = "cri-file://%s?max-line=10" % path
        task = self.task("sh", "-c", "echo one; printf '0123456789abc\\r\\n'; echo; "
                         "echo bad >&2; printf end")
        self.assertEqual(0, task.run(uri, uri))
        task.call("Delete")
        with open(path, newline="") as f:
            lines = f.read().split("\n")
        self.assertEqual("", lines.pop())
        stamp = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?(Z|[+-]\d\d:\d\d) "
        for line in lines:
            self.assertRegex(line, stamp)
        out = [re.sub(stamp, "", line) for line in lines]
        self.assertEqual(["stderr F bad"], [line for line in out if "stderr" in line])
        self.assertEqual(["stdout F one", "stdout P 0123456789", "stdout F abc", "stdout F ",
                          "stdout P end"], [line for line in out if "stdout" in line])
        self.assertEqual(0o640, os.stat(path).st_mode & 0o777)

    def test_kubelet_moves_the_file(self):
        path = os.path.join(bench.dir, "moved.log")
        task = self.task("sh", "-c", "i=0; while [ ! -e /tmp/go ]; do echo $i; i=$((i+1)); "
                         "sleep 0.02; done")
        task.create(out="cri-file://" + path, err="cri-file://" + path)
        pid = task.call("Start").number(1)
        proc.wait_for(lambda: os.path.getsize(path) > 100, "output")
        os.rename(path, path + ".1")
        proc.wait_for(lambda: os.path.exists(path) and os.path.getsize(path) > 100, "more")
        with open("/proc/%d/root/tmp/go" % pid, "w"):
            pass
        self.assertEqual(0, task.call("Wait").number(1))
        task.call("Delete")
        numbers = []
        for name in (path + ".1", path):
            with open(name) as f:
                numbers += [int(line.split(" ")[3]) for line in f]
        self.assertEqual(list(range(len(numbers))), numbers)

    def test_rotation_loses_nothing(self):
        for scheme, read in (("json-file", lambda line: json.loads(line)["log"]),
                             ("cri-file", lambda line: line.split(" ", 3)[3])):
            path = os.path.join(bench.dir, scheme + ".log")
            task = self.task("seq", "3000")
            uri = "%s://%s?max-size=65536&max-file=9" % (scheme, path)
            self.assertEqual(0, task.run(uri, uri))
            task.call("Delete")
            text = ""
            files = [path + ".%d" % i for i in range(9, 0, -1)] + [path]
            for name in files:
                if os.path.exists(name):
                    self.assertLessEqual(os.path.getsize(name), 65536)
                    with open(name) as f:
                        text += "".join(read(line) for line in f)
            self.assertTrue(os.path.exists(path + ".1"))
            self.assertEqual("".join("%d\n" % i for i in range(1, 3001)), text)

    def test_bad_names(self):
        task = self.task("true")
        for uri, text in (("cri-file://relative", "cri-file needs an absolute path"),
                          ("cri-file:///x?max-line=ten",
                           "max-line of a log: \"ten\" is no number"),
                          ("gopher://x", "unknown STDIO scheme gopher")):
            self.refused(2, "failed to create init process I/O: " + text, task.create, out=uri)


class Checkpoints(Case):
    """CRIU itself is not in reach of these tests: a runtime that writes down
    what it is asked stands in, and the real one's refusal comes through."""

    def fake(self, name):
        folder = os.path.join(bench.dir, "fake-" + name)
        os.makedirs(folder)
        path = os.path.join(folder, "runc")
        with open(path, "w") as f:
            f.write(FAKE_RUNC)
        os.chmod(path, 0o755)
        task = bench.start(name, bench.spec("true"))
        self.addCleanup(task.end)
        return task, folder, {10: {1: shim.OPTIONS, 2: {6: path}}}

    def calls(self, folder, command):
        with open(os.path.join(folder, "calls")) as f:
            found = [line.split() for line in f if " %s " % command in line]
        return [line[line.index(command):] for line in found]

    def test_checkpoint(self):
        task, folder, options = self.fake("ck")
        task.create(fields=options)
        task.call("Start")
        image = os.path.join(bench.dir, "image")
        os.mkdir(image)
        task.call("Checkpoint", {2: image, 3: {1: "containerd.runc.v1.CheckpointOptions", 2: {
            1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: ["network", "ipc"], 7: "soft", 9: folder,
            10: "/parent"}}})
        self.assertTrue(os.path.exists(image + "/pages"))
        task.call("Checkpoint", {2: image})
        work = task.bundle + "/work/criu-work"
        self.assertEqual(
            [["checkpoint", "--image-path", image, "--work-path", folder, "--parent-path",
              "/parent", "--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks",
              "--empty-ns", "network", "--empty-ns", "ipc", "--manage-cgroups-mode", "soft", "ck"],
             ["checkpoint", "--image-path", image, "--work-path", work, "--leave-running", "ck"]],
            self.calls(folder, "checkpoint"))
        self.assertFalse(os.path.exists(work))
        open(os.path.join(folder, "fail-checkpoint"), "w").close()
        log = task.bundle + "/criu-dump.log"
        self.refused(2, "OCI runtime checkpoint failed: criu failed: type NOTIFY errno 0: path= " +
                     log, task.call, "Checkpoint", {2: image})
        with open(log) as f:
            self.assertEqual("why\n", f.read())

    def test_restore(self):
        task, folder, options = self.fake("rs")
        out = os.path.join(bench.dir, "restored")
        self.assertEqual(0, task.create(out="file://" + out,
                                        fields={8: "/image", 9: "/parent", **options}))
        self.assertEqual((0, 1), (task.call("State").number(3), task.call("State").number(4)))
        self.refused(2, "cannot exec in a created state", task.exec, "e", "true")
        open(os.path.join(folder, "fail-restore"), "w").close()
        self.refused(2, "OCI runtime restore failed: criu failed: type NOTIFY errno 0",
                     task.call, "Start")
        os.unlink(os.path.join(folder, "fail-restore"))
        pid = task.call("Start").number(1)  # A failed one may be tried again.
        self.assertTrue(os.path.exists("/proc/%d" % pid))
        self.assertEqual((pid, 2), (task.call("State").number(3), task.call("State").number(4)))
        self.assertEqual(
            ["restore", "--image-path", "/image", "--work-path", task.bundle + "/work",
             "--parent-path", "/parent", "--detach", "--pid-file", task.bundle + "/init.pid",
             "--no-subreaper", "--bundle", task.bundle, "rs"],
            self.calls(folder, "restore")[-1])
        open(os.path.join(folder, "end"), "w").close()
        self.assertEqual(9, task.call("Wait").number(1))
        told = [(topic, event) for topic, _, event in list(bench.events.seen)
                if event.text(1) == "rs"]
        self.assertEqual("/image", told[0][1].text(5))
        with open(out) as f:
            self.assertEqual("printed by restore\n", f.read())

    def test_real_runtime_refuses_without_criu(self):
        if any(os.path.exists(os.path.join(p, "criu")) for p in ("/usr/sbin", "/usr/bin")):
            self.skipTest("CRIU is installed")
        task = self.task("sleep", "1000")
        task.create()
        task.call("Start")
        with self.assertRaises(shim.Refused) as caught:
            task.call("Checkpoint", {2: os.path.join(bench.dir, "nothing")})
        self.assertIn("OCI runtime checkpoint failed: ", caught.exception.text)
        self.assertIn("criu", caught.exception.text)
        self.assertEqual(2, task.call("State").number(4))  # It runs on.


class Pods(Case):
    """The sandbox service."""

    def setUp(self):
        self.pod_id = "%s-pod-%d" % (bench.name, bench.count)
        bench.count += 1
        self.bundle = bench.bundle(self.pod_id)
        code, out = bench.command(self.bundle, "-namespace", "bht", "-id", self.pod_id, "-address",
                                  "/nowhere", "start")
        self.assertEqual(0, code, out)
        self.path = out.decode()[len("unix://"):]
        self.client = shim.Client(self.path)
        self.shim_pid = self.client("Connect", {1: self.pod_id}).number(1)
        self.addCleanup(self.end)

    def end(self):
        try:
            os.kill(self.shim_pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        proc.wait_for(lambda: shim.gone(self.shim_pid), "the shim's end")
        self.client.close()

    def call(self, method, fields=None):
        return self.client(method, {1: self.pod_id, **(fields or {})}, shim.SANDBOX)

    def config(self, pid=1, ipc=0, network=0, hostname="podhost", sysctls=(), **linux):
        linux = {2: {1: {1: network, 2: pid, 3: ipc}},
                 3: [{1: k, 2: v} for k, v in sysctls], **linux}
        return {4: {1: "runtime.v1.PodSandboxConfig", 2: {2: hostname, 8: linux}}}

    def netns(self):
        name = "bhp%d" % (bench.count % 1000)
        subprocess.run(["ip", "netns", "add", name], check=True)
        self.addCleanup(subprocess.run, ["ip", "netns", "del", name], check=True)
        return "/var/run/netns/" + name if os.path.exists("/var/run/netns/" + name) else \
            "/run/netns/" + name

    def namespace(self, pid, kind):
        return os.readlink("/proc/%d/ns/%s" % (pid, kind))

    def member(self, name, pod_pid, *args, pid_ns=False):
        """A container in the pod, created over the pod's own shim."""
        namespaces = [{"type": "mount"}] + ([] if pid_ns else [{"type": "pid"}])
        namespaces += [{"type": t, "path": "/proc/%d/ns/%s" % (pod_pid, n)} for t, n in
                       (("network", "net"), ("ipc", "ipc"), ("uts", "uts")) +
                       ((("pid", "pid"),) if pid_ns else ())]
        spec = bench.spec(*args, linux={"namespaces": namespaces})
        task = shim.Task(bench, name, bench.bundle(name, spec), self.path, shim.TASK3)
        self.addCleanup(task.client.close)
        return task

    def test_life(self):
        netns = self.netns()
        self.refused(5, "sandbox " + self.pod_id, self.call, "SandboxStatus")
        platform = self.call("Platform").message(1)
        self.assertEqual("linux", platform.text(1))
        self.assertIn(platform.text(2), ("amd64", "arm64"))
        self.call("CreateSandbox", {2: self.bundle, 5: netns, **self.config(
            sysctls=(("net.ipv4.ip_forward", "1"), ("kernel.shm_rmid_forced", "1")))})
        self.refused(6, "sandbox " + self.pod_id, self.call, "CreateSandbox")
        self.assertEqual("SANDBOX_NOTREADY", self.call("SandboxStatus").text(3))
        started = self.call("StartSandbox")
        pod_pid = started.number(1)
        self.assertGreater(started.message(2).number(1), 0)
        self.refused(9, "sandbox %s was started already" % self.pod_id, self.call, "StartSandbox")
        status = self.call("SandboxStatus", {2: 1})
        self.assertEqual((self.pod_id, pod_pid, "SANDBOX_READY"),
                         (status.text(1), status.number(2), status.text(3)))
        self.assertEqual({}, self.call("PingSandbox"))
        # Its namespaces: the network that was given, ipc and uts of its own.
        self.assertEqual(os.stat(netns).st_ino, os.stat("/proc/%d/ns/net" % pod_pid).st_ino)
        for kind in ("ipc", "uts", "mnt"):
            self.assertNotEqual(self.namespace(os.getpid(), kind), self.namespace(pod_pid, kind))
        self.assertEqual(self.namespace(os.getpid(), "pid"), self.namespace(pod_pid, "pid"))
        waiting = self.client.send("WaitSandbox", {1: self.pod_id}, shim.SANDBOX)

        # Containers come and go; the shim and the pod stay.
        log = os.path.join(bench.dir, self.pod_id + ".log")
        for i in range(2):
            one = self.member("%s-%d" % (self.pod_id, i), pod_pid, "sh", "-c",
                              "hostname; cat /proc/sys/net/ipv4/ip_forward "
                              "/proc/sys/kernel/shm_rmid_forced; sleep 1000")
            one.create(out="file://" + log)
            pid = one.call("Start").number(1)
            for kind in ("net", "ipc", "uts"):
                self.assertEqual(self.namespace(pod_pid, kind), self.namespace(pid, kind))
            proc.wait_for(lambda: read(log).count("\n") == 3 * (i + 1), "output")
            one.call("Kill", {3: 9})
            one.call("Wait")
            one.call("Delete")
            one.call("Shutdown")  # As daemons do after each container.
            self.assertEqual("SANDBOX_READY", self.call("SandboxStatus").text(3))
        with open(log) as f:
            self.assertEqual("podhost\n1\n1\n" * 2, f.read())

        # Stop ends what still runs; Shutdown wants it to be deleted first.
        one = self.member(self.pod_id + "-last", pod_pid, "sleep", "1000")
        one.create()
        one.call("Start")
        self.assertIn(one.name, self.call("SandboxStatus", {2: 1})[4][3].decode())
        self.call("StopSandbox", {2: 5})
        self.call("StopSandbox")  # May be repeated.
        self.assertEqual(137, self.client.receive(waiting).number(1))
        self.assertEqual(137, self.call("WaitSandbox").number(1))
        status = self.call("SandboxStatus")
        self.assertEqual("SANDBOX_NOTREADY", status.text(3))
        self.assertGreater(status.message(6).number(1), 0)
        self.assertFalse(os.path.exists("/proc/%d" % pod_pid))
        self.assertEqual(137, one.call("Wait").number(1))
        self.refused(9, "sandbox %s still has containers: %s" % (self.pod_id, one.name),
                     self.call, "ShutdownSandbox")
        one.call("Delete")
        self.call("ShutdownSandbox")
        proc.wait_for(lambda: shim.gone(self.shim_pid), "the shim's end")
        self.assertFalse(os.path.exists(self.path))

    def test_shared_pid_namespace(self):
        self.call("CreateSandbox", self.config(pid=0, network=2))
        pod_pid = self.call("StartSandbox").number(1)
        self.assertEqual(self.namespace(os.getpid(), "net"), self.namespace(pod_pid, "net"))
        self.assertEqual(self.namespace(os.getpid(), "uts"), self.namespace(pod_pid, "uts"))
        self.assertNotEqual(self.namespace(os.getpid(), "pid"), self.namespace(pod_pid, "pid"))
        log = os.path.join(bench.dir, self.pod_id + ".log")
        spec = bench.spec(
            "sh", "-c", "cat /proc/1/comm; grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs)' "
            "/proc/1/status; ls /proc/1/root; (sleep 0.1 &); echo end",
            linux={"namespaces": [{"type": "mount"},
                                  {"type": "pid", "path": "/proc/%d/ns/pid" % pod_pid}]},
            process={"capabilities": {k: ["CAP_SYS_PTRACE"] for k in (
                "bounding", "effective", "permitted")}})
        name = self.pod_id + "-c"
        one = shim.Task(bench, name, bench.bundle(name, spec), self.path)
        self.assertEqual(0, one.run("file://" + log, "file://" + log))
        with open(log) as f:
            text = f.read()
        # Pid 1 is the pod's own; even with CAP_SYS_PTRACE it leads nowhere.
        self.assertEqual("pod\nUid:\t65534\t65534\t65534\t65534\nCapEff:\t0000000000000000\n"
                         "CapBnd:\t0000000000000000\nNoNewPrivs:\t1\nend\n", text)
        self.assertIn("memfd:pod", os.readlink("/proc/%d/exe" % pod_pid))
        one.call("Delete")
        one.client.close()

        def zombies():
            found = subprocess.run(["nsenter", "-t", str(pod_pid), "-p", "ps", "--ppid",
                                    str(pod_pid), "-o", "stat="], capture_output=True, text=True)
            return "Z" in found.stdout
        # Orphans of containers are pid 1's, and leave no zombie.
        proc.wait_for(lambda: not zombies(), "zombies to go")
        self.call("StopSandbox")
        self.call("ShutdownSandbox")

    def test_the_pod_dies_with_its_shim(self):
        self.call("CreateSandbox", self.config())
        pod_pid = self.call("StartSandbox").number(1)
        os.kill(self.shim_pid, signal.SIGKILL)
        proc.wait_for(lambda: shim.gone(pod_pid), "its end")
        code, out = bench.command(self.bundle, "-namespace", "bht", "-id", self.pod_id, "-bundle",
                                  self.bundle, "delete")
        self.assertEqual(0, code, out)
        self.assertFalse(os.path.exists(self.path))

    def test_the_pods_end_is_told(self):
        self.call("CreateSandbox", self.config())
        pod_pid = self.call("StartSandbox").number(1)
        waiting = self.client.send("WaitSandbox", {1: self.pod_id}, shim.SANDBOX)
        os.kill(pod_pid, signal.SIGKILL)
        exited = self.client.receive(waiting)
        self.assertEqual(137, exited.number(1))
        self.assertGreater(exited.message(2).number(1), 0)
        self.assertEqual("SANDBOX_NOTREADY", self.call("SandboxStatus").text(3))

    def test_metrics(self):
        base = "/sys/fs/cgroup/memory" if os.path.isdir("/sys/fs/cgroup/memory") else \
            "/sys/fs/cgroup"
        parent = os.path.join(base, self.pod_id)
        os.mkdir(parent)
        self.addCleanup(os.rmdir, parent)
        self.call("CreateSandbox", {
            4: {1: "runtime.v1.PodSandboxConfig", 2: {8: {1: "/" + self.pod_id}}}})
        metric = self.call("SandboxMetrics").message(1)
        self.assertEqual(self.pod_id, metric.text(2))
        self.assertIn("io.containerd.cgroups.", metric.message(3).text(1))

    def test_refusals(self):
        self.refused(3, "create needs a sandbox id", self.client, "CreateSandbox", {},
                     shim.SANDBOX)
        self.refused(12, "method Dance", self.call, "Dance")
        self.refused(12, "user namespaces of pods", self.call, "CreateSandbox", {
            4: {1: "runtime.v1.PodSandboxConfig", 2: {8: {2: {1: {5: {2: {1: 0, 3: 1}}}}}}}})
        self.call("CreateSandbox", self.config(sysctls=(("kernel.panic", "1"),)))
        self.refused(3, "sysctl \"kernel.panic\" is not of a namespace of this pod's own",
                     self.call, "StartSandbox")
        self.call("ShutdownSandbox")

    def test_a_network_that_is_not_there(self):
        self.call("CreateSandbox", {5: "/no/such/netns", **self.config()})
        with self.assertRaises(shim.Refused) as caught:
            self.call("StartSandbox")
        self.assertIn("/no/such/netns", caught.exception.text)
        self.assertEqual("SANDBOX_NOTREADY", self.call("SandboxStatus").text(3))
        self.call("ShutdownSandbox")


def held_by(pid):
    """Resident KiB and descriptors of a process."""
    status = read("/proc/%d/status" % pid)
    return (int(re.search(r"VmRSS:\s+(\d+)", status).group(1)),
            len(os.listdir("/proc/%d/fd" % pid)))


def stress(cycles, report=None, growth_kib_max=256):
    """Cycles of containers within one shim, 8 at a time; nothing may be left."""
    box = shim.Bench()
    try:
        first = box.start(box.name, box.spec("true"))

        def cycle(i):
            name = "%s-c%d" % (box.name, i)
            spec = box.spec("sh", "-c", "echo $0; exec sleep 1000", name,
                            linux={"cgroupsPath": "/%s/c%d" % (box.name, i)})
            task = shim.Task(box, name, box.bundle(name, spec), first.path)
            fifos = [os.path.join(task.bundle, end) for end in ("out", "exec")]
            for fifo in fifos:
                os.mkfifo(fifo)
            ends = [os.open(fifo, os.O_RDONLY | os.O_NONBLOCK) for fifo in fifos]
            task.create(out=fifos[0])
            task.call("Start")
            task.exec("e", "echo", "exec", name, out=fifos[1])
            assert task.call("Wait", {2: "e"}).number(1) == 0
            task.call("Delete", {2: "e"})
            task.call("Kill", {3: 9})
            assert task.call("Wait").number(1) == 137
            task.call("Delete")
            task.client.close()
            for end, want in zip(ends, (name, "exec " + name)):
                got = os.read(end, 4096).decode()
                os.close(end)
                # Killed early, it may not have come to say anything.
                assert got in (want + "\n", "") and (got or want == name), got
            shutil.rmtree(task.bundle)

        def many(numbers):
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                list(pool.map(cycle, numbers))

        warm = min(24, cycles // 2)
        many(range(warm))
        pid = first.shim_pid()
        time.sleep(0.5)  # It gives pages back when it has been quiet.
        before = held_by(pid)
        many(range(warm, cycles))
        proc.wait_for(lambda: held_by(pid)[1] <= before[1] and
                      held_by(pid)[0] <= before[0] + growth_kib_max,
                      "memory and descriptors: %r, then %r" % (before, held_by(pid)), 10)
        if report:
            report("the shim: %d KiB and %d descriptors, then %d and %d" %
                   (*before, *held_by(pid)))
        children = read("/proc/%d/task/%d/children" % (pid, pid))
        assert not children, "children left: " + children
        left = [d for base, dirs, _ in os.walk("/sys/fs/cgroup") for d in dirs
                if os.path.basename(base) == box.name]
        assert not left, "cgroups left: %r" % left
        assert not os.listdir(os.path.join(box.runtime_root, "bht")), "states left"
        for base, dirs, _ in os.walk("/sys/fs/cgroup"):
            if box.name in dirs:
                os.rmdir(os.path.join(base, box.name))
        first.end()
    finally:
        box.close()


class Stress(unittest.TestCase):
    def test_cycles_within_one_shim(self):
        stress(CYCLES, lambda text: print("     " + text))


if __name__ == "__main__":
    unittest.main()
