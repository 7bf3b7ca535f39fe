"""`make coverage`: the tests of the core on a core that counts what they reach; fails below a floor."""

import os
import shutil
import subprocess
import sys

from tests.support import cores

_FLAGS = ["-O0", "--coverage", "-fprofile-update=atomic", "-DKSMEMU_COVERAGE"]
_TESTS = [
    "tests/core",
    "tests/guarantees/test_a_new_ksmd_takes_over.py",
    "tests/guarantees/test_forks_divide_memory.py",
    "tests/guarantees/test_programs_that_map_by_themselves.py",
    *("-k", "not noticed"),  # those have a core of their own
]
_GCOVR = [sys.executable, "-m", "gcovr", "--root", os.fspath(cores.CORE), "--exclude", ".*/module.c"]
_GCOVR += ["--gcov-ignore-parse-errors=negative_hits.warn"]  # gcc bug 68080: processes that fork
_FLOORS = ["--fail-under-line", "100", "--fail-under-branch", "96"]
"""Per cent. What no test can reach is not there, or says why (GCOVR_EXCL_LINE)."""


def main():
    folder = cores.folder("coverage")
    shutil.rmtree(folder, ignore_errors=True)
    env = {**os.environ, "KSMEMU_CORE": os.fspath(cores.with_faults("coverage", _FLAGS))}
    tests = ["pytest", "-q", "-p", "tests.support.core_plugin", *_TESTS]
    subprocess.run([sys.executable, "-m", *tests], env=env, cwd=cores.ROOT, check=True)
    return subprocess.run([*_GCOVR, *_FLOORS, folder], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
