"""A core built with AddressSanitizer and UndefinedBehaviorSanitizer; core_plugin.py loads it."""

import os
import subprocess

from tests.support import cores

FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]


def environment():
    """Return the environment of a process that is to load that core."""
    asked = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return {
        **os.environ,
        "LD_PRELOAD": asked.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own are not ours to mend
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # one block an object: an overrun of any is seen
        "KSMEMU_CORE": os.fspath(cores.with_faults("asan", FLAGS)),
    }
