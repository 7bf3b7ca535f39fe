"""The control directory as plain files: what a reader sees at any moment, and what a store does."""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksmemu.control.counters import COUNTERS, STATS
from ksmemu.control.files import LINUX
from ksmemu.control.plain import PlainFiles
from ksmemu.control.sysfs import ControlDirectory, OnStore
from ksmemu.control.tunables import TUNABLES
from ksmemu.errors import KsmError
from ksmemu.instance import Instance

EVENT_DEADLINE_MS = 5000


class Stores:
    """What ksmd was told, and what it answers."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int]] = []
        self.refusal: Exception | None = None

    def __call__(self, name: str, value: int) -> None:
        self.taken.append((name, value))
        if self.refusal:
            raise self.refusal


@pytest.fixture
def stores() -> Stores:
    return Stores()


@pytest.fixture
def control(instance: Instance, stores: Stores) -> Iterator[ControlDirectory]:
    control = control_directory(instance, stores)
    yield control
    control.close()


@pytest.fixture
def plain(control: ControlDirectory) -> Iterator[PlainFiles]:
    plain = PlainFiles(control)
    yield plain
    plain.close()


def control_directory(instance: Instance, on_store: OnStore) -> ControlDirectory:
    return ControlDirectory(instance.control, instance.stats, LINUX, on_store)


def take_events(plain: PlainFiles) -> None:
    """Let ksmd see what was stored, and then its own answer to it."""
    poll = select.poll()
    poll.register(plain, select.POLLIN)
    assert poll.poll(EVENT_DEADLINE_MS)
    plain.read_events()
    plain.read_events()


def shown(path: Path) -> bytes:
    return path.read_bytes()


def test_every_file_shows_its_first_value(control, instance):
    for name, tunable in TUNABLES.items():
        assert (instance.control / name).read_text().rstrip() == tunable.show(tunable.default)
    for path in [
        *(instance.control / name for name in COUNTERS),
        *(instance.stats / name for name in STATS),
    ]:
        assert shown(path) == b"0\n"


def test_the_modes_are_the_kernels_under_any_umask(instance, stores):
    old = os.umask(0o077)
    control_directory(instance, stores).close()
    os.umask(old)
    for name in TUNABLES:
        assert stat.S_IMODE((instance.control / name).stat().st_mode) == 0o644
    for name in COUNTERS:
        assert stat.S_IMODE((instance.control / name).stat().st_mode) == 0o444


def test_a_held_descriptor_reads_fresh_values_that_only_newlines_follow(control, instance):
    path = instance.control / "general_profit"
    held = os.open(path, os.O_RDONLY)
    inode = path.stat().st_ino
    lengths = [len("0\n")]
    for value in (7, -(2**63), 2**63 - 1, 0, -1, 10**9):
        control.publish({"general_profit": value})
        text = os.pread(held, 4096, 0)
        assert text.rstrip(b"\n") == b"%d" % value
        lengths.append(len(text))
    os.close(held)
    assert lengths == sorted(lengths), "a file that gets shorter shows zeros to whoever reads it just then"
    assert path.stat().st_ino == inode


def test_full_scans_is_shown_after_all_the_others(control, instance):
    """Whoever sees it rise reads the counters of that scan: modification times tell the order."""
    control.publish({"full_scans": 3, "pages_shared": 5, "pages_sharing": 7, "merges": 11})
    last = (instance.control / "full_scans").stat().st_mtime_ns
    for path in (instance.control / "pages_sharing", instance.stats / "merges"):
        assert path.stat().st_mtime_ns <= last
        assert int(path.read_text()) in (7, 11)


def test_a_value_that_did_not_change_is_not_written_again(control, instance):
    control.publish({"pages_shared": 5})
    path = instance.control / "pages_shared"
    os.utime(path, ns=(0, 0))
    control.publish({"pages_shared": 5})
    assert path.stat().st_mtime_ns == 0
    control.publish({"pages_shared": 6})
    assert path.stat().st_mtime_ns != 0


def test_an_unknown_counter_is_an_error(control):
    with pytest.raises(KeyError):
        control.publish({"pages_imagined": 1})


@pytest.mark.parametrize("text", ["1", "1\n", "01\n"])
def test_a_store_by_truncation_is_taken_and_ends_in_a_newline(control, plain, instance, stores, text):
    path = instance.control / "run"
    inode = path.stat().st_ino
    path.write_text(text)
    take_events(plain)
    assert stores.taken == [("run", 1)]
    assert control["run"] == 1
    assert shown(path) == b"1\n"
    assert path.stat().st_ino == inode


def test_a_store_through_a_held_descriptor_is_taken(plain, instance, stores):
    held = os.open(instance.control / "pages_to_scan", os.O_RDWR)
    for text in (b"12345\n", b"6\n", b"789\n"):
        os.pwrite(held, text, 0)
        take_events(plain)
        assert int(os.pread(held, 4096, 0)) == int(text)
    os.close(held)
    assert stores.taken == [("pages_to_scan", n) for n in (12345, 6, 789)]


def test_what_was_read_can_be_stored_again(plain, instance, stores):
    path = instance.control / "pages_to_scan"
    before = path.read_text()
    path.write_text("17\n")
    take_events(plain)
    path.write_text(before)
    take_events(plain)
    assert stores.taken == [("pages_to_scan", 17), ("pages_to_scan", 100)]


def test_a_store_longer_than_a_value_is_cut(plain, instance, stores):
    path = instance.control / "sleep_millisecs"
    path.write_text("7\n" + "x" * 9999)
    take_events(plain)
    assert stores.taken == [("sleep_millisecs", 7)]
    assert shown(path) == b"7\n\n"


def test_the_same_value_is_no_store(plain, instance, stores):
    path = instance.control / "run"
    path.write_text("0\n")
    take_events(plain)
    assert stores.taken == []
    assert shown(path) == b"0\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run", "3"),
        ("run", "-1\n"),
        ("max_page_sharing", "1\n"),
        ("sleep_millisecs", "junk"),
        ("use_zero_pages", "2"),
    ],
)
def test_a_bad_store_is_put_back_and_logged(plain, instance, stores, caplog, name, text):
    path = instance.control / name
    before = shown(path)
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        take_events(plain)
    assert stores.taken == []
    assert shown(path) == before
    [record] = caplog.records
    for part in (name, repr(text.rstrip("\n")), "must be"):
        assert part in record.getMessage()


@pytest.mark.parametrize("content", [b"", b"\n", b"\0\0\0\0", b"\xff\xfe", b"   \n"])
def test_junk_is_put_back(plain, instance, stores, content):
    path = instance.control / "run"
    path.write_bytes(content)
    take_events(plain)
    assert stores.taken == []
    assert shown(path) == b"0\n"


def test_an_empty_file_waits_for_its_writer(plain, instance, stores, caplog):
    path = instance.control / "run"
    with path.open("w") as file:
        take_events(plain)
        assert shown(path) == b""
        file.write("1\n")
    take_events(plain)
    assert stores.taken == [("run", 1)]
    assert caplog.records == []


@pytest.mark.parametrize("refusal", [OSError(errno.EBUSY, "not now"), KsmError(errno.EINVAL, "not now")])
def test_a_refused_store_is_put_back_and_logged(control, plain, instance, stores, caplog, refusal):
    stores.refusal = refusal
    path = instance.control / "max_page_sharing"
    path.write_text("17\n")
    take_events(plain)
    assert stores.taken == [("max_page_sharing", 17)]
    assert control["max_page_sharing"] == 256
    assert int(path.read_text()) == 256
    assert "max_page_sharing" in caplog.text
    assert "not now" in caplog.text


def test_a_refusal_may_choose_a_third_value(instance):
    """As a run=2 that fails, which leaves 0."""

    def fail_to_unmerge(name: str, value: int) -> None:
        if value == 2:
            control.set("run", 0)
            raise OSError(errno.ENOMEM, "no room to unmerge")

    control = control_directory(instance, fail_to_unmerge)
    plain = PlainFiles(control)
    path = instance.control / "run"
    for text, value in (("1\n", 1), ("2\n", 0)):
        path.write_text(text)
        take_events(plain)
        assert control["run"] == value
        assert int(path.read_text()) == value
    plain.close()
    control.close()


def test_ksmds_own_store_is_shown_and_not_taken_for_a_clients(control, plain, instance, stores):
    control.set("run", 2)
    take_events(plain)
    assert int((instance.control / "run").read_text()) == 2
    assert stores.taken == []


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_lost_tunable_is_made_again_and_works(plain, instance, stores, caplog, how):
    path = instance.control / "run"
    if how == "removed":
        path.unlink()
    elif how == "renamed":
        path.rename(instance.control / "elsewhere")
    else:
        other = instance.control / "other"
        other.write_text("1\n")
        other.rename(path)
    take_events(plain)
    assert int(path.read_text()) == 0
    assert "run" in caplog.text
    path.write_text("1\n")
    take_events(plain)
    assert stores.taken == [("run", 1)]


def test_a_change_of_mode_is_no_loss(plain, instance, caplog):
    path = instance.control / "run"
    inode = path.stat().st_ino
    path.chmod(0o600)
    take_events(plain)
    assert path.stat().st_ino == inode
    assert caplog.records == []
