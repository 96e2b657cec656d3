"""What a person is told: progress, each request, causes and remedies."""

import http.server
import json
import os
import pty
import re
import select
import subprocess
import threading
import time
import unittest

from tests.harness import images, proc, registry, suite
from tests.integration import common
from tests.integration.test_registries import certificates

USER, PASSWORD = "somebody", "pass:word"


def setUpModule():
    global s, shared, busybox
    shared = common.image_registry()
    busybox = shared.host + "/busybox:latest"
    s = suite.Suite().start()


def tearDownModule():
    s.stop()


class Server:
    """An OCI layout over HTTP; `before` may answer in its place."""

    def __init__(self, layout, before=None, pause=0.0):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                if before and before(self):
                    return
                last = self.path.split("?")[0].rsplit("/", 1)[-1]
                media_type = "application/octet-stream"
                for entry in layout.manifests:
                    name = entry["annotations"]["org.opencontainers.image.ref.name"]
                    if last in (name, entry["digest"]):
                        last, media_type = entry["digest"], entry["mediaType"]
                path = os.path.join(layout.path, "blobs", "sha256", last[7:])
                if not os.path.isfile(path):
                    return self.reply(404, b"{}")
                with open(path, "rb") as f:
                    data = f.read()
                self.reply(200, data, {"Content-Type": media_type,
                                       "Docker-Content-Digest": last})

            def reply(self, code, data, headers=None):
                self.send_response(code)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                step = 1 << 20
                for at in range(0, len(data), step):
                    self.wfile.write(data[at:at + step])
                    if pause and len(data) > step:
                        time.sleep(pause)

        outer.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        outer.server.daemon_threads = True
        outer.host = "127.0.0.1:%d" % outer.server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()


def small_layout(name, size=1000):
    layout = images.Layout(os.path.join(s.dir, "layout-" + name))
    layout.image("1", [images.tar_of(lambda add: add("f", os.urandom(size)))])
    return layout


def read_json(path):
    with open(path) as f:
        return json.load(f)


def unused_port():
    return registry.free_port()


class Explain(unittest.TestCase):
    def test_login_and_its_source(self):
        users = os.path.join(s.dir, "htpasswd")
        proc.run(["htpasswd", "-Bbc", users, USER, PASSWORD], check=True)
        env = {"DOCKER_CONFIG": os.path.join(s.dir, "docker")}
        with registry.Registry(htpasswd=users) as reg:
            image = reg.host + "/explained:1"
            proc.run(["skopeo", "copy", "-q", "--dest-tls-verify=false", "--dest-creds",
                      "%s:%s" % (USER, PASSWORD), "oci:%s:1" % small_layout("login").path,
                      "docker://" + image], check=True)
            result = s.cli("pull", "--explain", image, env=env)
            self.assertEqual(1, result.code, repr(result))
            self.assertIn("login for %s: none is kept" % reg.host, result.err)
            s.cli("login", "-u", USER, "--password-stdin", reg.host, stdin=PASSWORD, env=env,
                  check=True)
            told = s.cli("pull", "--explain", image, env=env, check=True).err
            for part in ("hosts to ask, in order: http", "HEAD http://%s/v2/" % reg.host,
                         "no login: HTTP 401", "next: log in", "Basic realm=",
                         "login for %s: user %s from %s/config.json" % (
                             reg.host, USER, env["DOCKER_CONFIG"]),
                         "with user name and password: HTTP 200".replace("with ", ""),
                         "GET http://%s/v2/explained/blobs/" % reg.host, " ms"):
                self.assertIn(part, told)
            self.assertNotIn(PASSWORD, told)
            # The start and the end of a pull are on the same stream.
            self.assertIn("Completed pull", told)
            s.cli("tag", image, reg.host + "/explained:2", check=True)
            told = s.cli("push", "--explain", reg.host + "/explained:2", env=env, check=True).err
            self.assertIn("PUT http://%s/v2/explained/manifests/2" % reg.host, told)

    def test_mirrors_and_the_next_host(self):
        with Server(small_layout("mirror")) as origin:
            dead = "127.0.0.1:%d" % unused_port()
            hosts = os.path.join(s.dir, "hosts")
            name = "registry.example"
            os.makedirs(os.path.join(hosts, name))
            with open(os.path.join(hosts, name, "hosts.toml"), "w") as f:
                f.write('server = "http://%s"\n[host."http://%s"]\n' % (origin.host, dead))
            told = s.cli("pull", "--explain", "--hosts-dir", hosts, name + "/m:1",
                         check=True).err
            self.assertRegex(told, r"in order: http://%s/v2 \(for %s\) http://%s/v2 \(for %s\)" %
                             (dead, name, origin.host, name))
            self.assertRegex(told, r"%s did not have it: .*next: the host after it" % dead)
            self.assertIn("HEAD http://%s/v2/m/manifests/1 for %s" % (origin.host, name), told)

    def test_retries_and_redirects(self):
        busy = ["1"]

        def before(handler):
            if "/manifests/1" in handler.path and busy:
                busy.pop()
                handler.reply(503, json.dumps({"errors": [{"message": "evil\x1b[2J"}]}).encode(),
                              {"Retry-After": "0"})
                return True
            if "/blobs/" in handler.path and "moved" not in handler.path:
                handler.reply(307, b"", {"Location": handler.path + "?moved&secret=xyzzy"})
                return True
            return False

        with Server(small_layout("busy"), before) as server:
            told = s.cli("pull", "--explain", server.host + "/busy:1", check=True).err
            self.assertIn("HTTP 503", told)
            self.assertRegex(told, r"next: the same again in \d+ ms \(attempt 2 of 5\)")
            self.assertIn("redirected to http://%s/v2/busy/blobs/" % server.host, told)
            self.assertNotIn("xyzzy", told)
            self.assertNotIn("\x1b", told)


