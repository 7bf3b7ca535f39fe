"""The tunables: name, default, what a store may say.

`sysfs.py` takes stores and shows values, ksmd obeys them.

Parsing is the kernel's: a store that /sys/kernel/mm/ksm would refuse is refused here, with the same
errno.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ksmemu.control.kstrto import kstrtobool, kstrtoint, kstrtouint, kstrtoul, sysfs_streq
from ksmemu.errors import KsmError

U32_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Tunable:
    """One read-write control file."""

    name: str
    default: int
    meaning: str
    parse: Callable[[str], int]
    """Return the value that the text of a store means; KsmError has the errno and what is allowed."""
    words: tuple[str, ...] = ()
    """Of a choice: the word for each value."""

    def word(self, value: int) -> str:
        """Return what to store for a value."""
        return self.words[value] if value in range(len(self.words)) else str(value)

    def show(self, value: int) -> str:
        """Return what a read shows: a number; or all words, the chosen one in brackets."""
        if not self.words:
            return str(value)
        return " ".join(f"[{word}]" if i == value else word for i, word in enumerate(self.words))

    def read(self, text: str) -> int:
        """Return the value that is shown so."""
        return [self.show(i) for i in range(len(self.words))].index(text) if self.words else int(text)


@dataclass(frozen=True, slots=True)
class Action:
    """One read-write control file whose store does something; what a read shows is ksmd's to say."""

    name: str
    meaning: str
    parse: Callable[[str], int]
    """As that of a Tunable."""


def folded(kstrto: Callable[[str], int]) -> Callable[[str], int]:
    """Return the parser that says EINVAL also where this one says ERANGE, as most of the kernel's files."""

    def parse(text: str) -> int:
        try:
            return kstrto(text)
        except KsmError as error:
            raise KsmError(errno.EINVAL, error.strerror) from None

    return parse


parse_u32, parse_ulong = folded(kstrtouint), folded(kstrtoul)


def within(
    lowest: int, highest: int | None = None, *, of: Callable[[str], int] = parse_u32
) -> Callable[[str], int]:
    """Return the parser of a number that must lie in lowest..highest, both included."""

    def parse(text: str) -> int:
        value = of(text)
        if value < lowest or (highest is not None and value > highest):
            limit = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
            raise KsmError(errno.EINVAL, f"must be {limit}")
        return value

    return parse


def parse_max_cpu(text: str) -> int:
    """Return a number of 64 bits without its upper half: the kernel keeps it in an unsigned int."""
    return parse_ulong(text) & U32_MAX


ADVISOR_MODES = ("none", "scan-time")


def parse_advisor_mode(text: str) -> int:
    """Return the index of the mode in ADVISOR_MODES."""
    for mode, name in enumerate(ADVISOR_MODES):
        if sysfs_streq(text, name):
            return mode
    raise KsmError(errno.EINVAL, f"must be {' or '.join(ADVISOR_MODES)}")


_TABLE = (
    Tunable("run", 0, "0 stop, 1 merge, 2 unmerge", within(0, 2)),
    Tunable("pages_to_scan", 100, "pages per wake-up of ksmd", parse_u32),
    Tunable("sleep_millisecs", 20, "between two batches, in ms", parse_u32),
    Tunable("max_page_sharing", 256, "mappings of a frame, at most", within(2, of=kstrtoint)),
    Tunable("use_zero_pages", 0, "zeros merge with the zero page", kstrtobool),
    Tunable("merge_across_nodes", 1, "0: only within a node", within(0, 1, of=kstrtoul)),
    Tunable("stable_node_chains_prune_millisecs", 2000, "no effect: none is pruned", parse_u32),
    Tunable("smart_scan", 1, "pass over pages that never merge", kstrtobool),
    Tunable("advisor_mode", 0, "who sets pages_to_scan", parse_advisor_mode, ADVISOR_MODES),
    Tunable("advisor_max_cpu", 70, "per cent of one CPU, at most", parse_max_cpu),
    Tunable("advisor_min_pages_to_scan", 500, "where the advisor starts", parse_ulong),
    Tunable("advisor_max_pages_to_scan", 30000, "pages_to_scan, at most", parse_ulong),
    Tunable("advisor_target_scan_time", 200, "seconds a full scan shall take", within(1, of=parse_ulong)),
)

TUNABLES: Mapping[str, Tunable] = {tunable.name: tunable for tunable in _TABLE}
"""Every tunable by name, in the order in which they are shown."""

_ACTIONS = (
    Action("merge_pid", "merge a process from outside; reads as the pids", parse_u32),
    Action("unmerge_pid", "undo that; reads as the pids", parse_u32),
)

ACTIONS: Mapping[str, Action] = {action.name: action for action in _ACTIONS}
"""Every action by name."""
