"""Every worker program, started for real: what its behaviour promises merges, and its bytes are right."""

import contextlib
import importlib
import os
import re

import numpy as np
import pytest

from ksmemu.bench import procfs
from ksmemu.bench.guests import Guest, expected_sharing
from ksmemu.cli import command
from tests.support import dumps, procmaps
from tests.support.images import ImageWorker, WorkerProgram, padded, sha256
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

NAMES = ["image", "twins", "fills", "churn", "model", "guest", "forker", "idle"]


@pytest.fixture
def ksmd(lasting_ksmd):
    yield lasting_ksmd
    wait_until(lambda: lasting_ksmd.read("workers") == 0, what="the workers to be gone")
    wait_until(lambda: lasting_ksmd.read("pages_shared") == 0, what="their frames to be gone")


@pytest.fixture
def start(ksmd):
    """Start workers at the same time: start((name, argument, …), …); all are ready."""
    with contextlib.ExitStack() as undo:

        def start(*workers):
            started = [WorkerProgram(name, ksmd.directory, *arguments) for name, *arguments in workers]
            return [undo.enter_context(worker) for worker in started]

        yield start


def await_sharing(ksmd, nr):
    wait_until(lambda: ksmd.read("pages_sharing") == nr, 60.0, what=f"pages_sharing = {nr}")


def assert_right(*workers):
    for worker in workers:
        assert worker.ask("verify") == "ok"
        assert worker.end() == (0, b"")


def test_of_n_twins_n_minus_1_are_saved(ksmd, start):
    three, two = start(("twins", "--pages", 211, "--twins", 3), ("twins", "--pages", 211))
    await_sharing(ksmd, 4 * 211)
    assert ksmd.read("pages_shared") == 211
    assert (three.ask("holds"), two.ask("holds")) == ("twin 633", "twin 422")
    assert two.ask("write 211 0102") == "ok"
    await_sharing(ksmd, 4 * 211 - 1)
    assert_right(three, two)


@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_fills_share_frames_or_the_zero_page(ksmd, start, use_zero_pages):
    ksmd.write("use_zero_pages", use_zero_pages)
    try:
        (fills,) = start(("fills", "--zeros", 503, "--ones", 251))
        await_sharing(ksmd, 250 if use_zero_pages else 250 + 501)  # at most 256 pages a frame
        wait_until(lambda: ksmd.read("ksm_zero_pages") == (503 if use_zero_pages else 0))
        assert fills.ask("holds") == "zeros 503 ones 251"
        assert_right(fills)
    finally:
        ksmd.write("use_zero_pages", 0)


def test_churn_keeps_its_bytes_while_what_merged_breaks_and_merges(ksmd, start):
    (churn,) = start(("churn", "--pages", 251, "--pace", 5000))
    before = ksmd.stats()
    for name in ("merges", "pages_broken"):
        wait_until(lambda name=name: ksmd.read(name) > before[name] + 503, what=name)
        assert churn.ask("verify") == "ok"
    assert churn.ask("stop") == "ok"
    await_sharing(ksmd, 251 - 7)
    wait_until(lambda: ksmd.read("pages_shared") == 7)
    assert churn.ask("go") == "ok"
    wait_until(lambda: ksmd.read("pages_sharing") < 251 - 7, what="churn to have gone on")
    assert_right(churn)


