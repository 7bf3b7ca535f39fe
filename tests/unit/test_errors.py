"""An error that ksmd reports is the same error here."""

from __future__ import annotations

import errno

import pytest

from ksmemu.errors import (
    AlreadyServedError,
    ForeignInstanceError,
    KernelLacksError,
    KsmError,
    NotRunningError,
    error_from_errno,
)

SAMPLES = [
    NotRunningError("/here"),
    AlreadyServedError("/here", 7),
    ForeignInstanceError("/here", 7),
    KernelLacksError("no  userfaultfd"),
    KsmError(errno.ENOSPC, "no room"),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_between_processes(error):
    same = error_from_errno(error.errno, error.strerror)
    assert type(same) is type(error)
    assert (same.errno, same.strerror) == (error.errno, error.strerror)
