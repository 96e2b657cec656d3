"""A registry that does everything wrong: success or a clear error, in time."""

import gzip
import hashlib
import http.server
import json
import os
import socket
import struct
import tarfile
import threading
import time
import unittest

from tests.harness import images, proc, suite, tracee

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
MEMORY_MAX = 120 << 20
LAYER_MAX = 256 << 20


def setUpModule():
    global s
    s = suite.Suite('[distribution]\nstall_timeout = "2s"\n'
                    '[snapshotter]\nlayer_bytes_max = %d\n' % LAYER_MAX).start()


def tearDownModule():
    s.stop()


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Hostile:
    """Serves one image; `rule(handler, kind, reference)` answers first if it
    returns True."""

    def __init__(self, rule, size=400000, compression="gzip"):
        tar = images.tar_of(lambda add: add("f", os.urandom(size)))
        layout = images.Layout(os.path.join(proc.temp_dir(), "l"))
        self.folder = os.path.dirname(layout.path)
        self.root = layout.image("1", [tar], {}, compression)
        self.layout, self.rule, self.requests = layout, rule, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                outer.requests.append((self.command, self.path, dict(self.headers)))
                parts = self.path.split("?")[0].split("/")
                kind, reference = parts[-2], parts[-1]
                try:
                    if outer.rule(self, kind, reference):
                        return
                    self.normal(kind, reference)
                except OSError:
                    self.close_connection = True

            do_HEAD = do_GET

            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.do_GET()

            def blobs(self):
                return os.path.join(layout.path, "blobs", "sha256")

            def bytes(self):
                """Of the layer."""
                with open(os.path.join(self.blobs(), outer.layer()[7:]), "rb") as f:
                    return f.read()

            def size(self):
                return len(self.bytes())

            def normal(self, kind, reference):
                name = outer.root if reference == "1" else reference
                path = os.path.join(layout.path, "blobs", "sha256", name[7:])
                if not os.path.exists(path):
                    return self.reply(404, b"{}")
                with open(path, "rb") as f:
                    data = f.read()
                self.reply(200, data, {"Content-Type": MANIFEST if kind == "manifests" else
                                       "application/octet-stream",
                                       "Docker-Content-Digest": name})

            def reply(self, code, data, headers=None, length=None):
                self.send_response(code)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length",
                                 str(len(data) if length is None else length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = "127.0.0.1:%d" % self.server.server_address[1]

    def layer(self):
        with open(os.path.join(self.layout.path, "blobs", "sha256", self.root[7:])) as f:
            return json.load(f)["layers"][0]["digest"]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()
        proc.clean_up(self.folder)


class Registry(unittest.TestCase):
    def pull(self, rule, saying=None, within=25):
        """`saying` None: it must succeed; else fail with this text."""
        with Hostile(rule) as bad:
            image = bad.host + "/x:1"
            began = time.monotonic()
            result = s.cli("pull", "-u", "me:se-cret", image, timeout=within + 20)
            self.assertLess(time.monotonic() - began, within, repr(result))
            if saying is None:
                self.assertEqual(0, result.code, repr(result))
                s.cli("rmi", image, check=True)
            else:
                self.assertNotEqual(0, result.code, repr(result))
                self.assertIn(saying, result.err.lower(), repr(result))
                self.assertEqual("", s.ctr("images", "ls", "-q").out)
            with open("/proc/%d/status" % s.service_pid("distribution")) as f:
                peak = [line for line in f if line.startswith("VmHWM")][0]
            self.assertLess(int(peak.split()[1]) << 10, MEMORY_MAX, peak)
            self.assertNotIn("se-cret", s.log())
            return bad

    def test_head_is_unsupported(self):
        self.pull(lambda h, kind, ref: h.command == "HEAD" and (h.reply(405, b"") or True))

    def test_manifest_is_no_json(self):
        text = b"not json at all"
        self.pull(lambda h, kind, ref: kind == "manifests" and
                  (h.reply(200, text, {"Content-Type": MANIFEST,
                                       "Docker-Content-Digest": digest(text)}) or True),
                  saying="json")

    def test_giant_manifest(self):
        self.pull(lambda h, kind, ref: kind == "manifests" and
                  (h.reply(200, b"", {"Content-Type": MANIFEST, "Docker-Content-Digest":
                                      digest(b"x")}, length=1 << 40) or True),
                  saying="limit")

    def test_deep_and_endless_indexes(self):
        texts = {}
        below = b"{}"
        for _ in range(20):
            text = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
                {"mediaType": INDEX, "digest": digest(below), "size": len(below)}]}).encode()
            texts[digest(text)] = text
            below = text
        top = below

        def rule(h, kind, ref):
            text = top if ref == "1" else texts.get(ref)
            if kind == "manifests" and text is not None:
                h.reply(200, text, {"Content-Type": INDEX,
                                    "Docker-Content-Digest": digest(text)})
                return True
            return False

        self.pull(rule, saying="too deep")

    def test_index_that_names_itself(self):
        claimed = digest(b"itself")
        text = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            {"mediaType": INDEX, "digest": claimed, "size": 300}]}).encode()

        def rule(h, kind, ref):
            if kind != "manifests":
                return False
            h.reply(200, text, {"Content-Type": INDEX, "Docker-Content-Digest": claimed})
            return True

        self.pull(rule, saying=claimed)

    def test_endless_layer(self):
        def rule(h, kind, ref):
            if kind != "blobs" or not self.is_layer(h):
                return False
            h.send_response(200)
            h.send_header("Connection", "close")
            h.end_headers()
            for _ in range(1 << 16):
                h.wfile.write(b"x" * 65536)
            return True

        self.pull(rule, saying="longer than")

    @staticmethod
    def is_layer(handler):
        # The layer is asked for as octets of a tar.
        return "tar" in handler.headers.get("Accept", "")

    def test_layer_that_stalls(self):
        def rule(h, kind, ref):
            if kind != "blobs" or not self.is_layer(h):
                return False
            h.send_response(200)
            h.send_header("Content-Length", "400000")
            h.end_headers()
            h.wfile.write(b"x")
            time.sleep(6)
            h.close_connection = True
            return True

        self.pull(rule, saying="sha256:", within=40)

    def test_reset_in_every_attempt_but_progress(self):
        cut = {"at": 0}

        def rule(h, kind, ref):
            if kind != "blobs" or not self.is_layer(h):
                return False
            path = os.path.join(self.current.layout.path, "blobs", "sha256", ref[7:])
            with open(path, "rb") as f:
                data = f.read()
            start = int((h.headers.get("Range") or "bytes=0-")[6:-1])
            cut["at"] += 1
            h.send_response(206 if start else 200)
            if start:
                h.send_header("Content-Range", "bytes %d-%d/%d" % (start, len(data) - 1, len(data)))
            h.send_header("Content-Length", str(len(data) - start))
            h.end_headers()
            h.wfile.write(data[start:start + 150000])
            h.close_connection = True
            return True

        with Hostile(rule) as bad:
            self.current = bad
            s.cli("pull", bad.host + "/x:1", check=True)
            self.assertGreater(cut["at"], 1)
            s.cli("rmi", bad.host + "/x:1", check=True)

    def test_connections_are_reset_in_mid_layer(self):
        """Not closed but reset (RST), each time a bit later; then for ever."""
        def rule_for(step):
            def rule(h, kind, ref):
                if kind != "blobs" or not self.is_layer(h):
                    return False
                start = int((h.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
                data = h.bytes()
                h.send_response(206 if start else 200)
                if start:
                    h.send_header("Content-Range", "bytes %d-%d/%d" % (
                        start, len(data) - 1, len(data)))
                h.send_header("Content-Length", str(len(data) - start))
                h.end_headers()
                h.wfile.write(data[start:start + step])
                if step and start + step >= len(data):
                    return True
                h.close_connection = True
                time.sleep(0.05)  # So that what was written is read before the reset.
                h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                        struct.pack("ii", 1, 0))
                os.close(h.connection.detach())
                return True
            return rule

        self.pull(rule_for(150000))
        self.pull(rule_for(0), saying="sha256:", within=40)

    def test_busy_with_retry_after(self):
        times = []

        def rule(h, kind, ref):
            times.append(time.monotonic())
            if len(times) > 2:
                return False
            h.reply(429, b"{}", {"Retry-After": "1"})
            return True

        self.pull(rule)
        self.assertGreater(times[1] - times[0], 0.9)

    def test_login_loops_and_hostile_realms(self):
        for realm, saying in (("", "login"), ("file:///etc/passwd", "token server"),
                              ("http://127.0.0.1:1/token", "127.0.0.1")):
            challenge = 'Bearer realm="%s",service="x"' % realm if realm else 'Negotiate'
            with self.subTest(realm=realm):
                self.pull(lambda h, kind, ref, c=challenge:
                          h.reply(401, b"{}", {"WWW-Authenticate": c}) or True, saying=saying)
        with self.subTest("basic for ever"):
            bad = self.pull(lambda h, kind, ref: h.reply(
                401, b"{}", {"WWW-Authenticate": 'Basic realm="x"'}) or True, saying="password")
            self.assertLess(len(bad.requests), 6)

    def test_redirects(self):
        for where, saying in (("file:///etc/passwd", "redirect"), ("/v2/x/manifests/1", "redirects")):
            with self.subTest(where=where):
                self.pull(lambda h, kind, ref, w=where:
                          h.reply(307, b"", {"Location": w}) or True, saying=saying)

    def test_secrets_stay_with_the_registry(self):
        with Hostile(lambda h, kind, ref: False) as elsewhere:
            def rule(h, kind, ref):
                if "Authorization" not in h.headers:
                    h.reply(401, b"{}", {"WWW-Authenticate": 'Basic realm="x"'})
                    return True
                if kind == "blobs":
                    h.reply(307, b"", {"Location": "http://%s%s" % (elsewhere.host, h.path)})
                    return True
                return False

            self.pull(rule, saying="sha256:")  # It has other blobs.
            self.assertTrue(elsewhere.requests)
            for _, _, headers in elsewhere.requests:
                self.assertNotIn("Authorization", headers)


    def test_wrong_bytes_and_lengths(self):
        def layers(answer):
            def rule(h, kind, ref):
                if kind != "blobs" or not self.is_layer(h):
                    return False
                answer(h)
                return True
            return rule

        cases = (
            # The right length, the wrong bytes.
            (layers(lambda h: h.reply(200, os.urandom(h.size()))), "digest"),
            # Another length than the manifest says.
            (layers(lambda h: h.reply(200, b"x" * 10)), "has 10 bytes"),
            # Less than was promised, each time.
            (layers(lambda h: (h.reply(200, b"", length=h.size()),
                               setattr(h, "close_connection", True))), "sha256:"),
        )
        for rule, saying in cases:
            with self.subTest(saying):
                self.pull(rule, saying=saying)

    def test_ranges_ignored_or_wrong(self):
        def cut_first(then):
            def rule(h, kind, ref):
                if kind != "blobs" or not self.is_layer(h):
                    return False
                start = h.headers.get("Range")
                if start is None:
                    h.reply(200, h.bytes()[:150000], length=h.size())
                    h.close_connection = True
                    return True
                return then(h, int(start[6:].split("-")[0]))
            return rule

        def wrong(h, start):
            h.reply(206, h.bytes()[:1000],
                    {"Content-Range": "bytes 0-999/%d" % h.size()})
            return True

        def another_total(h, start):
            h.reply(206, b"x", {"Content-Range": "bytes %d-%d/99999999" % (start, start)})
            return True

        def no_header(h, start):
            h.reply(206, h.bytes()[start:])
            return True

        self.pull(cut_first(lambda h, start: False))  # The whole again: fine.
        self.pull(cut_first(wrong), saying="content-range")
        self.pull(cut_first(another_total), saying="99999999 bytes")
        self.pull(cut_first(no_header), saying="content-range")

    def test_slow_drips(self):
        """A byte now and then, in a layer, a manifest, headers, a token: each
        ends in time. All at once, since each takes its time."""
        def drip(write):
            for _ in range(200):
                write(b"x")
                time.sleep(0.3)

        def layer(h, kind, ref):
            if kind != "blobs" or not self.is_layer(h):
                return False
            h.reply(200, b"", length=h.size())
            drip(h.wfile.write)
            return True

        def manifest(h, kind, ref):
            if kind != "manifests" or h.command == "HEAD":
                return False
            size = os.path.getsize(os.path.join(h.blobs(), ref[7:]))
            h.reply(200, b"", {"Content-Type": MANIFEST}, length=size)
            drip(h.wfile.write)
            return True

        def headers(h, kind, ref):
            h.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            drip(h.wfile.write)
            h.close_connection = True
            return True

        def token(h, kind, ref):
            if "/token" in h.path:
                h.reply(200, b"", length=4000)
                drip(h.wfile.write)
                return True
            h.reply(401, b"{}", {"WWW-Authenticate": 'Bearer realm="http://%s/token"' %
                                 h.headers["Host"]})
            return True

        results = {}

        def one(name, rule):
            with Hostile(rule) as bad:
                began = time.monotonic()
                result = s.cli("pull", bad.host + "/x:1", timeout=110)
                results[name] = (result, time.monotonic() - began)

        threads = [threading.Thread(target=one, args=each) for each in (
            ("layer", layer), ("manifest", manifest), ("headers", headers), ("token", token))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(4, len(results))
        for name, (result, took) in results.items():
            with self.subTest(name):
                self.assertNotEqual(0, result.code, repr(result))
                self.assertIn("timed out", result.err.lower(), repr(result))
                self.assertLess(took, 60)
        self.assertEqual("", s.ctr("images", "ls", "-q").out)

    def test_bad_tokens(self):
        for body, code, saying in (
                (b"no json", 200, "no json"), (b"[]", 200, "no json"), (b"{}", 200, "no token"),
                (json.dumps({"token": "x" * 100000}).encode(), 200, "too long"),
                (json.dumps({"token": "a\r\nX-Evil: 1"}).encode(), 200, "line break"),
                (b"x" * (2 << 20), 200, "limit"), (b"{}", 500, "500"),
                (b'{"token":"never good"}', 200, "login")):
            def rule(h, kind, ref, body=body, code=code):
                if "/token" in h.path:
                    h.reply(code, body)
                else:
                    h.reply(401, b"{}", {"WWW-Authenticate": 'Bearer realm="http://%s/token"' %
                                         h.headers["Host"]})
                return True

            with self.subTest(saying):
                bad = self.pull(rule, saying=saying)
                self.assertLess(len(bad.requests), 20)

    def test_gzip_bombs(self):
        """A layer that grows a thousandfold, and a document in gzip."""
        header = tarfile.TarInfo("zeros")
        header.size = 4 << 30
        # 4 GiB in 64 members, 4 MB on the wire.
        bomb = gzip.compress(header.tobuf()) + gzip.compress(bytes(64 << 20), 9) * 64

        def rule(h, kind, ref):
            layer = {"mediaType": images.GZIP, "digest": digest(bomb), "size": len(bomb)}
            config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {
                "type": "layers", "diff_ids": [digest(b"whatever")]}}).encode()
            text = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer],
                               "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                                          "digest": digest(config), "size": len(config)}}).encode()
            for data in (bomb, config, text):
                if ref == digest(data) or (ref == "1" and data is text):
                    h.reply(200, data, {"Content-Type": MANIFEST if data is text else
                                        "application/octet-stream",
                                        "Docker-Content-Digest": digest(data)})
                    return True
            return False

        self.pull(rule, saying="layer", within=60)
        # Nobody asked for an encoding: a document in gzip stays what it is.
        packed = gzip.compress(b" " * (64 << 20))
        self.pull(lambda h, kind, ref: kind == "manifests" and
                  (h.reply(200, packed, {"Content-Type": MANIFEST, "Content-Encoding": "gzip",
                                         "Docker-Content-Digest": digest(packed)}) or True),
                  saying="encoding")

    def test_errors_that_last(self):
        for code, saying in ((500, "500"), (503, "503"), (403, "denies"), (404, "registry"),
                             (418, "418")):
            with self.subTest(code=code):
                self.pull(lambda h, kind, ref, c=code: h.reply(c, b"{}") or True, saying=saying)
        with self.subTest("429 for ever"):
            bad = self.pull(lambda h, kind, ref: h.reply(429, b"{}", {"Retry-After": "1"}) or True,
                            saying="429")
            self.assertLess(len(bad.requests), 12)


