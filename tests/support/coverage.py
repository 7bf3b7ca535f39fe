"""`make coverage`: the tests of the core on a core that counts what they reach.

Each line is reached but those that say why not (GCOVR_EXCL_LINE), and each branch but those named here.
"""

import json
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
_GCOVR += ["--gcov-suspicious-hits-threshold=0"]  # characters of /proc/self/maps are counted by the billion
_GCOVR += ["--fail-under-line", "100", "--txt", "-", "--txt-metric", "branch", "--txt-summary"]

_UNREACHED = {
    "if (space->heritage.is_mapped && ksmemu_unreserve(": "who aborts there saves no counts",
    "return got < 0 ? -errno : 0;": "the end of the file is not met: x86 has [vsyscall] behind all memory",
    'if (sscanf(line, "%lx-%lx %*s %lx %x:%x %lu",': "no kernel says it otherwise",
    "return mapping->inode.number == inode->number &&": (
        "an object and another file system's file of the same number cannot be made to meet"
    ),
    "struct cmsghdr *head = CMSG_FIRSTHDR(&message);": "there is room for one",
    "if (head && head->cmsg_level == SOL_SOCKET &&": "no other kind comes unasked",
    "*retry = now < MAX_RETRY_MILLISECS ? 2 * now : now;": "after two minutes of joining in vain",
    "return fd >= 0 ? fd : -errno;": "which of its ways userfaultfd(2) allows depends on the machine",
}
"""How the lines begin that have a branch which no test reaches, and why."""


def main():
    folder = cores.folder("coverage")
    shutil.rmtree(folder, ignore_errors=True)
    env = {**os.environ, "KSMEMU_CORE": os.fspath(cores.with_faults("coverage", _FLAGS))}
    tests = ["pytest", "-q", "-p", "tests.support.core_plugin", *_TESTS]
    subprocess.run([sys.executable, "-m", *tests], env=env, cwd=cores.ROOT, check=True)
    counted = folder / "counted.json"
    subprocess.run([*_GCOVR, "--json", os.fspath(counted), os.fspath(folder)], check=True)
    unknown = [line for line in _half_reached(json.loads(counted.read_text())) if not _reason(line)]
    return "\n".join(f"no test reaches each branch of {line}" for line in unknown) or None


def _half_reached(counted):
    """Yield FILE:LINE: TEXT of each line with a branch that nothing reached."""
    for file in counted["files"]:
        text = (cores.CORE / file["file"]).read_text().splitlines()
        for line in file["lines"]:
            number = line["line_number"]
            if line["count"] and not all(branch["count"] for branch in line["branches"]):
                yield f"{file['file']}:{number}: {text[number - 1].strip()}"


def _reason(line):
    return next((reason for start, reason in _UNREACHED.items() if f": {start}" in line), None)


if __name__ == "__main__":
    sys.exit(main())
