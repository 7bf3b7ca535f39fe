"""A core built with AddressSanitizer and UndefinedBehaviorSanitizer; asan_plugin.py loads it."""

import os
import subprocess
import sysconfig
from pathlib import Path

from tests.support.breaks import ROOT

FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]


def built_core():
    """Build the core, once for each change of the sources; return the module's path."""
    sources = sorted((ROOT / "ksmemu/core").glob("*.c"))
    inputs = [*sources, *(ROOT / "ksmemu/core").glob("*.h")]
    built = Path(os.environ.get("KSMEMU_BUILD", ROOT / "build")) / "asan" / "_core.so"
    if not built.exists() or any(f.stat().st_mtime > built.stat().st_mtime for f in inputs):
        built.parent.mkdir(parents=True, exist_ok=True)
        part = built.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-shared", "-fPIC", "-std=gnu11", "-D_GNU_SOURCE", "-pthread", *FLAGS]
        command += [f"-I{sysconfig.get_paths()['include']}", "-o", os.fspath(part)]
        subprocess.run([*command, *map(os.fspath, sources)], check=True)
        part.rename(built)
    return built


def environment():
    """Return the environment of a process that is to load that core."""
    asked = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return {
        **os.environ,
        "LD_PRELOAD": asked.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own are not ours to mend
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # one block an object: an overrun of any is seen
        "KSMEMU_ASAN_CORE": os.fspath(built_core()),
    }
