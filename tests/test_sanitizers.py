"""The tests of the core once more, on a core with AddressSanitizer and UndefinedBehaviorSanitizer."""

import subprocess
import sys

from tests.support import asan
from tests.support.cores import ROOT

_SECONDS = 300
"""Of a hang that the deadlines in those tests do not end; beside much other load they took more than 150."""
_FORKS = "tests/core/test_faults_of_forks.py"
"""Its children cannot: the allocator of the sanitizer may be locked at a fork, by another thread.

Neither may pytest have a thread, which waits for a timeout, where a test begins with a fork.
"""


def run(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=asan.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def test_the_core_is_clean_under_the_sanitizers():
    tests = ["tests/core", f"--ignore={_FORKS}", "-o", "faulthandler_timeout=0"]
    done = run("-m", "pytest", "-q", "-x", "-p", "tests.support.core_plugin", *tests)
    assert done.returncode == 0, done.stdout
    assert "ERROR: AddressSanitizer" not in done.stdout
    assert "runtime error" not in done.stdout


OVERRUN = """
import tests.support.core_plugin
from ksmemu import _core
memory = _core.Memory(16, 1, None)
start = _core.reserve(4096)
import ctypes
buffer = ctypes.create_string_buffer(24)
_core.checksum_pages(-1, b"", 0, bytearray())
ctypes.CDLL(None).memset(buffer, 0, 4096 * 64)
"""


def test_the_sanitizers_are_really_in():
    done = run("-c", OVERRUN)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stdout
