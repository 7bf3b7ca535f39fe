"""Frames that are mapped evenly (secure): made elsewhere and moved, under the protection that there is."""

import errno
from mmap import PROT_READ

import pytest

from tests.support import procmaps
from tests.support.children import in_child
from tests.support.joined import joined
from tests.support.pages import content


def settle(space, pages, frame):
    for index, page in enumerate(pages):
        space.write(page, content(page))
        space.fill_frame(frame + index, content(page))


def shown(space, first, last):
    """Return (permissions, page of the object, pages) of each mapping, and how many pages are present."""
    start, end = space.address(first), space.address(last)
    maps = [(m.perms, m.offset // procmaps.PAGE, m.pages) for m in procmaps.mappings("self", start, end)]
    return maps, procmaps.nr_present("self", start, end)


@in_child
def test_all_pages_of_a_run_are_present_and_none_is_a_copy():
    with joined(secure=True) as space:
        settle(space, range(3, 10), frame=20)
        assert space.merge((3, 20, 7)) == dict.fromkeys(range(3, 10), 0)
        assert shown(space, 3, 10) == ([("rw-p", 20, 7)], 7)
        assert space.broken(3, 10) == []
        space.write(5, b"mine")
        assert space.broken(3, 10) == [5]
        assert space.read(5) == b"mine" + content(5)[4:]
        assert space.pool_holds(22) == content(5)


@in_child
def test_a_page_that_differs_stays_its_own():
    with joined(secure=True) as space:
        settle(space, range(3, 10), frame=20)
        space.write(6, b"other")
        assert space.merge((3, 20, 7)) == dict.fromkeys(range(3, 10), 0) | {6: errno.EAGAIN}
        maps, nr_present = shown(space, 3, 10)
        assert [perms for perms, _, _ in maps] == ["rw-p", "rw-s", "rw-p"]
        assert nr_present == 7
        assert space.object_holds(6)[:5] == b"other"


@in_child
def test_what_may_only_be_read_stays_so():
    with joined(secure=True) as space:
        settle(space, range(3, 10), frame=20)
        space.protect(4, 7, PROT_READ)
        assert set(space.merge((3, 20, 7)).values()) == {0}
        maps, nr_present = shown(space, 3, 10)
        assert maps == [("rw-p", 20, 1), ("r--p", 21, 3), ("rw-p", 24, 3)]
        assert nr_present == 7


@in_child
def test_they_come_home():
    with joined(secure=True) as space:
        settle(space, range(3, 10), frame=20)
        space.merge((3, 20, 7))
        space.write(5, b"mine")
        assert set(space.rehome((3, 7)).values()) == {0}
        assert [perms for perms, _, _ in shown(space, 3, 10)[0]] == ["rw-s"]
        assert [space.read(page) for page in (3, 9)] == [content(3), content(9)]
        assert space.read(5) == b"mine" + content(5)[4:]


@pytest.mark.parametrize("secure", [False, True])
@in_child
def test_only_where_it_is_wanted(secure):
    with joined(secure=secure) as space:
        settle(space, range(3, 10), frame=20)
        space.merge((3, 20, 7))
        assert shown(space, 3, 10)[1] == (7 if secure else 0)
