"""A registry that does everything wrong: success or a clear error, in time."""

import hashlib
import http.server
import json
import os
import threading
import time
import unittest

from tests.harness import images, proc, suite

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
MEMORY_MAX = 120 << 20


def setUpModule():
    global s
    s = suite.Suite('[distribution]\nstall_timeout = "2s"\n').start()


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


class Killed(unittest.TestCase):
    def test_the_retry_fetches_only_what_was_missing(self):
        """SIGKILL of distribution in the middle of a layer of 300 MB."""
        size = 300 << 20
        half = threading.Event()
        starts = []

        def rule(h, kind, ref):
            if kind != "blobs" or not Registry.is_layer(h):
                return False
            path = os.path.join(bad.layout.path, "blobs", "sha256", ref[7:])
            total = os.path.getsize(path)
            start = int((h.headers.get("Range") or "bytes=0-")[6:-1])
            starts.append(start)
            h.send_response(206 if start else 200)
            if start:
                h.send_header("Content-Range", "bytes %d-%d/%d" % (start, total - 1, total))
            h.send_header("Content-Length", str(total - start))
            h.end_headers()
            with open(path, "rb") as f:
                f.seek(start)
                while piece := f.read(1 << 20):
                    if f.tell() > size // 2 and not half.is_set():
                        half.set()
                        self.killed.wait(20)
                    h.wfile.write(piece)
            return True

        self.killed = threading.Event()
        with Hostile(rule, size, "none") as bad:
            image = bad.host + "/x:1"
            first = threading.Thread(target=s.cli, args=("pull", image))
            first.start()
            self.assertTrue(half.wait(30))
            s.kill_service("distribution")
            self.killed.set()
            first.join()
            s.cli("pull", image, check=True)
            # Sent in vain: what sockets held, and what was not yet announced.
            self.assertEqual(2, len(starts), starts)
            self.assertGreater(starts[1], size // 2 - (48 << 20), starts)
            s.cli("rmi", image, check=True)


class Confined(unittest.TestCase):
    def test_it_has_no_privilege(self):
        with open("/proc/%d/status" % s.service_pid("distribution")) as f:
            status = dict(line.split(":\t", 1) for line in f if ":\t" in line)
        for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
            self.assertEqual(0, int(status[name], 16), name)
        self.assertEqual("1", status["NoNewPrivs"].strip())


if __name__ == "__main__":
    unittest.main()
