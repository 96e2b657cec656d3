"""A fresh ext4 with a journal for what is measured: `--journal`.

Durable writes and removals cost other things with a journal than without, and
hosts have one; a build machine may not. All that the bench keeps below /tmp is
on it, as it is mounted there, in a mount namespace of the bench's own.
"""

import os
import subprocess
import sys
import tempfile

INSIDE = "BULKHEAD_BENCH_JOURNAL"


def run(gib):
    """The same command again, with such a /tmp; its exit code."""
    with tempfile.TemporaryDirectory(prefix="bh-", dir="/var/tmp") as folder:
        image = os.path.join(folder, "disk")
        subprocess.run(["fallocate", "-l", "%dG" % gib, image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "has_journal",
                        "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", image],
                       check=True)
        device = subprocess.run(["losetup", "--direct-io=on", "-f", "--show", image], check=True,
                                capture_output=True, text=True).stdout.strip()
        # The file goes with the device, and the device, once it is mounted, with its
        # last mount, however the bench ends.
        os.unlink(image)
        return subprocess.run(
            ["unshare", "-m", "--propagation", "private", "sh", "-c",
             'mount -o noinit_itable "$0" /tmp; mounted=$?; losetup -d "$0"; '
             'test $mounted = 0 && exec "$@"', device, sys.executable, "-u",
             "-m", "bench.main"] + sys.argv[1:], env=dict(os.environ, **{INSIDE: "1"}),
            check=False).returncode
