"""Unary gRPC calls, for what no client at hand can ask: curl carries them, and
messages are made of fields by hand."""

import os
import struct
import subprocess
import tempfile


class RpcError(AssertionError):
    def __init__(self, code, message):
        super().__init__("grpc status %s: %s" % (code, message))
        self.code, self.message = code, message


def _varint(number):
    out = b""
    while True:
        byte = number & 0x7f
        number >>= 7
        out += bytes([byte | (0x80 if number else 0)])
        if not number:
            return out


def field(number, value):
    """One field of a message: text, bytes (also a message), or a number."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, str):
        value = value.encode()
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def parse(message):
    """Number of each field to the list of its values: ints and bytes."""
    fields, at = {}, 0

    def varint():
        nonlocal at
        number = shift = 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 0x7f) << shift
            shift += 7
            if not byte & 0x80:
                return number

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            value = varint()
        elif kind == 2:
            size = varint()
            value = message[at:at + size]
            at += size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value = message[at:at + size]
            at += size
        else:
            raise ValueError("field of kind %d" % kind)
        fields.setdefault(key >> 3, []).append(value)
    return fields


class Call:
    """Calls on one socket, in one namespace, under a lease if one is named."""

    def __init__(self, socket, ns, lease=None):
        self.socket, self.ns = socket, ns
        self.more = ["-H", "containerd-lease: " + lease] if lease else []

    def __call__(self, service, method, message=b"", timeout=60):
        """The fields of the answer; RpcError if there is none."""
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            head, body = os.path.join(folder, "h"), os.path.join(folder, "b")
            done = subprocess.run(
                ["curl", "-sS", "--http2-prior-knowledge", "--unix-socket", self.socket,
                 "-H", "content-type: application/grpc", "-H", "te: trailers",
                 "-H", "containerd-namespace: " + self.ns, *self.more, "--data-binary", "@-",
                 "-D", head, "-o", body, "--max-time", str(timeout),
                 "http://localhost/%s/%s" % (service, method)],
                input=b"\0" + struct.pack(">I", len(message)) + message,
                capture_output=True)
            if done.returncode != 0:
                raise AssertionError("curl: " + done.stderr.decode())
            status, text = None, ""
            with open(head, errors="replace") as f:
                for line in f:
                    name, _, value = line.strip().partition(": ")
                    if name.lower() == "grpc-status":
                        status = int(value)
                    elif name.lower() == "grpc-message":
                        text = value
            if status != 0:
                raise RpcError(status, text)
            data = b""
            if os.path.exists(body):
                with open(body, "rb") as f:
                    data = f.read()
            return parse(data[5:]) if data else {}
