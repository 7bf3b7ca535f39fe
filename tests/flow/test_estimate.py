"""What `ksmemu estimate` says beforehand is what merging then saves."""

import contextlib
import json
import mmap
import os
import subprocess
import sys
import threading
import tracemalloc
from operator import add

import numpy as np
import pytest

from ksmemu.estimate.fingerprint import GONE, Fingerprinter
from ksmemu.estimate.saving import saving
from ksmemu.estimate.source import open_file, open_process
from tests.support import books, machine, procmaps
from tests.support.images import ImageWorker
from tests.support.pages import content
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

SHARED = 0x5A17_C0DE_0000_0007
HUGE, MAP_HUGE = 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000
MADV_PAGEOUT = 21
"""Source: <asm-generic/mman-common.h>."""
LIMITS = (2, 3, 7, 256)
CONTENTS = [
    [0] * 23 + [*range(1, 40)] * 3 + [5] * 31,
    [*range(30, 50)] * 2 + [0] * 11 + [7] * 5 + [*range(1000, 1100)],
    [*range(2000, 2013)],
]
"""Of each image its pages, by the number of what they hold; 0: zeros. The last has nothing in common."""


def page(number):
    return content(number) if number else bytes(PAGE)


@pytest.fixture
def images(tmp_path):
    found = []
    for name, numbers in zip("abc", CONTENTS, strict=True):
        found.append(tmp_path / f"{name}.raw")
        found[-1].write_bytes(b"".join(map(page, numbers)))
    return found


