"""A shim without a daemon: its command line, and ttrpc as a daemon speaks it."""

import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading

from tests.harness import proc

SHIM = os.path.join(proc.BIN, "containerd-shim-bulkhead-v1")
TASK2, TASK3 = "containerd.task.v2.Task", "containerd.task.v3.Task"
SANDBOX = "containerd.runtime.sandbox.v1.Sandbox"
OPTIONS = "containerd.runc.v1.Options"


def _varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode(fields):
    """{1: "text", 2: 7, 3: {1: "a message"}, 4: ["repeated", ...]} as protobuf."""
    out = b""
    for number, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                one = encode(one)
            if isinstance(one, str):
                one = one.encode()
            if isinstance(one, bytes):
                out += _varint(number << 3 | 2) + _varint(len(one)) + one
            elif one:
                out += _varint(number << 3) + _varint(int(one))
    return out


class Fields(dict):
    """Field number to the list of its values: numbers or bytes."""

    def __init__(self, data):
        super().__init__()
        at = 0

        def varint():
            nonlocal at
            shift = value = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return value

        while at < len(data):
            tag = varint()
            if tag & 7 == 0:
                value = varint()
            else:
                size = varint() if tag & 7 == 2 else {1: 8, 5: 4}[tag & 7]
                value = data[at:at + size]
                at += size
            self.setdefault(tag >> 3, []).append(value)

    def number(self, field):
        return self.get(field, [0])[-1]

    def bytes(self, field):
        return self.get(field, [b""])[-1]

    def text(self, field):
        return self.bytes(field).decode()

    def message(self, field):
        return Fields(self.bytes(field))


class Refused(Exception):
    def __init__(self, code, text):
        super().__init__("code %d: %s" % (code, text))
        self.code, self.text = code, text


class Client:
    """One connection; calls may overlap through send() and receive()."""

    def __init__(self, path, timeout=60):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(path)
        self.last, self.answers = -1, {}

    def close(self):
        self.socket.close()

    def send(self, method, fields=None, service=TASK2, raw=None):
        self.last += 2
        payload = encode(fields or {}) if raw is None else raw
        body = encode({1: service, 2: method, 3: payload})
        self.socket.sendall(struct.pack(">IIBB", len(body), self.last, 1, 0) + body)
        return self.last

    def read(self, size):
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionError("ttrpc: closed")
            data += more
        return data

    def receive(self, stream):
        while stream not in self.answers:
            size, number, _, _ = struct.unpack(">IIBB", self.read(10))
            self.answers[number] = self.read(size)
        response = Fields(self.answers.pop(stream))
        status = response.message(1)
        if status.number(1):
            raise Refused(status.number(1), status.text(2))
        return response.message(2)

    def __call__(self, method, fields=None, service=TASK2):
        return self.receive(self.send(method, fields, service))


class Events:
    """The daemon's Events service: keeps (topic, type, event) of each."""

    def __init__(self, path):
        self.seen = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        def read(size):
            data = b""
            while len(data) < size:
                more = connection.recv(size - len(data))
                if not more:
                    raise ConnectionError
                data += more
            return data

        try:
            while True:
                size, stream, _, _ = struct.unpack(">IIBB", read(10))
                envelope = Fields(read(size)).message(3).message(1)
                event = envelope.message(4)
                self.seen.append((envelope.text(3), event.text(1), event.message(2)))
                connection.sendall(struct.pack(">IIBB", 0, stream, 2, 0))
        except OSError:
            connection.close()

    def topics(self):
        return [topic for topic, _, _ in list(self.seen)]

    def close(self):
        # Wakes the thread in accept().
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def gone(pid):
    """It has ended; whoever inherited it may not have noticed yet."""
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def rootfs(path):
    """A root file system of one busybox."""
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc"):
        os.makedirs(os.path.join(path, name), exist_ok=True)
    box = os.path.join(path, "bin", "busybox")
    shutil.copy("/bin/busybox", box)
    for name in subprocess.run([box, "--list"], text=True, capture_output=True,
                               check=True).stdout.split():
        if name != "busybox":
            os.symlink("busybox", os.path.join(path, "bin", name))
    return path


