"""Other builds of the C core, for tests only: each in a folder of build/, made here with the compiler."""

import ctypes
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "ksmemu/core"
_COMMAND = ["gcc", "-shared", "-fPIC", "-std=gnu11", "-D_GNU_SOURCE", "-U_FORTIFY_SOURCE", "-pthread"]

WRAPPED = [
    *("calloc", "connect", "eventfd", "fallocate", "fcntl", "fstatfs64", "ftruncate", "getrandom"),
    *("getsockopt", "inotify_add_watch", "inotify_init1", "ioctl", "lseek", "madvise", "malloc"),
    *("memfd_create", "mmap", "mprotect", "mremap", "munmap", "open", "poll", "pread", "pthread_create"),
    *("pwrite", "read", "recv", "recvmsg", "send", "sendmsg", "socket", "socketpair", "strdup", "syscall"),
]
"""What of the core's calls faults.c stands in front of."""


def folder(name):
    """Return where a build is made."""
    return Path(os.environ.get("KSMEMU_BUILD", ROOT / "build")) / name


def build(name, *sources, flags=("-O2",)):
    """Build the core with more sources, once for each change of any; return the module's path."""
    sources = [*sorted(CORE.glob("*.c")), *sources]
    inputs = [*sources, *CORE.glob("*.h"), Path(__file__)]
    built = folder(name) / "_core.so"
    if not built.exists() or any(f.stat().st_mtime > built.stat().st_mtime for f in inputs):
        built.parent.mkdir(parents=True, exist_ok=True)
        part = built.with_suffix(f".{os.getpid()}")
        command = [*_COMMAND, *flags, f"-I{CORE}", f"-I{sysconfig.get_paths()['include']}", "-o", part]
        subprocess.run([*map(os.fspath, [*command, *sources]), "-lxxhash"], check=True, cwd=built.parent)
        part.rename(built)
    return built


def with_faults(name="faults", flags=("-O2",)):
    """Build a core whose calls can be made to fail: see faults.py."""
    flags = [*flags, *(f"-Wl,--wrap={call}" for call in WRAPPED)]
    return build(name, ROOT / "tests/support/faults.c", flags=flags)


def load(path):
    """Put a core in the place of the real one, in this process, before ksmemu is imported."""
    assert "ksmemu._core" not in sys.modules
    loader = importlib.machinery.ExtensionFileLoader("ksmemu._core", os.fspath(path))
    spec = importlib.util.spec_from_file_location("ksmemu._core", os.fspath(path), loader=loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ksmemu._core"] = module
    loader.exec_module(module)
    if save := getattr(ctypes.CDLL(os.fspath(path)), "faults_save_coverage", None):
        _save_coverage_at_exit(save)


def _save_coverage_at_exit(save):
    leave = os._exit

    def save_and_leave(status):
        save()
        leave(status)

    os._exit = save_and_leave