class Confined(unittest.TestCase):
    def test_it_has_no_privilege(self):
        with open("/proc/%d/status" % s.service_pid("distribution")) as f:
            status = dict(line.split(":\t", 1) for line in f if ":\t" in line)
        for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
            self.assertEqual(0, int(status[name], 16), name)
        self.assertEqual("1", status["NoNewPrivs"].strip())

    def test_what_the_kernel_lets_it_do(self):
        """The live process makes the calls itself, as if it had been taken over."""
        own = os.path.join(s.state, "distribution").encode()
        create, attempts = os.O_CREAT | os.O_WRONLY, {}
        with tracee.Tracee(s.service_pid("distribution")) as process:
            def call(name, number, *args):
                attempts[name] = process.call(number, *args)

            call("write at home", tracee.OPEN, own + b"/probe", create, 0o600)
            call("read", tracee.OPEN, b"/etc/hostname", os.O_RDONLY, 0)
            call("socket", tracee.SOCKET, 2, 1, 0)
            for where in (b"/tmp/bulkhead-probe", b"/etc/bulkhead-probe",
                          os.path.join(s.root, "content", "probe").encode(),
                          os.path.join(s.state, "metadata", "probe").encode()):
                call("write " + where.decode(), tracee.OPEN, where, create, 0o600)
            call("overwrite", tracee.OPEN, b"/etc/hostname", os.O_WRONLY, 0)
            call("mkdir", tracee.MKDIR, b"/tmp/bulkhead-probe", 0o700)
            call("unlink", tracee.UNLINK, s.config_path.encode())
            call("mount", tracee.MOUNT, b"none", b"/mnt", b"tmpfs", 0, 0)
            call("unshare", tracee.UNSHARE, 0x00020000)
            call("chroot", tracee.CHROOT, own)
            call("setuid", tracee.SETUID, 1)
            call("mknod", tracee.MKNOD, own + b"/null", 0o020666, 0x103)
        denied = {-1, -13, -30}  # EPERM, EACCES, EROFS.
        for name in ("write at home", "read", "socket"):
            self.assertGreaterEqual(attempts.pop(name), 0, name)
        for name, result in attempts.items():
            self.assertIn(result, denied, name)
        os.unlink(os.path.join(own.decode(), "probe"))
        # It lives on.
        self.assertNotEqual(0, s.cli("pull", "127.0.0.1:1/x:1").code)


if __name__ == "__main__":
    unittest.main()
