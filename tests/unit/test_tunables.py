"""What a store may say."""

from __future__ import annotations

import errno

import pytest

from ksmemu.control.counters import COUNTERS, STATS
from ksmemu.control.tunables import TUNABLES, U32_MAX
from ksmemu.errors import KsmError

BAD_NUMBERS = [
    "",
    "\n",
    " 1",
    "1 ",
    "1\n\n",
    "-1",
    "-0",
    "+",
    "++1",
    "0x10",
    "1.0",
    "ten",
    "1e3",
    "²",
    "٣",
    "4294967297x",
]
TOO_LONG = ["18446744073709551616", "99999999999999999999x", "0" * 9 + "9" * 9999]
NUMBERS = [name for name in TUNABLES if name not in ("use_zero_pages", "smart_scan", "advisor_mode")]
RAW = ("merge_across_nodes", "max_page_sharing")
"""The files that say ERANGE; the others say EINVAL instead."""


def refusal(name, text):
    """Return the errno of a refusal, after a look at its words."""
    with pytest.raises(KsmError, match="must be") as refused:
        TUNABLES[name].parse(text)
    return refused.value.errno


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_refused(name):
    for text in BAD_NUMBERS:
        assert refusal(name, text) == errno.EINVAL, text


@pytest.mark.parametrize("name", NUMBERS)
def test_more_than_64_bits_are_refused_whatever_follows(name):
    for text in TOO_LONG:
        assert refusal(name, text) == (errno.ERANGE if name in RAW else errno.EINVAL), text


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("run", "3", errno.EINVAL),
        ("pages_to_scan", "4294967296", errno.EINVAL),
        ("sleep_millisecs", "4294967296", errno.EINVAL),
        ("stable_node_chains_prune_millisecs", "4294967296", errno.EINVAL),
        ("max_page_sharing", "1", errno.EINVAL),
        ("max_page_sharing", "-2147483648", errno.EINVAL),
        ("max_page_sharing", "2147483648", errno.ERANGE),
        ("max_page_sharing", "-2147483649", errno.ERANGE),
        ("max_page_sharing", "-18446744073709551616", errno.ERANGE),
        ("max_page_sharing", "--3", errno.EINVAL),
        ("merge_across_nodes", "2", errno.EINVAL),
        ("merge_across_nodes", "18446744073709551615", errno.EINVAL),
        ("advisor_target_scan_time", "0", errno.EINVAL),
        ("advisor_mode", "0", errno.EINVAL),
        ("advisor_mode", "[none] scan-time", errno.EINVAL),
        ("advisor_mode", "none\n\n", errno.EINVAL),
        ("advisor_mode", "scan", errno.EINVAL),
        ("advisor_mode", "", errno.EINVAL),
    ],
)
def test_what_is_out_of_range_has_the_kernels_errno(name, text, number):
    assert refusal(name, text) == number


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("run", "2\n", 2),
        ("run", "01", 1),
        ("run", "+1", 1),
        ("run", "0" * 5000 + "1", 1),
        ("pages_to_scan", "0", 0),
        ("pages_to_scan", "010", 10),
        ("pages_to_scan", f"{U32_MAX}\n", U32_MAX),
        ("sleep_millisecs", "0", 0),
        ("max_page_sharing", "2", 2),
        ("max_page_sharing", "2147483647", 2**31 - 1),
        ("advisor_max_cpu", "4294967303", 7),
        ("advisor_min_pages_to_scan", "18446744073709551615", 2**64 - 1),
        ("advisor_target_scan_time", "1", 1),
        ("advisor_mode", "none", 0),
        ("advisor_mode", "scan-time\n", 1),
    ],
)
def test_a_good_text_is_taken(name, text, value):
    assert TUNABLES[name].parse(text) == value


@pytest.mark.parametrize(
    "text", ["1", "1\n", "y", "Y", "yes", "t", "TRUE", "on", "ON\n", "17", "enabled", "E"]
)
def test_a_word_for_true(text):
    assert TUNABLES["use_zero_pages"].parse(text) == 1


@pytest.mark.parametrize(
    "text", ["0", "0\n", "n", "NO", "f", "false", "of", "off", "0x1", "disabled", "none"]
)
def test_a_word_for_false(text):
    assert TUNABLES["use_zero_pages"].parse(text) == 0


@pytest.mark.parametrize("text", ["", "\n", "2", "o", "ob", "-1", "+1", " 1", "scan-time"])
def test_what_is_no_boolean_word_is_refused(text):
    assert refusal("use_zero_pages", text) == errno.EINVAL


def test_every_default_can_be_stored_and_what_is_shown_can_be_read():
    for tunable in TUNABLES.values():
        assert tunable.parse(tunable.word(tunable.default)) == tunable.default
        assert tunable.read(tunable.show(tunable.default)) == tunable.default
    assert TUNABLES["advisor_mode"].show(1) == "none [scan-time]"


def test_every_name_is_one_file():
    assert not TUNABLES.keys() & COUNTERS.keys()
    assert not TUNABLES.keys() & STATS.keys()
    assert not COUNTERS.keys() & STATS.keys()
