"""merge_pid as its target meets it: a process that never advised anything is merged from outside.

ksmd's signal says no more than "ask me": it may be sent to any process without harm, because its default is
to be ignored, and the answer comes from the ksmd of the process's own choice, over a socket.
"""

from __future__ import annotations

import _thread
import logging
import signal
import threading
from types import FrameType

from ksmemu import wire
from ksmemu.errors import NotRunningError
from ksmemu.instance import Instance
from ksmemu.mm import flags, spaces

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 10.0
_obeying = threading.Lock()


def listen() -> None:
    """Let merge_pid reach this process from now on: once, from the main thread, unless SIGURG is taken.

    It costs no thread and no descriptor. A process that has address spaces, all of them made by other threads
    than the main one, is not reached.
    """
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGURG) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGURG, _asked)


def forget_in_child() -> None:
    """This is a forked child: a thread of the parent may have been obeying."""
    global _obeying  # noqa: PLW0603 - a lock that another thread of the parent held is no use here
    _obeying = threading.Lock()


def _asked(_number: int, _frame: FrameType | None) -> None:
    """Runs in: the main thread, between any two steps of it; locks it holds may be the ones we need."""
    _thread.start_new_thread(_obey, ())


def _obey() -> None:
    with _obeying:
        instances = {space.instance.directory: space.instance for space in spaces.every()}
        for instance in instances.values():
            try:
                _ask(instance)
            except NotRunningError:
                pass  # it was not this one's ksmd
            except (OSError, EOFError, wire.WireError) as error:
                log.warning("merge_pid: %s: %s", instance.directory, error)


def _ask(instance: Instance) -> None:
    """Ask what is wanted of this process, and do it before the connection is closed."""
    with instance.connect() as control:
        control.settimeout(_ANSWER_SECONDS)
        wire.send_control(control, {"merge_pid": wire.VERSION, "refuses": flags.refuses})
        reply, fds = wire.receive_control(control)
        if fds or not isinstance(reply.get("merge"), bool):
            raise wire.WireError(f"no answer: {reply}")
        if reply["merge"]:
            flags.merge_all.add(instance.directory)
        else:
            flags.merge_all.discard(instance.directory)
        for space in spaces.every():
            if space.instance == instance:
                space.merge_from_outside(on=reply["merge"] is True)
