"""Large layers, many clients, kills in mid-pull, uploads cut off: counted at a
registry of our own (tests/harness/fileregistry.py)."""

import http.server
import json
import os
import socket
import subprocess
import tarfile
import threading
import time
import unittest
import urllib.parse

from tests.harness import fileregistry, images, proc, registry, suite

MIB = 1 << 20
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def setUpModule():
    global s
    s = suite.Suite('[distribution]\nstall_timeout = "5s"\n').start()


def tearDownModule():
    s.stop()


def random_layer(size, name="f"):
    return images.tar_of(lambda add: add(name, os.urandom(size)))


class Base(unittest.TestCase):
    def setUp(self):
        self.dir = proc.temp_dir()
        self.addCleanup(proc.clean_up, self.dir)
        self.names = []
        self.addCleanup(self.remove_images)

    def remove_images(self):
        for name in self.names:
            s.cli("rmi", name)

    def layout(self):
        return images.Layout(os.path.join(self.dir, "layout"))

    def pull(self, image, *flags, check=True, **kwargs):
        self.names.append(image)
        return s.cli("pull", *flags, image, check=check, **kwargs)

    def hosts_dir(self, host, text):
        where = os.path.join(self.dir, "hosts", host)
        os.makedirs(where, exist_ok=True)
        with open(os.path.join(where, "hosts.toml"), "w") as f:
            f.write(text)
        return os.path.join(self.dir, "hosts")


def layer_of(reg, repo, tag="1"):
    with open(reg.path(reg.manifests[(repo, tag)][0])) as f:
        return json.load(f)["layers"][0]["digest"]


class Ranges(Base):
    SIZE = 128 * MIB

    def serve(self, **kwargs):
        layout = self.layout()
        layout.image("1", [random_layer(self.SIZE)], compression="none")
        return fileregistry.FileRegistry(**kwargs).load(layout, "big")

    def test_slow_connections_are_joined(self):
        with self.serve(rate=16 * MIB, latency=0.02) as reg:
            self.pull(reg.host + "/big:1")
            layer = layer_of(reg, "big")
            self.assertGreater(reg.streams_most[layer], 1)
            self.assertLessEqual(reg.streams_most[layer], 6)
            # A range leaves its connection to the next one.
            self.assertLess(reg.connections, reg.gets[layer])
            # Cutting the first stream short costs what its socket held.
            self.assertLess(reg.sent[layer], self.SIZE + 24 * MIB)

    def test_one_stream_if_ranges_are_unknown(self):
        with self.serve(rate=40 * MIB, ranges=False) as reg:
            self.pull(reg.host + "/big:1")
            layer = layer_of(reg, "big")
            self.assertEqual((1, 1), (reg.gets[layer], reg.streams_most[layer]))

    def test_a_registry_that_wants_one_stream_gets_one(self):
        """It answers all but the first with 429."""
        def rule(handler):
            wants = handler.headers.get("Range", "")
            if "/blobs/" in handler.path and wants and not wants.startswith("bytes=0-"):
                with handler.reg.lock:
                    busy = any(handler.reg.streams.values())
                if busy:
                    handler.reply(429, b"{}", {"Retry-After": "1"})
                    return True
            return False

        with self.serve(rate=32 * MIB, rule=rule) as reg:
            self.pull(reg.host + "/big:1")
            self.assertEqual(1, reg.streams_most[layer_of(reg, "big")])


