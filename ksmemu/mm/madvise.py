"""Advice by address, in whatever address space of this process it lies."""

from __future__ import annotations

import errno
import os

import numpy as np
import numpy.typing as npt

from ksmemu.mm import spaces
from ksmemu.mm.address_space import MADV_MERGEABLE, AddressSpace


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
    for space in spaces.every():
        if space.start <= address < space.start + space.size:
            return space
    text = f"{os.strerror(errno.ENOMEM)}: {address:#x} is in no address space of this process"
    raise OSError(errno.ENOMEM, text)
