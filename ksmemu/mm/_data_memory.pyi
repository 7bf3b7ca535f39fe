"""Numpy's data memory handler (NEP 49), in data_memory.c: what is large comes from the arena (arena.py)."""

from ksmemu.mm.arena import Arena

def handler(min_bytes: int, /) -> object:
    """Return a handler that takes blocks of at least so many bytes from the arena."""

def swap(handler: object, /) -> object:
    """Let numpy use a handler, in this context (contextvars) alone; return the one it used."""

def serve(arena: Arena, /) -> None:
    """Name the arena that all handlers take blocks from; it is kept for ever."""

def set_bounds(start: int, end: int, /) -> None:
    """Name the addresses of the arena: what numpy frees there goes back to it. 0, 0: it has none."""

def stop() -> None:
    """Leave the arena alone from now on: what is in it stays, and nothing comes from it any more."""
