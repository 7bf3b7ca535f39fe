"""`ksmemu explain`: each reason where it really holds, and the figures add up to the counters."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE, KsmError, wire
from ksmemu.control.reasons import Reason
from tests.support import crew
from tests.support.explained import ask, assert_adds_up, by_page, reasons, rows, totals
from tests.support.fakes import FakeWorker, connect
from tests.support.pages import content
from tests.support.processes import Worker
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

ME = os.getpid()


def merged_twins(stepped, memory, nr=7, **how):
    """Return two spaces of 23 pages, of which nr are merged in pairs."""
    pair = [memory(stepped, **how) for _ in range(2)]
    for one in pair:
        one.fill(range(nr))
    stepped.scan(2)
    return pair


# ---- one test a reason -----------------------------------------------------------------------------


def test_merged_with_how_many_share_a_frame_and_no_data_behind(stepped, memory):
    for one in (*merged_twins(stepped, memory), memory(stepped, advise=False)):
        one.write(13, content("once"))
    (first, second) = [row for row in rows(stepped) if row[2] == Reason.MERGED]
    assert first[1] - first[0] == second[1] - second[0] == 7 * PAGE
    assert first[3:] == second[3:] == [7, 2]
    stepped.scan(2)
    assert_adds_up(stepped)
    page = ask(stepped, ME, first[0] + 3 * PAGE + 5)["page"]
    assert page == {
        "address": first[0] + 3 * PAGE,
        "state": "MERGED",
        "age": 0,
        "skips": 0,
        "sharers": 2,
        "dups": [2],
        "compared": 0,
    }


def test_zero_page(start_stepped, memory):
    ksmd = start_stepped(use_zero_pages=1)
    one = memory(ksmd)
    one.fill_equal(range(5), bytes(PAGE))
    ksmd.scan(2)
    assert reasons(ksmd, one) == [Reason.ZERO_PAGE] * 5 + [Reason.NO_DATA] * 18
    assert_adds_up(ksmd)


def test_a_hole_between_pages_that_are_watched_is_no_data(stepped, memory):
    one = memory(stepped)
    one.fill([3, 5])
    stepped.scan(2)
    assert reasons(stepped, one)[2:7] == [Reason.NO_DATA, Reason.UNIQUE] * 2 + [Reason.NO_DATA]
    assert totals(stepped) == {Reason.UNIQUE: 2}


def test_not_advised_counts_ordinary_memory_too(stepped, memory):
    one = memory(stepped, advise=False)
    one.advise(first=7, nr=3)
    one.fill([0, 1, 2, 8, 22])
    one.space.munmap(one.at(11), 2 * PAGE)
    stepped.scan(2)
    assert [row[2:4] for row in rows(stepped)] == [
        [Reason.NOT_ADVISED, 3],
        [Reason.NO_DATA, 0],
        [Reason.UNIQUE, 1],
        [Reason.NO_DATA, 0],
        [Reason.NOT_ADVISED, 1],
    ]


def test_refused_for_a_range_before_and_after_the_space_is_known(stepped, memory):
    one = memory(stepped, advise=False)
    one.fill(range(5))
    one.advise(MADV_UNMERGEABLE, 0, 3)
    one.advise(first=7)
    one.fill(range(7, 23))
    one.advise(MADV_UNMERGEABLE, 11, 5)
    wanted = [Reason.REFUSED] * 3 + [Reason.NOT_ADVISED] * 4 + [Reason.NEW] * 4 + [Reason.REFUSED] * 5
    assert reasons(stepped, one) == wanted + [Reason.NEW] * 7
    assert totals(stepped)[Reason.REFUSED] == 8

    one.advise(MADV_MERGEABLE, 13, 2)
    assert reasons(stepped, one)[11:16] == [Reason.REFUSED] * 2 + [Reason.NEW] * 2 + [Reason.REFUSED]
    for first, nr in ((0, 2), (15, 1)):  # ordinary memory, and pages of the own object
        one.space.munmap(one.at(first), nr * PAGE)
        one.space.mmap(nr * PAGE, one.at(first))
    assert reasons(stepped, one)[:3] == [Reason.NOT_ADVISED] * 2 + [Reason.REFUSED]
    assert reasons(stepped, one)[15] is Reason.NOT_ADVISED


def turn_merging_off(_state):
    ksmemu.set_memory_merge(False)


def test_refused_by_the_process_as_a_whole(ksmd, start_worker):
    worker = start_worker()
    worker.call(crew.open_ordinary_space, 23)
    worker.call(crew.advise, 3, 5, MADV_MERGEABLE)
    worker.call(crew.put, 0, range(1, 24))
    assert totals(ksmd)[Reason.NOT_ADVISED] == 18
    worker.call(turn_merging_off)
    found = totals(ksmd)
    assert found[Reason.REFUSED] == 18
    assert Reason.NOT_ADVISED not in found


def test_new_until_a_scan_has_passed_then_volatile_then_unique(stepped, memory):
    one = memory(stepped)
    one.fill(range(5))
    seen = []
    for _ in range(3):
        seen += [set(reasons(stepped, one)[:5])]
        stepped.scan()
    assert seen == [{Reason.NEW}, {Reason.VOLATILE}, {Reason.UNIQUE}]
    assert_adds_up(stepped)


def test_looked_at_between_two_batches_of_a_scan(start_stepped, memory):
    ksmd = start_stepped(pages_to_scan=10)
    one = memory(ksmd)
    one.fill(range(23))
    for nr in (10, 20, 23, 33):
        ksmd.write("run", 1)
        wait_until(lambda n=nr: ksmd.read("pages_scanned") == n, what="a batch")
        ksmd.write("run", 0)
    assert reasons(ksmd, one) == [Reason.LOOKED_AT] * 10 + [Reason.VOLATILE] * 13
    assert_adds_up(ksmd)


def test_volatile_as_long_as_it_is_written(stepped, memory):
    one = memory(stepped)
    one.fill(range(7))
    for number in range(4):
        one.fill(range(3), number)
        stepped.scan()
    assert reasons(stepped, one)[:7] == [Reason.VOLATILE] * 3 + [Reason.UNIQUE] * 4
    assert_adds_up(stepped)


def test_unique_says_with_how_many_it_was_compared(stepped, memory):
    (one, _) = merged_twins(stepped, memory)
    one.fill([11, 12, 13], "unique")
    stepped.scan(2)
    assert reasons(stepped, one)[11:14] == [Reason.UNIQUE] * 3
    page = ask(stepped, ME, one.at(12))["page"]
    assert (page["state"], page["compared"], page["dups"]) == ("UNSTABLE", 14 + 2, [])


def test_unique_while_smart_scan_passes_it_over(start_stepped, memory):
    ksmd = start_stepped(smart_scan=1)
    one = memory(ksmd)
    one.fill(range(3))
    ksmd.scan(7)
    page = ask(ksmd, ME, one.at(2))["page"]
    assert (page["state"], page["age"], page["skips"]) == ("SKIPPED", 7, 1)
    assert reasons(ksmd, one)[:3] == [Reason.UNIQUE] * 3


def test_sharing_limit_with_the_frames_that_are_full(start_stepped, memory):
    ksmd = start_stepped(max_page_sharing=3)
    one = memory(ksmd)
    one.fill_equal(range(7), content("equal"))
    ksmd.scan(2)
    found = reasons(ksmd, one)[:7]
    assert sorted(found) == [Reason.MERGED] * 6 + [Reason.SHARING_LIMIT]
    assert_adds_up(ksmd)
    page = ask(ksmd, ME, one.at(found.index(Reason.SHARING_LIMIT)))["page"]
    assert (page["state"], page["dups"]) == ("UNSTABLE", [3, 3])


def test_other_node_whether_the_equal_page_waits_or_is_merged(start_stepped, memory):
    ksmd = start_stepped(merge_across_nodes=0)
    near, far, twin = (memory(ksmd, node=node) for node in (0, 5, 5))
    for one in (near, far):
        one.write(3, content("waits"))
    for one in (near, far, twin):
        one.write(11, content("merged"))
    near.write(17, content("unique"))
    ksmd.scan(2)
    assert [reasons(ksmd, near)[page] for page in (3, 11, 17)] == [
        Reason.OTHER_NODE,
        Reason.OTHER_NODE,
        Reason.UNIQUE,
    ]
    assert [reasons(ksmd, far)[page] for page in (3, 11)] == [Reason.OTHER_NODE, Reason.MERGED]
    assert_adds_up(ksmd)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [("run", 0, "run=0"), ("run", 2, "run=2"), ("pages_to_scan", 0, "pages_to_scan=0")],
)
def test_stopped_is_said_in_front_and_each_range_still_says_what_it_is(ksmd, memory, name, value, word):
    one = memory(ksmd)
    assert ask(ksmd)["stopped"] is None
    ksmd.write(name, value)
    one.fill(range(3))
    assert ask(ksmd)["stopped"] == word
    assert reasons(ksmd, one)[:4] == [Reason.NEW] * 3 + [Reason.NO_DATA]


@pytest.fixture
def pair(stepped):
    """Two workers of the ksmd that scans when it is told to."""
    with Worker(stepped.directory) as worker, Worker(stepped.directory) as twin:
        yield worker, twin
        worker.kill(signal.SIGCONT)


def test_being_merged_and_rehoming_while_the_process_is_stopped(stepped, pair):
    worker, twin = pair
    for one in pair:
        one.call(crew.open_space, 23)
        one.call(crew.put, 0, range(1, 8))
    stepped.scan()
    worker.kill(signal.SIGSTOP)
    stepped.scan()
    assert totals(stepped, worker.pid) == {Reason.BEING_MERGED: 7}
    (found,) = ask(stepped, worker.pid)["workers"]
    assert found["silent"] == "it does not answer"
    assert ask(stepped, twin.pid)["workers"][0]["silent"] is None
    worker.kill(signal.SIGCONT)
    wait_until(lambda: totals(stepped, worker.pid) == {Reason.MERGED: 7})

    worker.call(crew.put, 0, range(101, 104))
    worker.kill(signal.SIGSTOP)
    stepped.scan()
    assert totals(stepped, worker.pid) == {Reason.MERGED: 4, Reason.REHOMING: 3}


def test_a_worker_that_was_cut_off(ksmd):
    with FakeWorker(ksmd.directory) as fake:
        own = fake.own(content("fake"))
        fake.register(own, 1)
        fake.order.send(b"garbage")
        assert fake.is_cut_off()
        assert [worker["silent"] for worker in ask(ksmd)["workers"]] == ["it was cut off"]
        os.close(own)


# ---- what cannot be answered -----------------------------------------------------------------------


def test_a_question_about_what_is_not_known_is_refused(ksmd, memory):
    with pytest.raises(KsmError, match="no process 999999999"):
        ask(ksmd, 999999999)
    with pytest.raises(KsmError, match="never advised any, or joined another ksmd"):
        ask(ksmd, ME)
    one = memory(ksmd)
    with pytest.raises(KsmError, match="is in no address space"):
        ask(ksmd, ME, one.end)
    assert len(by_page(ksmd)) == one.nr_pages


def test_a_question_of_another_version_is_eproto(ksmd):
    with connect(ksmd.directory) as control:
        wire.send_control(control, {"explain": wire.VERSION + 1, "pid": None, "address": None})
        reply, fds = wire.receive_control(control)
    assert (reply["errno"], fds) == (errno.EPROTO, [])
    assert "version" in reply["text"]


def test_each_process_is_explained_by_itself(ksmd, start_worker, memory):
    mine, other = memory(ksmd), start_worker()
    mine.fill(range(3))
    _, start, end = other.call(crew.open_space, 11)
    assert list(by_page(ksmd, other.pid)) == list(range(start, end, PAGE))
    assert {worker["pid"] for worker in ask(ksmd)["workers"]} == {ME, other.pid}
    assert not any(worker["spaces"] for worker in ask(ksmd)["workers"])


# ---- the command line ------------------------------------------------------------------------------


def run(ksmd, *arguments):
    command = [sys.executable, "-m", "ksmemu", "explain", "--dir", ksmd.directory, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_says_it_for_all_for_one_and_for_a_page(stepped, memory):
    (one, _) = merged_twins(stepped, memory)
    assert run(stepped).stdout.splitlines()[:3] == [
        "nothing is scanned: run=0",
        "  ksmemu set run=1",
        f"pid {ME}: merged 14 (56.0 KiB)",
    ]
    shown = run(stepped, ME).stdout.splitlines()
    where = f"[{one.start:#x}, {one.at(7):#x}) (28.0 KiB)"
    assert [line.split()[-3:] for line in shown if line.startswith(where)] == [["merged", "x2", "7"]]
    assert max(map(len, shown)) <= 80
    for address in (hex(one.at(2) + 1), one.at(2)):
        lines = run(stepped, ME, address).stdout.splitlines()
        assert f"page {one.at(2):#x}: MERGED, 2 pages share its frame" in lines
        assert sum("[0x" in line for line in lines) == 1


def test_json_has_every_range_with_the_reason_in_words(stepped, memory):
    (one, _) = merged_twins(stepped, memory)
    found = json.loads(run(stepped, "--json", ME).stdout)
    assert found["stopped"] == "run=0"
    (worker,) = found["workers"]
    assert worker["totals"] == {"merged": 14}
    space = next(space for space in worker["spaces"] if space["start"] <= one.start < space["end"])
    assert space["ranges"] == [
        {"start": one.start, "end": one.at(7), "reason": "merged", "pages": 7, "sharers": 2},
        {"start": one.at(7), "end": one.end, "reason": "no data", "pages": 0, "sharers": 0},
    ]


def test_what_is_not_known_is_one_line_and_status_1(ksmd, memory):
    for arguments, part in (((ME,), f"pid {ME}"), ((999999999,), "no process 999999999")):
        ran = run(ksmd, *arguments)
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
        assert part in ran.stderr
    memory(ksmd)
    ran = run(ksmd, ME, "0x1000")
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
