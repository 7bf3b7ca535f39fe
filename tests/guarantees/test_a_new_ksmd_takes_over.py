"""A ksmd dies, workers go on; the next one at the same place finds everything as it is (takeover)."""

import contextlib
import errno
import os
import signal

import pytest

import ksmemu
from ksmemu import Ksmd
from ksmemu.control.explain import explain
from ksmemu.instance import Instance
from tests.support import books, crew, domains, procmaps
from tests.support.books import Member
from tests.support.waiting import wait_until

NR_PAGES = 61
CONTENTS = [0, *range(1, NR_PAGES)]
FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1, "smart_scan": 0}


@pytest.fixture
def next_ksmd():
    """Kill a ksmd and start another one in its directory: next_ksmd(ksmd, run=1, …)."""
    started = []

    def start(ksmd, **tunables):
        kill(ksmd)
        started.append(Ksmd(ksmd.directory, **{**FAST, **tunables}))
        return started[-1]

    yield start
    for ksmd in started:
        ksmd.close()


def kill(ksmd):
    with contextlib.suppress(ProcessLookupError):
        os.kill(ksmd.pid, signal.SIGKILL)
    ksmd.close()


def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: set(procmaps.thread_states(pid)) == {"T"}, what="the stop")


def merged(crew_of, ksmd, nr=2, contents=CONTENTS):
    """Members that hold the same, merged."""
    members = [Member.join(crew_of(ksmd), len(contents)) for _ in range(nr)]
    for member in members:
        member.call(crew.put, 0, contents)
    wait_until(lambda: ksmd.read("pages_sharing") == (nr - 1) * len(contents), what="merging")
    books.wait_at_rest(ksmd)
    return members


def assert_intact(members, contents=CONTENTS):
    for member in members:
        assert member.call(crew.differing, 0, contents) == []


def test_everything_stays_merged_and_the_books_are_right(start_ksmd, next_ksmd, crew_of):
    ksmd = start_ksmd(**FAST)
    members = merged(crew_of, ksmd, 3)
    before, figures = books.recount(members), ksmd.counters()
    ksmd = next_ksmd(ksmd, run=0)
    assert books.check(ksmd, members).frames == before.frames
    assert ksmd.read("merges") == 0
    assert {n: figures[n] for n in ("pages_shared", "pages_sharing")} == {
        n: ksmd.read(n) for n in ("pages_shared", "pages_sharing")
    }
    ksmd.write("run", 1)
    books.wait_at_rest(ksmd)
    found = books.check(ksmd, members)
    assert found.frames == before.frames
    books.check_tracked(ksmd, members, found)
    assert_intact(members)


def test_each_domain_goes_on_with_its_own_pool(start_ksmd, next_ksmd, crew_of):
    ksmd = start_ksmd(**FAST)
    contents, members = range(1, NR_PAGES + 1), {}
    for label in ("a", "b", "a", "b"):
        member = Member.join(crew_of(ksmd), NR_PAGES, label)
        member.call(crew.put, 0, contents)
        members.setdefault(member.domain, []).append(member)
    wait_until(lambda: ksmd.read("pages_sharing") == 2 * NR_PAGES, what="merging")
    before = {domain: books.recount(there).frames for domain, there in members.items()}
    ksmd = next_ksmd(ksmd)
    ksmd.wait_full_scans(3)
    domains.check(ksmd, members)
    assert {domain: books.recount(there).frames for domain, there in members.items()} == before
    for there in members.values():
        assert_intact(there, contents)


def test_in_secure_mode_what_is_alone_keeps_its_frame_too(start_ksmd, next_ksmd, crew_of):
    ksmd = start_ksmd(secure=True, **FAST)
    members = merged(crew_of, ksmd)
    for number, member in enumerate(members):
        member.call(crew.put, 0, range(1000 * number + 500, 1000 * number + 511))
    books.wait_at_rest(ksmd)
    before, alone = books.check(ksmd, members, secure=True), ksmd.read("pages_unshared")
    assert alone == 22
    ksmd = next_ksmd(ksmd, secure=True, run=0)
    wait_until(lambda: ksmd.read("pages_unshared") == alone, what="the takeover")
    assert books.check(ksmd, members, secure=True).frames == before.frames


def test_new_pages_merge_with_frames_of_the_ksmd_before(start_ksmd, next_ksmd, crew_of):
    ksmd = start_ksmd(**FAST)
    members = merged(crew_of, ksmd)
    ksmd = next_ksmd(ksmd)
    members += [Member.join(crew_of(ksmd), NR_PAGES)]
    members[-1].call(crew.put, 0, CONTENTS)
    wait_until(lambda: ksmd.read("pages_sharing") == 2 * NR_PAGES, what="merging")
    books.wait_at_rest(ksmd)
    assert ksmd.read("pages_shared") == NR_PAGES
    books.check(ksmd, members)


