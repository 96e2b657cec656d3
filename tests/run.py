"""Every test: `./dev test`. Ends with `N passed, N failed, N skipped`."""

import argparse
import os
import subprocess
import sys
import time
import unittest
import xml.etree.ElementTree

from tests.harness import proc


def list_of_reasons():
    """The skips that docs/testing.md allows: lines `- skip: REASON`."""
    with open(os.path.join(proc.TOP, "docs", "testing.md")) as f:
        return [line[len("- skip: "):].strip() for line in f
                if line.startswith("- skip: ")]


def bazel_tests():
    """Runs all Bazel tests; returns passed, failed, [skip messages]."""
    labels = subprocess.run(["bazel", "query", "tests(//...)"], text=True,
                            capture_output=True, cwd=proc.TOP, check=True)
    labels = labels.stdout.split()
    done = subprocess.run(["bazel", "test", "--keep_going", "--test_output=errors",
                           "//..."], cwd=proc.TOP)
    logs = subprocess.run(["bazel", "info", "bazel-testlogs"], text=True,
                          capture_output=True, cwd=proc.TOP, check=True).stdout.strip()
    passed = failed = 0
    skips = []
    for label in labels:
        package, name = label[2:].split(":")
        path = os.path.join(logs, package, name, "test.xml")
        try:
            root = xml.etree.ElementTree.parse(path).getroot()
        except (OSError, xml.etree.ElementTree.ParseError):
            print("no result of", label)
            failed += 1
            continue
        for case in root.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                failed += 1
            elif case.find("skipped") is not None:
                message = case.find("skipped").get("message", "")
                skips.append("%s %s: %s" % (label, case.get("name"), message))
            elif case.get("result", "completed") == "completed":
                passed += 1
    if done.returncode not in (0, 3, 1) or (done.returncode != 0 and not failed):
        failed += 1
        print("bazel test ended with", done.returncode)
    return passed, failed, skips


class Printer(unittest.TextTestResult):
    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def addSuccess(self, test):
        super().addSuccess(test)
        print("ok   %-70s %5.1f s" % (test.id().replace("tests.integration.", ""),
                                     time.monotonic() - self.began), flush=True)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        print("FAIL %s\n%s" % (test.id(), self.failures[-1][1]), flush=True)

    def addError(self, test, err):
        super().addError(test, err)
        print("FAIL %s\n%s" % (test.id(), self.errors[-1][1]), flush=True)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print("skip %s: %s" % (test.id(), reason), flush=True)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            print("FAIL %s\n%s" % (subtest.id(), err[1]), flush=True)


def integration_tests(names):
    loader = unittest.TestLoader()
    if names:
        loader.testNamePatterns = ["*%s*" % name for name in names]
    suite = loader.discover(os.path.join(proc.TOP, "tests", "integration"),
                            top_level_dir=proc.TOP)
    with open(os.devnull, "w") as nowhere:
        result = unittest.TextTestRunner(stream=nowhere, resultclass=Printer).run(suite)
    failed = len(result.failures) + len(result.errors)
    passed = max(0, result.testsRun - failed - len(result.skipped))
    return passed, failed, ["%s: %s" % (t.id(), r) for t, r in result.skipped]


def main():
    parser = argparse.ArgumentParser(prog="./dev test")
    parser.add_argument("--unit", action="store_true")
    parser.add_argument("--integration", nargs="*", metavar="NAME")
    args = parser.parse_args()
    os.chdir(proc.TOP)
    passed = failed = 0
    skips = []
    if args.integration is None:
        p, f, s = bazel_tests()
        passed, failed, skips = passed + p, failed + f, skips + s
    if not args.unit:
        p, f, s = integration_tests(args.integration or [])
        passed, failed, skips = passed + p, failed + f, skips + s
    allowed = list_of_reasons()
    for skip in skips:
        known = any(reason in skip for reason in allowed)
        print(("skipped: " if known else "skipped without an allowed reason: ") + skip)
        if not known and os.environ.get("CI"):
            failed += 1
    print("%d passed, %d failed, %d skipped" % (passed, failed, len(skips)))
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
