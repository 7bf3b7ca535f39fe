"""Advice by address, and for the whole process (the prctl)."""

from __future__ import annotations

import errno
import os

import numpy as np
import numpy.typing as npt

from ksmemu.mm import address_space, attach
from ksmemu.mm.address_space import MADV_MERGEABLE, MADV_UNMERGEABLE, AddressSpace


def madvise(
    address_or_buffer: int | memoryview | bytearray | npt.NDArray[np.generic],
    length: int | None = None,
    advice: int = MADV_MERGEABLE,
) -> int:
    """Advise memory of any address space of this process, found by its address.

    Args:
        address_or_buffer: page-aligned address, or an array or view that begins there.
        length: bytes; None: the whole buffer. Needed with an address.
        advice: MADV_MERGEABLE or MADV_UNMERGEABLE.

    Raises:
        OSError: ENOMEM: the address is in no address space; otherwise as AddressSpace.madvise().
        ValueError: an address without a length.
    """
    if isinstance(address_or_buffer, int):
        address = address_or_buffer
        if length is None:
            raise ValueError("an address needs a length")
    else:
        flat = np.frombuffer(address_or_buffer, np.uint8)
        address = int(flat.ctypes.data)
        length = flat.nbytes if length is None else length
    return _space_of(address).madvise(address, length, advice)


def _space_of(address: int) -> AddressSpace:
    for space in list(address_space.spaces):
        if space.start <= address < space.start + space.size:
            return space
    text = f"{os.strerror(errno.ENOMEM)}: {address:#x} is in no address space of this process"
    raise OSError(errno.ENOMEM, text)


def set_memory_merge(on: bool) -> None:  # noqa: FBT001 - as the prctl
    """Make all memory of this process's address spaces mergeable, present and future; or none of it.

    As prctl(PR_SET_MEMORY_MERGE): turning it off unmerges all of it, also what madvise() marked.

    Raises:
        OSError: as AddressSpace.madvise(); spaces before the failure are done, and the setting is unchanged.
    """
    if not on and not address_space.merge_any:
        return
    for space in list(address_space.spaces):
        space.madvise_all(MADV_MERGEABLE if on else MADV_UNMERGEABLE)
    address_space.merge_any = on
    attach.tell_merge_any(on)


def get_memory_merge() -> bool:
    """Return what set_memory_merge() last set."""
    return address_space.merge_any
