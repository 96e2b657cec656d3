"""Real images, made from files of this Debian: OCI layouts on disk."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile

from tests.harness import proc

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"


def _digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layout:
    """An OCI layout that images are added to."""

    def __init__(self, path):
        self.path = path
        self.manifests = []
        os.makedirs(os.path.join(path, "blobs", "sha256"), exist_ok=True)
        with open(os.path.join(path, "oci-layout"), "w") as f:
            f.write('{"imageLayoutVersion":"1.0.0"}')
        index = os.path.join(path, "index.json")
        if os.path.exists(index):  # Made before: it is gone on with.
            with open(index) as f:
                self.manifests = json.load(f)["manifests"]

    def has(self, tag):
        return any(entry["annotations"]["org.opencontainers.image.ref.name"] == tag
                   for entry in self.manifests)

    def layers(self, tag):
        """The layers' descriptors, lowest first."""
        for entry in self.manifests:
            if entry["annotations"]["org.opencontainers.image.ref.name"] == tag:
                with open(os.path.join(self.path, "blobs", "sha256", entry["digest"][7:])) as f:
                    return json.load(f)["layers"]
        raise KeyError(tag)

    def blob(self, data, media_type):
        digest = _digest(data)
        with open(os.path.join(self.path, "blobs", "sha256", digest[7:]), "wb") as f:
            f.write(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def image(self, tag, layers, config=None, compression="gzip"):
        """Adds an image. `layers` are uncompressed tar archives (bytes)."""
        descriptors, diff_ids = [], []
        for tar in layers:
            diff_ids.append(_digest(tar))
            if compression == "gzip":
                packed = gzip.compress(tar, compresslevel=3, mtime=0)
                descriptors.append(self.blob(packed, GZIP))
            elif compression == "zstd":
                packed = subprocess.run(["zstd", "-q", "-3", "-c"], input=tar,
                                        capture_output=True, check=True).stdout
                descriptors.append(self.blob(packed, ZSTD))
            else:
                descriptors.append(self.blob(tar, GZIP[:-5]))
        config_blob = self.blob(json.dumps({
            "architecture": "amd64", "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": "bulkhead tests"} for _ in layers],
        }).encode(), "application/vnd.oci.image.config.v1+json")
        manifest = self.blob(json.dumps({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config_blob, "layers": descriptors,
        }).encode(), "application/vnd.oci.image.manifest.v1+json")
        entry = dict(manifest)
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self.manifests.append(entry)
        with open(os.path.join(self.path, "index.json"), "w") as f:
            json.dump({"schemaVersion": 2, "manifests": self.manifests}, f)
        return manifest["digest"]

    def push(self, tag, destination):
        """Copies an image to host:port/name:tag with skopeo."""
        proc.run(["skopeo", "copy", "-q", "--dest-tls-verify=false",
                  "oci:%s:%s" % (self.path, tag), "docker://" + destination],
                 check=True, timeout=300)


def tar_of(build):
    """The bytes of a tar archive; build(add) calls add for each member.

    add(name, data=b"", mode=0o644, type=None, link="", uid=0, gid=0,
        mtime=..., source=path, pax={...})
    """
    out = io.BytesIO()
    tar = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)

    def add(name, data=b"", mode=0o644, type=tarfile.REGTYPE, link="", uid=0,
            gid=0, mtime=1700000000, source=None, pax=None, dev=(0, 0)):
        if source is not None:
            info = tar.gettarinfo(source, arcname=name)
            info.uname = info.gname = ""
            if info.isreg():
                with open(source, "rb") as f:
                    tar.addfile(info, f)
            else:
                tar.addfile(info)
            return
        info = tarfile.TarInfo(name)
        info.mode, info.type, info.linkname = mode, type, link
        info.uid, info.gid, info.mtime = uid, gid, mtime
        info.devmajor, info.devminor = dev
        info.pax_headers = pax or {}
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data) if data else None)

    build(add)
    tar.close()
    return out.getvalue()


