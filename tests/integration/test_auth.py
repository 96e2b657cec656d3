"""Credentials: kept as Docker keeps them, given to whom they belong."""

import base64
import json
import os
import stat
import unittest

from tests.harness import proc, registry, suite
from tests.integration import common, test_registries

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

    def helper(self, name, secret, user=USER):
        """A helper that knows one login; its program's folder."""
        tools = os.path.join(s.dir, "tools-" + name)
        os.makedirs(tools)
        path = os.path.join(tools, "docker-credential-" + name)
        with open(path, "w") as f:
            f.write("#!/bin/sh\n[ $1 = get ] || exit 1\nread host\n"
                    "printf '{\"ServerURL\":\"%s\",\"Username\":\"%s\",\"Secret\":\"%s\"}' "
                    "\"$host\" '" + user + "' '" + secret + "'\n")
        os.chmod(path, 0o755)
        return tools

    def configure(self, **config):
        os.makedirs(self.config, exist_ok=True)
        with open(os.path.join(self.config, "config.json"), "w") as f:
            json.dump(config, f)

    def test_a_helper_for_one_registry(self):
        """credHelpers goes before credsStore, and only for its registry."""
        self.env["PATH"] = ":".join((self.helper("right", PASSWORD), self.helper("wrong", "no"),
                                     os.environ["PATH"]))
        self.configure(credsStore="wrong", credHelpers={reg.host: "right"})
        self.assertEqual(0, self.pull().code)
        self.configure(credsStore="right", credHelpers={"elsewhere.example": "wrong"})
        self.assertEqual(0, self.pull().code)
        self.configure(credsStore="right", credHelpers={reg.host: "wrong"})
        result = self.pull()
        self.assertNotEqual(0, result.code)
        self.assertIn("bulkhead login", result.err)
        # One that is not there is named.
        self.configure(credHelpers={reg.host: "nowhere"})
        result = self.pull()
        self.assertNotEqual(0, result.code)
        self.assertIn("docker-credential-nowhere", result.err)

    def test_identity_tokens(self):
        """Of Docker's config, or of a helper: traded in for the registry's own."""
        with registry.Registry() as behind, test_registries.TokenRegistry(behind) as front:
            common.image_layout().push("busybox", behind.host + "/id/busybox:1")
            name = front.host + "/id/busybox:1"

            def pull():
                return self.cli("pull", "--plain-http", "--no-unpack", name)

            for auth in ({"identitytoken": front.IDENTITY},
                         {"auth": base64.b64encode(b"me:").decode(),
                          "identitytoken": front.IDENTITY}):
                self.configure(auths={front.host: auth})
                result = pull()
                self.assertEqual(0, result.code, repr(result))
                s.cli("rmi", name, check=True)
            self.assertEqual({"refresh_token"}, front.grants)
            self.env["PATH"] = self.helper("token", front.IDENTITY, "<token>") + ":" + \
                os.environ["PATH"]
            self.configure(credHelpers={front.host: "token"})
            result = pull()
            self.assertEqual(0, result.code, repr(result))
            self.configure(auths={front.host: {"identitytoken": "another"}})
            s.cli("rmi", name, check=True)
            self.assertNotEqual(0, pull().code)
            self.assertNotIn(front.IDENTITY, s.log())

    def test_user_flag(self):
        self.cli("pull", "--plain-http", "-u", "%s:%s" % (USER, PASSWORD), image, check=True)


if __name__ == "__main__":
    unittest.main()
