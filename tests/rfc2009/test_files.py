"""The control directory of 2009: its files, their values at the start, and stores that nobody refuses."""

import json
import os
import stat
import subprocess
import sys

import pytest

import ksmemu
from tests.support.waiting import wait_until

TUNABLES = {"run": 0, "pages_to_scan": 200, "sleep": 20000, "max_kernel_pages": 0}
ACTIONS = ["merge_pid", "unmerge_pid"]
COUNTERS = ["kernel_pages_allocated", "pages_shared"]
BAD = {
    "run": ["2", "-1", "on", ""],
    "pages_to_scan": ["4294967296", "many", "0x7"],
    "sleep": ["-1", "20 ms"],
    "max_kernel_pages": [str(2**64), "none"],
    "merge_pid": ["junk", "4194305"],
    "unmerge_pid": ["junk", "1"],
}


def folder_of(ksmd):
    return ksmd.directory / "sys/kernel/mm/ksm"


def shown(ksmd):
    return {name: (folder_of(ksmd) / name).read_text().strip() for name in os.listdir(folder_of(ksmd))}


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.root)], ids=["plain", "fuse"])
def ksmd(start_ksmd, request):
    return start_ksmd(rfc2009=True, fuse=request.param)


def test_there_are_the_files_of_that_time_and_no_others(ksmd):
    assert shown(ksmd) == {
        **{name: str(value) for name, value in TUNABLES.items()},
        **dict.fromkeys(ACTIONS, ""),
        **dict.fromkeys(COUNTERS, "0"),
    }
    for name in shown(ksmd):
        mode = stat.S_IMODE((folder_of(ksmd) / name).stat().st_mode)
        assert mode == (0o444 if name in COUNTERS else 0o644)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_store_changes_nothing_and_is_no_error(ksmd, name):
    before = shown(ksmd)
    for text in BAD[name]:
        (folder_of(ksmd) / name).write_text(f"{text}\n")
        wait_until(lambda: shown(ksmd) == before, what="the files to be as they were")
    ksmd.write("pages_to_scan", 1009)  # and it goes on
    assert shown(ksmd) == before | {"pages_to_scan": "1009"}


def test_good_stores_are_obeyed(ksmd):
    for name, value in {
        "pages_to_scan": 0,
        "sleep": 2**32 - 1,
        "max_kernel_pages": 2**64 - 1,
        "run": 1,
    }.items():
        ksmd.write(name, value)
        assert ksmd.read(name) == value
    for name in ("sleep_millisecs", "smart_scan", "max_page_sharing"):
        with pytest.raises(ValueError, match="there are run, pages_to_scan, sleep, max_kernel_pages"):
            ksmd.write(name, 7)


def ksmemu_command(directory, *words):
    return subprocess.run(
        [sys.executable, "-m", "ksmemu", words[0], "--dir", directory, *words[1:]],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_speaks_to_it(tmp_path):
    assert ksmemu_command(tmp_path / "i", "start", "--rfc2009", "sleep=777").returncode == 0
    try:
        assert ksmemu_command(tmp_path / "i", "set", "run=1", "max_kernel_pages=7").returncode == 0
        figures = json.loads(ksmemu_command(tmp_path / "i", "status", "--json").stdout)
        wanted = TUNABLES | {"sleep": 777, "run": 1, "max_kernel_pages": 7}
        assert figures["tunables"] == wanted
        assert figures["counters"] == dict.fromkeys(COUNTERS, 0)
        for wrong in ("run=2", "smart_scan=1"):
            refused = ksmemu_command(tmp_path / "i", "set", wrong)
            assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        with ksmemu.connect(tmp_path / "i") as ksmd:
            assert ksmd.files.refuses is False
    finally:
        assert ksmemu_command(tmp_path / "i", "stop").returncode == 0
    assert ksmemu_command(tmp_path / "i", "start", "--rfc2009", "sleep_millisecs=7").returncode == 2
