"""The cases of tests/spec_cases, through our shim, with every OCI runtime."""

import json
import os
import re
import subprocess
import unittest

from tests.harness import proc, shim
from tests.integration import common

FOLDER = os.path.join(proc.TOP, "tests", "spec_cases")


def load(name):
    with open(os.path.join(FOLDER, name)) as f:
        return json.load(f)


def setUpModule():
    global runners
    runners = {}


def runner_of(runtime):
    """One for each runtime: its cases are containers of one shim."""
    if runtime not in runners:
        if os.path.basename(runtime) == "crun":
            common.let_crun_work()
        runners[runtime] = Runner(runtime)
        unittest.addModuleCleanup(runners[runtime].close)
    return runners[runtime]


RUNTIMES = load("runtimes.json")
TABLES = sorted(name for name in os.listdir(FOLDER)
                if name.endswith(".json") and name != "runtimes.json")


class Runner:
    """One shim, in which every case of one runtime is a container."""

    def __init__(self, runtime):
        self.bench = shim.Bench(runtime)
        os.chmod(self.bench.dir, 0o711)  # For those in user namespaces.
        name = self.bench.name
        self.first = self.bench.start(name, self.bench.spec("true"))
        self.values = {"$ROOT": self.bench.rootfs}
        for kind in ("net", "ipc", "uts", "pid", "mnt", "cgroup", "user"):
            self.values["$HOST_" + kind.upper()] = os.readlink("/proc/self/ns/" + kind)

    def close(self):
        self.first.end()
        self.bench.close()

    def spec(self, case):
        spec = self.bench.spec("/bin/sh", "-c", "exec 2>&1; " + case.get("script", "true"),
                               process=case.get("process", {}), linux=case.get("linux", {}),
                               **case.get("spec", {}))
        spec["mounts"] += case.get("mounts", [])
        spaces = spec["linux"]["namespaces"]
        for one in case.get("namespaces", []):
            spaces[:] = [s for s in spaces if s["type"] != one["type"]] + [one]
        return spec

    def host(self, script):
        return subprocess.run(["sh", "-c", script], text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)

    def run(self, case):
        """Exit code and lines of output, or the text of a refusal; complaints."""
        name = "%s-%d" % (self.bench.name, self.bench.count)
        folder = os.path.join(self.bench.dir, "d%d" % self.bench.count)
        os.mkdir(folder)
        text = json.dumps(case)
        for key, value in dict(self.values, **{"$DIR": folder}).items():
            text = text.replace(key, value)
        case = json.loads(text)
        if "before" in case:
            before = self.host("set -e; " + case["before"])
            if before.returncode:
                return None, [], ["before: " + before.stderr]
        log = os.path.join(folder, ".log")
        open(log, "w").close()
        task = shim.Task(self.bench, name, self.bench.bundle(name, self.spec(case)),
                         self.first.path)
        code, refused, complaints = None, None, []
        try:
            task.create(out="file://" + log)
            task.call("Start")
            code = task.call("Wait").number(1)
        except shim.Refused as error:
            refused = error.text
        try:
            if task.call("State").number(4) != 3:
                task.call("Kill", {3: 9})
                task.call("Wait")
            task.call("Delete")
        except shim.Refused as error:
            if refused is None:
                complaints.append("Delete: " + error.text)
        task.client.close()
        with open(log, errors="replace") as f:
            lines = f.read().splitlines()
        if "after" in case and self.host(case["after"]).returncode:
            complaints.append("afterwards, not so: " + case["after"])
        if "refused" in case:
            if refused is None:
                complaints.append("not refused, but ended with %r: %r" % (code, lines))
            elif not re.search(case["refused"], refused):
                complaints.append("refused, but with %r" % refused)
            return case, complaints
        if refused is not None:
            return case, complaints + ["refused: " + refused]
        if code != case.get("code", 0):
            complaints.append("exit code %r" % code)
        if len(lines) != len(case["out"]) or not all(map(self.fits, case["out"], lines)):
            complaints.append("printed %r, not %r" % (lines, case["out"]))
        return case, complaints

    @staticmethod
    def fits(want, line):
        return re.search(want[1:], line) if want.startswith("~") else want == line


class SpecCases(unittest.TestCase):
    """One test for each runtime and table; made below."""

    def check(self, runtime, table):
        for case in load(table):
            with self.subTest(runtime=runtime, table=table, case=case["name"]):
                self.assertEqual([], runner_of(runtime).run(case)[-1])


def _make(runtime, table):
    def test(self):
        self.check(runtime, table)
    return test


for _runtime in RUNTIMES:
    for _table in TABLES:
        setattr(SpecCases, "test_%s_%s" % (os.path.basename(_runtime), _table[:-5]),
                _make(_runtime, _table))


if __name__ == "__main__":
    unittest.main()