class Bench:
    """A folder with shims, bundles, a runtime root and an Events service."""

    def __init__(self, runtime="runc"):
        self.dir = proc.temp_dir()
        self.runtime, self.count, self.lock = runtime, 0, threading.Lock()
        self.rootfs = rootfs(os.path.join(self.dir, "rootfs"))
        self.sockets = os.path.join(self.dir, "s")
        self.events = Events(os.path.join(self.dir, "events"))
        self.runtime_root = os.path.join(self.dir, "oci")
        self.name = "bht-" + os.path.basename(self.dir)[3:]

    def close(self):
        self.events.close()
        left = proc.clean_up(self.dir)
        if left:
            raise AssertionError("left behind: %r" % left)

    def env(self, **more):
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "BULKHEAD_OCI_ROOT": self.runtime_root,
               "BULKHEAD_OCI_RUNTIME": self.runtime, "BULKHEAD_SHIM_SOCKET_DIR": self.sockets,
               "TTRPC_ADDRESS": os.path.join(self.dir, "events")}
        env.update({key: value for key, value in os.environ.items()
                    if key in ("ASAN_OPTIONS", "TSAN_OPTIONS")})
        env.update(more)
        return env

    def spec(self, *args, **changes):
        """A config.json; changes of process, linux and the top level."""
        with self.lock:
            self.count += 1
        namespaces = [{"type": t} for t in ("pid", "mount", "ipc", "uts")]
        spec = {"ociVersion": "1.0.2",
                "process": {"terminal": False, "user": {"uid": 0, "gid": 0}, "cwd": "/",
                            "args": list(args), "env": ["PATH=/bin"]},
                "root": {"path": self.rootfs},
                "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                           {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                           {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
                           {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}],
                "linux": {"cgroupsPath": "/%s-%d" % (self.name, self.count),
                          "namespaces": namespaces}}
        for key in ("process", "linux"):
            spec[key].update(changes.pop(key, {}))
        spec.update(changes)
        return spec

    def bundle(self, name, spec=None):
        path = os.path.join(self.dir, "b", name)
        os.makedirs(path, exist_ok=True)
        if spec is not None:
            with open(os.path.join(path, "config.json"), "w") as f:
                json.dump(spec, f)
        return path

    def command(self, bundle, *args, stdin=b"", **env):
        """Runs the shim in the bundle: exit code, and both outputs together."""
        done = subprocess.run([SHIM, *args], cwd=bundle, input=stdin, timeout=60,
                              env=self.env(**env), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        return done.returncode, done.stdout

    def start(self, name, spec=None, stdin=b"", args=(), **env):
        """`start` of 1.6; a Task for the container of that name."""
        bundle = self.bundle(name, spec)
        code, out = self.command(bundle, "-namespace", "bht", "-id", name, "-address",
                                 "/nowhere", *args, "start", stdin=stdin, **env)
        if code or not out.startswith(b"unix://"):
            raise AssertionError("start ended with %d: %r" % (code, out))
        return Task(self, name, bundle, out.decode()[len("unix://"):])

    def socket_path(self, group, address="/nowhere", ns="bht"):
        text = "%s/%s/%s" % (address, ns, group)
        return os.path.join(self.sockets, hashlib.sha256(text.encode()).hexdigest())


class Task:
    """A container of a shim; attribute names are methods of the service."""

    def __init__(self, bench, name, bundle, path, service=TASK2):
        self.bench, self.name, self.bundle, self.path = bench, name, bundle, path
        self.client, self.service = Client(path), service

    def call(self, method, fields=None):
        return self.client(method, {1: self.name, **(fields or {})}, self.service)

    def create(self, stdin="", out="", err="", **more):
        fields = {2: self.bundle, 5: stdin, 6: out, 7: err}
        fields.update(more.get("fields", {}))
        return self.call("Create", fields).number(1)

    def run(self, out="", err=""):
        """Create, Start, Wait: the exit code."""
        self.create(out=out, err=err)
        self.call("Start")
        return self.call("Wait").number(1)

    def exec(self, exec_id, *args, out="", start=True):
        process = {"args": list(args), "cwd": "/", "env": ["PATH=/bin"],
                   "user": {"uid": 0, "gid": 0}}
        self.call("Exec", {2: exec_id, 5: out, 7: {1: "x", 2: json.dumps(process)}})
        return self.call("Start", {2: exec_id}).number(1) if start else None

    def shim_pid(self):
        return self.call("Connect").number(1)

    def end(self):
        """Kills, deletes and shuts down, whatever state it is in."""
        try:
            pid = self.shim_pid()
        except (Refused, ConnectionError):
            pid = 0
        for method, fields in (("Kill", {3: signal.SIGKILL}), ("Wait", {}), ("Delete", {}),
                               ("Shutdown", {})):
            try:
                if method == "Wait" and self.call("State").number(3) == 0:
                    continue
                self.call(method, fields)
            except (Refused, ConnectionError):
                pass
        self.client.close()
        proc.wait_for(lambda: pid == 0 or gone(pid), "the shim to end")
