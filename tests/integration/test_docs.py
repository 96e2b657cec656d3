"""The documentation keeps up with the contract and the command line."""

import os
import re
import unittest

from tests.harness import proc


class Docs(unittest.TestCase):
    def test_every_method_is_in_the_coverage_page(self):
        with open(os.path.join(proc.TOP, "docs", "api-coverage.md")) as f:
            page = f.read()
        sections = dict(re.findall(r"(?ms)^## (\S+)\n(.*?)(?=^## |\Z)", page))
        tables = os.path.join(proc.TOP, "proto", "testdata")
        count = 0
        for name in sorted(os.listdir(tables)):
            with open(os.path.join(tables, name)) as f:
                for line in f:
                    parts = line.rstrip("\n").split("\t")
                    if parts[0] != "rpc":
                        continue
                    count += 1
                    section = sections.get(parts[1], "")
                    self.assertRegex(section, r"(?m)^\| %s \| (yes|partly|no) \|" % parts[2],
                                     parts[1])
        self.assertGreater(count, 190)

    def test_links_lead_somewhere(self):
        for base, _, files in os.walk(os.path.join(proc.TOP, "docs")):
            for name in files:
                self.check_links(os.path.join(base, name))
        self.check_links(os.path.join(proc.TOP, "README.md"))

    def check_links(self, path):
        with open(path) as f:
            for target in re.findall(r"\]\(([^)#:]+)\)", f.read()):
                self.assertTrue(os.path.exists(os.path.join(os.path.dirname(path), target)),
                                "%s: %s" % (path, target))


if __name__ == "__main__":
    unittest.main()