class Errors(unittest.TestCase):
    """Each names its cause and what can be done."""

    def fails(self, *args, **kwargs):
        result = s.cli("pull", *args, **kwargs)
        self.assertEqual(1, result.code, repr(result))
        self.assertIn(" — ", result.err)
        return result.err

    def test_unauthorized(self):
        users = os.path.join(s.dir, "htpasswd-errors")
        proc.run(["htpasswd", "-Bbc", users, USER, PASSWORD], check=True)
        with registry.Registry(htpasswd=users) as reg:
            err = self.fails(reg.host + "/a:1")
            self.assertIn("bulkhead login " + reg.host, err)
            err = self.fails("-u", "somebody:wrong", reg.host + "/a:1")
            self.assertIn("bulkhead login " + reg.host, err)

    def test_not_found(self):
        err = self.fails(shared.host + "/no/such:1")
        self.assertIn("image %s/no/such:1" % shared.host, err)
        self.assertIn("check the spelling", err)

    def test_wrong_platform(self):
        err = self.fails("--platform", "linux/s390x", busybox)
        self.assertIn("no match for platform linux/s390x", err)
        self.assertIn("--platform", err)

    def test_tls(self):
        folder = proc.temp_dir()
        try:
            _, certificate, key = certificates(folder, "127.0.0.1")
            other = os.path.join(folder, "other")
            os.makedirs(other)
            ca, _, _ = certificates(other, "127.0.0.1")
            with registry.Registry(tls=(certificate, key)) as reg:
                hosts = os.path.join(folder, "hosts")
                os.makedirs(os.path.join(hosts, reg.host))
                with open(os.path.join(hosts, reg.host, "hosts.toml"), "w") as f:
                    f.write('server = "https://%s"\nca = "%s"\n' % (reg.host, ca))
                err = self.fails("--hosts-dir", hosts, reg.host + "/a:1")
                self.assertIn("certificate", err)
                self.assertIn("hosts.toml", err)
        finally:
            proc.clean_up(folder)

    def test_dns(self):
        err = self.fails("no-such-registry.invalid/a:1")
        self.assertIn("no-such-registry.invalid", err)
        self.assertIn("DNS", err)

    def test_nobody_listens(self):
        host = "127.0.0.1:%d" % unused_port()
        err = self.fails("--plain-http", host + "/a:1")
        self.assertIn(host, err)
        self.assertIn("port", err)

    def test_digest(self):
        layout = small_layout("digest")
        layer = read_json(os.path.join(
            layout.path, "blobs", "sha256", layout.manifests[0]["digest"][7:]))["layers"][0]
        path = os.path.join(layout.path, "blobs", "sha256", layer["digest"][7:])
        with open(path, "r+b") as f:
            f.seek(20)
            f.write(b"wrong")
        with Server(layout) as server:
            err = self.fails(server.host + "/bad:1")
            self.assertIn(layer["digest"], err)
            self.assertIn("nothing was kept", err)


