"""What a fork means: parent and child have their own memory, as after any fork, and both may go on.

The core divides the memory (core/divide.c). Here no other thread is halfway through a change meanwhile, and
the child's objects get locks of their own.
"""

from __future__ import annotations

import os
import threading

from ksmemu.mm import attach, flags, merge_pid, spaces
from ksmemu.mm.address_space import AddressSpace
from ksmemu.mm.arena import arena

_forking = threading.RLock()
_held: list[AddressSpace] = []
"""Spaces whose locks the thread that forks has taken; it holds _forking."""


def _before() -> None:
    _forking.acquire()
    arena.before_fork()
    for space in spaces.every():
        space.before_fork()
        _held.append(space)
    attach.before_fork()


def _in_parent() -> None:
    attach.after_fork_in_parent()
    while _held:
        _held.pop().after_fork_in_parent()
    arena.after_fork_in_parent()
    _forking.release()


def _in_child() -> None:
    global _forking  # noqa: PLW0603 - the parent's thread holds the other one
    _forking = threading.RLock()
    attach.after_fork_in_child()
    _held.clear()
    for space in spaces.every():
        space.after_fork_in_child()
    arena.after_fork_in_child()
    flags.forget_in_child()
    merge_pid.forget_in_child()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
