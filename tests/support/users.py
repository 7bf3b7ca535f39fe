"""Processes of other users, which only root can start, and where they find a ksmd that serves them.

They load all that they need as root: not every user may be able to read the checkout.
"""

import contextlib
import ctypes
import functools
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from ksmemu.control.setup import Setup
from ksmemu.instance import Instance
from ksmemu.ksmd import __main__ as ksmd
from ksmemu.ksmd.daemon import Daemon
from tests.support.processes import Worker

ALICE, BOB, SERVICE = 61_001, 61_003, 997
"""Two users, and a system user; no account is needed."""

_PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None, use_errno=True)


def load(_state, names):
    """Import modules."""
    for name in names:
        importlib.import_module(name)


def become(_state, uid):
    """Be that user, for good: no group, no capability; and a process like any other of his."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # A change of user makes /proc/self root's, as if a secret of root's were in memory.
    assert _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
    os.environ.pop("XDG_RUNTIME_DIR", None)
    os.chdir("/")


class UserWorker(Worker):
    """A worker of another user. It starts as root, and loads the tests that start such workers."""

    def __init__(self, uid, directory=None):
        super().__init__(directory)
        there = list(sys.modules.items())
        self.call(load, [name for name, module in there if getattr(module, "UserWorker", None) is UserWorker])
        self.call(become, uid)


def serve(_state, directory):
    """Be a ksmd for every user, until SIGTERM: as `python -m`, but not every user could read the checkout."""
    tunables = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1, "smart_scan": 0}
    claim = functools.partial(Instance.resolve(directory).claim, all_users=True)
    new_daemon = functools.partial(Daemon, setup=Setup(all_users=True), tracks=True)
    ksmd._serve(claim, tunables, new_daemon, os.open(os.devnull, os.O_WRONLY), None)


@contextlib.contextmanager
def common_folder():
    """Yield a folder of root's that every user can go through, as /run is."""
    folder = Path(tempfile.mkdtemp(prefix="ksmemu-users-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
