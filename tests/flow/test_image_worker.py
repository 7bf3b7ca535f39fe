"""The image worker: raw images in, one line an answer, and every byte as the files have it."""

import random
import subprocess
import sys

import pytest

from tests.support.cores import ROOT
from tests.support.images import PAGE, ImageWorker, padded, sha256
from tests.support.waiting import wait_until

COMMON = random.Random(1).randbytes(101 * PAGE)
FIRST = COMMON + random.Random(2).randbytes(7 * PAGE + 3333)
SECOND = random.Random(3).randbytes(13 * PAGE) + COMMON + b"the end"
TINY = b"x"


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / "first.raw", tmp_path / "second.raw", tmp_path / "tiny.raw"]
    for path, content in zip(paths, (FIRST, SECOND, TINY), strict=True):
        path.write_bytes(content)
    return paths


def test_several_images_are_one_row_of_pages_padded_with_zeros(ksmd, images):
    with ImageWorker(ksmd.directory, *images) as worker:
        assert worker.ask("sum") == sha256(FIRST, SECOND, TINY)
        whole = padded(FIRST) + padded(SECOND) + padded(TINY)
        for page in (0, 108, 109, 109 + 114, 109 + 115):
            assert worker.ask(f"read {page}") == whole[page * PAGE :][:PAGE].hex()
        assert worker.ask("quit") == "ok"
        assert worker.end() == (0, b"")


def test_two_image_workers_share_what_they_have_in_common_and_keep_their_bytes(ksmd, images):
    with (
        ImageWorker(ksmd.directory, images[0]) as one,
        ImageWorker(ksmd.directory, images[1]) as other,
    ):
        wait_until(lambda: ksmd.read("pages_sharing") == 101)
        assert ksmd.read("pages_shared") == 101
        assert one.ask("write 5 00ff") == "ok"
        mine = FIRST[: 5 * PAGE] + b"\x00\xff" + FIRST[5 * PAGE + 2 :]
        assert one.ask("sum") == sha256(mine)
        assert other.ask("sum") == sha256(SECOND)
        wait_until(lambda: ksmd.read("pages_sharing") == 100)
        assert one.ask("sum") == sha256(mine)
        assert other.ask("sum") == sha256(SECOND)


def test_advice_is_taken_back_and_given_again(ksmd, images):
    with ImageWorker(ksmd.directory, images[0], images[0]) as worker:
        wait_until(lambda: ksmd.read("pages_sharing") == 109)
        assert worker.ask("advise off") == "ok"
        wait_until(lambda: ksmd.read("pages_shared") == 0)
        assert worker.ask("sum") == sha256(FIRST, FIRST)
        assert worker.ask("advise on") == "ok"
        wait_until(lambda: ksmd.read("pages_sharing") == 109)
        assert worker.ask("sum") == sha256(FIRST, FIRST)


BAD_LINES = [
    "",
    "   ",
    "summ",
    "sum 1",
    "read",
    "read 109",
    "read -1",
    "read 0x1",
    "read ²",  # a digit to str.isdigit(), not to int()
    "read " + "9" * 5000,
    "write",
    "write 1",
    "write 1 0",
    "write 1 zz",
    "write 1 00 00",
    "write 109 00",
    "write 1 " + "00" * (PAGE + 1),
    "advise",
    "advise yes",
    "quit now",
    b"\xff\xfe\x00",
    b"read 1\rsum\x0b\x0c\xc2\x85",
]


def test_a_bad_line_is_one_error_and_changes_nothing(ksmd, images):
    with ImageWorker(ksmd.directory, images[0]) as worker:
        for line in BAD_LINES:
            assert worker.ask(line).startswith("error: "), line
            assert worker.ask("sum") == sha256(FIRST), line
        assert worker.end() == (0, b"")


def test_a_whole_page_can_be_written_at_once(ksmd, images):
    with ImageWorker(ksmd.directory, images[2]) as worker:
        page = random.Random(4).randbytes(PAGE)
        assert worker.ask(f"write 0 {page.hex()}") == "ok"
        assert worker.ask("read 0") == page.hex()


def _run(directory, *files):
    return subprocess.run(
        [sys.executable, "-m", "workers.image", *map(str, files), "--dir", str(directory)],
        check=False,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
    )


def _assert_one_line(run, status, *parts):
    assert (run.returncode, run.stdout) == (status, b"")
    assert run.stderr.count(b"\n") == 1
    for part in parts:
        assert part.encode() in run.stderr


def test_a_file_that_is_missing_or_empty_is_one_line_and_status_2(ksmd, images, tmp_path):
    missing, empty = tmp_path / "missing.raw", tmp_path / "empty.raw"
    empty.touch()
    _assert_one_line(_run(ksmd.directory, images[0], missing), 2, str(missing), "does not exist")
    _assert_one_line(_run(ksmd.directory, images[0], empty), 2, str(empty), "is empty")
    _assert_one_line(_run(ksmd.directory, tmp_path), 2, str(tmp_path), "directory")
    wait_until(lambda: ksmd.read("workers") == 0)


def test_without_a_ksmd_it_says_which_one_is_missing(images, tmp_path):
    _assert_one_line(_run(tmp_path / "nowhere", images[0]), 1, str(tmp_path / "nowhere"), "no ksmd")


def test_usage_is_status_2(tmp_path):
    assert _run(tmp_path).returncode == 2
