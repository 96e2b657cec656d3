"""Credentials: kept as Docker keeps them, given to whom they belong."""

import base64
import json
import os
import stat
import unittest

from tests.harness import proc, registry, suite
from tests.integration import common

USER, PASSWORD = "somebody", "pass:word"

HELPER = """#!/bin/sh
f=%s
case $1 in
  store) cat > $f;;
  get) if [ -s $f ]; then cat $f; else echo "credentials not found in native keychain"; exit 1; fi;;
  erase) : > $f;;
esac
"""


def setUpModule():
    global s, reg, image
    s = suite.Suite().start()
    users = os.path.join(s.dir, "htpasswd")
    proc.run(["htpasswd", "-Bbc", users, USER, PASSWORD], check=True)
    reg = registry.Registry(htpasswd=users).start()
    layout = common.image_layout()
    image = reg.host + "/busybox:1"
    proc.run(["skopeo", "copy", "--dest-tls-verify=false", "--dest-creds",
              "%s:%s" % (USER, PASSWORD), "oci:%s:busybox" % layout.path,
              "docker://" + image], check=True)


def tearDownModule():
    reg.stop()
    s.stop()


class Auth(unittest.TestCase):
    def setUp(self):
        self.config = os.path.join(s.dir, "docker-" + self.id().split(".")[-1])
        self.env = {"DOCKER_CONFIG": self.config}

    def cli(self, *args, **kwargs):
        return s.cli(*args, env=dict(self.env, **kwargs.pop("env", {})), **kwargs)

    def login(self, password=PASSWORD, **kwargs):
        return self.cli("login", "-u", USER, "--password-stdin", "--plain-http", reg.host,
                        stdin=password + "\n", **kwargs)

    def pull(self):
        return self.cli("pull", "--plain-http", image)

    def test_login_pull_logout(self):
        self.assertNotEqual(0, self.pull().code)
        self.login(check=True)
        path = os.path.join(self.config, "config.json")
        self.assertEqual(0o600, stat.S_IMODE(os.stat(path).st_mode))
        with open(path) as f:
            auth = json.load(f)["auths"][reg.host]["auth"]
        self.assertEqual("%s:%s" % (USER, PASSWORD), base64.b64decode(auth).decode())
        self.assertEqual(0, self.pull().code)
        self.cli("logout", reg.host, check=True)
        self.assertNotEqual(0, self.pull().code)
        self.assertNotIn(PASSWORD, s.log())

    def test_wrong_password_is_not_kept(self):
        result = self.login("wrong")
        self.assertEqual(1, result.code, repr(result))
        self.assertIn("refused", result.err)
        self.assertFalse(os.path.exists(os.path.join(self.config, "config.json")))

    def test_helper(self):
        tools = os.path.join(s.dir, "tools")
        os.makedirs(tools)
        helper = os.path.join(tools, "docker-credential-test")
        kept = os.path.join(s.dir, "kept")
        with open(helper, "w") as f:
            f.write(HELPER % kept)
        os.chmod(helper, 0o755)
        os.makedirs(self.config)
        with open(os.path.join(self.config, "config.json"), "w") as f:
            json.dump({"credsStore": "test"}, f)
        self.env["PATH"] = tools + ":" + os.environ["PATH"]
        self.login(check=True)
        with open(os.path.join(self.config, "config.json")) as f:
            self.assertNotIn("auth\"", f.read())
        with open(kept) as f:
            self.assertEqual(PASSWORD, json.load(f)["Secret"])
        self.assertEqual(0, self.pull().code)
        self.cli("logout", reg.host, check=True)
        self.assertNotEqual(0, self.pull().code)

    def test_user_flag(self):
        self.cli("pull", "--plain-http", "-u", "%s:%s" % (USER, PASSWORD), image, check=True)


if __name__ == "__main__":
    unittest.main()
