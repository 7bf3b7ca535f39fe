"""Numpy arrays in mergeable memory: made by any function, equal ones share, and their end gives all back."""

import asyncio
import gc
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import ksmemu
from ksmemu.mm.arena import arena
from ksmemu.mm.arrays import LARGE_BYTES
from tests.conftest import AT_ONCE
from tests.support import array_pool, procmaps
from tests.support.children import in_child
from tests.support.procmaps import PAGE
from tests.support.waiting import run_for, wait_until

LARGE = LARGE_BYTES // 8 + 3 * PAGE // 8 + 5
NR_PAGES = LARGE * 8 // PAGE + 1


@pytest.fixture(scope="module")
def ksmd(lasting_ksmd):
    return lasting_ksmd


@pytest.fixture(autouse=True)
def it_is_the_default(ksmd, monkeypatch):
    monkeypatch.setenv("KSMEMU_DIR", str(ksmd.directory))


def content(seed=1, length=LARGE):
    return np.random.default_rng(seed).permutation(length)


def merged(ksmd, nr_copies):
    """Wait until the pages of content() are shared by so many copies."""
    wait_until(lambda: ksmd.read("pages_sharing") == (nr_copies - 1) * NR_PAGES, what="merging")


def is_mergeable(array):
    return array.ctypes.data in arena


def held_bytes():
    return arena._space.blocks_bytes()


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "content.npy", content())
    return tmp_path / "content.npy"


def load(file):
    with ksmemu.mergeable_arrays():
        return np.load(file)


def test_equal_arrays_share_until_one_is_written(ksmd, file):
    first, second, third = load(file), ksmemu.asarray(content()), ksmemu.array(LARGE, "i8")
    third[:] = first
    merged(ksmd, 3)
    assert held_bytes() < 3 * 4 * PAGE
    first[7], second[7 + PAGE] = -1, -2
    expected = [content() for _ in range(3)]
    expected[0][7], expected[1][7 + PAGE] = -1, -2
    for array, right in zip((first, second, third), expected, strict=True):
        np.testing.assert_array_equal(array, right)


def test_what_numpy_makes_otherwise_is_not_merged(ksmd, file):
    arrays = [np.load(file), content()]
    with ksmemu.mergeable_arrays():
        arrays += [np.load(file, mmap_mode="r"), np.zeros(LARGE_BYTES - 1, "u1")]
        arrays.append(np.zeros(LARGE_BYTES, "u1"))
        arrays.append(pickle.loads(pickle.dumps(content())))
    assert [is_mergeable(array) for array in arrays] == [False, False, False, False, True, False]
    assert is_mergeable(ksmemu.asarray(arrays[-1]))


def test_what_comes_out_of_an_archive_is_mergeable(tmp_path):
    np.savez_compressed(tmp_path / "archive.npz", array=np.ones(LARGE))
    with ksmemu.mergeable_arrays(), np.load(tmp_path / "archive.npz") as archive:
        assert is_mergeable(archive["array"])


def test_a_view_keeps_memory_and_the_last_gives_it_back():
    with ksmemu.mergeable_arrays():
        kept = np.ones(PAGE)  # smaller: the arena needs another reason to stay
        array = content()
        wait_until(lambda: held_bytes() >= NR_PAGES * PAGE)
        view = array[5:]
        del array
        assert held_bytes() >= NR_PAGES * PAGE
        np.testing.assert_array_equal(view, content()[5:])
        del view
        gc.collect()
        assert held_bytes() == 0
        assert not is_mergeable(kept)
    assert arena._space is None


def test_zeros_are_not_touched():
    with ksmemu.mergeable_arrays():
        zeros = np.zeros(1 << 30, "u1")
        assert is_mergeable(zeros)
        assert held_bytes() == 0
        assert not zeros[::10_000_019].any()


@pytest.mark.parametrize("steps", [(LARGE, 3 * LARGE, 5, LARGE), (11, LARGE, 2 * LARGE, 7)])
def test_an_array_that_is_resized_keeps_its_content(steps):
    with ksmemu.mergeable_arrays():
        array = np.arange(1, steps[0] + 1)
        for length in steps[1:]:
            array.resize(length, refcheck=False)
            assert is_mergeable(array) == (length >= LARGE)
            kept = min(array.argmin() or length, *steps)
            np.testing.assert_array_equal(array[:kept], np.arange(1, kept + 1))
        assert is_mergeable(np.fromiter(range(LARGE), "i8"))


def test_what_is_small_can_be_asked_for():
    assert is_mergeable(ksmemu.array(3))
    assert ksmemu.array((2, 3), "u1").tolist() == [[0, 0, 0], [0, 0, 0]]
    assert ksmemu.array(0).shape == (0,)


def test_asarray_keeps_order_and_what_is_mergeable_already():
    existing = np.asfortranarray(np.arange(35).reshape(5, 7))
    moved = ksmemu.asarray(existing)
    assert (moved.flags.f_contiguous, is_mergeable(moved), is_mergeable(existing)) == (True, True, False)
    np.testing.assert_array_equal(moved, existing)
    assert ksmemu.asarray(moved) is moved
    assert is_mergeable(ksmemu.asarray([1, 2]))


