"""Columns of the books: long arrays that take memory only where they are written."""

from __future__ import annotations

import mmap
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_MAP_NORESERVE = 0x4000
"""Source: <asm-generic/mman.h>; the mmap module has it from Python 3.12 on."""

T = TypeVar("T", bound=np.generic)


def column(length: int, dtype: type[T]) -> npt.NDArray[T]:
    """Return a column of zeros; addresses for all of it, memory for the pages of it that are written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    memory = mmap.mmap(-1, max(length * np.dtype(dtype).itemsize, 1), flags=flags)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, count=length)