def test_servers_of_one_model_share_its_weights(ksmd, start, tmp_path):
    numbers = np.random.default_rng(1)
    weights = {"embed": numbers.random((101, 777)), "head": numbers.random((777, 13), dtype=np.float32)}
    np.savez(tmp_path / "weights.npz", **weights)
    np.save(tmp_path / "head.npy", weights["head"])
    both, other, alone = start(
        ("model", tmp_path / "weights.npz"),
        ("model", tmp_path / "weights.npz"),
        ("model", tmp_path / "head.npy"),
    )
    embed, head = (-(-array.nbytes // PAGE) for array in weights.values())
    await_sharing(ksmd, embed + 2 * head)
    assert both.ask("holds") == f"embed {embed} head {head}"
    assert both.ask("sum") == sha256(*(array.tobytes() for array in weights.values()))
    assert_right(both, other, alone)


def test_made_up_weights_are_the_same_everywhere(ksmd, start):
    workers = start(("model",), ("model",))
    await_sharing(ksmd, 257 + 257)
    assert_right(*workers)


def test_guests_share_their_page_cache_and_free_memory_but_no_log(ksmd, start):
    guests = start(("guest", "--pages", 503), ("guest", "--pages", 503, "--number", 2))
    wait_until(lambda: all(log_pages(guest) >= 3 for guest in guests), what="logs to grow")
    for guest in guests:
        assert guest.ask("stop") == "ok"
    expected = expected_sharing((Guest(503, 0), Guest(503, 2)), 256)
    assert expected > 251 + 2 * 125 - 8
    await_sharing(ksmd, expected)
    ksmd.wait_full_scans(3)
    assert ksmd.read("pages_sharing") == expected
    nr_log = sum(map(log_pages, guests))
    nr_own = 2 * Guest(503, 0).nr_own
    wait_until(lambda: ksmd.read("pages_tracked") == 2 * 503 + nr_log)
    wait_until(
        lambda: ksmd.read("pages_unshared") >= nr_log + nr_own, what="logs and heaps looked at in vain"
    )
    assert_right(*guests)


def log_pages(guest):
    holds = guest.ask("holds")
    assert holds.startswith("cache 251 free 125 heap 127 log ")
    return int(holds.rsplit(" ", 1)[1])


def test_a_log_stops_when_its_room_is_full(start):
    (guest,) = start(("guest", "--pages", 9))
    wait_until(lambda: guest.ask("holds").endswith("log 1"))
    full = bytes.fromhex(guest.ask("read 9"))
    wait_until(lambda: b"\0" not in (bytes.fromhex(guest.ask("read 9"))), what="a full page")
    full = guest.ask("sum")
    for _ in range(5):
        assert guest.ask("sum") == full
    assert_right(guest)


def test_a_forker_and_its_children_share_what_none_has_written(ksmd, start):
    (forker,) = start(("forker", "--pages", 211, "--children", 3))
    holds = forker.ask("holds")
    pids = [int(pid) for pid in re.findall(r"child (\d+): common 185 own 26", holds)]
    assert holds.startswith("common 211; child ")
    assert set(pids) == procmaps.children(forker.pid)
    # Each row of 26 is some child's own: to the parent and the two other children it is common.
    await_sharing(ksmd, (211 - 3 * 26) * 3 + 3 * 26 * 2)
    assert forker.ask("verify") == "ok"
    assert forker.ask("write 0 ff") == "ok"
    await_sharing(ksmd, (211 - 3 * 26) * 3 + 3 * 26 * 2 - 1)
    assert_right(forker)


def test_a_forker_says_that_a_child_is_dead(start):
    (forker,) = start(("forker", "--pages", 13, "--children", 1))
    (child,) = procmaps.children(forker.pid)
    os.kill(child, 9)
    wait_until(lambda: procmaps.thread_states(child) == ["Z"], what="its end")
    for _ in range(3):
        assert forker.ask("verify") == f"error: child {child}: it has ended"
    forker.end()


def test_nothing_wakes_an_idle_worker(ksmd, start):
    one, other = start(("idle", "--pages", 211), ("idle", "--pages", 211))
    await_sharing(ksmd, 211)
    ksmd.wait_full_scans(3)
    before = procfs.voluntary_switches(one.pid)
    ksmd.wait_full_scans(23)
    assert procfs.voluntary_switches(one.pid) == before
    assert_right(one, other)


def test_dumps_of_one_guest_share_with_its_raw_image(ksmd, start, tmp_path):
    low, high = os.urandom(17 * PAGE + 3333), os.urandom(23 * PAGE)
    parts = [(0x1000, low), (0x1_0000_0000, high)]
    for name, content in {
        "raw": padded(low) + high,
        "elf": dumps.elf(parts),
        "lime": dumps.lime(parts),
    }.items():
        (tmp_path / name).write_bytes(content)
    (images,) = start(("image", tmp_path / "raw", tmp_path / "elf", tmp_path / "lime"))
    await_sharing(ksmd, 2 * (18 + 23))
    assert images.ask("holds") == "raw 41 elf 41 lime 41"
    assert images.ask("sum") == sha256(*3 * [low, high])
    assert_right(images)


def test_memory_that_begins_inside_a_page_keeps_its_place_in_it(start, tmp_path):
    content = os.urandom(257 * PAGE)
    (tmp_path / "lime").write_bytes(dumps.lime([(0x1000 - 77, content)]))
    (image,) = start(("image", tmp_path / "lime"))
    assert image.ask("sum") == sha256(bytes(PAGE - 77) + content)
    assert_right(image)


@pytest.mark.parametrize("name", NAMES)
def test_help_names_the_lines_that_are_obeyed(name, capsys):
    status, said, error = run(capsys, name, "--help")
    assert (status, error) == (0, "")
    for word in ("--dir", "--domain", "holds", "verify", "stop, go", "advise on|off", "quit"):
        assert word in said


BAD_COMMANDS = [
    ("image", "/nowhere"),
    ("image", "/"),
    ("image",),
    ("image", os.devnull),
    ("model", "/nowhere"),
    ("model", __file__),
    ("twins", "--pages", "0"),
    ("twins", "--twins", "x"),
    ("churn", "--pace", "-1"),
    ("guest", "--domain", "a b"),
    ("forker", "--children", "0"),
    ("idle", "what"),
    ("fills", "--fast"),
]


@pytest.mark.parametrize("given", BAD_COMMANDS, ids=" ".join)
def test_wrong_input_is_one_line_and_status_2(given, capsys):
    assert_refused(run(capsys, *given), f"{given[0]}: ")


def test_a_truncated_model_is_one_line_and_status_2(tmp_path, capsys):
    np.savez(tmp_path / "weights.npz", a=np.arange(9999))
    whole = (tmp_path / "weights.npz").read_bytes()
    (tmp_path / "weights.npz").write_bytes(whole[:-1777])
    np.save(tmp_path / "a.npy", np.arange(9999))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1777])
    for name in ("weights.npz", "a.npy"):
        assert_refused(run(capsys, "model", tmp_path / name), f"model: {tmp_path / name}: ")


def run(capsys, name, *arguments):
    """Return (status, output, errors) of a program that does not come to make memory."""
    with pytest.raises(SystemExit) as ended:
        command.run(importlib.import_module(f"workers.{name}").main, name, list(map(str, arguments)))
    return ended.value.code, *capsys.readouterr()


def assert_refused(ran, begin):
    status, said, error = ran
    assert (status, said, error.count("\n")) == (2, "", 1)
    assert error.startswith(begin)


# ---- a negative control: what `verify` is for -------------------------------------------------------------


def test_verify_finds_a_page_that_nobody_wrote_and_no_line_covers_it_up(ksmd, tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(os.urandom(23 * PAGE))
    with ImageWorker(ksmd.directory, path, path) as image:
        await_sharing(ksmd, 23)
        start = next(
            m.start for m in procmaps.mappings(image.pid) if "/dev/shm/" in m.path and "p" in m.perms
        )
        with open(f"/proc/{image.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(b"not the worker's")
        answer = image.ask("verify")
        found = re.fullmatch(r"error: page (\d+) does not hold what was written to it", answer)
        assert found, answer
        assert image.ask(f"write {found[1]} 00") == answer
        assert image.ask("verify") == answer
