"""Memory images of guests: made of the machine's own files, where nobody gives some.

Real memory comes in runs. A guest has runs of 1 to 64 pages, 13 in the mean; half of its pages are in every
guest, at other places, a quarter is zeros, and the rest is its own.
"""

from __future__ import annotations

import collections
import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ksmemu.bench.content import WORDS, PageArray, own_random
from ksmemu.units import PAGE_SIZE

_MEAN_RUN, _LONGEST_RUN = 13, 64
_SEED = 20090509
_FOLDERS = ("/usr/lib", "/usr/bin", sysconfig.get_path("stdlib"))


def synthesise(folder: Path, nr_guests: int, nr_pages: int) -> list[Path]:
    """Write the images of guests of nr_pages each to a folder; return their names."""
    common = _machine_pages(nr_pages // 2)
    return [_write_guest(folder / f"guest{rank}", common, nr_pages, rank) for rank in range(nr_guests)]


def _write_guest(path: Path, common: PageArray, nr_pages: int, rank: int) -> Path:
    numbers = np.random.Generator(np.random.SFC64(_SEED + rank))
    own: PageArray = np.empty((nr_pages - len(common) - nr_pages // 4, WORDS), dtype=np.uint64)
    own_random(len(own), rank).fill(own)
    zeros = np.zeros((nr_pages // 4, WORDS), dtype=np.uint64)
    runs = [part[start:end] for part in (common, own, zeros) for start, end in _cut(len(part))]
    with path.open("wb") as file:
        for number in numbers.permutation(len(runs)):
            file.write(runs[number].data)
    return path


def _cut(nr_pages: int) -> Iterator[tuple[int, int]]:
    """Cut pages into runs, for every guest alike."""
    numbers = np.random.Generator(np.random.SFC64(_SEED))
    start = 0
    while start < nr_pages:
        end = min(start + min(int(numbers.geometric(1 / _MEAN_RUN)), _LONGEST_RUN), nr_pages)
        yield start, end
        start = end


def _machine_pages(nr_pages: int) -> PageArray:
    """Return pages of files that any machine has; where there are too few, made-up ones follow."""
    pages: PageArray = np.empty((nr_pages, WORDS), dtype=np.uint64)
    at = 0
    files = (path for folder in _FOLDERS for path in sorted(Path(folder).glob("**/*.so*")))
    for path in dict.fromkeys(path.resolve() for path in files if path.is_file()):
        found = np.fromfile(path, np.uint64, count=path.stat().st_size // PAGE_SIZE * WORDS)
        part = found.reshape(-1, WORDS)[: nr_pages - at]
        pages[at : at + len(part)] = part
        at += len(part)
        if at == nr_pages:
            return pages
    own_random(nr_pages, _SEED).fill(pages[at:])
    return pages


def expected_sharing(images: Sequence[Path], limit: int) -> int:
    """Return how many pages can be saved among raw images with at most `limit` pages a frame."""
    counts = collections.Counter(
        hashlib.blake2b(page, digest_size=16).digest() for image in images for page in _pages_of(image)
    )
    sites: npt.NDArray[np.int64] = np.fromiter(counts.values(), np.int64)
    return int((sites - -(-sites // limit)).sum())


def _pages_of(image: Path) -> Iterator[bytes]:
    with image.open("rb") as file:
        while len(page := file.read(PAGE_SIZE)) == PAGE_SIZE:
            yield page
