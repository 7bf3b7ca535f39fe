"""One class per decision that a caller can take. All are OSError: each carries an errno."""

from __future__ import annotations

import errno


class KsmError(OSError):
    """Something ksmemu could not do; `errno` says why. Nothing was changed unless it says so."""


class NotRunningError(KsmError):
    """No ksmd serves this instance directory: start one, or name the directory of one that runs."""

    def __init__(self, directory: object) -> None:
        super().__init__(
            errno.ENOTCONN,
            f"no ksmd serves {directory}: start one with `ksmemu start`, or name its directory",
        )


class AlreadyServedError(KsmError):
    """Another ksmd serves this instance directory."""

    def __init__(self, directory: object, pid: int) -> None:
        super().__init__(errno.EBUSY, f"{directory} is served already, by the ksmd of pid {pid}")


class ForeignInstanceError(KsmError):
    """The instance directory belongs to another user."""

    def __init__(self, directory: object, owner: int) -> None:
        super().__init__(errno.EPERM, f"{directory} belongs to another user (uid {owner})")


class KernelLacksError(KsmError):
    """The kernel lacks a facility, or does not grant it; the text is that of `ksmemu check`."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EOPNOTSUPP, text)


def error_from_errno(number: int, text: str) -> KsmError:
    """Return the error that another process reported, as the class that it had there."""
    kinds: dict[int, type[KsmError]] = {
        errno.ENOTCONN: NotRunningError,
        errno.EBUSY: AlreadyServedError,
        errno.EPERM: ForeignInstanceError,
        errno.EOPNOTSUPP: KernelLacksError,
    }
    kind = kinds.get(number, KsmError)
    error = kind.__new__(kind, number, text)
    OSError.__init__(error, number, text)  # the text is complete: nothing to put together again
    return error
