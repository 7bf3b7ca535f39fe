"""How many examples hypothesis tries, and no deadline by time."""

from hypothesis import settings

quick = settings(deadline=None, max_examples=120)
few = settings(deadline=None, max_examples=40)
