"""Registries of every kind: push, login, TLS, archives, platforms, mirrors."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import tarfile
import threading
import unittest
import urllib.parse

from tests.harness import images, proc, registry, suite
from tests.integration import common


def setUpModule():
    global s, shared, busybox
    shared = common.image_registry()
    busybox = shared.host + "/busybox:latest"
    s = suite.Suite().start()
    s.cli("pull", busybox, check=True)


def tearDownModule():
    s.stop()


def raw_manifest(reference, *flags):
    """A registry's manifest, bit for bit, as skopeo reads it."""
    return proc.run(["skopeo", "inspect", "--raw", "--tls-verify=false", *flags,
                     "docker://" + reference], check=True).out


def certificates(folder, host):
    """An authority of our own and a server's certificate for `host`."""
    key, ca = os.path.join(folder, "ca.key"), os.path.join(folder, "ca.crt")
    server_key, server = os.path.join(folder, "s.key"), os.path.join(folder, "s.crt")
    request, extra = os.path.join(folder, "s.csr"), os.path.join(folder, "ext")
    with open(extra, "w") as f:
        f.write("subjectAltName=IP:%s\n" % host)
    for command in (
            ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", ca,
             "-subj", "/CN=tests CA", "-days", "2"],
            ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", server_key, "-out", request,
             "-subj", "/CN=" + host],
            ["x509", "-req", "-in", request, "-CA", ca, "-CAkey", key, "-CAcreateserial",
             "-out", server, "-days", "2", "-extfile", extra]):
        proc.run(["openssl"] + command, check=True)
    return ca, server, server_key


def hosts_dir(folder, host, text):
    """A hosts.toml tree with one registry."""
    where = os.path.join(folder, host)
    os.makedirs(where, exist_ok=True)
    with open(os.path.join(where, "hosts.toml"), "w") as f:
        f.write(text)
    return folder


