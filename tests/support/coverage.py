"""`make coverage`: the tests of the core on a core that counts what they reach; fails below a floor."""

import os
import shutil
import subprocess
import sys

from tests.support import cores

LINES, BRANCHES = 100, 97
_FLAGS = ["-O0", "--coverage", "-fprofile-update=atomic", "-DKSMEMU_COVERAGE"]
_GCOVR = [sys.executable, "-m", "gcovr", "--root", os.fspath(cores.CORE), "--exclude", ".*/module.c"]


def main():
    folder = cores.ROOT / "build/coverage"
    shutil.rmtree(folder, ignore_errors=True)
    env = {**os.environ, "KSMEMU_CORE": os.fspath(cores.with_faults("coverage", _FLAGS))}
    tests = ["pytest", "-q", "-p", "tests.support.core_plugin", "tests/core"]
    subprocess.run([sys.executable, "-m", *tests], env=env, cwd=cores.ROOT, check=True)
    floors = ["--fail-under-line", str(LINES), "--fail-under-branch", str(BRANCHES)]
    return subprocess.run([*_GCOVR, *floors, *sys.argv[1:], folder], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
