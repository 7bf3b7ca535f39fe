"""Events: off they cost nothing, on they are enough to replay what the scans did."""

import os
import random
import resource

import pytest

import ksmemu
from ksmemu.ksmd.events import ADDED, FIELDS
from tests.support import crew, procmaps
from tests.support.books import Member, wait_at_rest
from tests.support.engines import OwnCrew
from tests.support.processes import Worker, WorkerError
from tests.support.procmaps import PAGE
from tests.support.replay import ENABLE, NO_FRAME, TRACE, events_of, replay, switch
from tests.support.waiting import wait_until

FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 3}
NR_PAGES, NR_MEMBERS, NR_CONTENTS = 23, 3, 5
NR_ROUNDS, NR_ACTS = 5, 11
KINDS = [*["put"] * 5, *["byte"] * 2, *["advise"] * 3, "discard", "unmerge"]


@pytest.fixture
def member_of():
    """Start a worker with one advised space: member_of(ksmd)."""
    started = []

    def start(ksmd):
        started.append(Worker(ksmd.directory))
        return Member.join(started[-1], NR_PAGES)

    yield start
    for worker in started:
        worker.close()


def frames_shown(members):
    """Return (mm, page) -> frame as the mappings say; members by the number of their space."""
    shown = {}
    for mm, member in members.items():
        pid, start, end = member.space
        for mapping in procmaps.mappings(pid, start, end):
            first = (mapping.start - start) // PAGE
            if "s" in mapping.perms or mapping.perms.startswith("---"):
                continue
            for page in range(mapping.pages):
                frame = mapping.offset // PAGE + page if mapping.inode else NO_FRAME
                shown[mm, first + page] = frame
    return shown


class Workload:
    """Random acts of some members, the same for the same seed."""

    def __init__(self, ksmd, member_of, seed, kinds=KINDS):
        self.ksmd, self._member_of = ksmd, member_of
        self.random = random.Random(seed)
        self._kinds = kinds
        self.members = {}
        self._nr_spaces = 0
        for _ in range(NR_MEMBERS):
            self._join()

    def _join(self):
        self._nr_spaces += 1
        self.members[self._nr_spaces] = self._member_of(self.ksmd)

    def act(self):
        choose = self.random
        member = self.members[choose.choice(sorted(self.members))]
        first = choose.randrange(NR_PAGES)
        nr = choose.randint(1, NR_PAGES - first)
        match choose.choice(self._kinds):
            case "put":
                some = [choose.randrange(NR_CONTENTS) for _ in range(nr)]
                member.call(crew.put, first, choose.choice([some, some[:1] * nr]))
            case "byte":
                member.call(crew.put_byte, first, nr, 1777, choose.randint(0, 1))
            case "advise":
                which = choose.choice([ksmemu.MADV_MERGEABLE, ksmemu.MADV_UNMERGEABLE])
                member.call(crew.advise, first, nr, which)
            case "discard":
                member.call(OwnCrew.discard, first, nr)
            case "unmerge":
                self.ksmd.write("run", 2)
                self.ksmd.write("run", 1)

    def kill_one(self):
        mm = self.random.choice(sorted(self.members))
        self.members.pop(mm).worker.kill()
        wait_until(lambda: self.ksmd.read("workers") < NR_MEMBERS, what="the death")
        self._join()

    def rest(self):
        wait_at_rest(self.ksmd)
        self.ksmd.write("run", 0)

    def go_on(self):
        self.ksmd.write("run", 1)


def told_by(events):
    """Return what the events alone say."""
    told = replay(events)
    return {
        "frames": told.shows,
        "spaces": {mm: (s.pid, s.start, s.start + s.nr_pages * PAGE) for mm, s in told.spaces.items()},
        "pages_shared": told.pages_shared(),
        "pages_sharing": told.pages_sharing(),
        "ksm_zero_pages": told.zero_pages(),
        "merges": sum(scan.merges for scan in told.scans),
        "full_scans": told.scans[-1].seq + 1,
    }


