"""A registry of our own that serves an OCI layout and fails on order."""

import http.server
import json
import os
import re
import threading


class BadRegistry:
    """`replace` maps a digest to other bytes, `cut` to a length after which the
    connection is closed (the promised length stays whole)."""

    def __init__(self, layout):
        self.layout = layout
        self.replace = {}
        self.cut = {}
        self.requests = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                outer.requests.append((self.command, self.path, dict(self.headers)))
                if self.path.rstrip("/") == "/v2":
                    return self.answer(200, b"{}", "application/json")
                match = re.match(r"/v2/(.+)/(manifests|blobs)/([^/?]+)", self.path)
                if not match:
                    return self.answer(404, b"{}", "application/json")
                return self.object(match.group(2), match.group(3))

            def object(self, kind, reference):
                media_type = "application/octet-stream"
                digest = reference
                if kind == "manifests":
                    for entry in outer.layout.manifests:
                        name = entry["annotations"]["org.opencontainers.image.ref.name"]
                        if reference in (name, entry["digest"]):
                            digest, media_type = entry["digest"], entry["mediaType"]
                path = os.path.join(outer.layout.path, "blobs", "sha256", digest[7:])
                if not digest.startswith("sha256:") or not os.path.exists(path):
                    return self.answer(404, json.dumps({"errors": [
                        {"code": "MANIFEST_UNKNOWN", "message": "unknown"}]}).encode(),
                        "application/json")
                with open(path, "rb") as f:
                    data = f.read()
                data = outer.replace.get(digest, data)
                return self.answer(200, data, media_type, digest, outer.cut.get(digest))

            def answer(self, code, data, media_type, digest=None, cut=None):
                start = 0
                asked = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
                if asked and digest:
                    code, start = 206, int(asked.group(1))
                self.send_response(code)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(data) - start))
                if code == 206:
                    self.send_header("Content-Range", "bytes %d-%d/%d" %
                                     (start, len(data) - 1, len(data)))
                if digest:
                    self.send_header("Docker-Content-Digest", digest)
                self.end_headers()
                if self.command == "HEAD":
                    return
                body = data[start:]
                if cut is not None:
                    body = data[start:cut]
                    self.close_connection = True
                try:
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = "127.0.0.1:%d" % self.server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()
