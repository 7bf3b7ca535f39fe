"""The lines that a worker obeys: read one, answer with one, and make a step of its own in between.

One thread does all of it: a line is obeyed between two steps, never in the middle of one.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping

from ksmemu.cli.command import one_line
from ksmemu.units import PAGE_SIZE

Command = Callable[..., str]
"""Obeys one line: takes the words after its name as strings, returns the answer."""
Step = Callable[[], float | None]
"""What a worker does by itself; returns after how many seconds to do it again, None: not before a line."""


class BadLineError(ValueError):
    """A line that cannot be obeyed; nothing was changed."""


def obey(commands: Mapping[str, Command], step: Step) -> None:
    """Say `ready PID`, then answer lines until `quit` or the end of the input."""
    _say(f"ready {os.getpid()}")
    for line in _lines(step):
        name, *given = line.decode("utf-8", "replace").split() or [""]
        if (name, given) == ("quit", []):
            _say("ok")
            return
        _say(_answer(commands, name, given))


def _lines(step: Step) -> Iterator[bytes]:
    """Yield the lines of the standard input, and make steps while none comes."""
    received = b""
    while True:
        *lines, received = received.split(b"\n")
        yield from lines
        while not select.select([0], [], [], step())[0]:
            pass
        if not (more := os.read(0, 1 << 16)):
            yield from [received] if received else []
            return
        received += more


def _answer(commands: Mapping[str, Command], name: str, given: list[str]) -> str:
    try:
        if name not in commands:
            raise BadLineError(f"no command {name!a}: there are {', '.join(commands)}, quit")
        return commands[name](*given)
    except BadLineError as error:
        return f"error: {error}"
    except OSError as error:
        return f"error: {one_line(error)}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def words(nr: int, usage: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of a line if there are nr of them; BadLineError with its usage if not."""
    if len(given) != nr:
        raise BadLineError(f"usage: {usage}")
    return given


def number(word: str, end: int) -> int:
    """Return a decimal number in [0, end); BadLineError says what is allowed."""
    if not (word.isascii() and word.isdigit()):
        raise BadLineError(f"{word!a} is no decimal number")
    if len(word) > 20 or int(word) >= end:
        raise BadLineError(f"{word} is not in 0..{end - 1}")
    return int(word)


def page_bytes(word: str) -> bytes:
    """Return what a word of hexadecimal digits means, at most one page."""
    try:
        content = bytes.fromhex(word)
    except ValueError:
        raise BadLineError("the bytes are no hexadecimal digits, two a byte") from None
    if len(content) > PAGE_SIZE:
        raise BadLineError(f"{len(content)} bytes are more than a page")
    return content