def found(workload):
    """Return the same, as mappings and counters say."""
    counters = workload.ksmd.counters() | workload.ksmd.stats()
    return {
        "frames": frames_shown(workload.members),
        "spaces": {mm: member.space for mm, member in workload.members.items()},
        **{name: counters[name] for name in ("pages_shared", "pages_sharing", "ksm_zero_pages", "merges")},
        "full_scans": counters["full_scans"],
    }


def test_a_replay_shows_what_the_mappings_show(start_ksmd, member_of):
    ksmd = start_ksmd(events=True, max_page_sharing=3, use_zero_pages=1, **FAST)
    workload = Workload(ksmd, member_of, seed=2009)
    for round_ in range(NR_ROUNDS):
        for _ in range(NR_ACTS):
            workload.act()
        if round_ % 2 == 1:
            workload.kill_one()
        workload.rest()
        assert told_by(events_of(ksmd)) == found(workload)
        workload.go_on()
    names = {event["event"] for event in events_of(ksmd)}
    assert names == FIELDS.keys() - {"ksm_advisor"}


def test_any_line_that_is_missing_would_be_noticed(start_ksmd, member_of):
    """But for refusals, which change nothing, the end of the last scan, and of one before a run=2."""
    ksmd = start_ksmd(events=True, max_page_sharing=3, use_zero_pages=1, **FAST)
    workload = Workload(ksmd, member_of, seed=2010, kinds=KINDS[:-1])
    for _ in range(NR_ACTS):
        workload.act()
    workload.kill_one()
    workload.rest()
    events = [event for event in events_of(ksmd) if not event.get("err")]
    facts = found(workload)
    assert told_by(events) == facts
    without = (events[:n] + events[n + 1 :] for n in range(len(events) - 1))
    unnoticed = [event for event, rest in zip(events, without, strict=False) if is_consistent(rest, facts)]
    assert unnoticed == []


def is_consistent(events, facts):
    try:
        return told_by(events) == facts
    except ValueError:
        return False


def test_events_are_off_until_they_are_enabled(start_ksmd, member_of):
    ksmd = start_ksmd(**FAST)
    member = member_of(ksmd)
    member.call(crew.put, 0, [1, 2] * 11)
    ksmd.wait_full_scans(5)
    assert (ksmd.directory / ENABLE).read_text().rstrip() == "0"
    assert not (ksmd.directory / TRACE).exists()
    assert switch(ksmd, 1) == "1"
    ksmd.wait_full_scans(3)
    member.call(crew.put, 0, [3])
    ksmd.wait_full_scans(3)
    assert switch(ksmd, 0) == "0"
    events = events_of(ksmd)
    ksmd.wait_full_scans(3)
    assert events_of(ksmd) == events
    assert {"ksm_start_scan", "ksm_stop_scan", "ksm_remove_rmap_item"} == {e["event"] for e in events}


def all_that_can_be_told(ksmd, member_of):
    """Merge, write, unmerge, close and kill; return when ksmd has seen it."""
    members = [member_of(ksmd) for _ in range(3)]
    for member in members:
        member.call(crew.put, 0, [0, *range(1, 13), 1])
    wait_at_rest(ksmd)
    members[0].call(crew.put, 3, [17, 18])
    members[1].call(crew.advise, 0, 5, ksmemu.MADV_UNMERGEABLE)
    wait_at_rest(ksmd)
    members[0].call(crew.close_space)
    members[1].worker.kill()
    wait_until(lambda: ksmd.read("spaces") == 1, what="the ends")
    ksmd.write("run", 2)


BROKEN = {"broken": "events", "module": "tests.support.ksmd_main"}


def test_off_no_event_is_gathered(start_ksmd, member_of):
    """In this ksmd whatever gathers an event ends ksmd."""
    ksmd = start_ksmd(**BROKEN, **FAST)
    all_that_can_be_told(ksmd, member_of)
    assert ksmd.read("pages_shared") == 0
    assert ksmd.read("merges") > 23


def test_it_would_be_noticed_if_an_event_was_gathered(start_ksmd, member_of, tmp_path):
    (tmp_path / "ksmd0").mkdir()  # where ksmd makes it, it removes it with its log
    ksmd = start_ksmd(**BROKEN, **FAST)
    (ksmd.directory / ENABLE).write_text("1\n")
    with pytest.raises((ksmemu.KsmError, WorkerError)):
        all_that_can_be_told(ksmd, member_of)
    log = ksmd.directory / "ksmd.log"
    wait_until(lambda: "an event was gathered" in log.read_text(), what="the last words of ksmd")


