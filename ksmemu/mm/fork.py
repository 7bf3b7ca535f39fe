"""What a fork means: the child has ordinary memory, copied on write, and none that was advised.

An own object is shared memory: parent and child would write to the same bytes. So the core keeps advised
spaces out of the child (MADV_DONTFORK), and here the child's objects learn that they are closed.
"""

from __future__ import annotations

import os
import warnings

from ksmemu.mm import attach, flags, merge_pid, spaces


class ForkWarning(RuntimeWarning):
    """A process with an advised address space forks: the child does not get that memory."""


def _before() -> None:
    if any(space.is_advised for space in spaces.every()):
        text = "fork with an advised AddressSpace: it is closed in the child"
        warnings.warn(text, ForkWarning, stacklevel=2)


def _in_child() -> None:
    for space in spaces.every():
        space.forget_in_child()
    attach.forget_in_child()
    flags.forget_in_child()
    merge_pid.forget_in_child()


os.register_at_fork(before=_before, after_in_child=_in_child)
