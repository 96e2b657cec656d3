"""All fuzz targets in turn: `./dev soak --fuzz [--seconds N] [--only NAME...]`.

Each target runs for N seconds from its corpus in tests/fuzz/corpus. What it
finds on the way is kept in a temporary folder; an input that fails is copied to
tests/fuzz/corpus, where the replay tests will keep it found.
"""

import os
import re
import shutil
import subprocess

from tests.harness import proc

FUZZ = os.path.join(proc.TOP, "tests", "fuzz")


def targets():
    return sorted(name[:-len("_fuzz.cc")] for name in os.listdir(FUZZ)
                  if name.endswith("_fuzz.cc"))


def run(seconds, only=()):
    """Returns how many targets failed."""
    names = [name for name in targets() if not only or name in only]
    unknown = set(only) - set(names)
    if unknown:
        raise SystemExit("no such fuzz target: %s" % ", ".join(sorted(unknown)))
    folder = proc.temp_dir()
    failed = []
    try:
        subprocess.run(["sh", os.path.join(FUZZ, "build.sh"), folder] + names, check=True)
        for name in names:
            found = os.path.join(folder, name + ".corpus")
            crashes = os.path.join(folder, name + ".crash-")
            os.makedirs(found)
            done = subprocess.run(
                [os.path.join(folder, name), "-max_total_time=%d" % seconds, "-timeout=20",
                 "-rss_limit_mb=2048", "-print_final_stats=1", "-max_len=65536",
                 "-artifact_prefix=" + crashes, found, os.path.join(FUZZ, "corpus", name)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", timeout=seconds + 120)
            runs = re.search(r"number_of_executed_units: *(\d+)", done.stdout)
            print("fuzz %s: %s runs, %s" % (name, runs.group(1) if runs else "?",
                                            "no finding" if done.returncode == 0 else "FAILED"),
                  flush=True)
            if done.returncode == 0:
                continue
            failed.append(name)
            print(done.stdout[-3000:], flush=True)
            for entry in os.listdir(folder):
                if entry.startswith(name + ".crash-"):
                    kept = os.path.join(FUZZ, "corpus", name, entry.split(".crash-", 1)[1])
                    shutil.copy(os.path.join(folder, entry), kept)
                    print("kept as", kept)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return len(failed)
