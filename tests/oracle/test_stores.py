"""What a store is answered, and what it leaves: the kernel's files and those that FUSE serves."""

import errno
import os

import pytest

from ksmemu.bench.kernel_ksm import KSM, KernelKsm
from ksmemu.control.tunables import ACTIONS, TUNABLES
from tests.support.stores import ODD, shown, store

pytestmark = pytest.mark.root
DEFAULTS = {name: tunable.word(tunable.default) for name, tunable in TUNABLES.items()}
LAST = ("run", "pages_to_scan")
"""After advisor_mode, which may keep or change the second."""


@pytest.fixture
def both(start_ksmd):
    """The folders of both, with the kernel's defaults in force."""
    with KernelKsm(advisor_mode="none"):
        ours = start_ksmd(fuse=True).directory / "sys/kernel/mm/ksm"
        for folder in (KSM, ours):
            put_defaults(folder)
        yield KSM, ours


def put_defaults(folder):
    for name in sorted(TUNABLES, key=lambda name: name in LAST):
        assert isinstance(store(folder, name, DEFAULTS[name].encode()), int), name


def answers(folder, name, texts):
    """Store one text after the other; return what came of each, and the values after it."""
    return {
        text: (store(folder, name, text), (folder / name).read_text(), (folder / "pages_to_scan").read_text())
        for text in texts
    }


def differences(both, name, texts):
    kernel, ours = (answers(folder, name, texts) for folder in both)
    return {text[:30]: (kernel[text], ours[text]) for text in texts if kernel[text] != ours[text]}


@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
def test_every_odd_text_is_answered_alike_by_every_file(both, order):
    for name in TUNABLES:
        assert differences(both, name, ODD[::order]) == {}, name
        for folder in both:
            put_defaults(folder)


def test_the_advisor_takes_its_start_and_refuses_pages_to_scan(both):
    for name, text in (
        ("advisor_min_pages_to_scan", b"4294967303"),
        ("advisor_mode", b"scan-time"),
        ("pages_to_scan", b"9\n"),
        ("pages_to_scan", b"7"),
        ("pages_to_scan", b"junk"),
        ("advisor_min_pages_to_scan", b"1009"),
        ("advisor_mode", b"scan-time\n"),
        ("advisor_mode", b"none"),
        ("pages_to_scan", b"11"),
        ("advisor_mode", b"none"),
        ("advisor_mode", b"scan-time"),
        ("advisor_mode", b"none"),
    ):
        assert differences(both, name, [text]) == {}, (name, text)


def test_a_store_is_whole_wherever_it_is_written(both):
    for offset in (0, 1, 7, 4096, 1 << 40):
        kernel, ours = (
            (
                store(folder, "sleep_millisecs", b"13%d" % (offset % 10), offset),
                (folder / "sleep_millisecs").read_bytes(),
            )
            for folder in both
        )
        assert ours == kernel
        assert kernel[0] == 3


def attempt(function, *args, **how):
    """Return the name of the errno, or what the function returns; a descriptor is closed."""
    try:
        result = function(*args, **how)
    except OSError as error:
        return errno.errorcode[error.errno]
    if function is os.open:
        os.close(result)
        return "opened"
    return result


def liberties(folder):
    """What is answered to whoever treats the folder as an ordinary one."""
    run, full_scans, new = folder / "run", folder / "full_scans", folder / "new"
    flags = {name: getattr(os, name) for name in ("O_WRONLY", "O_RDWR", "O_RDONLY", "O_APPEND", "O_TRUNC")}
    opened = {
        (path.name, name): attempt(os.open, path, flag | os.O_WRONLY * (name in ("O_APPEND", "O_TRUNC")))
        for path in (run, full_scans, new)
        for name, flag in flags.items()
    }
    found = {
        "read-only, truncated": attempt(os.open, full_scans, os.O_RDONLY | os.O_TRUNC),
        "create": attempt(os.open, new, os.O_CREAT | os.O_WRONLY, 0o644),
        "create what is there": attempt(os.open, run, os.O_CREAT | os.O_WRONLY, 0o644),
        "create anew": attempt(os.open, run, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644),
        "truncate": [attempt(os.truncate, path, size) for path in (run, full_scans) for size in (0, 7)],
        "unlink": [attempt(os.unlink, path) for path in (run, new)],
        "folders": [attempt(os.mkdir, new), attempt(os.rmdir, run), attempt(os.rmdir, new)],
        "rename": [attempt(os.rename, run, new), attempt(os.rename, run, full_scans)],
        "links": [attempt(os.symlink, "run", new), attempt(os.link, run, new), attempt(os.mkfifo, new)],
        "access": [attempt(os.access, path, os.W_OK) for path in (run, full_scans, new)],
        "xattr": attempt(os.setxattr, run, "user.x", b"1"),
        "touch": attempt(os.utime, run),
    }
    status = [(path.stat().st_mode, path.stat().st_size, path.stat().st_nlink) for path in (run, full_scans)]
    return {**opened, **found, "stat": status, "names": set(os.listdir(folder)) - {*ACTIONS}}


def test_the_folder_refuses_what_sysfs_refuses(both):
    kernel, ours = (liberties(folder) for folder in both)
    assert ours == kernel
    assert kernel["full_scans", "O_WRONLY"] == "EACCES"


def test_what_may_not_change_while_pages_are_shared(engines):
    answers = []
    for engine in engines({"fuse": True}):
        one, other = engine.member(7), engine.member(7)
        for member in (one, other):
            member.put(0, [1, 2, 3, 4, 5, 6, 7])
        engine.rest()
        folder = getattr(engine.ksmd, "directory", None)
        folder = folder / "sys/kernel/mm/ksm" if folder else KSM
        answers.append(
            [
                (name, text, store(folder, name, text), shown(folder, name))
                for name in (
                    "max_page_sharing",
                    "merge_across_nodes",
                    "run",
                    "max_page_sharing",
                    "merge_across_nodes",
                )
                for text in (b"2", b"256", b"1", b"0", b"-1", b"17", b"256", b"1", b"2")
            ]
        )
        engine.leave()
    kernel, ours = answers
    assert ours == kernel
    assert kernel[0][2] == "EBUSY"