def busybox_layer():
    """busybox-static with a link for each applet, and a minimal /etc."""
    applets = subprocess.run(["busybox", "--list"], capture_output=True,
                             text=True, check=True).stdout.split()

    def build(add):
        for folder in ("bin", "etc", "proc", "sys", "dev", "root", "var", "home"):
            add(folder, type=tarfile.DIRTYPE, mode=0o755)
        add("tmp", type=tarfile.DIRTYPE, mode=0o1777)
        add("bin/busybox", source="/bin/busybox")
        for applet in applets:
            if applet != "busybox":
                add("bin/" + applet, type=tarfile.SYMTYPE, link="busybox", mode=0o777)
        add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"
            b"www:x:33:33:www:/home:/bin/sh\n")
        add("etc/group", b"root:x:0:\nwww:x:33:\nextra:x:44:www\n")
        add("home/notes", b"hello from the image\n", uid=33, gid=33)

    return tar_of(build)


BUSYBOX_CONFIG = {
    "Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin", "FROM_IMAGE=yes"],
    "Cmd": ["/bin/sh"],
    "Labels": {"org.example.kind": "busybox"},
}


def busybox(layout, tag="busybox", compression="gzip"):
    return layout.image(tag, [busybox_layer()], BUSYBOX_CONFIG, compression)


def _package_files(packages):
    files = []
    for package in packages:
        out = subprocess.run(["dpkg", "-L", package], capture_output=True,
                             text=True).stdout
        files += [p for p in out.split("\n") if p.startswith("/") and p != "/."]
    return files


# A Debian small enough to make in seconds, with some thousands of files.
DEBIAN_LAYERS = (
    ("base-files", "libc6", "libc-bin", "bash", "dash", "coreutils", "libtinfo6",
     "libacl1", "libattr1", "libselinux1", "libpcre2-8-0", "libgmp10",
     "debianutils", "sed", "grep", "hostname", "tzdata"),
    ("perl-base", "libcrypt1", "findutils", "diffutils", "gzip", "tar"),
    ("libpython3.11-minimal", "python3.11-minimal", "libpython3.11-stdlib",
     "libssl3", "libexpat1", "zlib1g", "libffi8"),
)


def debian(layout, tag="debian", compression="gzip"):
    """Several layers and some thousands of files, from installed packages."""
    layers = []
    seen = set()

    def layer(packages, first):
        def build(add):
            if first:
                # A merged /usr, as Debian has it.
                for name in ("usr", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin",
                             "proc", "sys", "dev", "etc", "root"):
                    add(name, type=tarfile.DIRTYPE, mode=0o755)
                add("tmp", type=tarfile.DIRTYPE, mode=0o1777)
                for name in ("bin", "lib", "lib64", "sbin"):
                    add(name, type=tarfile.SYMTYPE, link="usr/" + name)
                seen.update(("usr", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin",
                             "etc", "root", "tmp"))
                add("etc/passwd", b"root:x:0:0:root:/root:/bin/bash\n")
                seen.add("etc/passwd")
            for path in sorted(_package_files(packages)):
                real = os.path.join(os.path.realpath(os.path.dirname(path)),
                                    os.path.basename(path))
                name = real.lstrip("/")
                if not name or name in seen or not os.path.lexists(real):
                    continue
                if name in ("bin", "lib", "lib64", "sbin", "proc", "sys", "dev"):
                    continue
                seen.add(name)
                add(name, source=real)

        return tar_of(build)

    for i, packages in enumerate(DEBIAN_LAYERS):
        layers.append(layer(packages, i == 0))

    def changes(add):
        add("etc/motd", b"made by the tests\n")
        add("usr/share/doc/.wh.tar", b"")  # A whiteout.
        add("opt", type=tarfile.DIRTYPE, mode=0o755)
        add("opt/data", os.urandom(65536))

    layers.append(tar_of(changes))
    return layout.image(tag, layers, {"Env": ["PATH=/usr/bin:/bin"],
                                      "Cmd": ["/bin/bash"]}, compression)
