"""Programs run by `ksmemu exec`, and the kernel's own control files, which they must not reach."""

import subprocess
import sys

from ksmemu.features import KSM

DEADLINE = 60.0
EXEC = (sys.executable, "-m", "ksmemu", "exec")
AS_ORDINARY_USER = ("unshare", "--user", "--map-user=1009", "--map-group=1013")
"""Whoever runs the tests: uid 1009 in a namespace, to whom what is the caller's belongs."""


def run(directory, *command, prefix=(), **how):
    """Run a command by `ksmemu exec` on the instance of a directory, and return what became of it."""
    return subprocess.run(
        [*prefix, *EXEC, "--dir", str(directory), "--", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        **how,
    )


def kernels_files():
    """Return what each of the kernel's own control files says."""
    return {path.name: path.read_text() for path in KSM.iterdir()}
