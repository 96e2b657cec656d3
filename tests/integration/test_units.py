"""The systemd units are well formed."""

import glob
import os
import re
import socket
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


class Activation(unittest.TestCase):
    def test_content_takes_the_sockets_it_is_handed(self):
        """What systemd does: listening sockets from 3 on, with names."""
        folder = proc.temp_dir()
        self.addCleanup(proc.clean_up, folder)
        ready = os.path.join(folder, "notify")
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(ready)
        notify.settimeout(20)
        listeners = []
        for name, kind in (("grpc", socket.SOCK_STREAM), ("data", socket.SOCK_SEQPACKET),
                           ("stats", socket.SOCK_STREAM)):
            listener = socket.socket(socket.AF_UNIX, kind)
            listener.bind(os.path.join(folder, name))
            listener.listen()
            listeners.append(listener)
        # A shell puts them in place: LISTEN_PID must be its number.
        script = ("exec 3<&%d 4<&%d 5<&%d; LISTEN_PID=$$ LISTEN_FDS=3 "
                  "LISTEN_FDNAMES=grpc:data:stats NOTIFY_SOCKET=%s exec %s --root %s --state %s" %
                  (*(each.fileno() for each in listeners), ready,
                   os.path.join(proc.BIN, "bulkhead-content"), folder + "/root", folder + "/run"))
        service = subprocess.Popen(["sh", "-c", script], stderr=subprocess.DEVNULL,
                                   pass_fds=[each.fileno() for each in listeners])
        try:
            self.assertEqual(b"READY=1", notify.recv(100))
            result = proc.run(["ctr", "--address", folder + "/grpc", "content", "ls"])
            self.assertEqual(0, result.code, repr(result))
            self.assertEqual([], os.listdir(folder + "/run/content"))
        finally:
            service.terminate()
            self.assertEqual(0, service.wait(10))
            for each in listeners + [notify]:
                each.close()


if __name__ == "__main__":
    unittest.main()
