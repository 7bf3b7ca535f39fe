"""Security domains by label: equal pages merge inside one, and never with those of another."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ksmemu import MADV_MERGEABLE, AddressSpace
from ksmemu.cli import commands
from ksmemu.control.reasons import Reason
from tests.support import books, crew, domains, explained, procmaps, replay
from tests.support.books import Member
from tests.support.pages import ZEROS, content
from tests.support.processes import Worker
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

NR_PAGES = 23
FILLED = list(range(1, NR_PAGES + 1))
UID = os.geteuid()
FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1}


@pytest.fixture
def memory():
    """Make advised spaces of this process, filled with these contents: memory(ksmd, label, contents)."""
    made = []

    def make(ksmd, label, numbers=FILLED):
        space = AddressSpace(len(numbers) * PAGE, instance=ksmd.directory, domain=label)
        made.append(space)
        space.mmap(space.size, space.start)
        space.madvise(space.start, space.size, MADV_MERGEABLE)
        for page, number in enumerate(numbers):
            space.write(space.start + page * PAGE, content(number) if number else ZEROS)
        return space

    yield make
    for space in made:
        space.close()


@pytest.fixture
def members_of(request):
    """Start workers, each with a filled space: members_of(ksmd, label, number of them)."""
    started = []

    def start(ksmd, label, number):
        there = []
        for _ in range(number):
            started.append(Worker(ksmd.directory))
            there.append(Member.join(started[-1], NR_PAGES, label))
            there[-1].call(crew.put, 0, FILLED)
        return there

    yield start
    for worker in started:
        worker.close()


def only_within(ksmd, members_of):
    members = {f"{UID}": members_of(ksmd, "", 2), f"{UID}-web": members_of(ksmd, "web", 3)}
    members[f"{UID}-db.1_x"] = members_of(ksmd, "db.1_x", 1)
    wait_until(lambda: ksmd.read("pages_sharing") >= 3 * NR_PAGES, what="merging")
    ksmd.wait_full_scans(3)
    ksmd.write("run", 0)
    assert ksmd.read("pages_sharing") == 3 * NR_PAGES
    domains.check(ksmd, members)
    for there in members.values():
        assert all(member.call(crew.differing, 0, FILLED) == [] for member in there)


def test_pages_merge_inside_a_domain_and_the_books_are_right_in_each(ksmd, members_of):
    only_within(ksmd, members_of)


def test_it_would_be_noticed_if_domains_were_not_kept_apart(start_ksmd, members_of):
    ksmd = start_ksmd(broken="domain", module="tests.support.ksmd_main", **FAST)
    with pytest.raises(AssertionError):
        only_within(ksmd, members_of)


def test_a_domain_goes_with_its_last_worker_and_what_it_counted_stays(ksmd, memory):
    twins = [memory(ksmd, "a") for _ in range(2)]
    wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES, what="merging")
    assert domains.names(ksmd) == {f"{UID}-a"}
    for twin in twins:
        twin.close()
    wait_until(lambda: domains.names(ksmd) == set(), what="the end of the domain")
    assert ksmd.read("merges") == 2 * NR_PAGES
    figures = ("workers", "spaces", "pool_bytes")
    wait_until(lambda: not any(ksmd.read(name) for name in figures), what="the figures after it")
    held = procmaps.descriptors(ksmd.pid).values()
    assert not [what for what in held if "/dev/shm" in what or "memfd" in what]
    log = (ksmd.directory / "ksmd.log").read_text()
    assert log.count(f"domain {UID}-a begins") == log.count(f"domain {UID}-a ends") == 1
    memory(ksmd, "a")
    wait_until(lambda: domains.names(ksmd) == {f"{UID}-a"}, what="the domain to come again")
    assert ksmd.read("merges") >= 2 * NR_PAGES


def test_a_process_in_two_domains_has_one_sum_and_is_told_of_both(ksmd, memory):
    for label in ("x", "x", "y"):
        memory(ksmd, label)
    wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES, what="merging")
    books.wait_written(ksmd)
    wait_until(lambda: ksmd.read("pages_unshared") == NR_PAGES, what="the others to wait")
    figures = (ksmd.directory / f"proc/{os.getpid()}/ksm_merging_pages").read_text()
    assert int(figures) == 2 * NR_PAGES
    workers = explained.ask(ksmd, os.getpid())["workers"]
    totals = {worker["domain"]: worker["totals"] for worker in workers}
    assert totals == {f"{UID}-x": {"merged": 2 * NR_PAGES}, f"{UID}-y": {"other domain": NR_PAGES}}
    assert ksmd.read("workers") == 2


def test_explain_names_the_domain_and_what_to_do(ksmd, memory):
    memory(ksmd, "left", [1, 2, 3])
    space = memory(ksmd, "right", [3, 4, 5])
    wait_until(lambda: ksmd.read("pages_unshared") == 6, what="all to wait")
    assert explained.ask(ksmd, os.getpid(), space.start)["workers"][0]["totals"] == {
        Reason.UNIQUE.words: 2,
        Reason.OTHER_DOMAIN.words: 1,
    }
    said = CliRunner().invoke(commands, ["explain", "--dir", str(ksmd.directory), str(os.getpid())]).output
    assert f"pid {os.getpid()} in {UID}-right: unique 2 (8.0 KiB), other domain 1 (4.0 KiB)" in said
    assert "AddressSpace(domain=...)" in said


def test_what_is_stored_holds_for_all_domains_and_for_those_that_come(ksmd, memory):
    memory(ksmd, "a", [0] * 7)
    ksmd.write("use_zero_pages", 1)
    memory(ksmd, "b", [0] * 11)
    wait_until(lambda: ksmd.read("ksm_zero_pages") == 18, what="the zero page")
    ksmd.write("use_zero_pages", 0)
    ksmd.write("run", 2)
    wait_until(lambda: ksmd.read("ksm_zero_pages") == 0, what="unmerging")
    assert ksmd.read("full_scans") == 0


def test_a_full_scan_passes_every_domain_once(start_stepped, memory):
    stepped = start_stepped(smart_scan=0)
    for label, number in (("a", 7), ("b", 11), ("c", 13)):
        memory(stepped, label, [0] * number)
    stepped.scan()
    for _ in range(3):
        before = stepped.read("pages_scanned")
        stepped.scan()
        assert stepped.read("pages_scanned") - before == 7 + 11 + 13
    assert [domains.read(stepped, f"{UID}-{label}", "pages_sharing") for label in "abc"] == [6, 10, 12]


def test_events_of_two_domains_are_told_apart(start_ksmd, memory):
    ksmd = start_ksmd(events=True, **FAST)
    spaces = [memory(ksmd, label) for label in ("a", "a", "b", "b")]
    wait_until(lambda: ksmd.read("pages_sharing") == 2 * NR_PAGES, what="merging")
    ksmd.write("run", 0)
    told = replay.replay(replay.events_of(ksmd))
    assert len(told.shows) == len(spaces) * NR_PAGES
    assert sorted(told.sharers.values()) == [2] * 2 * NR_PAGES


def test_the_environment_gives_the_label_that_nobody_names(monkeypatch):
    monkeypatch.setenv("KSMEMU_DOMAIN", "from-outside")
    with AddressSpace(PAGE) as space, AddressSpace(PAGE, domain="") as none:
        assert (space.domain, none.domain) == ("from-outside", "")
    monkeypatch.setenv("KSMEMU_DOMAIN", "no label")
    with pytest.raises(ValueError, match="no label"):
        AddressSpace(PAGE)


@pytest.mark.parametrize("label", ["a b", "a/b", "..\0", "ü", "x" * 65, "a\n"])
def test_what_is_no_label_is_refused_before_anything_is_made(label):
    with pytest.raises(ValueError, match="domain"):
        AddressSpace(PAGE, domain=label)


def test_an_image_worker_takes_a_label(ksmd, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(content(7) * 3)
    command = [sys.executable, "-m", "workers.image", "--dir", ksmd.directory, "--domain", "guests", image]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout.readline().startswith(b"ready")
        wait_until(lambda: domains.names(ksmd) == {f"{UID}-guests"}, what="its domain")
        worker.communicate(b"quit\n")
    assert CliRunner().invoke(commands, ["exec", "--domain", "a b", "true"]).exit_code == 2


def test_each_domain_has_a_pool_of_its_own(ksmd, memory):
    spaces = [memory(ksmd, label) for label in ("a", "a", "b", "b")]
    wait_until(lambda: ksmd.read("pages_sharing") == 2 * NR_PAGES, what="merging")
    pools = [os.fstat(crew.pool_descriptor(space)).st_ino for space in spaces]
    assert pools[0] == pools[1] != pools[2] == pools[3]
