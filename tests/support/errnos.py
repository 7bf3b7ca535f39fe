"""What a call fails with."""


def number_of(call, *args):
    """Return the errno, or 0."""
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return 0