def estimate(*arguments):
    command = [sys.executable, "-m", "ksmemu", "estimate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def figures(*arguments):
    ran = estimate("--json", *arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    return json.loads(ran.stdout)


def test_it_is_what_merging_saves(start_ksmd, images):
    """Image workers, under every limit, with and without use_zero_pages."""
    ksmd = start_ksmd(pages_to_scan=1_000_003, sleep_millisecs=1, smart_scan=0)
    with contextlib.ExitStack() as undo:
        for path in images:
            undo.enter_context(ImageWorker(ksmd.directory, path))
        for limit in LIMITS:
            said = figures("--max-page-sharing", limit, *images)["together"]
            with_zeros = (said["pages_shared"], said["pages_sharing"], said["zero_pages"])
            zeros = (said["zero_frames"], said["zeros_sharing"])
            assert _merged(ksmd, limit, use_zero_pages=1) == with_zeros
            assert _merged(ksmd, limit, use_zero_pages=0) == (*map(add, with_zeros, zeros), 0)
            assert said["saved_with_zeros_bytes"] == sum(with_zeros[1:]) * PAGE


def _merged(ksmd, limit, *, use_zero_pages):
    """What ksmd has merged, from nothing."""
    ksmd.write("run", 2)
    wait_until(lambda: ksmd.read("pages_shared") == ksmd.read("ksm_zero_pages") == 0, what="unmerged pages")
    ksmd.write("max_page_sharing", limit)
    ksmd.write("use_zero_pages", use_zero_pages)
    ksmd.write("run", 1)
    books.wait_at_rest(ksmd)
    return tuple(ksmd.read(name) for name in ("pages_shared", "pages_sharing", "ksm_zero_pages"))


def test_each_alone_is_what_it_would_save_alone(images):
    said = figures(*images)
    assert [one["name"] for one in said["each"]] == [path.name for path in images]
    for one, numbers in zip(said["each"], CONTENTS, strict=True):
        rest = [number for number in numbers if number]
        assert one["pages"] == len(numbers)
        assert (one["zero_pages"], one["distinct"]) == (numbers.count(0), len(set(rest)))
        assert one["pages_sharing"] == len(rest) - len(set(rest))
    assert said["together"]["pages"] == sum(map(len, CONTENTS))


def test_the_rest_of_a_page_counts_as_zeros(tmp_path):
    """As a worker has it that loads the image."""
    (tmp_path / "a").write_bytes(page(1) + b"end")
    (tmp_path / "b").write_bytes(b"end".ljust(PAGE, b"\0"))
    said = figures(tmp_path / "a", tmp_path / "b")["together"]
    assert (said["pages"], said["distinct"], said["pages_sharing"]) == (3, 2, 1)


class _Sleeper:
    """A process with pages of known contents in anonymous memory, and some of a file and of shared memory.

    `prepare` is done with the first before it sleeps.
    """

    def __init__(self, numbers, prepare=lambda own: None):
        self.pid = os.fork()
        if self.pid == 0:
            own = mmap.mmap(-1, len(numbers) * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            own[:] = b"".join(map(page, numbers))
            shared = mmap.mmap(-1, 31 * PAGE)
            np.frombuffer(shared, np.uint64)[:] = SHARED  # in place: a copy in the heap may lie on a page
            prepared = prepare(own)
            os.kill(os.getpid(), 19)
            os._exit(int(prepared is None))
        os.waitpid(self.pid, os.WUNTRACED)

    def end(self):
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


def test_of_processes_it_takes_what_is_theirs_alone():
    sleepers = [_Sleeper(range(10_000, 10_101)), _Sleeper([*range(10_050, 10_151), 0, 0, 0])]
    fingerprinter = Fingerprinter()
    try:
        sources = [open_process(sleeper.pid) for sleeper in sleepers]
        _, (one, two) = fingerprinter.take(sources, lambda _: None)
        both = set(one.tolist()) & set(two.tolist())
        wanted = {_fingerprint(fingerprinter, number) for number in range(10_050, 10_101)}
        assert wanted <= both
        assert not {_fingerprint(fingerprinter, n) for n in range(10_000, 10_050)} & set(two.tolist())
        assert fingerprinter._of_bytes(SHARED.to_bytes(8, "little") * (PAGE // 8)) not in one.tolist()
        for source in sources:
            source.__exit__()
    finally:
        for sleeper in sleepers:
            sleeper.end()


def _fingerprint(fingerprinter, number):
    return fingerprinter._of_bytes(page(number))


def test_what_a_process_gives_back_meanwhile_is_left_out(tmp_path):
    source = open_process(os.getpid())
    with source:
        gone = mmap.mmap(-1, PAGE)
        first = source.extents[0].start
        source.extents = [type(source.extents[0])(first, first + 1), type(source.extents[0])(0, 2)]
        found, _ = Fingerprinter().take([source], lambda _: None)
        gone.close()
    assert found.tolist().count(GONE) == 2
    assert source.left_out["gone meanwhile"] == 2
    assert saving(found, 0, 256).pages == 1


def test_memory_does_not_grow_beyond_16_bytes_a_page(tmp_path):
    """Holes read as zeros, and take no room on the disk."""
    peaks = []
    for nr_pages in (1 << 13, 1 << 18):
        path = tmp_path / str(nr_pages)
        with path.open("wb") as file:
            file.truncate(nr_pages * PAGE)
        with subprocess.Popen(
            [sys.executable, "-m", "ksmemu", "estimate", path], stdout=subprocess.DEVNULL
        ) as ran:
            _, status, usage = os.wait4(ran.pid, 0)
            ran.returncode = os.waitstatus_to_exitcode(status)
        assert status == 0
        peaks.append(usage.ru_maxrss * 1024)
    assert peaks[1] - peaks[0] < 16 * ((1 << 18) - (1 << 13))


def test_fingerprints_of_many_contents_are_counted_in_pieces():
    prints = np.arange(3_000_000, dtype=np.uint64) // 3 * 977 + 5
    tracemalloc.start()
    found = saving(prints, 5, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(prints)
    assert (found.zero_pages, found.distinct, found.pages_sharing) == (3, 999_999, 999_999)
    assert found.pages_shared == 999_999


def test_a_file_that_shrinks_meanwhile_is_an_error(images):
    with open_file(images[0]) as source:
        os.truncate(images[0], PAGE)
        with pytest.raises(OSError, match="has shrunk meanwhile"):
            Fingerprinter().take([source], lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "Missing argument"),
        (["/nonexistent"], "No such file"),
        (["/tmp"], "is no file"),
        (["/dev/null"], "is no file"),
        (["4194305"], "there is no process 4194305"),
        (["9" * 18], "there is no process 9"),
        (["9" * 200], "No such file"),
        (["9" * 5000], "File name too long"),
        (["/nonexistent/\udcff\n"], "No such file"),
        (["--max-page-sharing", "1", "/bin/true"], "not in the range"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(arguments, why):
    ran = estimate(*arguments)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert why in ran.stderr


def test_a_process_that_ends_meanwhile_is_an_error():
    sleeper = _Sleeper(range(1, 24))
    with open_process(sleeper.pid) as source:
        sleeper.end()
        with pytest.raises(OSError, match="has ended meanwhile"):
            Fingerprinter().take([source], lambda _: None)


def test_what_is_left_out_of_a_process_is_said():
    sleeper = _Sleeper(range(1, 24))
    try:
        ran = estimate(sleeper.pid)
        said = json.loads(estimate("--json", sleeper.pid).stdout)["each"][0]["left_out"]
        with open_process(sleeper.pid) as source:
            assert source.left_out == said
    finally:
        sleeper.end()
    assert said["of files and shared memory"] >= 31
    assert ": left out, of files and shared memory: " in ran.stdout


def left_out_of(sleeper):
    try:
        return figures(sleeper.pid)["each"][0]["left_out"], procmaps.status(sleeper.pid)
    finally:
        sleeper.end()


@pytest.mark.root
@pytest.mark.usefixtures("the_machine_may_be_changed")
def test_huge_pages_are_left_out():
    with machine.set_to("/proc/sys/vm/nr_hugepages", 3):
        sleeper = _Sleeper([1, 2], prepare=lambda _: _written(mmap.mmap(-1, HUGE, flags=MAP_HUGE)))
        assert left_out_of(sleeper)[0]["huge pages"] == HUGE // PAGE


def _written(memory):
    memory[:1] = b"x"
    return memory


@pytest.mark.root
@pytest.mark.usefixtures("the_machine_may_be_changed")
def test_swapped_pages_are_left_out_and_stay_there(tmp_path):
    with machine.swap_in(tmp_path / "swap", 16 << 20):
        sleeper = _Sleeper(range(1, 212), prepare=lambda own: own.madvise(MADV_PAGEOUT, 0, 101 * PAGE))
        said, status = left_out_of(sleeper)
        assert 0 < said["swapped"] * PAGE == status["VmSwap"]


def test_of_the_tail_of_a_file_it_is_said_what_becomes_of_it(tmp_path):
    path = tmp_path / "a\udcff\n"
    path.write_bytes(page(1) + b"end")
    ran = estimate(path)
    assert ran.returncode == 0
    assert ran.stdout.endswith("\na??: the last 3 bytes are a page, filled up with zeros\n")
    assert figures(path)["each"][0]["tail_bytes"] == 3


def _as_nobody(run):
    """Run something in a child that has no privilege; return what it says."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            run()
        except OSError as error:
            os.write(theirs, f"{error.errno} {error.strerror}".encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.root
def test_who_may_not_look_is_told_so():
    mine = os.getpid()
    assert _as_nobody(lambda: open_process(mine)).startswith(f"13 process {mine} may not be looked into")


def test_the_table_has_80_columns_at_most(images, tmp_path):
    long = tmp_path / ("x" * 99)
    long.write_bytes(b"x")
    ran = estimate(*images, long, os.getpid())
    assert ran.returncode == 0
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert threading.active_count() == 1