def test_what_was_written_while_there_was_no_ksmd_comes_home(start_ksmd, next_ksmd, crew_of):
    ksmd = start_ksmd(**FAST)
    members = merged(crew_of, ksmd)
    kill(ksmd)
    members[0].call(crew.put_byte, 0, 7, 1777, 99)
    assert_intact(members[1:])
    ksmd = next_ksmd(ksmd)
    books.wait_at_rest(ksmd)
    assert ksmd.read("pages_rehomed") == 7
    assert books.check(ksmd, members).broken == 0
    assert members[0].call(crew.bytes_at, 0, 7, 1777) == [99] * 7
    assert_intact(members[1:])


def test_what_nobody_maps_any_more_is_freed(start_ksmd, next_ksmd, crew_of):
    ksmd = start_ksmd(**FAST)
    contents = range(1, NR_PAGES + 1)
    left = merged(crew_of, ksmd, 2, contents)
    gone = [Member.join(crew_of(ksmd), 31) for _ in range(2)]
    for member in gone:
        member.call(crew.put, 0, range(1000, 1031))
    wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES + 31, what="merging")
    books.wait_written(ksmd)
    held = ksmd.read("pool_bytes")
    kill(ksmd)
    left[0].call(crew.unmap, 0, 5)
    left[1].call(crew.unmap, 0, 7)
    for member in gone:
        member.worker.kill()
    ksmd = next_ksmd(ksmd, run=0)
    assert held - ksmd.read("pool_bytes") == (31 + 5) * procmaps.PAGE
    books.check(ksmd, left)


def a_stopped_worker_joins_later(ksmd, members, next_ksmd):
    """What only the stopped one shows is kept, although nobody who runs knows it."""
    late, other = members
    other.call(crew.unmap, 0, 11)
    stop(late.worker.pid)
    ksmd = next_ksmd(ksmd)
    ksmd.wait_full_scans(3)
    os.kill(late.worker.pid, signal.SIGCONT)
    wait_until(lambda: ksmd.read("workers") == 2, what="the late one")
    assert late.call(crew.differing, 0, CONTENTS) == []
    assert_intact([late])
    books.wait_at_rest(ksmd)
    assert ksmd.read("merges") == 0
    books.check(ksmd, members)


def test_a_worker_that_was_stopped_joins_later(start_ksmd, next_ksmd, crew_of):
    ksmd = start_ksmd(**FAST)
    a_stopped_worker_joins_later(ksmd, merged(crew_of, ksmd), next_ksmd)


def test_it_would_be_noticed_if_frames_of_the_late_were_freed(start_ksmd, next_ksmd, crew_of, monkeypatch):
    ksmd = start_ksmd(**FAST)
    members = merged(crew_of, ksmd)
    monkeypatch.setattr("ksmemu.control.launch.MODULE", "tests.support.ksmd_main")
    monkeypatch.setenv("KSMEMU_BREAK", "holders")
    with pytest.raises(AssertionError):
        a_stopped_worker_joins_later(ksmd, members, next_ksmd)


def test_who_comes_too_late_for_his_pool_unmerges_and_merges_again(start_ksmd, next_ksmd, crew_of):
    """All who know the pool are stopped, and a newcomer has got another one."""
    ksmd = start_ksmd(**FAST)
    late = merged(crew_of, ksmd)
    for member in late:
        stop(member.worker.pid)
    ksmd = next_ksmd(ksmd)
    newcomer = Member.join(crew_of(ksmd), NR_PAGES)
    newcomer.call(crew.put, 0, CONTENTS)
    for member in late:
        os.kill(member.worker.pid, signal.SIGCONT)
    members = [*late, newcomer]
    assert_intact(members)
    wait_until(lambda: ksmd.read("pages_sharing") == 2 * NR_PAGES, what="merging")
    books.wait_at_rest(ksmd)
    books.check(ksmd, members)
    assert_intact(members)


def test_what_an_orderly_end_leaves_is_taken_over_too(start_ksmd, next_ksmd, crew_of):
    ksmd = start_ksmd(**FAST)
    members = merged(crew_of, ksmd)
    ksmd.close()
    with Ksmd(ksmd.directory, **FAST) as ksmd:
        wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES, what="taking over")
        assert ksmd.read("merges") == 0
        books.check(ksmd, members)


