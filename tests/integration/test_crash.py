"""A short round of the crash tests; `./dev soak --crash --rounds N` is the long one."""

import os
import unittest

from tests.harness import crash


class Crash(unittest.TestCase):
    def test_nothing_lost_nothing_leaked(self):
        seconds = int(os.environ.get("BULKHEAD_CRASH_SECONDS", "20"))
        last = crash.run(seconds=seconds, seed=int(os.environ.get("BULKHEAD_CRASH_SEED", "1")))
        self.assertIn("nothing lost, nothing leaked", last)
