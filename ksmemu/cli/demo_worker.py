"""One worker of `ksmemu demo`: loads files into an address space and obeys a pipe.

Every worker has the same files, but at other offsets: data of its own comes first, and the files
follow in another order. The parent computes by itself what each worker's bytes must be.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from ksmemu.mm.address_space import MADV_MERGEABLE, AddressSpace
from ksmemu.units import PAGE_SIZE, pages_for

OWN_PAGES = 1024
WRITE_STRIDE = 7
"""Of the first file, every so manieth page is written to."""


def own_data(rank: int) -> bytes:
    """Return what only this worker has; its length shifts everything that comes after it."""
    return random.Random(rank).randbytes((OWN_PAGES + rank) * PAGE_SIZE)  # noqa: S311


def write_marks(target: bytearray | memoryview, rank: int) -> int:
    """Write to some pages of the first file what no other page holds; return to how many."""
    pages = range(0, len(target) // PAGE_SIZE, WRITE_STRIDE)
    for page in pages:
        mark = struct.pack("QQ", rank + 1, page)
        target[page * PAGE_SIZE : page * PAGE_SIZE + len(mark)] = mark
    return len(pages)


def work(pipe: Connection[object, str], directory: str, rank: int, files: Sequence[Path]) -> None:
    """Load, say `loaded`, then answer each command until the pipe closes.

    Runs in: a process of its own.
    """
    parts = [own_data(rank), *(path.read_bytes() for path in files)]
    order = [0, *(1 + (rank + i) % len(files) for i in range(len(files)))]
    with (
        contextlib.suppress(EOFError, ConnectionError),  # the parent has seen enough
        AddressSpace(sum(map(_padded, parts)), instance=directory) as space,
    ):
        start = space.mmap(space.size)
        space.madvise(start, space.size, MADV_MERGEABLE)
        spans = {}
        at = start
        for part in order:
            spans[part] = (at, len(parts[part]))
            space.write(at, parts[part])
            at += _padded(parts[part])
        del parts
        pipe.send("loaded")
        while True:
            match pipe.recv():
                case "blocks":
                    pipe.send(space.blocks_bytes())
                case "sums":
                    pipe.send([_sha256(space, *spans[part]) for part in sorted(spans)])
                case "write":
                    with space.view(*spans[1]) as view:
                        pipe.send(write_marks(view, rank))
                case other:
                    raise ValueError(f"the demo does not know {other!r}")


def _padded(data: bytes) -> int:
    return pages_for(len(data)) * PAGE_SIZE


def _sha256(space: AddressSpace, address: int, length: int) -> str:
    with space.view(address, length) as view:
        return hashlib.sha256(view).hexdigest()
