"""What names a security domain: the user, and a label for who wants finer ones."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

VARIABLE = "KSMEMU_DOMAIN"
"""Of the environment: the label of address spaces that are given none."""

_LABEL = re.compile(r"[A-Za-z0-9._-]{0,64}", re.ASCII)


class Key(NamedTuple):
    """One security domain of a ksmd."""

    uid: int
    """Of its workers, as the kernel says (SO_PEERCRED)."""
    label: str = ""
    """As they say: whoever has their uid can name any."""

    def __str__(self) -> str:
        """`UID` or `UID-LABEL`."""
        return f"{self.uid}-{self.label}" if self.label else str(self.uid)


def is_label(text: object) -> bool:
    """Whether a label may be so: at most 64 letters, digits, dots, hyphens and underscores."""
    return isinstance(text, str) and _LABEL.fullmatch(text) is not None


def default_label() -> str:
    """Return the label that the environment gives, or none.

    Raises:
        ValueError: it is no label.
    """
    return checked_label(os.environ.get(VARIABLE, ""))


def checked_label(label: str) -> str:
    """Return the label; ValueError if it is none."""
    if not is_label(label):
        raise ValueError(f"domain {label!r}: at most 64 letters, digits, dots, hyphens and underscores")
    return label


def stands_for_many(uid: int) -> bool:
    """Whether a uid stands for every user whom our user namespace does not know."""
    if uid != int(Path("/proc/sys/kernel/overflowuid").read_text()):
        return False
    known = Path("/proc/self/uid_map").read_text().splitlines()
    return sum(int(line.split()[2]) for line in known) < (1 << 32) - 1
