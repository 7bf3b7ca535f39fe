"""`make coverage`: the tests of the core on a core that counts what they reach; fails below a floor."""

import os
import shutil
import subprocess
import sys

from tests.support import cores

_FLAGS = ["-O0", "--coverage", "-fprofile-update=atomic", "-DKSMEMU_COVERAGE"]
_TESTS = [
    *("tests/core", "tests/guarantees/test_forks_divide_memory.py"),
    "tests/guarantees/test_a_new_ksmd_takes_over.py",
    *("-k", "not noticed"),  # those have a core of their own
]
_GCOVR = [sys.executable, "-m", "gcovr", "--root", os.fspath(cores.CORE), "--exclude", ".*/module.c"]
_GCOVR += ["--gcov-ignore-parse-errors=negative_hits.warn"]  # gcc bug 68080: processes that fork
_HOLDS_WRITERS = [
    "--filter",
    r".*/(advise|checksum|fork|harvest|holder|mappings|merge|rehome|remap|resume|space|uffd)\.c",
]
_FLOORS = [(_HOLDS_WRITERS, 100, 97), ([], 94, 84)]
"""Of some files, or of all: per cent of lines, of branches. What holds writers is reached in full."""


def main():
    folder = cores.folder("coverage")
    shutil.rmtree(folder, ignore_errors=True)
    env = {**os.environ, "KSMEMU_CORE": os.fspath(cores.with_faults("coverage", _FLAGS))}
    tests = ["pytest", "-q", "-p", "tests.support.core_plugin", *_TESTS]
    subprocess.run([sys.executable, "-m", *tests], env=env, cwd=cores.ROOT, check=True)
    failed = 0
    for files, lines, branches in _FLOORS:
        floors = ["--fail-under-line", str(lines), "--fail-under-branch", str(branches)]
        failed |= subprocess.run([*_GCOVR, *files, *floors, folder], check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
