"""Numpy arrays in mergeable memory, for programs that know no addresses.

Such an array owns its memory as any other does: views keep it alive, and its end gives it back to the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ksmemu.mm import _data_memory
from ksmemu.mm.arena import arena

LARGE_BYTES = 1 << 20
"""What mergeable_arrays() lets be: a block costs as much as to fill some dozens of pages (Decisions)."""

_large = _data_memory.handler(LARGE_BYTES)
_every = _data_memory.handler(0)


@contextlib.contextmanager
def mergeable_arrays() -> Iterator[None]:
    """Make the arrays of 1 MiB and more mergeable that numpy makes meanwhile, whatever function makes them.

    Also those of numpy.load(), out of .npy and .npz. Not so: with mmap_mode an array is a mapping of the
    file, which the page cache shares already; what is unpickled, as the arguments of a pool, lies in the
    bytes that came: asarray() moves it. Smaller arrays are made as ever. Arrays may outlive this, and be
    freed by any thread.

    It holds for this thread, or asyncio task, alone, and for what is forked from it; pools and threads say
    it in the function that they run. It is for what loads or builds data that stay: to make, fill and free
    an array costs more than with malloc, so do not compute in it.

    An array never fails for it. Without a ksmd (that of $KSMEMU_DIR, else the default one) it is ordinary
    memory, and mergeable when one has come.
    """
    with _handled_by(_large):
        yield


def array(shape: int | Sequence[int], dtype: npt.DTypeLike = float) -> npt.NDArray[Any]:
    """Return a new array of zeros in mergeable memory, in whole pages however small it is.

    As numpy.zeros(), with its errors; without a ksmd as mergeable_arrays().
    """
    with _handled_by(_every):
        return np.zeros(shape, dtype)


def asarray(existing: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return an array of this content in mergeable memory; one that is in such memory is returned itself.

    The bytes are copied, since other references to the old array stay valid: its memory goes with the last.
    `weights = ksmemu.asarray(weights)` moves them, where nobody else has any. Without a ksmd as
    mergeable_arrays().
    """
    source = np.asarray(existing)
    if source.ctypes.data in arena:
        return source
    with _handled_by(_every):
        return np.array(source, order="K")


@contextlib.contextmanager
def _handled_by(handler: object) -> Iterator[None]:
    with arena.held():
        former = _data_memory.swap(handler)
        try:
            yield
        finally:
            _data_memory.swap(former)
