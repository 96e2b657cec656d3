"""A whole registry of our own: pull, push, ranges, uploads that go on, referrers.

It counts what it sends, can be slow as a network is (latency, bytes a second a
connection), and does anything else on order: `rule(handler)` sees each request
first and returns True if it has answered.
"""

import errno
import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import ssl
import threading
import time
import urllib.parse
import uuid

from tests.harness import proc

INDEX = "application/vnd.oci.image.index.v1+json"
PIECE = 256 << 10


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    reg = None  # Set in a subclass of each registry.

    def log_message(self, *args):
        pass

    def setup(self):
        super().setup()
        with self.reg.lock:
            self.reg.connections += 1
        if self.reg.latency:
            time.sleep(self.reg.latency)  # What connecting costs.

    def reply(self, code, body=b"", headers=None, length=None):
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if code != 204:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD" and body:
            self.wfile.write(body)

    def any(self):
        reg = self.reg
        self.body_read = False
        if reg.latency:
            time.sleep(reg.latency)
        with reg.lock:
            reg.requests.append((self.command, self.path, dict(self.headers)))
        try:
            if not (reg.rule and reg.rule(self)):
                self.normal()
            if not self.body_read and self.headers.get("Content-Length", "0") != "0":
                self.close_connection = True
        except OSError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = any

    def normal(self):
        split = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(split.query)
        if split.path.rstrip("/") == "/v2":
            return self.reply(200, b"{}")
        match = re.match(r"/v2/(.+)/(manifests|blobs|referrers)/(uploads/)?([^/]*)$", split.path)
        if not match:
            return self.reply(404, b"{}")
        repo, kind, upload, ref = match.groups()
        if upload is not None:
            return self.upload(repo, ref, query)
        if kind == "referrers":
            return self.referrers(repo, ref, query)
        if self.command == "PUT":
            return self.put_manifest(repo, ref)
        return self.get(repo, kind, ref)

    def get(self, repo, kind, ref):
        reg = self.reg
        digest, media_type = ref, "application/octet-stream"
        if kind == "manifests":
            with reg.lock:
                digest, media_type = reg.manifests.get((repo, ref), (None, None))
        path = reg.path(digest) if digest else ""
        if not os.path.exists(path):
            return self.reply(404, json.dumps({"errors": [
                {"code": "MANIFEST_UNKNOWN", "message": "unknown"}]}).encode())
        size = os.path.getsize(path)
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
        start, end, code = 0, size, 200
        asked = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", ""))
        if reg.ranges and kind == "blobs":
            headers["Accept-Ranges"] = "bytes"
            if asked:
                start = int(asked.group(1))
                end = min(size, int(asked.group(2)) + 1) if asked.group(2) else size
                code = 206
                headers["Content-Range"] = "bytes %d-%d/%d" % (start, end - 1, size)
        self.reply(code, b"", headers, end - start)
        if self.command == "HEAD":
            return None
        with reg.lock:
            reg.gets[digest] = reg.gets.get(digest, 0) + 1
            reg.streams[digest] = reg.streams.get(digest, 0) + 1
            reg.streams_most[digest] = max(reg.streams_most.get(digest, 0), reg.streams[digest])
        try:
            self.send_file(path, digest, start, end)
        finally:
            with reg.lock:
                reg.streams[digest] -= 1
        return None

    def send_file(self, path, digest, start, end):
        reg = self.reg
        tls = isinstance(self.connection, ssl.SSLSocket)
        began, sent = time.monotonic(), 0
        with open(path, "rb") as f:
            while start < end:
                want = min(PIECE, end - start)
                if tls:
                    f.seek(start)
                    piece = f.read(want)
                    self.connection.sendall(piece)
                    count = len(piece)
                else:
                    count = os.sendfile(self.connection.fileno(), f.fileno(), start, want)
                if count == 0:
                    raise OSError("cut off")
                start += count
                sent += count
                with reg.lock:
                    reg.sent[digest] = reg.sent.get(digest, 0) + count
                if reg.on_sent:
                    reg.on_sent(digest, start)
                if reg.rate:
                    ahead = sent / reg.rate - (time.monotonic() - began)
                    if ahead > 0:
                        time.sleep(ahead)

    def read_body(self, sink, limit=None):
        """The body, or its first `limit` bytes and then the end of it all."""
        left = int(self.headers.get("Content-Length") or 0)
        began, got = time.monotonic(), 0
        while left > 0:
            piece = self.rfile.read(min(PIECE, left))
            if not piece:
                raise OSError("cut off")
            left -= len(piece)
            got += len(piece)
            sink(piece)
            if limit is not None and got >= limit:
                # Unread bytes are left: the peer sees a reset.
                self.connection.shutdown(socket.SHUT_RDWR)
                raise OSError("on order")
            if self.reg.rate:
                ahead = got / self.reg.rate - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)
        self.body_read = True

    def upload(self, repo, session, query):
        reg = self.reg
        if self.command == "POST":
            digest = query.get("mount", [""])[0]
            if digest and os.path.exists(reg.path(digest)):
                return self.reply(201, b"", {"Location": "/v2/%s/blobs/%s" % (repo, digest)})
            session = uuid.uuid4().hex
            open(reg.upload_path(session), "wb").close()
            return self.reply(202, b"", {"Location": "/v2/%s/blobs/uploads/%s" % (repo, session)})
        path = reg.upload_path(session)
        if not session or not os.path.exists(path):
            return self.reply(404, b"{}")
        there = os.path.getsize(path)
        headers = {"Location": "/v2/%s/blobs/uploads/%s" % (repo, session)}
        if self.command == "GET":
            if there:
                headers["Range"] = "0-%d" % (there - 1)
            return self.reply(204, b"", headers)
        place = re.match(r"(\d+)-(\d+)$", self.headers.get("Content-Range", ""))
        if place and int(place.group(1)) != there:
            return self.reply(416, b"{}")
        with open(path, "ab", buffering=0) as f:
            def take(piece):
                f.write(piece)
                with reg.lock:
                    reg.received += len(piece)
            self.read_body(take, reg.cut_upload(there) if reg.cut_upload else None)
        there = os.path.getsize(path)
        if self.command == "PATCH":
            headers["Range"] = "0-%d" % (there - 1)
            return self.reply(202, b"", headers)
        digest = query["digest"][0]
        with open(path, "rb") as f:
            real = "sha256:" + hashlib.file_digest(f, "sha256").hexdigest()
        if real != digest:
            return self.reply(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
        os.rename(path, reg.path(digest))
        return self.reply(201, b"", {"Docker-Content-Digest": digest})

    def put_manifest(self, repo, ref):
        body = bytearray()
        self.read_body(body.extend)
        digest = self.reg.add_manifest(repo, ref, bytes(body), self.headers["Content-Type"])
        headers = {"Docker-Content-Digest": digest}
        subject = json.loads(body).get("subject")
        if subject and self.reg.with_referrers:
            headers["OCI-Subject"] = subject["digest"]
        return self.reply(201, b"", headers)

    def referrers(self, repo, digest, query):
        reg = self.reg
        if not reg.with_referrers:
            return self.reply(404, b"404 page not found")
        found = []
        wanted = query.get("artifactType", [None])[0]
        with reg.lock:
            manifests = sorted(set(v for k, v in reg.manifests.items() if k[0] == repo))
        for each, media_type in manifests:
            with open(reg.path(each), "rb") as f:
                data = f.read()
            document = json.loads(data)
            kind = document.get("artifactType") or document.get("config", {}).get("mediaType")
            if document.get("subject", {}).get("digest") == digest and wanted in (None, kind):
                found.append({"mediaType": media_type, "digest": each, "size": len(data),
                              "artifactType": kind})
        return self.reply(200, json.dumps({"schemaVersion": 2, "mediaType": INDEX,
                                           "manifests": found}).encode(),
                          {"Content-Type": INDEX})


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        pass


class _Server6(_Server):
    address_family = socket.AF_INET6


class FileRegistry:
    def __init__(self, rule=None, latency=0.0, rate=0, ranges=True, referrers=True,
                 ipv6=False, tls=None):
        self.rule, self.latency, self.rate = rule, latency, rate
        self.ranges, self.with_referrers = ranges, referrers
        self.cut_upload = None  # cut_upload(bytes there) -> take so many more, then reset.
        self.on_sent = None     # on_sent(digest, offset behind what was just sent).
        self.lock = threading.Lock()
        self.dir = proc.temp_dir()
        os.mkdir(os.path.join(self.dir, "blobs"))
        os.mkdir(os.path.join(self.dir, "uploads"))
        self.manifests = {}     # (repository, tag or digest) -> (digest, media type)
        self.requests = []      # (method, path, headers)
        self.gets = {}          # Digest -> bodies begun.
        self.sent = {}          # Digest -> bytes given to sockets.
        self.streams, self.streams_most = {}, {}
        self.received = 0
        self.connections = 0
        handler = type("Handler", (_Handler,), {"reg": self})
        self.server = (_Server6 if ipv6 else _Server)(("::1" if ipv6 else "127.0.0.1", 0), handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls[:2])
            if len(tls) > 2:  # An authority: clients must have a certificate.
                context.load_verify_locations(tls[2])
                context.verify_mode = ssl.CERT_REQUIRED
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True,
                                                     do_handshake_on_connect=False)
        self.port = self.server.server_address[1]
        self.host = ("[::1]:%d" if ipv6 else "127.0.0.1:%d") % self.port

    def path(self, digest):
        return os.path.join(self.dir, "blobs", digest.split(":")[-1])

    def upload_path(self, session):
        return os.path.join(self.dir, "uploads", session)

    def blob(self, data, media_type="application/octet-stream"):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with open(self.path(digest), "wb") as f:
            f.write(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def add_manifest(self, repo, ref, data, media_type):
        entry = self.blob(data, media_type)
        with self.lock:
            for each in (ref, entry["digest"]):
                self.manifests[(repo, each)] = (entry["digest"], media_type)
        return entry["digest"]

    def load(self, layout, repo, tags=None):
        """Takes the images of an OCI layout (tests.harness.images.Layout)."""
        blobs = os.path.join(layout.path, "blobs", "sha256")
        for name in os.listdir(blobs):
            if not os.path.exists(self.path(name)):
                try:
                    os.link(os.path.join(blobs, name), self.path(name))
                except OSError as e:
                    if e.errno != errno.EXDEV:
                        raise
                    shutil.copyfile(os.path.join(blobs, name), self.path(name))
        for entry in layout.manifests:
            tag = entry["annotations"]["org.opencontainers.image.ref.name"]
            if tags is None or tag in tags:
                with open(self.path(entry["digest"]), "rb") as f:
                    self.add_manifest(repo, tag, f.read(), entry["mediaType"])
        return self

    def count(self, method, part):
        with self.lock:
            return sum(1 for m, path, _ in self.requests if m == method and part in path)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()
        proc.clean_up(self.dir)
