"""Negative controls: a step taken out, in a test-only build, so that its guarantee's test must fail.

Steps of the C core are switched off in a second build of the core (build/breaks, made here with the
compiler), which only the processes of a test load. Steps of ksmd are replaced in the process of a test's
ksmd. The product has no such switch.
"""

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE_STEPS = {"ancestor", "freeze", "verify", "wake", "rearm", "punch", "copy"}


def built_core():
    """Build the core with its switches, once for each change of the sources; return the module's path."""
    sources = [*sorted((ROOT / "ksmemu/core").glob("*.c")), ROOT / "tests/support/breaks.c"]
    inputs = [*sources, *(ROOT / "ksmemu/core").glob("*.h")]
    built = Path(os.environ.get("KSMEMU_BUILD", ROOT / "build")) / "breaks" / "_core.so"
    if not built.exists() or any(f.stat().st_mtime > built.stat().st_mtime for f in inputs):
        built.parent.mkdir(parents=True, exist_ok=True)
        part = built.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-shared", "-fPIC", "-O2", "-std=gnu11", "-D_GNU_SOURCE", "-pthread"]
        command += ["-DKSMEMU_BREAKS", f"-I{ROOT / 'ksmemu/core'}"]
        command += [f"-I{sysconfig.get_paths()['include']}", "-o", os.fspath(part)]
        subprocess.run([*command, *map(os.fspath, sources)], check=True)
        part.rename(built)
    return built


def load(step):
    """Put the switchable core in the place of the real one, in this process, before ksmemu is imported."""
    assert "ksmemu._core" not in sys.modules
    if step in CORE_STEPS:
        path = os.fspath(built_core())
        loader = importlib.machinery.ExtensionFileLoader("ksmemu._core", path)
        spec = importlib.util.spec_from_file_location("ksmemu._core", path, loader=loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules["ksmemu._core"] = module
        loader.exec_module(module)
