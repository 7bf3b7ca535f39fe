"""What every worker program shares: make a space, advise, fill, obey lines.

A worker prints `ready PID` once its memory is as it should be, then answers each line on its standard
input with exactly one line. A line that it cannot obey is answered `error: …` and changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from io import FileIO

from ksmemu import MADV_MERGEABLE, AddressSpace
from ksmemu.units import PAGE_SIZE, pages_for

Command = Callable[..., str]
"""Obeys one command: takes the words after its name as strings, returns the answer."""


class BadLineError(ValueError):
    """A line that cannot be obeyed; nothing was changed."""


@contextlib.contextmanager
def mergeable_space(
    nr_bytes: int, directory: str | os.PathLike[str] | None, name: str, domain: str | None = None
) -> Iterator[AddressSpace]:
    """Yield a space that is mapped in full, zeroed and mergeable; it is closed afterwards.

    Advised before it is filled: there is nothing to be moved.

    Raises:
        OSError: as AddressSpace and its madvise(); nothing is left behind.
    """
    with AddressSpace(nr_bytes, name=name, instance=directory, domain=domain) as space:
        space.mmap(space.size, space.start)
        space.madvise(space.start, space.size, MADV_MERGEABLE)
        yield space


def fill(space: AddressSpace, file: FileIO, nr_bytes: int) -> None:
    """Read nr_bytes of a file to the start of a space; beyond them it stays as it was.

    Raises:
        OSError: of the read; EIO if the file is shorter.
    """
    with space.view(space.start, nr_bytes) as view:
        done = 0
        while done < nr_bytes:
            with view[done:] as rest:
                got = _read_into(file, rest)
            if not got:
                raise OSError(errno.EIO, f"{file.name}: {done} bytes, not {nr_bytes}")
            done += got


def _read_into(file: FileIO, view: memoryview) -> int:
    try:
        return file.readinto(view) or 0
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
    # The page is frozen, and without privilege a system call does not wait for it. We do.
    view[0] = view[0]
    return _read_into(file, view)


def pages_of(space: AddressSpace) -> int:
    """Return how many pages a space has."""
    return pages_for(space.size)


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


def obey_lines(commands: Mapping[str, Command]) -> None:
    """Say `ready PID`, then answer lines until `quit` or the end of the input."""
    _say(f"ready {os.getpid()}")
    for line in sys.stdin.buffer:
        name, *words = line.decode("utf-8", "replace").split() or [""]
        if (name, words) == ("quit", []):
            _say("ok")
            return
        _say(_answer(commands, name, words))


def _answer(commands: Mapping[str, Command], name: str, words: list[str]) -> str:
    try:
        if name not in commands:
            raise BadLineError(f"no command {name!a}: there are {', '.join(commands)}, quit")
        return commands[name](*words)
    except BadLineError as error:
        return f"error: {error}"
    except OSError as error:
        return f"error: {_one_line(error)}"


def words(nr: int, usage: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of a command if there are nr of them; BadLineError with its usage if not."""
    if len(given) != nr:
        raise BadLineError(f"usage: {usage}")
    return given


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turn an OSError into one line on standard error and exit status 1."""
    try:
        yield
    except BrokenPipeError:  # whoever listened has gone: nobody is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.stderr.write(f"{program}: {_one_line(error)}\n")
        sys.exit(1)


def _one_line(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return place + "; ".join((error.strerror or str(error)).splitlines())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
