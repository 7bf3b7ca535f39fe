"""The prctl: all memory of the process, present and future, or none of it."""

import errno
import subprocess
import sys

import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE, PR_GET_MEMORY_MERGE, PR_SET_MEMORY_MERGE, room
from ksmemu.mm import flags
from tests.support import procmaps
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def the_setting_is_put_back(monkeypatch):
    monkeypatch.delenv(flags.VARIABLE, raising=False)
    yield
    ksmemu.set_memory_merge(False)


def setting_of_a_new_program():
    code = "import ksmemu; print(ksmemu.get_memory_merge())"
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


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
    wait_until(lambda: stepped.read("pages_shared") == stepped.read("pages_tracked") == 0)
    assert kinds(memory(stepped, advise=False)) == {"rw-p"}
    memory(stepped)  # or there is nothing to scan
    stepped.scan(3)
    assert stepped.read("pages_shared") == stepped.read("pages_tracked") == 0


def test_off_when_it_is_off_leaves_advice_alone(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    ksmemu.set_memory_merge(False)
    stepped.scan(2)
    assert stepped.read("pages_sharing") == 23


@pytest.mark.parametrize("wrong", [(0, 0, 1), (0, 1, 0), (1, 0, 0)])
@pytest.mark.parametrize("on", [0, 1])
def test_arguments_3_to_5_must_be_zero(on, wrong):
    with pytest.raises(OSError, match="Invalid argument") as refused:
        ksmemu.prctl(PR_SET_MEMORY_MERGE, on, *wrong)
    assert refused.value.errno == errno.EINVAL
    assert ksmemu.prctl(PR_GET_MEMORY_MERGE) == 0


@pytest.mark.parametrize("wrong", [(0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)])
def test_arguments_2_to_5_of_the_question_must_be_zero(wrong):
    with pytest.raises(OSError, match="Invalid argument"):
        ksmemu.prctl(PR_GET_MEMORY_MERGE, *wrong)


@pytest.mark.parametrize("option", [0, 66, 69, -1])
def test_other_options_are_none_of_ours(option):
    with pytest.raises(OSError, match="Invalid argument"):
        ksmemu.prctl(option)


@pytest.mark.parametrize("value", [1, 2, 4095, 1 << 63])
def test_any_value_but_zero_turns_it_on(value):
    assert ksmemu.prctl(PR_SET_MEMORY_MERGE, value) == 0
    assert ksmemu.prctl(PR_GET_MEMORY_MERGE) == 1
    assert ksmemu.prctl(PR_SET_MEMORY_MERGE, value) == 0
    assert ksmemu.prctl(PR_SET_MEMORY_MERGE, 0) == 0
    assert ksmemu.prctl(PR_GET_MEMORY_MERGE) == 0


def test_a_new_program_inherits_it():
    assert setting_of_a_new_program() == "False"
    ksmemu.set_memory_merge(True)
    assert setting_of_a_new_program() == "True"
    ksmemu.set_memory_merge(False)
    assert setting_of_a_new_program() == "False"


def test_off_that_finds_no_memory_leaves_it_on(stepped, memory, monkeypatch):
    ksmemu.set_memory_merge(True)
    twins = [memory(stepped, advise=False) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    stepped.scan(2)
    monkeypatch.setattr(room, "object_bytes", lambda _: 0)
    with pytest.raises(OSError, match="no room") as refused:
        ksmemu.set_memory_merge(False)
    assert refused.value.errno == errno.EAGAIN
    assert ksmemu.get_memory_merge() is True
    stepped.scan(2)
    assert stepped.read("pages_sharing") == 23


def test_without_a_ksmd_memory_is_mapped_all_the_same(tmp_path, memory, caplog):
    ksmemu.set_memory_merge(True)
    with ksmemu.AddressSpace(23 * procmaps.PAGE, instance=tmp_path) as space:
        at = space.mmap(space.size)
        space.write(at, b"here")
        assert space.read(at, 4) == b"here"
        assert not space.is_advised
    assert "stays as it is, unmerged" in caplog.text


def test_what_madvise_marks_later_is_marked_once(stepped, memory):
    ksmemu.set_memory_merge(True)
    one = memory(stepped, advise=False)
    assert one.advise(MADV_MERGEABLE) == 0
    assert kinds(one) == {"rw-s"}


def test_a_part_can_be_taken_out(stepped, memory):
    ksmemu.set_memory_merge(True)
    twins = [memory(stepped, advise=False) for _ in range(2)]
    twins[0].advise(MADV_UNMERGEABLE, 5, 7)
    for twin in twins:
        twin.fill(range(23))
    stepped.scan(2)
    assert stepped.read("pages_sharing") == 16
