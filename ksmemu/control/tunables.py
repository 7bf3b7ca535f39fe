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
    show: Callable[[int], str] = str
    """Return what a read shows."""


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


def parse_ulong(text: str) -> int:
    """Return a decimal number of 64 bits, as parse_u32() does for 32; source: kstrtoul()."""
    digits = text.removesuffix("\n")
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError("must be a decimal number")
    if (value := int(digits)) >= 1 << 64:
        raise ValueError("must be less than 2**64")
    return value


def parse_at_least_one(text: str) -> int:
    """Return a decimal number of 64 bits that is not 0."""
    if (value := parse_ulong(text)) < 1:
        raise ValueError("must be at least 1")
    return value


ADVISOR_MODES = ("none", "scan-time")


def parse_advisor_mode(text: str) -> int:
    """Return the index of the mode in ADVISOR_MODES; the index, and what the file shows, are taken too."""
    word = text.removesuffix("\n")
    for mode, name in enumerate(ADVISOR_MODES):
        if word in (name, str(mode), show_advisor_mode(mode)):
            return mode
    raise ValueError(f"must be {' or '.join(ADVISOR_MODES)}")


def show_advisor_mode(mode: int) -> str:
    """Return all modes, the chosen one in brackets."""
    return " ".join(f"[{name}]" if i == mode else name for i, name in enumerate(ADVISOR_MODES))


_TABLE = (
    Tunable("run", 0, "0 stop, 1 merge, 2 unmerge", within(0, 2)),
    Tunable("pages_to_scan", 100, "pages per wake-up of ksmd", parse_u32),
    Tunable("sleep_millisecs", 20, "between two batches, in ms", parse_u32),
    Tunable(
        "max_page_sharing",
        256,
        "mappings of a frame, at most",
        within(2),
    ),
    Tunable("use_zero_pages", 0, "zeros merge with the zero page", parse_bool),
    Tunable("merge_across_nodes", 1, "0: only within a node", within(0, 1)),
    Tunable("stable_node_chains_prune_millisecs", 2000, "no effect: none is pruned", parse_u32),
    Tunable("smart_scan", 1, "pass over pages that never merge", parse_bool),
    Tunable("advisor_mode", 0, "who sets pages_to_scan", parse_advisor_mode, show_advisor_mode),
    Tunable("advisor_max_cpu", 70, "per cent of one CPU, at most", parse_ulong),
    Tunable("advisor_min_pages_to_scan", 500, "where the advisor starts", parse_ulong),
    Tunable("advisor_max_pages_to_scan", 30000, "pages_to_scan, at most", parse_ulong),
    Tunable("advisor_target_scan_time", 200, "seconds a full scan shall take", parse_at_least_one),
)

TUNABLES: Mapping[str, Tunable] = {tunable.name: tunable for tunable in _TABLE}
"""Every tunable by name, in the order in which they are shown."""
