"""The tunables: name, default, what a store may say.

`sysfs.py` shows them as files, ksmd obeys them.

Parsing is the kernel's: a store that /sys/kernel/mm/ksm would refuse is refused here, for the same
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

U32_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Tunable:
    """One read-write control file."""

    name: str
    default: int
    meaning: str
    parse: Callable[[str], int]
    """Return the value that the text of a store means; ValueError says what is allowed."""


def parse_u32(text: str) -> int:
    """Return a decimal number of 32 bits.

    One trailing newline is allowed, blanks and signs are not.

    Source: kstrtouint().
    """
    digits = text.removesuffix("\n")
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError("must be a decimal number")
    if (value := int(digits)) > U32_MAX:
        raise ValueError(f"must be at most {U32_MAX}")
    return value


def parse_bool(text: str) -> int:
    """Return 1 or 0 for a boolean word, of which only the first one or two characters count.

    Source: kstrtobool().
    """
    word = text[:2].lower()
    if word[:1] in ("1", "y", "t") or word == "on":
        return 1
    if word[:1] in ("0", "n", "f") or word == "of":
        return 0
    raise ValueError("must be a boolean word: 1, y, t, on, 0, n, f or off")


def within(lowest: int, highest: int = U32_MAX) -> Callable[[str], int]:
    """Return the parser of a u32 that must lie in lowest..highest, both included."""

    def parse(text: str) -> int:
        value = parse_u32(text)
        if not lowest <= value <= highest:
            limit = f"{lowest} to {highest}" if highest < U32_MAX else f"at least {lowest}"
            raise ValueError(f"must be {limit}")
        return value

    return parse


_TABLE = (
    Tunable("run", 0, "0 stop; 1 merge; 2 stop and unmerge", within(0, 2)),
    Tunable("pages_to_scan", 100, "pages per wake-up of ksmd", parse_u32),
    Tunable("sleep_millisecs", 20, "sleep between two batches, in milliseconds", parse_u32),
    Tunable(
        "max_page_sharing",
        256,
        "mappings of a frame; fixed while pages shared",
        within(2),
    ),
    Tunable("use_zero_pages", 0, "merge all-zero pages with the zero page", parse_bool),
)

TUNABLES: Mapping[str, Tunable] = {tunable.name: tunable for tunable in _TABLE}
"""Every tunable by name, in the order in which they are shown."""