class Plain(unittest.TestCase):
    def test_push_keeps_every_bit_and_mounts(self):
        with registry.Registry() as other:
            first, second = other.host + "/a/one:1", other.host + "/a/two:1"
            s.cli("push", busybox, first, check=True)
            self.assertEqual(raw_manifest(busybox), raw_manifest(first))
            # Others read what we pushed.
            proc.run(["skopeo", "copy", "-q", "--src-tls-verify=false", "docker://" + first,
                      "dir:" + os.path.join(s.dir, "copy")], check=True)
            puts = other.requests("PUT", "/blobs/uploads/")
            s.cli("push", busybox, first, check=True)  # Nothing to send.
            self.assertEqual(puts, other.requests("PUT", "/blobs/uploads/"))
            # Known to be in a/one: mounted from there.
            s.cli("pull", first, check=True)
            s.cli("push", first, second, check=True)
            self.assertEqual(puts, other.requests("PUT", "/blobs/uploads/"))
            self.assertEqual(raw_manifest(busybox), raw_manifest(second))
            s.cli("rmi", first, check=True)

    def test_debians_containerd_reads_what_we_pushed(self):
        with registry.Registry() as other, suite.Containerd() as containerd:
            image = other.host + "/b:1"
            s.cli("push", busybox, image, check=True)
            result = containerd.ctr("images", "pull", "--plain-http", image)
            self.assertEqual(0, result.code, repr(result))
            containerd.ctr("images", "tag", image, other.host + "/c:2", check=True)
            containerd.ctr("images", "push", "--plain-http", other.host + "/c:2", check=True)
            s.cli("pull", other.host + "/c:2", check=True)
            self.assertEqual(raw_manifest(image), raw_manifest(other.host + "/c:2"))
            s.cli("rmi", other.host + "/c:2", check=True)

    def test_two_platforms(self):
        layout = images.Layout(os.path.join(s.dir, "two"))
        entries = []
        for arch in ("arm64", "amd64"):
            layer = images.tar_of(lambda add: add("arch", arch.encode()))
            layout.image(arch, [layer])
            manifest = document(layout, layout.manifests[-1]["digest"])
            config = document(layout, manifest["config"]["digest"])
            config["architecture"] = arch
            manifest["config"] = layout.blob(json.dumps(config).encode(),
                                             manifest["config"]["mediaType"])
            entry = layout.blob(json.dumps(manifest).encode(), layout.manifests[-1]["mediaType"])
            entry["platform"] = {"os": "linux", "architecture": arch}
            entries.append(entry)
        index = layout.blob(json.dumps({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries}).encode(), "application/vnd.oci.image.index.v1+json")
        index["annotations"] = {"org.opencontainers.image.ref.name": "both"}
        with open(os.path.join(layout.path, "index.json"), "w") as f:
            json.dump({"schemaVersion": 2, "manifests": [index]}, f)
        with registry.Registry() as other:
            image = other.host + "/two:1"
            proc.run(["skopeo", "copy", "-q", "--all", "--dest-tls-verify=false",
                      "oci:%s:both" % layout.path, "docker://" + image], check=True)
            s.cli("pull", image, check=True)
            # Only this machine's manifest and layer were fetched.
            self.assertEqual(1, other.requests("GET", "/manifests/" + entries[1]["digest"]))
            fetched = other.requests("GET", "/manifests/" + entries[0]["digest"])
            self.assertEqual(0, fetched)
            result = s.cli("push", image, other.host + "/half:1")
            self.assertNotEqual(0, result.code)
            self.assertIn("--platform", result.err)
            s.cli("push", "--platform", "linux/amd64", image, other.host + "/half:1", check=True)
            self.assertEqual(entries[1]["digest"], digest_of(raw_manifest(other.host + "/half:1")))
            s.cli("rmi", image, check=True)
            s.cli("pull", "--platform", "linux/arm64", "--no-unpack", image)
            result = s.cli("pull", "--platform", "linux/s390x", image)
            self.assertNotEqual(0, result.code)
            self.assertIn("linux/s390x", result.err)

    def test_eight_clients_fetch_each_blob_once(self):
        with registry.Registry() as other:
            layout = images.Layout(os.path.join(s.dir, "many"))
            base = images.tar_of(lambda add: add("base", os.urandom(8 << 20)))
            names = []
            for i in range(4):
                own = images.tar_of(lambda add: add("own%d" % i, os.urandom(1 << 20)))
                layout.image("i%d" % i, [base, own])
                names.append("%s/many%d:1" % (other.host, i))
                layout.push("i%d" % i, names[-1])
            clients = [threading.Thread(target=s.cli, args=("pull", name),
                                        kwargs={"check": True}) for name in names * 2]
            for each in clients:
                each.start()
            for each in clients:
                each.join()
            layers = {}
            for entry in layout.manifests:
                for layer in document(layout, entry["digest"])["layers"]:
                    layers[layer["digest"]] = other.requests("GET", "/blobs/" + layer["digest"])
            with open(other.log_path) as f:
                log = [line for line in f if '"GET /' in line and "/blobs/" in line]
            self.assertEqual({1}, set(layers.values()), "".join(log))
            for name in names:
                self.assertIn(name.rsplit(":", 1)[0], s.cli("images", check=True).out)
                s.cli("rmi", name, check=True)

    def test_native_snapshotter(self):
        s.cli("pull", "--snapshotter", "native", busybox, check=True)
        out = s.ctr("snapshots", "--snapshotter", "native", "ls").out
        self.assertIn("Committed", out)


def document(layout, digest):
    with open(os.path.join(layout.path, "blobs", "sha256", digest[7:])) as f:
        return json.load(f)


