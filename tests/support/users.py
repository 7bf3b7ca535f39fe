"""Processes of other users, which only root can start, and where they find a ksmd that serves them."""

import contextlib
import ctypes
import os
import shutil
import tempfile
from pathlib import Path

from tests.support.processes import Worker

ALICE, BOB, SERVICE = 61_001, 61_003, 997
"""Two users, and a system user; no account is needed."""

_PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None, use_errno=True)


def become(_state, uid):
    """Be that user, for good: no group, no capability; and a process like any other of his."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # A change of user makes /proc/self root's, as if a secret of root's were in memory.
    assert _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
    os.environ.pop("XDG_RUNTIME_DIR", None)


class UserWorker(Worker):
    """A worker of another user. It starts as root, who can read a checkout that others cannot."""

    def __init__(self, uid, directory=None):
        super().__init__(directory)
        self.call(become, uid)


@contextlib.contextmanager
def common_folder():
    """Yield a folder of root's that every user can go through, as /run is."""
    folder = Path(tempfile.mkdtemp(prefix="ksmemu-users-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
