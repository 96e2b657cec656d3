"""Which images may come in: signatures, certificates, programs, pins."""

import http.client
import http.server
import json
import os
import re
import threading
import unittest

from tests.harness import images, proc, registry, signing, suite
from tests.integration import common


def setUpModule():
    global s, reg, folder, layout
    layout = common.image_layout()
    folder = proc.temp_dir()
    reg = registry.Registry().start()
    for name, kind in (("ec", "ec"), ("rsa", "rsa"), ("ed", "ed25519"), ("wrong", "ec")):
        signing.key(folder, name, kind)
    for name in ("root", "stranger"):
        signing.authority(folder, name)
    os.mkdir(os.path.join(folder, "bin"))
    s = suite.Suite(config=CONFIG.format(host=reg.host, dir=folder)).start()


def tearDownModule():
    s.stop()
    reg.stop()
    proc.clean_up(folder)


CONFIG = """
[log]
level = "debug"
[[distribution.verify]]
name = "keys"
match = ["{host}/keys/*"]
action = "require"
cosign_keys = ["{dir}/ec.pub", "{dir}/rsa.pub", "{dir}/ed.pub"]
[[distribution.verify]]
name = "certificates"
match = ["{host}/certs/*"]
action = "require"
notation_roots = ["{dir}/root"]
notation_subjects = ["CN=release, O=Example", "CN=old"]
[[distribution.verify]]
name = "never"
match = ["{host}/never/*"]
action = "deny"
[[distribution.verify]]
name = "broken"
match = ["{host}/broken/*"]
action = "require"
cosign_keys = ["{dir}/no-such-key"]
[[distribution.verify]]
name = "front"
match = ["127.0.0.1:*/front/*"]
action = "require"
cosign_keys = ["{dir}/ec.pub"]
"""


def path(name):
    return os.path.join(folder, name)


class Base(unittest.TestCase):
    def image(self, repository, tag="1"):
        """A fresh repository with one image of its own, unsigned."""
        own = images.Layout(os.path.join(folder, "layout-" + repository.replace("/", "-")))
        own.image("i", [images.tar_of(lambda add: add("who", repository.encode()))])
        own.push("i", "%s/%s:%s" % (reg.host, repository, tag))
        pusher = signing.Pusher(reg.host, repository)
        return pusher, pusher.resolve(tag), "%s/%s:%s" % (reg.host, repository, tag)

    def refused(self, name, *texts, suite_=None):
        """Pulling fails, says why, and nothing is recorded."""
        result = (suite_ or s).cli("pull", name)
        self.assertEqual(1, result.code, repr(result))
        for text in (name,) + texts:
            self.assertIn(text, result.err)
        self.assertNotIn(name, (suite_ or s).ctr("images", "ls", "-q").out)
        return result.err

    def pulled(self, name, digest):
        s.cli("pull", name, check=True)
        record = [line for line in s.ctr("images", "ls").out.splitlines()
                  if line.startswith(name + " ")]
        self.assertIn(digest, record[0])


