"""Children of a worker, forked with all that it holds, and as obedient. These functions run in the worker."""

import os
import signal
from multiprocessing.connection import Pipe

import dill

from tests.support.processes import DEADLINE, serve


def fork(state):
    """Fork a child that obeys call_child(); return its number."""
    ours, theirs = Pipe()
    state.children = getattr(state, "children", [])
    pid = os.fork()
    if pid == 0:
        ours.close()
        for _, connection in state.children:
            connection.close()
        state.children = []
        serve(theirs, state)
        os._exit(0)
    theirs.close()
    state.children.append((pid, ours))
    return len(state.children) - 1


def call_child(state, child, function, *args):
    """Let a child run function(state, *args), and return what it returns."""
    _, connection = state.children[child]
    connection.send_bytes(dill.dumps((function, args), recurse=True))
    assert connection.poll(DEADLINE), "the child does not answer"
    ok, result = dill.loads(connection.recv_bytes())
    assert ok, result
    return result


def pid_of(state, child):
    return state.children[child][0]


def end(state, child, number=0):
    """Let a child end by itself, or by a signal; return how it ended."""
    pid, connection = state.children[child]
    if number:
        os.kill(pid, number)
        if number == signal.SIGSTOP:
            return None
    connection.close()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
