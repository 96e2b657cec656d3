"""gc, why, fsck, backup, restore and the event log, on a whole suite."""

import glob
import os
import subprocess
import unittest

from tests.harness import proc, suite
from tests.integration import common


def setUpModule():
    global s, busybox
    registry = common.image_registry()
    busybox = registry.host + "/busybox:latest"
    s = suite.Suite().start()
    s.cli("pull", busybox, check=True)


def tearDownModule():
    s.stop()


def blobs():
    return [path for path in glob.glob(os.path.join(s.dir, "**", "blobs", "*", "*"), recursive=True)
            if os.path.isfile(path)]


class Admin(unittest.TestCase):
    def test_why_and_gc(self):
        self.assertIn("Would remove: 0 snapshots, 0 blobs",
                      s.cli("gc", "--dry-run", check=True).out)
        layer = max(blobs(), key=os.path.getsize)
        digest = "sha256:" + os.path.basename(layer)
        out = s.cli("why", digest, check=True).out
        self.assertIn("kept by image " + busybox, out)
        self.assertIn("(target)", out)
        self.assertIn("gc.ref.content", out)
        self.assertIn("Removed: 0 snapshots", s.cli("gc", check=True).out)
        self.assertIn("kept by image", s.cli("why", busybox, check=True).out)
        s.ctr("images", "tag", busybox, "docker.io/library/short:1", check=True)
        self.assertIn("docker.io/library/short:1", s.cli("why", "short:1", check=True).out)
        s.ctr("images", "rm", "docker.io/library/short:1", check=True)
        self.assertNotEqual(0, s.cli("why", "nothing").code)

    def test_damaged_blobs_are_found_and_fetched_again(self):
        self.assertEqual(0, s.cli("fsck", check=True).code)
        layer = max(blobs(), key=os.path.getsize)
        with open(layer, "rb") as file:
            whole = file.read()
        os.chmod(layer, 0o644)
        with open(layer, "wb") as file:  # The right length, the wrong bytes.
            file.write(b"x" + whole[1:])
        result = s.cli("fsck")
        self.assertEqual(1, result.code, repr(result))
        self.assertIn("its bytes hash to", result.out)
        result = s.cli("fsck", "--repair")
        self.assertEqual(0, result.code, repr(result))
        self.assertFalse(os.path.exists(layer))
        s.cli("pull", busybox, check=True)
        # A power cut.
        for path in blobs():
            os.chmod(path, 0o644)
            os.truncate(path, 0)
        self.assertEqual(1, s.cli("fsck", "--quick").code)
        s.cli("pull", busybox, check=True)
        result = s.cli("fsck")
        self.assertEqual(0, result.code, repr(result))
        result = s.cli("run", "--rm", busybox, "echo", "works")
        self.assertEqual((0, "works\n"), (result.code, result.out), repr(result))

    def test_events_go_on_where_they_were(self):
        def events(after, wanted):
            process = subprocess.Popen(
                [os.path.join(proc.BIN, "bulkhead"), "events", "-A", "--since-seq", str(after)],
                stdout=subprocess.PIPE, text=True,
                env=dict(os.environ, BULKHEAD_ADDRESS=s.address))
            lines = []
            try:
                while len(lines) < 10000:
                    lines.append(process.stdout.readline())
                    if not lines[-1] or wanted in lines[-1]:
                        break
            finally:
                process.kill()
                process.communicate()
            return lines

        s.cli("namespace", "create", "first", check=True)
        lines = events(0, "first")
        last = int(lines[-1].split()[0])
        s.cli("namespace", "create", "second", check=True)
        s.kill_service("metadata")
        s.cli("namespace", "create", "third", check=True)
        later = events(last, "third")
        self.assertRegex(later[0], r"^%d .*second" % (last + 1))
        numbers = [int(line.split()[0]) for line in later]
        self.assertEqual(sorted(set(numbers)), numbers)
        self.assertIn("third", later[-1])

    def test_backup_while_running(self):
        backup = os.path.join(s.dir, "backup")
        s.cli("backup", backup, check=True)
        with open(os.path.join(backup, "CURRENT")) as current:
            self.assertRegex(current.read(), "^MANIFEST-")
        self.assertNotEqual(0, s.cli("backup", backup).code)
        result = s.cli("restore", backup, "--root", os.path.join(s.dir, "root"))
        self.assertIn("stop the suite first", result.err + result.out, repr(result))
        elsewhere = os.path.join(s.dir, "elsewhere")
        s.cli("restore", backup, "--root", elsewhere, check=True)
        self.assertTrue(os.path.exists(os.path.join(elsewhere, "metadata/db/CURRENT")))


if __name__ == "__main__":
    unittest.main()
