"""A page map on a grid: fewer cells than pages, and a letter and a colour for each Look."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ksmemu.control.look import Look
from ksmemu.control.page_map import PageMap

LETTERS = {
    Look.ABSENT: "·",
    Look.OWN: "o",
    Look.VOLATILE: "v",
    Look.MERGED: "█",
    Look.ZERO: "0",
    Look.BROKEN: "X",
}
"""Told apart without colour, too."""

COLOURS = {
    Look.ABSENT: "#e3e3e3",
    Look.OWN: "#5b9bd5",
    Look.VOLATILE: "#f2a33a",
    Look.MERGED: "#54a24b",
    Look.ZERO: "#b279a2",
    Look.BROKEN: "#e45756",
}


def cells(space: PageMap, most: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Return (looks, pages a cell) of a space in at most so many cells, whole numbers of pages each.

    A cell has the look of most of its pages that hold data, the higher one of two; ABSENT if none does.
    """
    pages_a_cell = -(-space.nr_pages // most)
    nr = -(-space.nr_pages // pages_a_cell)
    pages, nr_looks = space.pages, len(Look)
    has_data = space.looks != Look.ABSENT
    index = pages[has_data] // pages_a_cell * nr_looks + space.looks[has_data]
    counts = np.bincount(index, minlength=nr * nr_looks).reshape(nr, nr_looks)
    looks = nr_looks - 1 - counts[:, ::-1].argmax(axis=1)
    looks[~counts.any(axis=1)] = Look.ABSENT
    return looks.astype(np.uint8), pages_a_cell