def test_turned_on_late_events_know_which_frames_are_shared(start_ksmd, member_of):
    ksmd = start_ksmd(**FAST)
    member = member_of(ksmd)
    member.call(crew.put, 0, [1, 1, 2, 2])
    wait_at_rest(ksmd)
    switch(ksmd, 1)
    member.call(crew.put, 4, [1])
    wait_at_rest(ksmd)  # advice makes an order stale that is under way: it would be refused, and tried again
    member.call(crew.advise, 2, 2, ksmemu.MADV_UNMERGEABLE)
    wait_until(lambda: (ksmd.read("pages_shared"), ksmd.read("pages_sharing")) == (1, 2), what="the change")
    ksmd.write("run", 0)
    events = events_of(ksmd)
    merges = [event["ksm_page"] for event in events if event["event"] == "ksm_merge_with_ksm_page"]
    gone = [event["event"] for event in events if "remove" in event["event"]]
    assert merges == [True]
    assert gone == ["ksm_remove_rmap_item"] * 2 + ["ksm_remove_ksm_page"]


def test_turning_on_begins_an_empty_trace(start_ksmd, member_of):
    ksmd = start_ksmd(events=True, **FAST)
    member_of(ksmd)
    ksmd.wait_full_scans(3)
    switch(ksmd, 0)
    assert "ksm_enter" in {event["event"] for event in events_of(ksmd)}
    switch(ksmd, 1)
    ksmd.wait_full_scans(3)
    switch(ksmd, 0)
    assert {"ksm_start_scan", "ksm_stop_scan"} == {event["event"] for event in events_of(ksmd)}


def test_each_line_has_name_time_and_fields_in_order(start_ksmd, member_of):
    ksmd = start_ksmd(events=True, advisor_mode=1, run=1, sleep_millisecs=3)
    member_of(ksmd).call(crew.put, 0, [1, 1])
    wait_until(lambda: ksmd.read("pages_sharing") == 1, what="merging")
    ksmd.wait_full_scans(1)
    ksmd.write("run", 0)
    events = events_of(ksmd)
    times = [event["ts"] for event in events]
    assert times == sorted(times)
    for event in events:
        name = event["event"]
        assert tuple(event) == ("event", "ts", *FIELDS[name], *ADDED.get(name, ()))
    assert "ksm_advisor" in {event["event"] for event in events}
    # As in the kernel, the advisor is done when the scan ends.
    names = [event["event"] for event in events]
    assert names[names.index("ksm_advisor") + 1] == "ksm_stop_scan"


@pytest.mark.parametrize("text", ["2", "-1", "on", ""])
def test_enable_takes_0_and_1_only(ksmd, text):
    assert switch(ksmd, text) == "0"
    assert "enable: store of" in (ksmd.directory / "ksmd.log").read_text()


def test_a_trace_that_cannot_be_made_is_a_refused_store(ksmd):
    (ksmd.directory / TRACE).mkdir()
    assert switch(ksmd, 1) == "0"
    assert "enable: store of '1' refused" in (ksmd.directory / "ksmd.log").read_text()


def test_a_full_disk_ends_the_events_and_not_ksmd(start_ksmd, member_of):
    """A limit of file size stands for the disk: it cuts a write in the middle as a full disk does."""
    ksmd = start_ksmd(events=True, **{**FAST, "sleep_millisecs": 0})
    limit = 64 << 10
    member = member_of(ksmd)
    resource.prlimit(ksmd.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    member.call(crew.put, 0, [1, 1])
    wait_until(lambda: (ksmd.directory / ENABLE).read_text().rstrip() == "0", what="the end of events")
    assert events_of(ksmd), "half a line"
    assert limit - 512 < os.stat(ksmd.directory / TRACE).st_size <= limit
    ksmd.wait_full_scans(3)
    assert ksmd.read("pages_sharing") == 1
    assert (ksmd.directory / "ksmd.log").read_text().count("events are off") == 1
