"""What a store may say."""

from __future__ import annotations

import pytest

from ksmemu.control.counters import COUNTERS, STATS
from ksmemu.control.tunables import TUNABLES, U32_MAX

BAD_NUMBERS = [
    "",
    "\n",
    " 1",
    "1 ",
    "1\n\n",
    "-1",
    "+1",
    "0x10",
    "1.0",
    "ten",
    "1e3",
    "²",
    "٣",
    str(U32_MAX + 1),
]


@pytest.mark.parametrize("name", ["run", "pages_to_scan", "sleep_millisecs", "max_page_sharing"])
@pytest.mark.parametrize("text", BAD_NUMBERS)
def test_what_is_not_a_u32_is_refused(name, text):
    with pytest.raises(ValueError, match="must be"):
        TUNABLES[name].parse(text)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("run", "2\n", 2),
        ("run", "01", 1),
        ("pages_to_scan", "0", 0),
        ("pages_to_scan", f"{U32_MAX}\n", U32_MAX),
        ("sleep_millisecs", "0", 0),
        ("max_page_sharing", "2", 2),
    ],
)
def test_a_good_number_is_taken(name, text, value):
    assert TUNABLES[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "text"), [("run", "3"), ("max_page_sharing", "1"), ("max_page_sharing", "0")]
)
def test_a_number_out_of_range_is_refused_with_the_range(name, text):
    with pytest.raises(ValueError, match=r"must be (0 to 2|at least 2)"):
        TUNABLES[name].parse(text)


@pytest.mark.parametrize("text", ["1", "1\n", "y", "Y", "yes", "t", "TRUE", "on", "ON\n", "17"])
def test_a_word_for_true(text):
    assert TUNABLES["use_zero_pages"].parse(text) == 1


@pytest.mark.parametrize("text", ["0", "0\n", "n", "NO", "f", "false", "of", "off", "0x1"])
def test_a_word_for_false(text):
    assert TUNABLES["use_zero_pages"].parse(text) == 0


@pytest.mark.parametrize("text", ["", "\n", "2", "o", "ob", "-1", " 1"])
def test_what_is_no_boolean_word_is_refused(text):
    with pytest.raises(ValueError, match="boolean"):
        TUNABLES["use_zero_pages"].parse(text)


def test_every_default_is_a_value_that_could_be_stored():
    for tunable in TUNABLES.values():
        assert tunable.parse(str(tunable.default)) == tunable.default


def test_every_name_is_one_file():
    assert not TUNABLES.keys() & COUNTERS.keys()
    assert not TUNABLES.keys() & STATS.keys()
    assert not COUNTERS.keys() & STATS.keys()