def test_zeros_are_what_use_zero_pages_makes_of_them(start_ksmd, next_ksmd, crew_of):
    """The next ksmd may work otherwise; the pages show the zero page in any case."""
    ksmd = start_ksmd(**FAST, max_page_sharing=23)
    members = [Member.join(crew_of(ksmd), NR_PAGES) for _ in range(2)]
    for member in members:
        member.call(crew.put, 0, [0] * NR_PAGES)
    books.wait_at_rest(ksmd)
    ksmd = next_ksmd(ksmd, run=0, max_page_sharing=23)
    assert [ksmd.read(n) for n in ("pages_shared", "pages_sharing", "ksm_zero_pages")] == [
        -(-2 * NR_PAGES // 23),
        2 * NR_PAGES + 2 * NR_PAGES // -23,
        0,
    ]
    ksmd = next_ksmd(ksmd, run=0, use_zero_pages=1)
    assert [ksmd.read(n) for n in ("pages_shared", "ksm_zero_pages")] == [0, 2 * NR_PAGES]
    assert_intact(members, [0] * NR_PAGES)


def test_it_unmerges_what_the_ksmd_before_has_merged(start_ksmd, next_ksmd, crew_of):
    ksmd = start_ksmd(**FAST)
    members = merged(crew_of, ksmd)
    ksmd = next_ksmd(ksmd)
    ksmd.write("run", 2)
    found = books.check(ksmd, members)
    assert (found.merged, found.zero, ksmd.read("pool_bytes")) == (0, 0, 0)
    assert_intact(members)


def _bind_and_refuse(state):
    state.space.mbind(state.start, 7 * procmaps.PAGE, 3)
    state.space.madvise(state.start + 11 * procmaps.PAGE, 5 * procmaps.PAGE, ksmemu.MADV_UNMERGEABLE)


def test_it_knows_what_was_said_of_pages_besides(start_ksmd, next_ksmd, crew_of):
    """Nodes and refusals: pages of another node are none of ours, and explain names the refusal."""
    ksmd = start_ksmd(**FAST)
    one = Member.join(crew_of(ksmd), NR_PAGES)
    one.call(_bind_and_refuse)
    ksmd = next_ksmd(ksmd, merge_across_nodes=0)
    one.call(crew.put, 0, [5] * NR_PAGES)
    books.wait_at_rest(ksmd)
    assert (ksmd.read("pages_shared"), ksmd.read("pages_sharing")) == (2, NR_PAGES - 5 - 2)
    said = explain(Instance.resolve(ksmd.directory), one.worker.pid)
    assert said["workers"][0]["totals"] == {"merged": NR_PAGES - 5, "refused": 5}


def _advise_more(state):
    try:
        crew.open_space(state, 7)
    except OSError as error:
        return error.errno
    return 0


def test_without_a_ksmd_advice_is_refused_and_with_the_next_one_it_is_taken(start_ksmd, next_ksmd, crew_of):
    ksmd = start_ksmd(**FAST)
    members = merged(crew_of, ksmd)
    kill(ksmd)

    assert members[0].call(_advise_more) == errno.ENOTCONN
    ksmd = next_ksmd(ksmd)
    assert members[0].call(_advise_more) == 0


def test_the_rules_of_2009_are_taken_over(start_ksmd, crew_of):
    setup = {"run": 1, "pages_to_scan": 1_000_003, "sleep": 1000, "rfc2009": True}
    ksmd = start_ksmd(**setup)
    members = [Member.join(crew_of(ksmd), NR_PAGES) for _ in range(2)]
    for member in members:
        member.call(crew.put, 0, CONTENTS)
    wait_until(lambda: ksmd.read("pages_shared") == NR_PAGES, what="merging")
    members[0].call(crew.advise, 0, 7, ksmemu.MADV_UNMERGEABLE)
    wait_until(lambda: ksmd.read("pages_shared") == NR_PAGES - 7, what="forgetting")
    kill(ksmd)
    with Ksmd(ksmd.directory, **setup) as ksmd:
        assert ksmd.read("pages_shared") == NR_PAGES - 7
        assert_intact(members)


def test_a_worker_of_another_kind_of_ksmd_stays_by_itself(start_ksmd, next_ksmd, crew_of):
    """It keeps what is merged, and joins the next one of its own kind."""
    ksmd = start_ksmd(**FAST)
    members = merged(crew_of, ksmd)
    kill(ksmd)
    with Ksmd(ksmd.directory, run=1, rfc2009=True) as other:
        assert other.read("workers") == 0
        assert_intact(members)
    with Ksmd(ksmd.directory, **FAST) as ksmd:
        wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES, what="taking over")
        books.check(ksmd, members)