class Killed(Base):
    def check(self, service):
        size = int(os.environ.get("BULKHEAD_KILL_MIB", "160")) * MIB
        layout = self.layout()
        layout.image("1", [random_layer(size)], compression="none")
        half, killed = threading.Event(), threading.Event()
        with fileregistry.FileRegistry(rate=max(48 * MIB, size // 4)).load(layout, "big") as reg:
            layer = layer_of(reg, "big")

            def on_sent(digest, offset):
                if digest == layer and not killed.is_set() and reg.sent[layer] > size // 2:
                    half.set()
                    killed.wait(30)

            reg.on_sent = on_sent
            image = reg.host + "/big:1"
            self.names.append(image)
            first = threading.Thread(target=s.cli, args=("pull", image))
            first.start()
            self.assertTrue(half.wait(60))
            s.kill_service(service)
            killed.set()
            first.join()
            self.pull(image)
            # Sent in vain: what the sockets of at most six streams held.
            extra = reg.sent[layer] - os.path.getsize(reg.path(layer))
            print("SIGKILL of %s at half of %d MiB: %.1f MiB sent twice" %
                  (service, size // MIB, extra / MIB))
            self.assertLess(extra, 48 * MIB)

    def test_distribution(self):
        self.check("distribution")

    def test_content(self):
        self.check("content")


    def test_a_failed_pull_is_gone_on_with_after_a_collection(self):
        """Its half layer is not garbage; a pull that succeeds leaves no lease."""
        size = 64 * MIB
        layout = self.layout()
        layout.image("1", [random_layer(size)], compression="none")
        with fileregistry.FileRegistry(rate=100 * MIB).load(layout, "big") as reg:
            layer = layer_of(reg, "big")

            def gone(handler):
                if "/blobs/" not in handler.path:
                    return False
                handler.reply(404, b"{}")
                return True

            def on_sent(digest, offset):
                if digest == layer and reg.sent[layer] > size // 2:
                    reg.rule = gone
                    raise OSError("on order")

            reg.on_sent = on_sent
            image = reg.host + "/big:1"
            self.assertNotEqual(0, self.pull(image, check=False).code)
            self.assertEqual(1, len(s.ctr("leases", "ls", "-q").out.split()))
            s.ctr("leases", "create", "--id", "now", check=True)
            s.ctr("leases", "delete", "--sync", "now", check=True)  # Collects.
            reg.rule = reg.on_sent = None
            self.pull(image)
            self.assertLess(reg.sent[layer], size + 24 * MIB)
            self.assertEqual([], s.ctr("leases", "ls", "-q").out.split())


class Clients(Base):
    def test_twenty_at_once_fetch_each_blob_once(self):
        layout = self.layout()
        shared = [random_layer(6 * MIB, "shared%d" % i) for i in range(3)]
        for i in range(5):
            # The same, and overlapping ones.
            layout.image("i%d" % i, shared[:1 + i % 3] + [random_layer(MIB, "own%d" % i)])
        with fileregistry.FileRegistry(latency=0.01).load(layout, "many") as reg:
            results = []

            def client(i):
                results.append(self.pull("%s/many:i%d" % (reg.host, i % 5), check=False))

            threads = [threading.Thread(target=client, args=(i,)) for i in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for result in results:
                self.assertEqual(0, result.code, repr(result))
            blobs = {d: n for d, n in reg.gets.items()}
            self.assertEqual(5 + 5 + 3 + 5, len(blobs))  # Manifests, configs, layers.
            self.assertEqual({1}, set(blobs.values()), blobs)


class Uploads(Base):
    def setUp(self):
        super().setUp()
        layout = self.layout()
        self.size = 96 * MIB
        layout.image("1", [random_layer(self.size)], compression="none")
        with fileregistry.FileRegistry().load(layout, "big") as reg:
            self.image = reg.host + "/big:1"
            self.manifest = reg.manifests[("big", "1")][0]
            self.pull(self.image)

    def test_a_cut_upload_goes_on_where_it_was(self):
        cuts = [40 * MIB, 10 * MIB]
        with fileregistry.FileRegistry() as reg:
            reg.cut_upload = lambda there: cuts.pop(0) if cuts else None
            s.cli("push", self.image, reg.host + "/copy:1", check=True)
            self.assertEqual(self.manifest, reg.manifests[("copy", "1")][0])
            self.assertEqual([], cuts)
            self.assertGreater(reg.count("PATCH", "/uploads/"), 0)
            self.assertLess(reg.received, self.size + 20 * MIB)

    def test_a_lost_session_begins_again(self):
        with fileregistry.FileRegistry() as reg:
            cuts = [20 * MIB]

            def rule(handler):
                if handler.command == "GET" and "/uploads/" in handler.path:
                    handler.reply(404, b"{}")
                    return True
                return False

            reg.rule = rule
            reg.cut_upload = lambda there: cuts.pop() if cuts else None
            s.cli("push", self.image, reg.host + "/copy:1", check=True)
            self.assertEqual(self.manifest, reg.manifests[("copy", "1")][0])


class Kinds(Base):
    """Images that are not a plain Linux image of one platform."""

    def put(self, reg, repo, ref, config, layers, **extra):
        if not isinstance(config, dict) or "digest" not in config:
            config = reg.blob(json.dumps(config).encode(), CONFIG)
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config,
                    "layers": layers, **extra}
        return reg.add_manifest(repo, ref, json.dumps(document).encode(), MANIFEST)

    def image(self, reg, repo, ref, platform=None, data=b"x", **extra):
        tar = images.tar_of(lambda add: add("f", data))
        layer = reg.blob(tar, LAYER)
        config = dict(platform or {"os": "linux", "architecture": "amd64"},
                      rootfs={"type": "layers", "diff_ids": [layer["digest"]]})
        return self.put(reg, repo, ref, config, [layer], **extra)

    def index(self, reg, repo, ref, entries):
        manifests = []
        for digest, platform in entries:
            manifests.append({"mediaType": MANIFEST, "digest": digest, "platform": platform,
                              "size": os.path.getsize(reg.path(digest))})
        return reg.add_manifest(repo, ref, json.dumps({
            "schemaVersion": 2, "mediaType": fileregistry.INDEX,
            "manifests": manifests}).encode(), fileregistry.INDEX)

    def test_windows_images_are_stored_and_handed_on(self):
        with fileregistry.FileRegistry() as reg, fileregistry.FileRegistry() as other:
            versions = ("10.0.17763.1", "10.0.20348.2")
            platforms = [{"os": "windows", "architecture": "amd64", "os.version": v}
                         for v in versions]
            entries = [(self.image(reg, "win", v, p, v.encode()), p)
                       for v, p in zip(versions, platforms)]
            self.index(reg, "win", "all", entries)
            image = reg.host + "/win:all"
            result = s.cli("pull", image)  # Not for this machine.
            self.assertNotEqual(0, result.code)
            self.assertIn("linux/amd64", result.err)
            self.pull(image, "--platform", "windows/amd64")
            # The first that fits was stored, nothing unpacked.
            self.assertEqual(1, reg.gets.get(entries[0][0]))
            self.assertNotIn(entries[1][0], reg.gets)
            archive = os.path.join(self.dir, "w.tar")
            s.cli("save", "--platform", "windows/amd64", "-o", archive, image, check=True)
            proc.run(["skopeo", "--override-os", "windows", "--override-arch", "amd64", "copy",
                      "-q", "oci-archive:" + archive, "dir:" + os.path.join(self.dir, "w")],
                     check=True)
            s.cli("push", "--platform", "windows/amd64", image, other.host + "/w:1", check=True)
            self.assertEqual(entries[0][0], other.manifests[("w", "1")][0])

    def test_features_choose_the_manifest(self):
        with fileregistry.FileRegistry() as reg:
            plain = {"os": "linux", "architecture": "amd64"}
            special = dict(plain, **{"os.features": ["some"]})
            needs = self.image(reg, "f", "a", special, b"needs")
            usual = self.image(reg, "f", "b", plain, b"usual")
            self.index(reg, "f", "all", [(needs, special), (usual, plain)])
            self.pull(reg.host + "/f:all")
            self.assertIn(usual, reg.gets)
            self.assertNotIn(needs, reg.gets)

    def test_foreign_layers_come_from_their_urls_and_are_not_pushed(self):
        with fileregistry.FileRegistry() as reg, fileregistry.FileRegistry() as other, \
                fileregistry.FileRegistry() as elsewhere:
            tar = images.tar_of(lambda add: add("licensed", b"do not distribute"))
            layer = elsewhere.blob(
                tar, "application/vnd.oci.image.layer.nondistributable.v1.tar")
            layer["urls"] = ["http://%s/v2/x/blobs/%s" % (elsewhere.host, layer["digest"])]
            digest = self.put(reg, "foreign", "1", {
                "os": "linux", "architecture": "amd64",
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}, [layer])
            image = reg.host + "/foreign:1"
            self.pull(image, "-u", "me:se-cret")
            self.assertEqual(1, elsewhere.gets[layer["digest"]])
            for _, _, headers in elsewhere.requests:
                self.assertNotIn("Authorization", headers)
            s.cli("push", image, other.host + "/foreign:1", check=True)
            self.assertEqual(digest, other.manifests[("foreign", "1")][0])
            self.assertFalse(os.path.exists(other.path(layer["digest"])))

    def test_artifacts_and_referrers(self):
        for api in (True, False):
            with self.subTest(api=api), fileregistry.FileRegistry(referrers=api) as reg, \
                    fileregistry.FileRegistry(referrers=api) as other:
                subject = self.image(reg, "app", "1", data=b"app%d" % api)
                signature = {"artifactType": "application/x-signature", "subject": {
                    "mediaType": MANIFEST, "digest": subject,
                    "size": os.path.getsize(reg.path(subject))}}
                empty = reg.blob(b"{}", "application/vnd.oci.empty.v1+json")
                about = self.put(reg, "app", "sig", empty, [
                    reg.blob(b"signed %d" % api, "application/x-signature")], **signature)
                if not api:
                    self.index(reg, "app", subject.replace(":", "-"), [(about, {})])
                image, copy = reg.host + "/app:1", other.host + "/app:1"
                self.pull(image)
                self.assertNotIn(about, reg.gets)  # Only when asked for.
                self.pull(image, "--all-metadata")
                self.assertEqual(1, reg.gets[about])
                s.cli("push", image, copy, check=True)
                self.assertIn(("app", about), other.manifests)
                if not api:
                    tag = ("app", subject.replace(":", "-"))
                    with open(other.path(other.manifests[tag][0])) as f:
                        listed = json.load(f)["manifests"]
                    self.assertEqual([(about, "application/x-signature")],
                                     [(e["digest"], e["artifactType"]) for e in listed])
                # An artifact by itself: stored, not unpacked.
                self.pull(reg.host + "/app:sig")

    def test_the_same_files_in_another_compression_are_not_fetched(self):
        layout = self.layout()
        tar = images.tar_of(lambda add: add("data", b"some text " * 300000))
        for tag in ("gzip", "zstd"):
            layout.image(tag, [tar], compression=tag)
        with fileregistry.FileRegistry().load(layout, "app") as reg:
            self.pull(reg.host + "/app:gzip")
            self.pull(reg.host + "/app:zstd")
            layer = layer_of(reg, "app", "zstd")
            self.assertNotIn(layer, reg.gets)
            # It can be pushed to where the layer is...
            s.cli("push", reg.host + "/app:zstd", reg.host + "/app:again", check=True)
            self.assertNotIn(layer, reg.gets)
            # ...and is fetched when it is wanted elsewhere.
            with fileregistry.FileRegistry() as other:
                s.cli("push", reg.host + "/app:zstd", other.host + "/app:zstd", check=True)
                self.assertEqual(1, reg.gets[layer])
                self.assertEqual(reg.manifests[("app", "zstd")], other.manifests[("app", "zstd")])
                s.cli("push", reg.host + "/app:zstd", other.host + "/app:again", check=True)
                self.assertEqual(1, reg.gets[layer])

    def test_a_layer_that_was_not_fetched_is_saved(self):
        """By another name too: the manifest's labels say where it came from."""
        layout = self.layout()
        tar = images.tar_of(lambda add: add("data", b"other text " * 300000))
        for tag in ("gzip", "zstd"):
            layout.image(tag, [tar], compression=tag)
        archive = os.path.join(self.dir, "a.tar")
        with fileregistry.FileRegistry().load(layout, "app") as reg:
            zstd, other = reg.host + "/app:zstd", reg.host + "/other:1"
            self.pull(reg.host + "/app:gzip")
            self.pull(zstd)
            s.cli("tag", zstd, other, check=True)
            s.cli("rmi", zstd, check=True)
            self.names.append(other)
            layer = layer_of(reg, "app", "zstd")
            # While the registry has it not, the error says what to do.
            reg.rule = lambda handler: layer in handler.path and (
                handler.reply(404, b"{}") or True)
            result = s.cli("save", "-o", archive, other)
            self.assertNotEqual(0, result.code)
            self.assertIn(layer, result.err)
            self.assertIn("--no-unpack", result.err)
            reg.rule = None
            s.cli("save", "-o", archive, other, check=True)
            self.assertEqual(1, reg.gets[layer])
        with tarfile.open(archive) as tar:
            self.assertIn("blobs/sha256/" + layer[7:], tar.getnames())
        s.cli("save", "-o", archive, other, check=True)  # It has been kept.


class Proxy:
    """A forward proxy that sends everything to one registry."""

    def __init__(self, behind):
        outer = self
        self.seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                outer.seen.append(self.path)
                split = urllib.parse.urlsplit(self.path)
                with socket.create_connection(("127.0.0.1", behind.port)) as peer:
                    lines = ["%s %s HTTP/1.1" % (self.command, split.path)]
                    lines += ["%s: %s" % (k, v) for k, v in self.headers.items()
                              if not k.lower().startswith(("proxy-", "connection"))]
                    peer.sendall(("\r\n".join(lines + ["Connection: close"]) +
                                  "\r\n\r\n").encode())
                    while piece := peer.recv(65536):
                        self.wfile.write(piece)
                self.close_connection = True

            do_HEAD = do_GET

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = "http://127.0.0.1:%d" % self.server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()


class Http2Front:
    """nghttpx before a registry: TLS, HTTP/2 wherever the client can."""

    def __init__(self, behind, certificate, key, folder):
        self.port = registry.free_port()
        self.host = "127.0.0.1:%d" % self.port
        self.log = os.path.join(folder, "h2.log")
        self.command = [
            "nghttpx", "--conf=/dev/null", "--frontend=127.0.0.1,%d" % self.port,
            "--backend=127.0.0.1,%d" % behind.port, "--workers=1", "--pid-file=" + folder + "/pid",
            "--accesslog-file=" + self.log, "--accesslog-format=$alpn $remote_port",
            "--errorlog-file=" + folder + "/h2.err", key, certificate]

    def requests(self):
        """(protocol, the client's port) of each so far."""
        with open(self.log) as f:
            return [tuple(line.split()) for line in f]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def answers():
            with socket.socket() as peer:
                return peer.connect_ex(("127.0.0.1", self.port)) == 0

        proc.wait_for(answers, "nghttpx")
        return self

    def __exit__(self, *exc):
        self.process.terminate()
        self.process.wait(10)


class Network(Base):
    def test_ipv6(self):
        layout = self.layout()
        layout.image("1", [random_layer(MIB)])
        with fileregistry.FileRegistry(ipv6=True).load(layout, "six") as reg:
            self.pull(reg.host + "/six:1")
            s.cli("push", reg.host + "/six:1", reg.host + "/six:2", check=True)
            self.assertIn(("six", "2"), reg.manifests)

    def test_proxy_of_the_environment(self):
        layout = self.layout()
        layout.image("1", [random_layer(MIB)])
        with fileregistry.FileRegistry().load(layout, "app") as reg, Proxy(reg) as proxy:
            saved = dict(os.environ)
            os.environ.update({"HTTP_PROXY": proxy.url, "NO_PROXY": "direct.test"})
            try:
                with suite.Suite() as other:
                    image = "registry.test:5000/app:1"
                    other.cli("pull", "--plain-http", image, check=True)
                    self.assertTrue(proxy.seen)
                    self.assertTrue(all(p.startswith("http://registry.test:5000/v2/")
                                        for p in proxy.seen), proxy.seen)
                    seen = len(proxy.seen)
                    other.cli("pull", reg.host + "/app:1", check=True)  # Loopback.
                    result = other.cli("pull", "--plain-http", "direct.test:5000/app:1")
                    self.assertNotEqual(0, result.code)
                    self.assertIn("direct.test", result.err)
                    self.assertEqual(seen, len(proxy.seen))
            finally:
                os.environ.clear()
                os.environ.update(saved)

    def test_bandwidth_limit(self):
        """Both ways, over all connections. A slow machine only takes longer."""
        layout = self.layout()
        layout.image("1", [random_layer(12 * MIB, "a"), random_layer(12 * MIB, "b")],
                     compression="none")
        with fileregistry.FileRegistry().load(layout, "app") as reg, \
                fileregistry.FileRegistry() as copy, \
                suite.Suite("[distribution]\nbandwidth_limit = %d\n" % (8 * MIB)) as other:
            began = time.monotonic()
            other.cli("pull", reg.host + "/app:1", check=True)
            self.assertGreater(time.monotonic() - began, 2.7)
            began = time.monotonic()
            other.cli("push", reg.host + "/app:1", copy.host + "/app:1", check=True)
            self.assertGreater(time.monotonic() - began, 2.7)
            self.assertEqual(reg.manifests[("app", "1")], copy.manifests[("app", "1")])

    def test_http2(self):
        """Behind a TLS server that speaks it: few connections, each byte right,
        paused streams too."""
        from tests.integration.test_registries import certificates
        _, server, key = certificates(self.dir, "127.0.0.1")
        layout = self.layout()
        layout.image("1", [random_layer(2 * MIB, "f%d" % i) for i in range(5)] +
                     [random_layer(40 * MIB)], compression="none")
        with fileregistry.FileRegistry().load(layout, "app") as behind, \
                Http2Front(behind, server, key, self.dir) as front, \
                suite.Suite("[distribution]\nbandwidth_limit = %d\n" % (16 * MIB)) as limited:
            folder = self.hosts_dir(front.host, 'server = "https://%s"\nca = "%s"\n' % (
                front.host, os.path.join(self.dir, "ca.crt")))
            image = front.host + "/app:1"
            self.pull(image, "--hosts-dir", folder)
            pulled = front.requests()
            self.assertGreater(len(pulled), 8)
            self.assertEqual({"h2"}, {protocol for protocol, _ in pulled})
            self.assertLessEqual(len({port for _, port in pulled}), 3, pulled)
            s.cli("push", "--hosts-dir", folder, image, front.host + "/copy:1", check=True)
            self.assertEqual(behind.manifests[("app", "1")], behind.manifests[("copy", "1")])
            self.assertEqual({"h2"}, {protocol for protocol, _ in front.requests()})
            began = time.monotonic()
            limited.cli("pull", "--hosts-dir", folder, image, check=True)
            self.assertGreater(time.monotonic() - began, 2.8)

    def test_client_certificates(self):
        from tests.integration.test_registries import certificates
        ca, server, key = certificates(self.dir, "127.0.0.1")
        layout = self.layout()
        layout.image("1", [random_layer(MIB)])
        with fileregistry.FileRegistry(tls=(server, key, ca)).load(layout, "tls") as reg:
            image = reg.host + "/tls:1"
            base = 'server = "https://%s"\nca = "%s"\n' % (reg.host, ca)
            without = self.hosts_dir(reg.host, base)
            result = s.cli("pull", "--hosts-dir", without, image)
            self.assertNotEqual(0, result.code)
            # Any certificate of that authority will do.
            with_one = self.hosts_dir(reg.host, base + 'client = [["%s", "%s"]]\n' % (server, key))
            self.pull(image, "--hosts-dir", with_one)


class Mirrors(Base):
    def test_each_blob_from_whoever_has_it(self):
        """As with Spegel or Dragonfly: a peer that has some blobs, and no tags."""
        layout = self.layout()
        layout.image("1", [random_layer(MIB, "a"), random_layer(MIB, "b")])
        with fileregistry.FileRegistry().load(layout, "app") as origin, \
                fileregistry.FileRegistry() as peer:
            with open(origin.path(origin.manifests[("app", "1")][0])) as f:
                layers = [each["digest"] for each in json.load(f)["layers"]]
            os.link(origin.path(layers[0]), peer.path(layers[0]))
            folder = self.hosts_dir(origin.host, (
                'server = "http://%s"\n[host."http://%s/some/v2"]\noverride_path = true\n'
                'capabilities = ["pull"]\n[host."http://%s/some/v2".header]\nx-peer = "yes"\n') %
                (origin.host, peer.host, peer.host))
            peer.rule = self.below("/some", peer)
            self.pull(origin.host + "/app:1", "--hosts-dir", folder)
            self.assertEqual(1, peer.gets[layers[0]])
            self.assertNotIn(layers[0], origin.gets)
            self.assertEqual(1, origin.gets[layers[1]])
            self.assertEqual(0, peer.count("HEAD", "/manifests/"))
            for method, path, headers in peer.requests:
                self.assertIn("ns=" + urllib.parse.quote(origin.host, ""), path)
                self.assertEqual("yes", headers.get("x-peer"))
            for method, path, headers in origin.requests:
                self.assertNotIn("x-peer", headers)

    @staticmethod
    def below(prefix, reg):
        def rule(handler):
            if handler.path.startswith(prefix):
                handler.path = handler.path[len(prefix):]
                return False
            handler.reply(404, b"{}")
            return True
        return rule

    def test_a_mirror_that_is_broken_costs_little(self):
        layout = self.layout()
        layout.image("1", [random_layer(MIB)])
        answers = iter([500, 503, 429, 404] * 50)

        def rule(handler):
            handler.reply(next(answers), b"{}", {"Retry-After": "20"})
            return True

        with fileregistry.FileRegistry().load(layout, "app") as origin, \
                fileregistry.FileRegistry(rule=rule) as mirror:
            folder = self.hosts_dir(origin.host, 'server = "http://%s"\n[host."http://%s"]\n' %
                                    (origin.host, mirror.host))
            began = time.monotonic()
            self.pull(origin.host + "/app:1", "--hosts-dir", folder)
            self.assertLess(time.monotonic() - began, 10)
            self.assertGreater(len(mirror.requests), 0)


if __name__ == "__main__":
    unittest.main()
