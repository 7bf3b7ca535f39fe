"""Junk in the control files: the old value is put back, the log says so, and ksmd goes on."""

import os
import shutil
import signal
import stat

import pytest

from ksmemu.control.tunables import TUNABLES
from tests.support.waiting import wait_until

NAMES = tuple(TUNABLES)
WORDS = ("use_zero_pages", "smart_scan")
"""Boolean words: of those the first one or two characters count."""
LONG = (
    "advisor_max_cpu",
    "advisor_min_pages_to_scan",
    "advisor_max_pages_to_scan",
    "advisor_target_scan_time",
)
"""Numbers of 64 bits."""
NOT_NOW = [
    ("run", b"3"),
    ("max_page_sharing", b"1"),
    ("max_page_sharing", b"257"),  # pages are shared
    ("merge_across_nodes", b"2"),
    ("merge_across_nodes", b"0"),  # pages are shared
    ("advisor_mode", b"scan"),
    ("advisor_target_scan_time", b"0"),
]
JUNK = [b"", b"\n", b"junk", b"-1", b"1.5", b"0x1", b"1 1", b"4294967296", b"9" * 999, b"\xff\xfe", bytes(99)]


@pytest.fixture(autouse=True)
def ksmd_serves_on(ksmd, honest):
    before = _values(ksmd)
    yield
    assert _values(ksmd) == before


def _values(ksmd):
    return {name: ksmd.read(name) for name in NAMES}


def _control(ksmd):
    return ksmd.directory / "sys/kernel/mm/ksm"


def _log(ksmd):
    return (ksmd.directory / "ksmd.log").read_text()


def _is_put_back(ksmd, name, value):
    return (_control(ksmd) / name).read_bytes().rstrip(b"\n") == b"%d" % value


def _see_it_put_back_and_logged(ksmd, name, text):
    path = _control(ksmd) / name
    before, logged = path.read_bytes(), _log(ksmd).count(f"{name}: store of")
    assert before.endswith(b"\n")
    path.write_bytes(text)
    wait_until(lambda: path.read_bytes() == before, what=f"{name} after {text[:9]!r}")
    assert _log(ksmd).count(f"{name}: store of") > logged, text


def test_junk_is_put_back_and_logged(ksmd):
    for name in NAMES:
        for junk in JUNK:
            is_word = name in WORDS and junk[:1] in (b"1", b"0")
            is_long = name in LONG and junk == b"4294967296"
            if not (is_word or is_long):
                _see_it_put_back_and_logged(ksmd, name, junk)


def test_values_that_may_not_be_are_put_back_and_logged(ksmd):
    for name, text in NOT_NOW:
        _see_it_put_back_and_logged(ksmd, name, text)


def test_a_megabyte_of_junk_is_put_back(ksmd):
    (_control(ksmd) / "run").write_bytes(os.urandom(1 << 20))
    wait_until(lambda: _is_put_back(ksmd, "run", 1))


def _remove(path):
    path.unlink()


def _replace_by_a_fifo(path):
    path.unlink()
    os.mkfifo(path)


def _replace_by_a_link(path):
    path.unlink()
    path.symlink_to("/nonexistent/place")


def _rename(path):
    path.rename(path.with_name("renamed"))


@pytest.mark.parametrize("harm", [_remove, _replace_by_a_fifo, _replace_by_a_link, _rename])
def test_a_file_that_is_taken_away_comes_back(ksmd, harm):
    _harm(ksmd, harm)
    wait_until(lambda: _is_put_back(ksmd, "run", 1))
    assert stat.S_ISREG((_control(ksmd) / "run").lstat().st_mode)
    ksmd.write("run", 0)
    ksmd.write("run", 1)


@pytest.mark.parametrize("content", [[], ["precious"]])
def test_a_folder_in_the_place_of_a_file_is_left_alone(ksmd, content):
    path = _control(ksmd) / "run"

    def replace(path):
        path.unlink()
        path.mkdir()
        for name in content:
            (path / name).touch()

    _harm(ksmd, replace)
    assert os.listdir(path) == content
    shutil.rmtree(path)
    path.write_text("1\n")


def _harm(ksmd, harm):
    """Let it happen in one step, as ksmd sees it, and wait until it has seen it."""
    os.kill(ksmd.pid, signal.SIGSTOP)
    harm(_control(ksmd) / "run")
    os.kill(ksmd.pid, signal.SIGCONT)
    wait_until(lambda: "run: removed or replaced" in _log(ksmd))


def test_the_whole_control_directory_may_go(ksmd):
    """Its counters go with it until the next start, its tunables come back."""
    counters = {path: path.read_bytes() for path in _control(ksmd).iterdir() if path.name not in NAMES}
    _harm(ksmd, lambda path: shutil.rmtree(ksmd.directory / "sys"))
    wait_until(lambda: all((_control(ksmd) / name).exists() for name in NAMES))
    for path, content in counters.items():
        path.write_bytes(content)
