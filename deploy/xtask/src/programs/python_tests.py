"""Runs Python's own tests by their names and says in lines what became of each, for programs/python.rs.

An argument that begins with `-` is the name of a test that is left out.
"""

import sys
import time
import unittest


class Result(unittest.TestResult):
    def startTest(self, test):
        super().startTest(test)
        self.begun = time.monotonic()
        # Seen by whoever wonders where it hangs.
        print("begun", test.id(), flush=True)

    def stopTest(self, test):
        super().stopTest(test)
        print("took", test.id(), f"{time.monotonic() - self.begun:.2f}", flush=True)


def name(test):
    # Of a part that failed, the whole: the parts are named by paths that differ from run to run.
    return getattr(test, "test_case", test).id()


def leave_out(suite, names):
    for index, test in enumerate(suite):
        if isinstance(test, unittest.TestSuite):
            leave_out(test, names)
        elif test.id().rpartition(".")[2] in names:
            suite._tests[index] = unittest.TestSuite()
    return suite


result = Result()
names = [name for name in sys.argv[1:] if not name.startswith("-")]
unwanted = [name[1:] for name in sys.argv[1:] if name.startswith("-")]
leave_out(unittest.defaultTestLoader.loadTestsFromNames(names), unwanted).run(result)
for test, reason in result.skipped:
    print("skipped", name(test), reason)
for test, traceback in result.failures + result.errors:
    print("failed", name(test))
    print(traceback, file=sys.stderr)
print("ran", result.testsRun)
