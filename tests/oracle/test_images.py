"""Raw memory images of virtual machines, a process each: KSMEMU_ORACLE_IMAGES=a.raw:b.raw, or some made here.

The own workers are those of `workers.image`; their twins hold the same bytes in anonymous memory.
"""

import hashlib
import os
import random
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import anonymous
from tests.support.engines import process_files
from tests.support.images import ImageWorker, padded
from tests.support.processes import Worker
from tests.support.procmaps import PAGE

pytestmark = pytest.mark.root
GIVEN = os.environ.get("KSMEMU_ORACLE_IMAGES", "")
SIZES = [701 * PAGE, 877 * PAGE + 1777, 1009 * PAGE - 1]


@pytest.fixture
def images(tmp_path):
    """Return the files that were asked for, or small ones that have much in common."""
    if GIVEN:
        return [Path(name) for name in GIVEN.split(os.pathsep)]
    source = random.Random(2009)
    common = source.randbytes(401 * PAGE)
    paths = []
    for size in SIZES:
        paths.append(tmp_path / f"{size}.raw")
        paths[-1].write_bytes(made(source, common, size))
    return paths


def made(source, common, size):
    """Return an image: runs of 1 to 64 pages of zeros, of what others have too, of what nobody has."""
    image = b""
    while len(image) < size:
        nr = source.randint(1, 64)
        first = source.randrange(401 - nr)
        kinds = [bytes(nr * PAGE), common[first * PAGE :][: nr * PAGE], source.randbytes(nr * PAGE)]
        image += source.choice(kinds)
    return image[:size]


def sha256(path):
    """Return the digest of a file, its last page padded with zeros."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):  # a multiple of the page: only the last one is padded
            digest.update(padded(piece))
    return digest.hexdigest()


def start_own(stack, engine, path):
    worker = stack.enter_context(ImageWorker(engine.ksmd.directory, path))
    return worker.pid, lambda: worker.ask("sum")


def start_twin(stack, _, path):
    worker = stack.enter_context(Worker())
    pid, _, _ = worker.call(anonymous.load, str(path))
    return pid, lambda: worker.call(anonymous.digest)


def rest(engine, start, images):
    """Return the figures of an engine at rest with an image in each of several processes, and the digests."""
    with ExitStack() as stack:
        members = [start(stack, engine, path) for path in images]
        # Bound now: a figure is read for each process at each rest.
        engine.members = [
            SimpleNamespace(figures=lambda pid=pid: process_files(engine.proc, pid)) for pid, _ in members
        ]
        figures = engine.rest()
        engine.members = []
        return figures, [digest() for _, digest in members]


@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_images_of_virtual_machines(engines, images, use_zero_pages):
    kernel, own = engines(use_zero_pages=use_zero_pages)
    expected, twins = rest(kernel, start_twin, images)
    figures, digests = rest(own, start_own, images)
    print(figures)  # noqa: T201 - what real images gave is worth a look: pytest -s
    assert figures == expected
    assert digests == twins == [sha256(path) for path in images]
