"""Signatures of images, made with the openssl program and pushed by hand."""

import base64
import hashlib
import http.client
import json
import os
import subprocess

COSIGN_LAYER = "application/vnd.dev.cosign.simplesigning.v1+json"
COSIGN_ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
NOTATION = "application/vnd.cncf.notary.signature"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def openssl(*args, data=None):
    return subprocess.run(["openssl", *args], input=data, capture_output=True, check=True,
                          timeout=60).stdout


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def key(folder, name, kind="ec"):
    """A private key and, beside it, NAME.pub; kind: ec, rsa or ed25519."""
    path = os.path.join(folder, name)
    options = {"ec": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
               "rsa": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
               "ed25519": ["-algorithm", "ED25519"]}[kind]
    openssl("genpkey", *options, "-out", path)
    openssl("pkey", "-in", path, "-pubout", "-out", path + ".pub")
    return path


def authority(folder, name):
    """A self-signed root: its certificate's path, its key beside it as .key."""
    path = os.path.join(folder, name)
    key(folder, name + ".key")
    openssl("req", "-x509", "-new", "-key", path + ".key", "-subj", "/O=Example/CN=" + name,
            "-days", "2", "-addext", "keyUsage=critical,keyCertSign", "-out", path)
    return path


def certificate(folder, name, root, days="2"):
    """A signing certificate below `root`; its key beside it as .key."""
    path = os.path.join(folder, name)
    key(folder, name + ".key")
    openssl("req", "-new", "-key", path + ".key", "-subj", "/O=Example/CN=" + name,
            "-out", path + ".csr")
    with open(path + ".ext", "w") as f:
        f.write("basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n"
                "extendedKeyUsage=codeSigning\n")
    openssl("x509", "-req", "-in", path + ".csr", "-CA", root, "-CAkey", root + ".key",
            "-set_serial", "7", "-days", days, "-extfile", path + ".ext", "-out", path)
    return path


def sign(private, data, kind="ec"):
    if kind != "ed25519":
        return openssl("dgst", "-sha256", "-sign", private, data=data)
    path = private + ".in"
    with open(path, "wb") as f:
        f.write(data)
    return openssl("pkeyutl", "-sign", "-inkey", private, "-rawin", "-in", path)


class Pusher:
    """Puts blobs and manifests into one repository of a plain registry."""

    def __init__(self, host, repository):
        self.host, self.repository = host, repository

    def _ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer

    def blob(self, data, media_type):
        started = self._ask("POST", "/v2/%s/blobs/uploads/" % self.repository)
        assert started.status == 202, started.status
        where = started.headers["Location"]
        where = where[where.index("/v2/"):]
        put = self._ask("PUT", "%s%sdigest=%s" % (where, "&" if "?" in where else "?",
                                                  digest(data)), data,
                        {"Content-Type": "application/octet-stream"})
        assert put.status == 201, put.status
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def manifest(self, document, tag=None):
        data = json.dumps(document).encode()
        media_type = document["mediaType"]
        put = self._ask("PUT", "/v2/%s/manifests/%s" % (self.repository, tag or digest(data)),
                        data, {"Content-Type": media_type})
        assert put.status == 201, put.status
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def resolve(self, tag):
        """The descriptor of a tag."""
        answer = self._ask("HEAD", "/v2/%s/manifests/%s" % (self.repository, tag),
                           headers={"Accept": MANIFEST + ", " + INDEX})
        assert answer.status == 200, answer.status
        return {"mediaType": answer.headers["Content-Type"],
                "digest": answer.headers["Docker-Content-Digest"],
                "size": int(answer.headers["Content-Length"])}

    def cosign(self, image, private, kind="ec", claimed=None, reference=None):
        """The layer of a cosign signature of `image` (a descriptor)."""
        payload = json.dumps({"critical": {
            "identity": {"docker-reference": reference or "%s/%s" % (self.host,
                                                                     self.repository)},
            "image": {"docker-manifest-digest": claimed or image["digest"]},
            "type": "cosign container image signature"}, "optional": None}).encode()
        layer = self.blob(payload, COSIGN_LAYER)
        layer["annotations"] = {"dev.cosignproject.cosign/signature":
                                base64.b64encode(sign(private, payload, kind)).decode()}
        return layer

    def attach_tag(self, image, *layers):
        """As cosign does: under the tag sha256-<hex>.sig."""
        config = self.blob(b"{}", "application/vnd.oci.image.config.v1+json")
        return self.manifest({"schemaVersion": 2, "mediaType": MANIFEST, "config": config,
                              "layers": list(layers)},
                             image["digest"].replace(":", "-") + ".sig")

    def refer(self, image, artifact_type, *layers):
        """A manifest whose subject is `image`; its entry for an index."""
        config = self.blob(b"{}", "application/vnd.oci.empty.v1+json")
        entry = self.manifest({"schemaVersion": 2, "mediaType": MANIFEST,
                               "artifactType": artifact_type, "config": config,
                               "layers": list(layers), "subject": image})
        entry["artifactType"] = artifact_type
        return entry

    def attach_fallback(self, image, *entries):
        """For registries without the referrers API: the tag sha256-<hex>."""
        self.manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)},
                      image["digest"].replace(":", "-"))

    def notation(self, image, leaf, chain=(), **changes):
        """The layer of a notation signature (JWS, ES256)."""
        def b64(data):
            return base64.urlsafe_b64encode(data).decode().rstrip("=")

        def der(path):
            return base64.b64encode(openssl("x509", "-in", path, "-outform", "DER")).decode()

        header = {"alg": "ES256", "cty": "application/vnd.cncf.notary.payload.v1+json",
                  "crit": ["io.cncf.notary.signingScheme"],
                  "io.cncf.notary.signingScheme": "notary.x509",
                  "io.cncf.notary.signingTime": "2026-01-01T00:00:00Z"}
        header.update(changes)
        target = {k: image[k] for k in ("mediaType", "digest", "size")}
        text = "%s.%s" % (b64(json.dumps(header).encode()),
                          b64(json.dumps({"targetArtifact": target}).encode()))
        signature = raw_ecdsa(sign(leaf + ".key", text.encode()))
        envelope = {"payload": text.split(".")[1], "protected": text.split(".")[0],
                    "header": {"x5c": [der(leaf)] + [der(c) for c in chain]},
                    "signature": b64(signature)}
        return self.blob(json.dumps(envelope).encode(), "application/jose+json")


def raw_ecdsa(der):
    """DER's two numbers, side by side in 32 bytes each."""
    def number(at):
        assert der[at] == 2
        size = der[at + 1]
        value = int.from_bytes(der[at + 2:at + 2 + size], "big")
        return value.to_bytes(32, "big"), at + 2 + size

    assert der[0] == 0x30 and der[1] < 0x80
    r, at = number(2)
    s, _ = number(at)
    return r + s