def digest_of(text):
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class Archives(unittest.TestCase):
    def test_round_trip(self):
        first, second = os.path.join(s.dir, "1.tar"), os.path.join(s.dir, "2.tar")
        s.cli("save", "-o", first, busybox, check=True)
        with tarfile.open(first) as tar:
            names = tar.getnames()
            self.assertEqual(sorted(names), names)
            for name in ("oci-layout", "index.json", "manifest.json"):
                self.assertIn(name, names)
            for member in tar.getmembers():
                if member.isfile() and member.name.startswith("blobs/sha256/"):
                    data = tar.extractfile(member).read()
                    self.assertEqual(member.name[13:], hashlib.sha256(data).hexdigest())
        with suite.Suite() as other:
            other.cli("load", "-i", first, check=True)
            result = other.cli("run", "--rm", busybox, "echo", "loaded")
            self.assertEqual((0, "loaded\n"), (result.code, result.out), repr(result))
            other.cli("save", "-o", second, busybox, check=True)
            with open(first, "rb") as a, open(second, "rb") as b:
                self.assertEqual(a.read(), b.read())
        # Others read it.
        proc.run(["skopeo", "copy", "-q", "oci-archive:" + first,
                  "dir:" + os.path.join(s.dir, "from-oci")], check=True)
        proc.run(["skopeo", "copy", "-q", "docker-archive:" + first,
                  "dir:" + os.path.join(s.dir, "from-docker")], check=True)

    def test_archives_of_others(self):
        source = ["skopeo", "copy", "-q", "--src-tls-verify=false", "docker://" + busybox]
        for kind, name in (("docker-archive", "busybox:fromdocker"), ("oci-archive", "fromoci")):
            path = os.path.join(s.dir, kind + ".tar")
            proc.run(source + ["%s:%s:%s" % (kind, path, name)], check=True)
            proc.run(["gzip", "-1", path], check=True)
            with suite.Suite() as other:
                other.cli("load", "-i", path + ".gz", check=True)
                listed = other.ctr("images", "ls", "-q").out.split()
                self.assertEqual(1, len(listed), listed)
                self.assertIn(name.split(":")[-1], listed[0])
                result = other.cli("run", "--rm", listed[0], "echo", kind)
                self.assertEqual((0, kind + "\n"), (result.code, result.out), repr(result))

    def test_broken_archives(self):
        good = os.path.join(s.dir, "good.tar")
        s.cli("save", "-o", good, busybox, check=True)
        with open(good, "rb") as f:
            data = f.read()
        changed = bytearray(data)
        changed[len(data) // 2] ^= 1
        with suite.Suite() as other:
            for name, bad in (("cut", data[:len(data) // 2]), ("changed", bytes(changed)),
                              ("empty", b""), ("text", b"no archive at all" * 1000)):
                with self.subTest(archive=name):
                    path = os.path.join(s.dir, name + ".bad")
                    with open(path, "wb") as f:
                        f.write(bad)
                    result = other.cli("load", "-i", path)
                    self.assertNotEqual(0, result.code, repr(result))
                    self.assertEqual("", other.ctr("images", "ls", "-q").out)
            other.cli("load", "-i", good, check=True)


class Secure(unittest.TestCase):
    def setUp(self):
        self.dir = proc.temp_dir()

    def tearDown(self):
        proc.clean_up(self.dir)

    def test_own_authority_and_basic_login(self):
        ca, server, key = certificates(self.dir, "127.0.0.1")
        passwords = os.path.join(self.dir, "passwords")
        with open(passwords, "w") as f:
            f.write(proc.run(["htpasswd", "-Bbn", "me", "se-cret"], check=True).out)
        with registry.Registry(htpasswd=passwords, tls=(server, key)) as reg:
            image = reg.host + "/private:1"
            strict = hosts_dir(os.path.join(self.dir, "strict"), reg.host,
                               'server = "https://%s"\nskip_verify = false\n' % reg.host)
            trusting = hosts_dir(os.path.join(self.dir, "ca"), reg.host,
                                 'server = "https://%s"\nca = "%s"\n' % (reg.host, ca))
            result = s.cli("push", "--hosts-dir", strict, "-u", "me:se-cret", busybox, image)
            self.assertNotEqual(0, result.code)
            self.assertIn("certificate", result.err)
            result = s.cli("push", "--hosts-dir", trusting, "-u", "me:wrong", busybox, image)
            self.assertNotEqual(0, result.code)
            self.assertIn("password", result.err)
            s.cli("push", "--hosts-dir", trusting, "-u", "me:se-cret", busybox, image, check=True)
            result = s.cli("pull", "--hosts-dir", trusting, image)
            self.assertNotEqual(0, result.code)
            s.cli("pull", "--hosts-dir", trusting, "-u", "me:se-cret", image, check=True)
            self.assertEqual(raw_manifest(busybox), raw_manifest(image, "--creds", "me:se-cret"))
            self.assertNotIn("se-cret", s.log())
            s.cli("rmi", image, check=True)

    def test_tokens(self):
        with registry.Registry() as behind, TokenRegistry(behind) as reg:
            image = reg.host + "/tok/en:1"
            result = s.cli("push", "-u", "me:wrong", busybox, image)
            self.assertNotEqual(0, result.code)
            s.cli("push", "-u", "me:se-cret", busybox, image, check=True)
            self.assertIn("repository:tok/en:pull,push", reg.scopes)
            s.cli("pull", "-u", "me:se-cret", image, check=True)
            self.assertEqual(raw_manifest(busybox), raw_manifest(behind.host + "/tok/en:1"))
            self.assertNotIn("se-cret", s.log())
            self.assertNotIn("token-for", s.log())
            s.cli("rmi", image, check=True)

    def test_mirror_with_some_blobs(self):
        """A peer-to-peer mirror that has manifests but no layer."""
        with registry.Registry() as empty:
            folder = hosts_dir(os.path.join(self.dir, "m"), shared.host,
                               'server = "http://%s"\n[host."http://%s"]\n'
                               'capabilities = ["pull"]\n' % (shared.host, empty.host))
            with suite.Suite() as other:
                other.cli("pull", "--hosts-dir", folder, busybox, check=True)
                self.assertGreater(empty.requests("GET", "/blobs/"), 0)


class TokenRegistry:
    """A token server, and before `behind` a door that wants its tokens."""

    IDENTITY = "kept-by-docker-login"

    def __init__(self, behind):
        self.scopes, self.grants = [], set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def reply(self, code, body, headers=()):
                self.send_response(code)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def handle_any(self):
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size)
                path = urllib.parse.urlsplit(self.path)
                if path.path == "/token":
                    return self.token(urllib.parse.parse_qs(body.decode() or path.query))
                wanted = "pull" if self.command in ("GET", "HEAD") else "push"
                granted = self.headers.get("Authorization", "")
                repository = path.path[4:].split("/manifests/")[0].split("/blobs/")[0]
                if "token-for-repository:%s:" % repository not in granted or \
                        wanted not in granted:
                    return self.reply(401, b"{}", [(
                        "WWW-Authenticate", 'Bearer realm="http://%s/token",service="tests",'
                        'scope="repository:%s:%s"' % (outer.host, repository, wanted))])
                return self.forward(body)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

            def token(self, form):
                scope = " ".join(form.get("scope", []))
                outer.scopes += scope.split(" ")
                basic = base64.b64encode(b"me:se-cret").decode()
                outer.grants.update(form.get("grant_type", []))
                good = form.get("password") == ["se-cret"] or \
                    form.get("refresh_token") == [outer.IDENTITY] or \
                    self.headers.get("Authorization") == "Basic " + basic
                if not good:
                    return self.reply(401, b"{}")
                body = json.dumps({"access_token": "token-for-" + scope.replace(" ", ";token-for-"),
                                   "expires_in": 60})
                return self.reply(200, body.encode())

            def forward(self, body):
                import http.client
                connection = http.client.HTTPConnection(behind.host)
                headers = {k: v for k, v in self.headers.items()
                           if k.lower() not in ("authorization", "connection", "expect")}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
                self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)
                connection.close()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = "127.0.0.1:%d" % self.server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    unittest.main()
