"""A ksmd that is stopped (SIGSTOP) holds up the advice that needs it for a while, and nothing else."""

import errno
import signal

from ksmemu.mm import attach
from tests.support import crew


def advise_in_vain(state, seconds):
    attach._ANSWER_SECONDS = seconds
    try:
        crew.open_space(state, 13)
    except OSError as error:
        return error.errno
    return 0


def test_a_first_advice_ends_in_an_error_and_the_next_one_works(ksmd, start_worker):
    worker = start_worker()
    signal.pidfd_send_signal(ksmd._pidfd, signal.SIGSTOP)
    try:
        assert worker.call(advise_in_vain, 0.5) == errno.ETIMEDOUT
    finally:
        signal.pidfd_send_signal(ksmd._pidfd, signal.SIGCONT)
    assert worker.call(advise_in_vain, 30.0) == 0
    worker.call(crew.put, 0, [7] * 13)
    ksmd.wait_full_scans(3)
    assert ksmd.read("pages_sharing") == 12
