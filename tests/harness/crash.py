"""SIGKILL rounds: tests/crash against dist/bin and a real registry."""

import os
import shutil
import subprocess

from tests.harness import images, proc, registry


def program():
    """The crash program, built."""
    subprocess.run(["bazel", "build", "//tests/crash"], cwd=proc.TOP, check=True,
                   stdout=subprocess.DEVNULL)
    folder = subprocess.run(["bazel", "info", "bazel-bin"], cwd=proc.TOP, check=True, text=True,
                            capture_output=True).stdout.strip()
    return os.path.join(folder, "tests", "crash", "crash")


def small_images(reg, folder, count=3):
    """References of images of some 100 KiB that share a layer."""
    layout = images.Layout(os.path.join(folder, "layout"))

    def layer(number):
        def build(add):
            add("d%d" % number, type=images.tarfile.DIRTYPE, mode=0o755)
            add("d%d/data" % number, os.urandom(40000))
            add("d%d/text" % number, b"some text\n" * 2000)
        return images.tar_of(build)

    shared = layer(0)
    references = []
    for i in range(count):
        tag = "small%d" % i
        layout.image(tag, [shared] + [layer(1 + 2 * i + k) for k in range(2)])
        references.append("%s/%s:latest" % (reg.host, tag))
        layout.push(tag, references[-1])
    return references


def run(rounds=None, seconds=None, seed=1, out=None, timeout=None):
    """Raises AssertionError unless every round was good. Returns the last line."""
    folder = proc.temp_dir()
    try:
        with registry.Registry() as reg:
            command = [program(), "--bin", proc.BIN, "--seed", str(seed)]
            if rounds is not None:
                command += ["--rounds", str(rounds)]
            if seconds is not None:
                command += ["--seconds", str(seconds)]
            for reference in small_images(reg, folder):
                command += ["--image", reference]
            lines = []
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
                for line in child.stdout:
                    lines.append(line)
                    if out is not None:
                        out.write(line)
                        out.flush()
                code = child.wait(timeout)
            if code != 0:
                raise AssertionError("crash rounds failed (seed %s):\n%s" %
                                     (seed, "".join(lines[-40:])))
            return lines[-1].strip()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