class Trust(Base):
    def test_cosign_keys_of_each_kind(self):
        for kind, private in (("ec", "ec"), ("rsa", "rsa"), ("ed25519", "ed")):
            with self.subTest(kind):
                pusher, image, name = self.image("keys/" + kind)
                self.refused(name, "'keys'", "no cosign signature", image["digest"])
                pusher.attach_tag(image, pusher.cosign(image, path(private), kind))
                self.pulled(name, image["digest"])

    def test_cosign_refusals(self):
        pusher, image, name = self.image("keys/bad")
        pusher.attach_tag(image, pusher.cosign(image, path("wrong")))
        self.refused(name, "'keys'", "none of the policy's keys")
        other = "sha256:" + "0" * 64
        pusher.attach_tag(image, pusher.cosign(image, path("ec"), claimed=other))
        self.refused(name, "'keys'", "another image, " + other)
        pusher.attach_tag(image, pusher.cosign(image, path("ec"),
                                               reference=reg.host + "/keys/good"))
        self.refused(name, "'keys'", "for the name '%s/keys/good'" % reg.host)
        # A signature moved onto other bytes.
        layer = pusher.cosign(image, path("ec"))
        moved = pusher.cosign(image, path("ec"), claimed=other)
        moved["annotations"] = layer["annotations"]
        pusher.attach_tag(image, moved)
        self.refused(name, "'keys'")
        # One good among bad ones is enough.
        pusher.attach_tag(image, moved, pusher.cosign(image, path("wrong")), layer)
        self.pulled(name, image["digest"])

    def test_a_signature_blob_that_is_missing_refuses(self):
        pusher, image, name = self.image("keys/gone")
        layer = pusher.cosign(image, path("ec"))
        pusher.attach_tag(image, layer)
        hex_ = layer["digest"][7:]
        os.remove(os.path.join(reg.dir, "data/docker/registry/v2/blobs/sha256", hex_[:2], hex_,
                               "data"))
        self.refused(name, "'keys'", "could not be looked up")

    def test_cosign_by_the_fallback_tag_of_referrers(self):
        pusher, image, name = self.image("keys/referrer")
        entry = pusher.refer(image, signing.COSIGN_ARTIFACT, pusher.cosign(image, path("ec")))
        self.refused(name, "'keys'")
        pusher.attach_fallback(image, entry)
        self.pulled(name, image["digest"])

    def test_notation(self):
        pusher, image, name = self.image("certs/app")
        self.refused(name, "'certificates'", "no notation signature")

        def attach(leaf, chain=(), **changes):
            entry = pusher.refer(image, signing.NOTATION,
                                 pusher.notation(image, leaf, chain, **changes))
            pusher.attach_fallback(image, entry)

        good = signing.certificate(folder, "release", path("root"))
        attach(signing.certificate(folder, "other", path("stranger")), [path("stranger")])
        self.refused(name, "'certificates'", "self-signed certificate")
        attach(signing.certificate(folder, "old", path("root"), days="-1"))
        self.refused(name, "'certificates'", "expired")
        attach(signing.certificate(folder, "somebody", path("root")))
        self.refused(name, "'certificates'", "none of notation_subjects")
        attach(good, **{"io.cncf.notary.expiry": "2020-01-01T00:00:00Z"})
        self.refused(name, "'certificates'", "expired at 2020")
        # Signed for another image, attached to this one.
        fake = dict(image, digest="sha256:" + "1" * 64)
        pusher.attach_fallback(image, pusher.refer(image, signing.NOTATION,
                                                   pusher.notation(fake, good)))
        self.refused(name, "'certificates'", "another image")
        attach(good, [path("root")])
        self.pulled(name, image["digest"])

    def test_an_index_is_signed_as_a_whole(self):
        pusher, image, _ = self.image("keys/index")
        image["platform"] = {"os": "linux", "architecture": "amd64"}
        index = pusher.manifest({"schemaVersion": 2, "mediaType": signing.INDEX,
                                 "manifests": [image]}, "all")
        name = reg.host + "/keys/index:all"
        self.refused(name, "'keys'")
        # The child's signature says nothing of the index.
        pusher.attach_tag(image, pusher.cosign(image, path("ec")))
        self.refused(name, "'keys'")
        pusher.attach_tag(index, pusher.cosign(index, path("ec")))
        self.pulled(name, index["digest"])

    def test_deny_and_broken(self):
        _, _, name = self.image("never/app")
        self.refused(name, "'never'", "denies")
        _, _, name = self.image("broken/app")
        self.refused(name, "'broken'", "no-such-key")

    def test_no_other_name_gets_around(self):
        _, image, name = self.image("free/app")
        self.pulled(name, image["digest"])
        # What comes in under a protected name must satisfy its policy,
        # wherever it comes from.
        archive = path("archive.tar")
        s.cli("tag", name, reg.host + "/never/app:9", check=True)
        s.cli("save", "-o", archive, reg.host + "/never/app:9", check=True)
        s.cli("rmi", reg.host + "/never/app:9", check=True)
        result = s.cli("load", "-i", archive)
        self.assertEqual(1, result.code, repr(result))
        self.assertIn("'never'", result.err)
        self.assertNotIn("never", s.ctr("images", "ls", "-q").out)

    def test_explain(self):
        pusher, image, name = self.image("keys/told")
        pusher.attach_tag(image, pusher.cosign(image, path("wrong")))
        result = s.cli("pull", "--explain", name)
        self.assertIn("policy 'keys'", result.err)
        self.assertIn("a signature does not count", result.err)


class Front:
    """Hands requests on to the registry, but answers some itself."""

    def __init__(self, referrers=None, tags=None):
        self.referrers = referrers or {}  # digest -> entries
        self.tags = tags or {}  # tag -> descriptors, one for each request
        self.asked = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def answer(self, code, headers, data):
                self.send_response(code)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                where = self.path.split("?")[0]
                outer.asked.append((self.command, where))
                found = re.match(r"/v2/.+/referrers/(.+)$", where)
                if found:
                    data = json.dumps({"schemaVersion": 2, "mediaType": signing.INDEX,
                                       "manifests": outer.referrers.get(found.group(1), [])
                                       }).encode()
                    return self.answer(200, {"Content-Type": signing.INDEX,
                                             "Content-Length": str(len(data))}, data)
                last = where.rsplit("/", 1)[-1]
                if last in outer.tags:
                    queue = outer.tags[last]
                    image = queue.pop(0) if len(queue) > 1 else queue[0]
                    self.path = where.rsplit("/", 1)[0] + "/" + image["digest"]
                connection = http.client.HTTPConnection(reg.host, timeout=60)
                connection.request(self.command, self.path,
                                   headers={"Accept": self.headers.get("Accept", "*/*")})
                got = connection.getresponse()
                data = got.read()
                keep = {k: v for k, v in got.getheaders()
                        if k.lower() in ("content-type", "content-length",
                                         "docker-content-digest")}
                connection.close()
                return self.answer(got.status, keep, data)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = "127.0.0.1:%d" % self.server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()


