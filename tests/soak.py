"""The long runs: kills, again and again. `./dev soak`."""

import argparse
import os
import random
import signal
import subprocess
import sys
import time

from tests import soak_cycles, soak_pulls
from tests.fuzz import run as fuzz
from tests.harness import crash, proc, suite
from tests.integration import common


def settle(s):
    proc.wait_for(lambda: s.cli("ps").code == 0 and s.cli("images").code == 0, "the suite", 30)


def kill_rounds(seconds, seed):
    """SIGKILL to a random service at a random moment of pulls and runs."""
    rng = random.Random(seed)
    reg = common.image_registry()
    busybox, debian = reg.host + "/busybox:latest", reg.host + "/debian:12"
    rounds, acknowledged = 0, set()
    with suite.Suite() as s:
        s.cli("pull", busybox, check=True)
        acknowledged.add(busybox)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rounds += 1
            env = dict(os.environ, BULKHEAD_ADDRESS=s.address)
            program = os.path.join(proc.BIN, "bulkhead")
            work = rng.choice((["pull", debian], ["run", "--rm", busybox, "echo", "x"],
                               ["run", "-d", "--name", "r%d" % rounds, busybox, "sleep", "1000"],
                               ["rmi", debian]))
            child = subprocess.Popen([program] + work, env=env, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            time.sleep(rng.random() * 0.6)
            service = rng.choice(suite.SERVICES)
            before = s.service_pid(service)
            os.kill(before, signal.SIGKILL)
            try:
                child.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                child.kill()
                raise AssertionError("round %d: %r hung after SIGKILL to %s" %
                                     (rounds, work, service))
            settle(s)
            done = child.returncode == 0
            if work[0] == "pull" and done:
                acknowledged.add(debian)
            if work[0] == "rmi":
                # It may have been done although nobody heard of it.
                if debian not in s.ctr("images", "ls", "-q").out.split():
                    acknowledged.discard(debian)
            names = s.ctr("images", "ls", "-q").out.split()
            for name in acknowledged:
                if name not in names:
                    raise AssertionError("round %d: %s was lost after SIGKILL to %s" %
                                         (rounds, name, service))
            if work[:2] == ["run", "-d"]:
                if done and "r%d" % rounds not in s.cli("ps").out:
                    raise AssertionError("round %d: a running container was lost" % rounds)
                s.cli("rm", "-f", "r%d" % rounds)
            print("round %d: %s, SIGKILL to %s: kept" % (rounds, work[0], service), flush=True)
        result = s.cli("run", "--rm", busybox, "echo", "still works", check=True)
        assert result.out == "still works\n"
    return rounds


def run_tests(name, **env):
    """Integration tests in their long form; ends this program if one fails."""
    done = subprocess.run([sys.executable, "-m", "tests.run", "--integration", name],
                          cwd=proc.TOP, env=dict(os.environ, **env))
    if done.returncode:
        sys.exit(done.returncode)


def model_rounds(seconds, seed):
    """Random operations on the metadata classes and on their model."""
    target = "//services/metadata:model_test"
    env = dict(os.environ, HOME=os.environ.get("HOME", "/root"))
    subprocess.run(["bazel", "build", target], check=True, cwd=proc.TOP, env=env)
    bin_dir = subprocess.run(["bazel", "info", "bazel-bin"], check=True, cwd=proc.TOP, env=env,
                             capture_output=True, text=True).stdout.strip()
    end, step = time.monotonic() + seconds, 5000
    while time.monotonic() < end:
        env.update(BULKHEAD_MODEL_SEQUENCES=str(step), BULKHEAD_MODEL_SEED=str(seed))
        code = subprocess.run([os.path.join(bin_dir, "services/metadata/model_test")],
                              env=env).returncode
        if code != 0:
            return code
        seed = (seed + step) % (1 << 30)
    return 0


def race(seconds, sanitizer):
    """tests/race, in this build or a sanitizer's (whose build takes minutes)."""
    command = ["bazel", "test", "//tests/race:race_test", "--nocache_test_results",
               "--test_output=all", "--test_timeout=%d" % (seconds * 4 + 600),
               "--test_env=BULKHEAD_RACE_SECONDS=%d" % seconds]
    if sanitizer:
        command.insert(2, "--config=" + sanitizer)
    subprocess.run(command, cwd=proc.TOP, check=True)


def snapshot_faults():
    """Every single call of services/snapshotter:faults_test, not every few."""
    subprocess.run(["bazel", "test", "//services/snapshotter:faults_test",
                    "--nocache_test_results", "--test_output=errors", "--test_timeout=3600",
                    "--test_env=BULKHEAD_FAULT_STRIDE=1"], cwd=proc.TOP, check=True)


def main():
    parser = argparse.ArgumentParser(prog="sudo ./dev soak", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--large-pulls", type=int, default=0, metavar="N",
                        help="instead: N pulls of a layer of 1 GiB, with kills")
    parser.add_argument("--layer-mib", type=int, default=1024, help="of --large-pulls")
    parser.add_argument("--many", type=int, metavar="N",
                        help="instead: N printing containers through SIGKILLs of everything")
    parser.add_argument("--codes", action="store_true",
                        help="instead: each exit code and signal, with both daemons and shims")
    parser.add_argument("--cycles", type=int, metavar="N",
                        help="instead: N cycles of create, start, exec, kill and delete")
    parser.add_argument("--fuzz", action="store_true",
                        help="run each fuzz target for --seconds instead")
    parser.add_argument("--faults", action="store_true",
                        help="instead: each system call of a snapshot's life fails in turn, or is "
                        "the process's last")
    parser.add_argument("--model", action="store_true",
                        help="run the metadata model test for --seconds instead")
    parser.add_argument("--only", nargs="*", default=(), help="these fuzz targets")
    parser.add_argument("--crash", action="store_true",
                        help="short rounds of SIGKILL under many clients' load, everything checked "
                        "after each; --rounds instead of --seconds")
    parser.add_argument("--rounds", type=int, help="of --crash")
    parser.add_argument("--race", action="store_true",
                        help="pulls, removals, expiring leases and collections at once")
    parser.add_argument("--sanitizer", choices=("tsan", "asan"), help="for --race and --cycles")
    parser.add_argument("--built", metavar="DIR",
                        help="the bazel-bin of a build with that sanitizer, for --cycles")
    args = parser.parse_args()
    if args.cycles:
        return soak_cycles.run(args.cycles, args.sanitizer, args.built)
    if args.many:
        run_tests("test_services_die", BULKHEAD_MANY=str(args.many))
    if args.codes:
        run_tests("test_every_exit_code", BULKHEAD_ALL_CODES="1")
    if args.many or args.codes:
        return
    if args.faults:
        return snapshot_faults()
    if args.fuzz:
        return fuzz.run(args.seconds, args.only)
    print("seed %d" % args.seed)
    if args.large_pulls:
        soak_pulls.pull_kill_rounds(args.large_pulls, args.layer_mib, args.seed)
        return
    if args.model:
        return model_rounds(args.seconds, args.seed)
    if args.race:
        race(args.seconds, args.sanitizer)
        return
    if args.crash:
        crash.run(rounds=args.rounds, seconds=None if args.rounds else args.seconds,
                  seed=args.seed, out=sys.stdout)
        return
    rounds = kill_rounds(args.seconds, args.seed)
    print("%d rounds, nothing lost" % rounds)


if __name__ == "__main__":
    sys.exit(main())