def test_it_holds_for_the_context_alone():
    def made():
        return is_mergeable(np.zeros(LARGE))

    async def task():
        await asyncio.sleep(0)
        return made()

    async def inside():
        with ksmemu.mergeable_arrays():
            return made(), await asyncio.sleep(0), made()

    async def both():
        return await asyncio.gather(inside(), task())

    assert asyncio.run(both()) == [(True, None, True), False]
    seen = []
    with ksmemu.mergeable_arrays():
        thread = threading.Thread(target=lambda: seen.append(made()))
        thread.start()
        thread.join()
    assert (seen, made()) == ([False], False)
    with pytest.raises(MemoryError), ksmemu.mergeable_arrays():
        np.zeros(1 << 60, "u1")
    assert not made()


def test_any_thread_frees_long_after():
    arrays = [load_ones() for _ in range(5)]
    thread = threading.Thread(target=arrays.clear)
    thread.start()
    thread.join()
    assert arena._space is None


def load_ones():
    with ksmemu.mergeable_arrays():
        return np.ones(LARGE)


def test_threads_make_and_free_at_once():
    """Runs for half a second."""
    wrong = []

    def work(number):
        kept = []
        with ksmemu.mergeable_arrays():
            for n in run_for(0.5):
                kept.append(np.full(LARGE, number))
                wrong.extend(array[0] for array in kept if not (array[::509] == number).all())
                del kept[: len(kept) // 2], n

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert arena._space is None


def test_thousands_of_arrays_leave_nothing():
    def held():
        gc.collect()
        return len(procmaps.mappings("self")), len(os.listdir("/proc/self/fd")), held_bytes()

    with ksmemu.mergeable_arrays():
        for _ in range(101):
            np.empty(LARGE)
        before = held()
        for _ in range(2003):
            np.empty(LARGE)
        assert held() == before
        many = [np.empty(LARGE) for _ in range(307)]
        assert len(procmaps.mappings("self")) < before[0] + 7
        del many
        assert held() == before


def freed_amid_a_call():
    """Free an array where a thread is within a method of the space, and return whether it waits."""
    with ksmemu.mergeable_arrays():
        array = np.ones(LARGE)
        with arena._space._lock:
            address = array.ctypes.data
            assert not is_mergeable(np.ones(LARGE))
            del array
            waits = bool(arena._space._vmas.overlapping(address, address + 1))
        wait_until(lambda: not arena._sizes, what="the end of the array")
    return waits


def test_a_collection_amid_a_call_changes_nothing():
    assert freed_amid_a_call()


def test_it_would_be_noticed_if_it_did(monkeypatch):
    monkeypatch.setattr(arena, "_is_at_work", lambda: False)
    with pytest.raises(AssertionError):
        assert freed_amid_a_call()


def run(*command):
    """Run a Python program; return what it prints."""
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_workers_of_a_pool_share_what_they_load(file, method):
    printed = run("-m", "tests.support.array_pool", method, file, "mergeable")
    assert printed == f"{(array_pool.NR_WORKERS - 1) * NR_PAGES} True\n"


def test_it_would_be_noticed_if_they_did_not(file):
    assert run("-m", "tests.support.array_pool", "fork", file, "plain") == "0 True\n"


@in_child
def test_parent_and_child_have_their_own_after_a_fork(ksmd):
    array = ksmemu.asarray(content())
    other = ksmemu.asarray(content())
    merged(ksmd, 2)
    with ksmemu.mergeable_arrays():
        pid = os.fork()
        array[3] = pid
        right = content()
        right[3] = pid
        assert is_mergeable(np.ones(LARGE))
    np.testing.assert_array_equal(array, right)
    del array
    np.testing.assert_array_equal(other, content())
    if pid == 0:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_without_a_ksmd_arrays_work_and_merge_when_one_comes(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("KSMEMU_DIR", str(tmp_path / "later"))
    monkeypatch.setattr(arena, "_has_warned", False)
    monkeypatch.setattr("ksmemu.mm.arena._LOOK_SECONDS", 0.01)
    arrays = [ksmemu.asarray(content()) for _ in range(2)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert is_mergeable(arrays[0])
    for _ in range(2):  # the second takes over, and gets what was made without any
        with ksmemu.Ksmd(tmp_path / "later", smart_scan=0, **AT_ONCE) as ksmd:
            merged(ksmd, len(arrays))
        arrays.append(ksmemu.asarray(content()))
    for array in arrays:
        np.testing.assert_array_equal(array, content())
    del arrays, array
    wait_until(lambda: threading.active_count() == 1, what="the end of the thread")


def test_arrays_outlive_the_interpreter():
    program = f"""
import ksmemu, numpy
class Late:
    def __del__(self, array=ksmemu.asarray(numpy.arange({LARGE})), print=print):
        print(array[-1])
late, kept = Late(), ksmemu.array({LARGE})
context = ksmemu.mergeable_arrays()
context.__enter__()
more = numpy.ones({LARGE})
"""
    assert run("-c", program) == f"{LARGE - 1}\n"
