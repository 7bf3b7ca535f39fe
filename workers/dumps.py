"""Where the memory of a guest lies in a file: raw images, ELF cores, LiME.

| file | of whom | how it is known |
|---|---|---|
| raw | QEMU's `pmemsave`; LiME, `format=raw`; the memory file of a Firecracker snapshot | all others |
| ELF core | QEMU's `dump-guest-memory` | by its header; read with pyelftools |
| LiME | LiME, `format=lime`; AVML without `--compress`, which is its version 1 | `EMiL`, version 1 |

Source: QEMU, dump/dump.c; LiME, doc/README.md ("Memory Range Header Version 1"); AVML, src/image.rs;
Firecracker, docs/snapshotting/snapshot-support.md.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from io import FileIO
from typing import NamedTuple

from ksmemu.units import PAGE_SIZE, pages_for


class WrongFileError(ValueError):
    """A file that holds no memory, or not all of it; the text says what it is and what to do."""


class Part(NamedTuple):
    """Memory of a guest in one piece: its physical address, and where in the file it begins, in bytes."""

    address: int
    offset: int
    length: int

    @property
    def lead(self) -> int:
        """Bytes of its first page that come before it."""
        return self.address % PAGE_SIZE

    @property
    def nr_pages(self) -> int:
        """The pages that it touches."""
        return pages_for(self.lead + self.length)


_LIME = struct.Struct("<4sIQQ8x")
"""Magic, version, first and last address of what follows."""
_ET_CORE = 4
_KDUMP = "is a compressed kdump: dump it without -z, -l and -s"
_STATE = "is the state of a Firecracker snapshot: its memory is in the file of mem_file_path"
_OTHERS = {
    b"KDUMP   ": _KDUMP,
    b"makedumpfile": _KDUMP,
    b"PAGEDU64": "is a Windows dump: dump it without -w",
    b"AVML": "is compressed by AVML (version 2): avml-convert makes version 1 of it",
    struct.pack("<Q", 0x0710_1984_8664_0000): _STATE,
    struct.pack("<Q", 0x0710_1984_AAAA_0000): _STATE,
}
"""Formats that are known, and not read."""


def parts_of(file: FileIO) -> list[Part]:
    """Return the memory that a file holds, by ascending address.

    Raises:
        WrongFileError: it holds none, is truncated, or of a kind that is not read.
        OSError: of the read.
    """
    head = os.pread(file.fileno(), _LIME.size, 0)
    for magic, text in _OTHERS.items():
        if head.startswith(magic):
            raise WrongFileError(text)
    if head.startswith(b"EMiL"):
        parts = list(_lime(file))
    elif _is_core(head):
        parts = _elf(file)
    else:
        parts = [Part(0, 0, _size(file))]
    parts = list(_once(sorted(part for part in parts if part.length)))
    if not parts:
        raise WrongFileError("is empty")
    return parts


def _once(parts: Iterable[Part]) -> Iterator[Part]:
    """Yield what is listed twice once: with paging, QEMU lists what is mapped twice, and has it once."""
    last = Part(0, 0, 0)
    for part in parts:
        over = last.address + last.length - part.address
        if over > 0 and last.offset - last.address != part.offset - part.address:
            raise WrongFileError(f"is damaged: it has the memory at {part.address:#x} twice")
        if over < part.length:
            cut = max(over, 0)
            last = Part(part.address + cut, part.offset + cut, part.length - cut)
            yield last


def _is_core(head: bytes) -> bool:
    """Whether a file begins as an ELF core does; other ELF files are pages like all others."""
    return (
        head[:4] == b"\x7fELF"
        and int.from_bytes(head[16:18], "little" if head[5:6] == b"\1" else "big") == _ET_CORE
    )


def _size(file: FileIO) -> int:
    return os.lseek(file.fileno(), 0, os.SEEK_END)


def _lime(file: FileIO) -> Iterator[Part]:
    at, size = 0, _size(file)
    while at < size:
        header = os.pread(file.fileno(), _LIME.size, at)
        if len(header) < _LIME.size:
            raise WrongFileError(f"is truncated: a LiME header at byte {at} is cut")
        magic, version, first, last = _LIME.unpack(header)
        if magic != b"EMiL":
            raise WrongFileError(f"is damaged: no LiME header at byte {at}")
        if version != 1:
            raise WrongFileError(f"is LiME of version {version}: only 1 is known")
        at += _LIME.size
        length = last + 1 - first
        if length < 0:
            raise WrongFileError(f"is damaged: it has memory from {first:#x} to {last:#x}")
        yield _checked(Part(first, at, length), size)
        at += length


def _elf(file: FileIO) -> list[Part]:
    try:
        from elftools.common.exceptions import ELFError  # noqa: PLC0415 (an extra)
        from elftools.elf.elffile import ELFFile  # noqa: PLC0415
    except ImportError:
        raise WrongFileError("is an ELF core: to read it, pip install 'ksmemu[dump]'") from None
    size = _size(file)
    try:
        elf = ELFFile(file)
        if not 0 < elf.num_segments() * elf["e_phentsize"] < size:
            raise WrongFileError("is damaged or truncated: its ELF program headers are not there")
        segments = list(elf.iter_segments("PT_LOAD"))
    except (ELFError, OverflowError, OSError) as error:
        raise WrongFileError(f"is damaged or truncated: its ELF headers cannot be read: {error}") from None
    parts = [Part(part["p_paddr"], part["p_offset"], part["p_filesz"]) for part in segments]
    return [_checked(part, size) for part in parts if part.length]  # what a filter left out has no bytes


def _checked(part: Part, size: int) -> Part:
    if part.offset + part.length > size:
        missing = part.offset + part.length - size
        raise WrongFileError(f"is truncated: {missing} bytes of the memory at {part.address:#x} are missing")
    return part
