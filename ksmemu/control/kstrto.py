"""The kernel's way to read a number, a boolean or a word from the text of a store.

Each function is named after the kernel's and raises what that one returns: EINVAL if the text is no
number, ERANGE if the number does not fit. One trailing newline is allowed, blanks are not; all numbers
are decimal, whatever their prefix.

Source: lib/kstrtox.c, sysfs_streq() of lib/string_helpers.c.
"""

from __future__ import annotations

import errno
from itertools import takewhile

from ksmemu.errors import KsmError

_DIGITS = "0123456789"


def kstrtouint(text: str) -> int:
    """Return a number of 32 bits without a sign."""
    return _fitting(_kstrtoull(text), 0, 2**32 - 1)


def kstrtoul(text: str) -> int:
    """Return a number of 64 bits without a sign."""
    return _kstrtoull(text)


def kstrtoint(text: str) -> int:
    """Return a number of 32 bits with a sign."""
    value = -_magnitude(text[1:]) if text.startswith("-") else _kstrtoull(text)
    return _fitting(value, -(2**31), 2**31 - 1)


def kstrtobool(text: str) -> int:
    """Return 1 or 0 for a boolean word, of which only the first one or two characters count."""
    word = text[:2].lower()
    if word[:1] in tuple("1ety") or word == "on":
        return 1
    if word[:1] in tuple("0dfn") or word == "of":
        return 0
    raise KsmError(errno.EINVAL, "must be a boolean word: 1, y, t, on, 0, n, f or off")


def sysfs_streq(text: str, word: str) -> bool:
    """Whether the text is the word."""
    return text.removesuffix("\n") == word


def _kstrtoull(text: str) -> int:
    return _magnitude(text.removeprefix("+"))


def _magnitude(text: str) -> int:
    digits = "".join(takewhile(_DIGITS.__contains__, text))
    value = int(digits.lstrip("0")[:21] or "0")  # 21 digits are too many already
    if value >= 2**64:  # comes before what follows the digits
        raise KsmError(errno.ERANGE, "must be less than 2**64")
    if not digits or text[len(digits) :].removesuffix("\n"):
        raise KsmError(errno.EINVAL, "must be a decimal number")
    return value


def _fitting(value: int, lowest: int, highest: int) -> int:
    if not lowest <= value <= highest:
        raise KsmError(errno.ERANGE, f"must be {lowest} to {highest}")
    return value