class Terminal(unittest.TestCase):
    def on_terminal(self, *args):
        """Runs the command line with its stderr on a terminal; what it drew."""
        ours, theirs = pty.openpty()
        env = dict(os.environ, BULKHEAD_ADDRESS=s.address, COLUMNS="120")
        subprocess.run(["stty", "cols", "120", "rows", "40"], stdin=theirs, check=True)
        process = subprocess.Popen([os.path.join(proc.BIN, "bulkhead")] + list(args),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=theirs, env=env)
        os.close(theirs)
        drawn = b""
        end = time.monotonic() + 100
        while time.monotonic() < end:
            ready, _, _ = select.select([ours], [], [], 1)
            if not ready:
                continue
            try:
                piece = os.read(ours, 65536)
            except OSError:  # The other side is closed.
                break
            if not piece:
                break
            drawn += piece
        os.close(ours)
        return process.wait(30), drawn.decode()

    def test_bars_with_rate_and_phase(self):
        layout = images.Layout(os.path.join(s.dir, "layout-bars"))
        layout.image("1", [images.tar_of(lambda add: add("f%d" % i, os.urandom(6 << 20)))
                           for i in range(2)])
        with Server(layout, pause=0.25) as server:
            code, drawn = self.on_terminal("pull", server.host + "/bars:1")
        self.assertEqual(0, code, drawn)
        self.assertRegex(drawn, r"\x1b\[\d+A")  # Lines are drawn over.
        self.assertRegex(drawn, r"layer [0-9a-f]{12} +downloading +\[=*>? *\] [0-9.]+MB/[0-9.]+MB")
        self.assertRegex(drawn, r"[0-9.]+MB/[0-9.]+MB [0-9.]+[kM]?B/s")
        self.assertRegex(drawn, r"manifest [0-9a-f]{12}")
        last = re.split(r"\x1b\[\d+A", drawn)[-1]
        self.assertEqual(2, len(re.findall(r"layer [0-9a-f]{12} +(done|downloaded)", last)), last)
        self.assertIn("Completed pull", last)

    def test_plain_lines_elsewhere(self):
        with Server(small_layout("plain")) as server:
            err = s.cli("pull", server.host + "/plain:1", check=True).err
        self.assertNotIn("\x1b", err)
        self.assertRegex(err, r"layer [0-9a-f]{12}: ")


class Metrics(unittest.TestCase):
    def test_figures_of_each_registry(self):
        busy = ["1"]

        def before(handler):
            if "/manifests/1" in handler.path and busy:
                busy.pop()
                handler.reply(503, b"{}", {"Retry-After": "0"})
                return True
            return False

        layout = small_layout("metrics", 300000)
        with Server(layout, before) as server:
            s.cli("pull", server.host + "/metrics:1", check=True)
            text = proc.run(["curl", "-s", "--unix-socket",
                             os.path.join(s.state, "distribution", "stats.sock"),
                             "http://x/metrics"], check=True).out

            def value(name, extra=""):
                found = re.findall(r'^bulkhead_registry_%s\{[^}]*registry="%s"[^}]*%s[^}]*\} (\S+)'
                                   % (name, re.escape(server.host), extra), text, re.M)
                self.assertEqual(1, len(found), text)
                return float(found[0])

        manifest = layout.manifests[0]
        path = os.path.join(layout.path, "blobs", "sha256")
        document = read_json(os.path.join(path, manifest["digest"][7:]))
        want = manifest["size"] + document["config"]["size"] + sum(
            layer["size"] for layer in document["layers"])
        self.assertEqual(want, value("received_bytes_total"))
        self.assertEqual(1, value("retries_total"))
        # HEAD of the tag, then manifest, config and layer.
        self.assertGreaterEqual(value("request_seconds_count"), 5)