class BehindAFront(Base):
    def test_the_referrers_api(self):
        pusher, image, _ = self.image("front/api")
        with Front() as front:
            name = front.host + "/front/api:1"
            self.refused(name, "'front'")
            layer = pusher.cosign(image, path("ec"), reference=front.host + "/front/api")
            front.referrers[image["digest"]] = [
                pusher.refer(image, signing.COSIGN_ARTIFACT, layer)]
            self.pulled(name, image["digest"])
            self.assertIn(("GET", "/v2/front/api/referrers/" + image["digest"]), front.asked)

    def test_what_was_verified_is_what_is_recorded(self):
        # The tag moves to another image as soon as it was asked for once.
        pusher, good, _ = self.image("front/moving", "good")
        evil_layout = images.Layout(path("layout-evil"))
        evil_layout.image("i", [images.tar_of(lambda add: add("evil", b"x"))])
        evil_layout.push("i", reg.host + "/front/moving:evil")
        evil = pusher.resolve("evil")
        with Front(tags={"1": [good, evil]}) as front:
            pusher.attach_tag(good, pusher.cosign(good, path("ec"),
                                                  reference=front.host + "/front/moving"))
            name = front.host + "/front/moving:1"
            self.pulled(name, good["digest"])
            blobs = s.ctr("content", "ls", "-q").out
            self.assertNotIn(evil["digest"], blobs)
            # And now that it has moved:
            s.cli("rmi", name, check=True)
            self.refused(name, "'front'", evil["digest"])


class OtherSuites(unittest.TestCase):
    def test_programs_and_pins(self):
        free = reg.host + "/free/programs:1"
        own = images.Layout(path("layout-programs"))
        digest = own.image("i", [images.tar_of(lambda add: add("p", b"programs"))])
        own.push("i", free)
        own.push("i", reg.host + "/free/pinned:1")
        own.push("i", reg.host + "/free/pinned:2")
        program = path("bin/judge")
        with open(program, "w") as f:
            f.write("#!/bin/sh\necho \"$2 $4\" and more\n"
                    "case $2 in *pinned*) exit 0;; esac\nexit 4\n")
        os.chmod(program, 0o755)
        config = ("[distribution.image_verifier]\nbin_dir = \"%s/bin\"\n"
                  "per_verifier_timeout = \"60s\"\ninterpreters = [\"/bin/sh\"]\n"
                  "[distribution.pins]\n\"%s/free/pinned:1\" = \"%s\"\n"
                  "\"%s/free/pinned:2\" = \"sha256:%s\"\n" %
                  (folder, reg.host, digest, reg.host, "2" * 64))
        with suite.Suite(config=config) as other:
            result = other.cli("pull", free)
            self.assertEqual(1, result.code, repr(result))
            for text in ("'judge'", "exit code 4", free + " " + digest):
                self.assertIn(text, result.err)
            other.cli("pull", reg.host + "/free/pinned:1", check=True)
            result = other.cli("pull", reg.host + "/free/pinned:2")
            self.assertEqual(1, result.code, repr(result))
            self.assertIn("is pinned to sha256:" + "2" * 64, result.err)
            self.assertIn(digest, result.err)
            # Nothing else can be executed by the service.
            with open(program, "w") as f:
                f.write("#!/bin/sh\n/bin/true || exit 9\nexit 0\n")
            result = other.cli("pull", reg.host + "/free/pinned:1")
            self.assertEqual(1, result.code, repr(result))
            self.assertIn("exit code 9", result.err)

    def test_bad_configuration_stops_the_service(self):
        for text, part in (
                ("[distribution.pins]\n\"debian\" = \"sha256:00\"\n", "distribution.pins"),
                ("[[distribution.verify]]\nmatch = [\"*\"]\naction = \"require\"\n",
                 "cosign_keys")):
            with self.subTest(part):
                config = path("bad.toml")
                with open(config, "w") as f:
                    f.write(text)
                state = path("state")
                os.makedirs(os.path.join(state, "distribution"), exist_ok=True)
                result = proc.run([os.path.join(proc.BIN, "bulkhead-distribution"), "--config",
                                   config, "--root", path("root-dir"), "--state", state],
                                  timeout=30)
                self.assertNotEqual(0, result.code, repr(result))
                self.assertIn(part, result.err)


if __name__ == "__main__":
    unittest.main()
