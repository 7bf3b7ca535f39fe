"""Ask the ksmd of an instance how every page looks: columns, not an object a page.

An answer is one line of JSON (Head) and behind it the columns of each space, in the order in which it names
them: the numbers of the chunks that hold data (int64), the Look (uint8) of each of their pages, the frame
(uint32) of each.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from ksmemu import wire
from ksmemu.control.ask import ask_bytes
from ksmemu.control.look import Look
from ksmemu.errors import KsmError
from ksmemu.instance import Instance
from ksmemu.units import PAGE_SIZE

CHUNK = 512
"""Pages a chunk; one without data is not told."""
NO_FRAME = (1 << 32) - 1
"""Of a page that shows none."""

Columns = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.uint32]]
"""Chunks, looks, frames."""


class Content(TypedDict):
    """A content that is shared, in one domain."""

    domain: str
    pages: int
    """How many show it."""
    frames: int
    """More than one above max_page_sharing."""
    is_fill: bool
    """It is one byte, again and again."""
    head: str
    """Its first bytes, in hexadecimal."""


class SpaceHead(TypedDict):
    """An address space of a process in a domain: [start, end), and how many chunks follow for it."""

    pid: int
    domain: str
    start: int
    end: int
    nr_chunks: int


class Head(TypedDict):
    """The first line."""

    spaces: list[SpaceHead]
    contents: list[Content]


@dataclass(frozen=True, slots=True, eq=False)
class PageMap:
    """The pages of one space.

    Attributes:
        chunks: which chunks of CHUNK pages hold data, ascending; all other pages are ABSENT.
        looks: a Look for each page of them.
        frames: the frame that each names, or NO_FRAME: MERGED and BROKEN ones have one. Each domain counts
            its own.
    """

    pid: int
    domain: str
    start: int
    end: int
    chunks: npt.NDArray[np.int64]
    looks: npt.NDArray[np.uint8]
    frames: npt.NDArray[np.uint32]

    @property
    def nr_pages(self) -> int:
        """How many pages it has."""
        return (self.end - self.start) // PAGE_SIZE

    @property
    def pages(self) -> npt.NDArray[np.int64]:
        """The number of the page at each place of the columns."""
        return (self.chunks[:, None] * CHUNK + np.arange(CHUNK)).reshape(-1)

    def counts(self) -> npt.NDArray[np.int64]:
        """Return how many pages have each Look."""
        counts = np.bincount(self.looks, minlength=len(Look))
        counts[Look.ABSENT] = self.nr_pages - counts[Look.OWN :].sum()
        return counts


@dataclass(frozen=True, slots=True)
class PageMaps:
    """What an answer says.

    Attributes:
        contents: the most shared ones, the most pages first.
    """

    spaces: list[PageMap]
    contents: list[Content]


def page_maps(instance: Instance, pid: int | None = None, start: int | None = None) -> PageMaps:
    """Return the page maps of all spaces of which this user may know, or of those of a process, or of one.

    Args:
        start: the address at which the space begins.

    Raises:
        KsmError: ESRCH: there is no such space, or not for this user. Others as those of ask().
    """
    return decode(asked(instance, pid, start))


def asked(instance: Instance, pid: int | None = None, start: int | None = None) -> bytes:
    """Return the answer as it came; decode() reads it. Errors as those of page_maps()."""
    return ask_bytes(instance, {"pages": wire.VERSION, "pid": pid, "start": start})


def encode(head: Head, columns: list[Columns]) -> bytes:
    """Return an answer; the columns of each space that the head names."""
    parts = [json.dumps(head).encode() + b"\n"]
    for chunks, looks, frames in columns:
        parts += [chunks.astype("<i8").tobytes(), looks.tobytes(), frames.astype("<u4").tobytes()]
    return b"".join(parts)


def decode(answer: bytes) -> PageMaps:
    """Read an answer; KsmError (EPROTO) if it is none."""
    try:
        head, _, columns = answer.partition(b"\n")
        found: Head = json.loads(head)
        return PageMaps(list(_spaces(found["spaces"], columns)), found["contents"])
    except (ValueError, KeyError, TypeError):
        raise KsmError(errno.EPROTO, "an answer about pages that is none") from None


def _spaces(heads: list[SpaceHead], columns: bytes) -> Iterator[PageMap]:
    at = 0
    for head in heads:
        nr_chunks, nr = head["nr_chunks"], head["nr_chunks"] * CHUNK
        chunks = np.frombuffer(columns, "<i8", nr_chunks, at)
        looks = np.frombuffer(columns, "u1", nr, at + chunks.nbytes)
        frames = np.frombuffer(columns, "<u4", nr, at + chunks.nbytes + looks.nbytes)
        at += chunks.nbytes + looks.nbytes + frames.nbytes
        yield PageMap(head["pid"], head["domain"], head["start"], head["end"], chunks, looks, frames)
