"""Contents of pages."""

import random

from tests.support.procmaps import PAGE

ZEROS = bytes(PAGE)


def content(seed):
    """Return a page that no other seed has."""
    return random.Random(seed).randbytes(PAGE)