class ImageGroup(unittest.TestCase):
    def test_history(self):
        s.cli("pull", busybox, check=True)
        out = s.cli("history", busybox, check=True).out
        self.assertIn("CREATED BY", out)
        self.assertIn("bulkhead tests", out)
        line = s.cli("image", "history", "--format", "{{.CreatedBy}}", busybox, check=True).out
        self.assertEqual("bulkhead tests\n", line)
        ids = s.cli("history", "-q", "--no-trunc", busybox, check=True).out
        self.assertRegex(ids, r"^sha256:[0-9a-f]{64}\n$")

    def test_the_same_by_its_docker_name(self):
        name = shared.host + "/busybox:zstd"
        # Its files may be here from the gzip one: only this brings the layer.
        s.cli("image", "pull", "--no-unpack", name, check=True)
        self.assertIn("zstd", s.cli("image", "ls", check=True).out)
        s.cli("image", "tag", name, "other:1", check=True)
        out = s.cli("image", "inspect", "-f", "{{.Name}}", "other:1", check=True).out
        self.assertEqual("docker.io/library/other:1\n", out)
        archive = os.path.join(s.dir, "group.tar")
        s.cli("image", "save", "-o", archive, "other:1", check=True)
        s.cli("image", "rm", "other:1", check=True)
        self.assertEqual(1, s.cli("image", "inspect", "other:1").code)
        self.assertIn("other:1", s.cli("image", "load", "-i", archive, check=True).out)
        s.cli("image", "rm", "other:1", name, check=True)
        result = s.cli("inspect", "--type", "container", busybox)
        self.assertEqual(1, result.code)
        self.assertIn("No such container", result.err)
        self.assertEqual(2, s.cli("inspect", "--type", "volume", busybox).code)

    def test_manifest_inspect_asks_the_registry(self):
        layout = small_layout("far")
        before = s.cli("images", "--format", "{{.Name}}", check=True).out
        with Server(layout) as server:
            name = server.host + "/far:1"
            out = s.cli("manifest", "inspect", name, check=True).out
            self.assertEqual(read_json(os.path.join(
                layout.path, "blobs", "sha256", layout.manifests[0]["digest"][7:])),
                json.loads(out))
            result = s.cli("manifest", "inspect", server.host + "/far:2")
            self.assertEqual(1, result.code)
            self.assertIn("check the spelling", result.err)
        self.assertEqual(before, s.cli("images", "--format", "{{.Name}}", check=True).out)

    def test_prune(self):
        ns = "prune"
        s.cli("pull", busybox, ns=ns, check=True)
        digest = s.cli("image", "inspect", "-f", "{{.Id}}", busybox, ns=ns, check=True).out.strip()
        bare = shared.host + "/busybox@" + digest
        s.cli("pull", bare, ns=ns, check=True)

        def names():
            return s.cli("images", "--format", "{{.Name}}", ns=ns, check=True).out.split()

        self.assertEqual(2, len(names()))
        self.assertEqual(2, s.cli("image", "prune", ns=ns).code)  # Without -f: asks for it.
        self.assertEqual(2, len(names()))
        s.cli("image", "prune", "-f", "--filter", "until=24h", ns=ns, check=True)
        s.cli("image", "prune", "-f", "-a", "--filter", "label=no.such", ns=ns, check=True)
        s.cli("image", "prune", "-f", "-a", "--filter", "label!=org.example.kind", ns=ns,
              check=True)
        self.assertEqual(2, len(names()))
        s.cli("image", "prune", "-f", ns=ns, check=True)
        self.assertEqual([busybox], names())
        s.cli("run", "-d", "--name", "holder", busybox, "sleep", "1000", ns=ns, check=True)
        s.cli("image", "prune", "-fa", ns=ns, check=True)
        self.assertEqual([busybox], names())  # In use.
        s.cli("rm", "-f", "holder", ns=ns, check=True)
        s.cli("image", "prune", "-fa", "--filter", "label=org.example.kind=busybox", ns=ns,
              check=True)
        self.assertEqual([], names())
        result = s.cli("image", "prune", "-f", "--filter", "size=3", ns=ns)
        self.assertEqual(2, result.code)
        self.assertIn("until=TIME", result.err)

    def test_completion(self):
        out = s.cli("__complete", "image", "").out
        for word in ("ls", "pull", "push", "tag", "rm", "save", "load", "history", "inspect",
                     "prune"):
            self.assertIn(word, out.split())
        self.assertIn("--explain", s.cli("__complete", "pull", "--").out)


if __name__ == "__main__":
    unittest.main()
