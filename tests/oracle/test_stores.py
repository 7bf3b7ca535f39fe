"""What a store is answered, and what it leaves: the kernel's files and those that FUSE serves."""

import pytest

from ksmemu.control.tunables import TUNABLES
from tests.support.kernel_ksm import KernelKsm
from tests.support.restore_ksm import KSM
from tests.support.stores import ODD, store

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
