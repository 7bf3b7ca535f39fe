"""Advice for the whole process: prctl(PR_SET_MEMORY_MERGE), for memory that is there and that comes."""

from __future__ import annotations

import errno
import os

from ksmemu.mm import attach, flags, spaces
from ksmemu.mm.address_space import MADV_MERGEABLE, MADV_UNMERGEABLE

PR_SET_MEMORY_MERGE = 67
PR_GET_MEMORY_MERGE = 68
"""Source: <linux/prctl.h>, Linux 6.4."""


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Call set_memory_merge() or get_memory_merge() as a C program would.

    Raises:
        OSError: EINVAL: another option, or an argument that must be 0 is not; else as set_memory_merge().
    """
    if option == PR_SET_MEMORY_MERGE and not (arg3 or arg4 or arg5):
        set_memory_merge(arg2 != 0)
        return 0
    if option == PR_GET_MEMORY_MERGE and not (arg2 or arg3 or arg4 or arg5):
        return int(get_memory_merge())
    text = f"prctl({option}, {arg2}, {arg3}, {arg4}, {arg5})"
    raise OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: {text}")


def set_memory_merge(on: bool) -> None:  # noqa: FBT001 - as the prctl
    """Make all memory of this process's address spaces mergeable, present and future; or none of it.

    As prctl(PR_SET_MEMORY_MERGE): children inherit it, over fork and over exec (there in the environment
    variable KSMEMU_MEMORY_MERGE). Turning it off where it is on unmerges all, also what madvise() marked;
    madvise(MADV_UNMERGEABLE) takes a range out; turning it on where it is on does not bring that back.

    Turning it off is a refusal as well, wherever it stood: what merge_pid has made mergeable is unmerged, and
    merge_pid has no effect on this process until it is turned on.

    Raises:
        OSError: as AddressSpace.madvise(). Turning it on: spaces before the failure are advised, and the
            setting is unchanged. Turning it off: all is mergeable again, where memory allows.
    """
    if on:
        if not flags.merge_any:
            _advise_all(MADV_MERGEABLE)
    elif flags.merge_any:
        try:
            _advise_all(MADV_UNMERGEABLE)
        except OSError:
            _advise_all(MADV_MERGEABLE)
            raise
    else:
        for space in spaces.every():
            space.merge_from_outside(on=False)
    flags.set_merge_any(on)
    attach.tell_flags()


def get_memory_merge() -> bool:
    """Return what set_memory_merge() last set, here or in the process that this one inherits from."""
    return flags.merge_any


def _advise_all(advice: int) -> None:
    for space in spaces.every():
        space.madvise_all(advice)
