"""The prctl: all memory of the process, present and future, or none of it."""

import pytest

import ksmemu
from ksmemu import MADV_UNMERGEABLE
from tests.support import procmaps


@pytest.fixture(autouse=True)
def the_setting_is_put_back():
    yield
    ksmemu.set_memory_merge(False)


def kinds(one):
    return {m.perms for m in procmaps.mappings("self", one.start, one.end)}


def test_it_is_off_by_default():
    assert ksmemu.get_memory_merge() is False


def test_on_advises_what_is_there_and_what_comes(stepped, memory):
    before = memory(stepped, advise=False)
    ksmemu.set_memory_merge(True)
    after = memory(stepped, advise=False)
    assert ksmemu.get_memory_merge() is True
    assert kinds(before) == kinds(after) == {"rw-s"}
    for each in (before, after):
        each.fill(range(23))
    stepped.scan(2)
    assert stepped.read("pages_sharing") == 23


def test_off_unmerges_all_also_what_madvise_marked(stepped, memory):
    marked = memory(stepped)
    ksmemu.set_memory_merge(True)
    other = memory(stepped, advise=False)
    for each in (marked, other):
        each.fill(range(23))
    stepped.scan(2)
    ksmemu.set_memory_merge(False)
    assert kinds(marked) == kinds(other) == {"rw-s"}
    stepped.scan(3)
    assert stepped.read("pages_shared") == stepped.read("pages_tracked") == 0
    assert kinds(memory(stepped, advise=False)) == {"rw-p"}


def test_off_when_it_is_off_leaves_advice_alone(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    ksmemu.set_memory_merge(False)
    stepped.scan(2)
    assert stepped.read("pages_sharing") == 23


def test_a_part_can_be_taken_out(stepped, memory):
    ksmemu.set_memory_merge(True)
    twins = [memory(stepped, advise=False) for _ in range(2)]
    twins[0].advise(MADV_UNMERGEABLE, 5, 7)
    for twin in twins:
        twin.fill(range(23))
    stepped.scan(2)
    assert stepped.read("pages_sharing") == 16
