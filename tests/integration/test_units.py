"""The systemd units are well formed."""

import glob
import os
import re
import subprocess
import tempfile
import unittest

from tests.harness import proc


class Units(unittest.TestCase):
    def test_verify(self):
        with tempfile.TemporaryDirectory() as folder:
            units = []
            for path in glob.glob(os.path.join(proc.TOP, "deploy", "systemd", "*")):
                with open(path) as f:
                    text = f.read()
                # The programs need not be installed to check the units.
                text = re.sub(r"/usr/bin/bulkhead-\w+", "/bin/true", text)
                unit = os.path.join(folder, os.path.basename(path))
                with open(unit, "w") as f:
                    f.write(text)
                units.append(unit)
            self.assertGreater(len(units), 15)
            done = subprocess.run(["systemd-analyze", "verify", "--man=no"] + sorted(units),
                                  capture_output=True, text=True)
            self.assertEqual("", done.stderr)
            self.assertEqual(0, done.returncode)

    def test_unprivileged_services_hold_no_capability(self):
        for service in ("gateway", "metadata", "content", "distribution", "metrics"):
            with open(os.path.join(proc.TOP, "deploy", "systemd",
                                   "bulkhead-%s.service" % service)) as f:
                text = f.read()
            self.assertIn("\nCapabilityBoundingSet=\n", text, service)
            self.assertIn("\nNoNewPrivileges=yes\n", text, service)
            self.assertIn("\nUser=bulkhead-%s\n" % service, text)


if __name__ == "__main__":
    unittest.main()
