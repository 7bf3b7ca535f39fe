"""A worker that owns memory images, as a hypervisor owns its guests' memory: one space a file.

$ python -m workers.image guest-a.raw guest-b.elf
ready 4117
sum
9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
write 7 00ff
ok
quit
ok
"""

from __future__ import annotations

import errno
import os
from io import FileIO
from pathlib import Path

import click

from ksmemu.cli.command import run
from ksmemu.units import PAGE_SIZE
from workers import base
from workers.base import Worker
from workers.dumps import Part, WrongFileError, parts_of
from workers.memory import Memory

_CHUNK_PAGES = 256


def load(worker: Worker, path: Path) -> None:
    """Give a worker a space that holds the memory in a file: its parts in order, each from a page on.

    Raises:
        UsageError: the file holds no memory that can be read.
        OSError: the file cannot be read; as Memory.
    """
    with path.open("rb", buffering=0) as file:
        try:
            parts = parts_of(file)
        except WrongFileError as error:
            raise click.UsageError(f"{path} {error}") from None
        memory = worker.map(sum(part.nr_pages for part in parts), path.name)
        first = 0
        for part in parts:
            _load_part(memory, first, file, part)
            first += part.nr_pages
        worker.holds[path.name] += memory.nr_pages


def _load_part(memory: Memory, first: int, file: FileIO, part: Part) -> None:
    """Put a part so that its bytes have the places in their pages that they had in the guest."""
    begin, end = part.offset - part.lead, part.offset + part.length
    for page in range(0, part.nr_pages, _CHUNK_PAGES):
        at = max(begin + page * PAGE_SIZE, part.offset)
        nr_bytes = min(begin + (page + _CHUNK_PAGES) * PAGE_SIZE, end) - at
        chunk = os.pread(file.fileno(), nr_bytes, at)
        if len(chunk) < nr_bytes:
            raise OSError(errno.EIO, "became shorter", file.name)
        memory.put(first + page, bytes(0 if page else part.lead) + chunk)


@base.program
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=base.FILE)
def main(worker: Worker, files: tuple[Path, ...]) -> None:
    """Load memory images: raw, ELF cores of QEMU, LiME, AVML version 1, memory files of Firecracker.

    Each file becomes an address space; page numbers count over all of them.
    """
    for path in files:
        load(worker, path)
    worker.obey()


if __name__ == "__main__":
    run(main, "image")
