"""A worker that owns raw memory images, as a hypervisor owns its guests' memory: one space a file.

$ python -m workers.image guest-a.raw guest-b.raw
ready 4117
sum
9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
write 7 00ff
ok
quit
ok
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import click

from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE, AddressSpace
from ksmemu.cli.options import domain_option
from ksmemu.units import PAGE_SIZE
from workers import base

_ADVICE = {"on": MADV_MERGEABLE, "off": MADV_UNMERGEABLE}


class Images:
    """The memory of all files: their pages in order, each file's last one padded with zeros."""

    def __init__(self, spaces: Sequence[AddressSpace]) -> None:
        self._spaces = spaces
        self._nr_pages = sum(map(base.pages_of, spaces))

    def sum(self, *given: str) -> str:
        """Return the SHA-256 of all pages."""
        base.words(0, "sum", given)
        digest = hashlib.sha256()
        for space in self._spaces:
            with space.view(space.start, space.size) as view:
                digest.update(view)
        return digest.hexdigest()

    def read(self, *given: str) -> str:
        """Return the bytes of a page."""
        (page,) = base.words(1, "read PAGE", given)
        space, address = self._find(page)
        return space.read(address, PAGE_SIZE).hex()

    def write(self, *given: str) -> str:
        """Write to a page, from its start."""
        page, digits = base.words(2, "write PAGE HEXBYTES", given)
        space, address = self._find(page)
        space.write(address, base.page_bytes(digits))
        return "ok"

    def advise(self, *given: str) -> str:
        """Make everything mergeable, or bring everything home."""
        (word,) = base.words(1, "advise on|off", given)
        if word not in _ADVICE:
            raise base.BadLineError("usage: advise on|off")
        for space in self._spaces:
            space.madvise_all(_ADVICE[word])
        return "ok"

    def _find(self, word: str) -> tuple[AddressSpace, int]:
        page = base.number(word, self._nr_pages)
        for space in self._spaces:
            if page < base.pages_of(space):
                return space, space.start + page * PAGE_SIZE
            page -= base.pages_of(space)
        raise AssertionError("unreachable: the number was checked")


def load(path: Path, directory: Path | None, domain: str | None, undo: contextlib.ExitStack) -> AddressSpace:
    """Return a mergeable space that holds a file; `undo` closes it.

    Raises:
        OSError: the file cannot be read, or is empty (ENODATA); there is no ksmd.
    """
    with path.open("rb", buffering=0) as file:
        nr_bytes = os.fstat(file.fileno()).st_size
        if not nr_bytes:
            raise OSError(errno.ENODATA, "is empty", os.fspath(path))
        space = undo.enter_context(base.mergeable_space(nr_bytes, directory, path.name, domain))
        base.fill(space, file, nr_bytes)
        return space


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=click.Path(path_type=Path))
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Instance directory of the ksmd to join.",
)
@domain_option
def main(files: tuple[Path, ...], directory: Path | None, domain: str | None) -> None:
    """Load raw memory images, let them be merged, and obey lines on standard input.

    \b
    sum                  sha256 of the memory: all pages of all files in order
    write PAGE HEXBYTES  write from the start of a page
    read PAGE            the bytes of a page, in hexadecimal digits
    advise on|off        mergeable, or everything home again
    quit                 as the end of the input

    Page numbers count over all files.
    """  # noqa: D301 (a mark of click's: keep the lines as they are)
    with base.one_line_errors("image"), contextlib.ExitStack() as undo:
        images = Images([load(path, directory, domain, undo) for path in files])
        base.obey_lines(
            {
                "sum": images.sum,
                "write": images.write,
                "read": images.read,
                "advise": images.advise,
            }
        )


if __name__ == "__main__":
    main()
