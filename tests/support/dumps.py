"""Small memory dumps, written as the tools write them; independent of the reader under test."""

import struct

PT_LOAD, PT_NOTE, ET_CORE, EM_X86_64 = 1, 4, 4, 62
_EHDR, _PHDR = 64, 56
_NOTE = struct.pack("<III", 5, 8, 1) + b"CORE\0\0\0\0" + bytes(8)


def elf(parts, *, byte_order="<", e_type=ET_CORE, absent=()):
    """Return a core as QEMU's dump-guest-memory writes one: notes, then the memory, then nothing.

    Args:
        parts: (address, bytes); one and the same bytes object is stored once, as memory that is mapped twice.
        absent: (address, length) of what a filter has left out.
    """
    nr = 1 + len(parts) + len(absent)
    at = _EHDR + nr * _PHDR
    headers = [struct.pack(f"{byte_order}IIQQQQQQ", PT_NOTE, 0, at, 0, 0, len(_NOTE), len(_NOTE), 0)]
    data, offsets = bytearray(_NOTE), {}
    for address, content in parts:
        if id(content) not in offsets:
            offsets[id(content)] = at + len(data)
            data += content
        sizes = len(content), len(content)
        headers.append(
            struct.pack(f"{byte_order}IIQQQQQQ", PT_LOAD, 0, offsets[id(content)], 0, address, *sizes, 0)
        )
    for address, length in absent:
        unset = (1 << 64) - 1
        headers.append(struct.pack(f"{byte_order}IIQQQQQQ", PT_LOAD, 0, unset, 0, address, 0, length, 0))
    ident = b"\x7fELF" + bytes([2, 1 if byte_order == "<" else 2, 1]) + bytes(9)
    fields = (e_type, EM_X86_64, 1, 0, _EHDR, 0, 0, _EHDR, _PHDR, nr, 0, 0, 0)
    return ident + struct.pack(f"{byte_order}HHIQQQIHHHHHH", *fields) + b"".join(headers) + bytes(data)


def lime(parts, *, version=1, magic=b"EMiL"):
    """Return what LiME (format=lime) and AVML (version 1) write of (address, bytes)."""
    return b"".join(
        magic + struct.pack("<IQQ8x", version, address, address + len(content) - 1) + content
        for address, content in parts
    )
