"""A worker that loads the weights of a model, as each of several servers of one model does.

$ python -m workers.model weights.npz
ready 4117
holds
embed.weight 2500 head.weight 2500
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from ksmemu.cli.command import run
from ksmemu.cli.options import usage_errors
from ksmemu.units import pages_for
from workers import base
from workers.base import Worker

_SHAPES = {"layer1": (257, 1024), "layer2": (1024, 257)}
_SEED = 2009


def weights_of(path: Path) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Yield the arrays of a .npy or .npz file, one at a time, with their names.

    Raises:
        ValueError: it is no such file, or is truncated.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            yield from [(path.stem, loaded)] if isinstance(loaded, np.ndarray) else loaded.items()
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise ValueError(f"{path}: no .npy or .npz of plain numbers: {error}") from None


def made_up_weights() -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Yield weights that are the same in every process."""
    numbers = np.random.default_rng(_SEED)
    for name, shape in _SHAPES.items():
        yield name, numbers.standard_normal(shape, dtype=np.float32)


@base.program
@click.argument("file", required=False, type=base.FILE)
def main(worker: Worker, file: Path | None) -> None:
    """Load the arrays of FILE (.npy, .npz), a space each; without FILE, weights that are made up."""
    with usage_errors():
        for name, array in weights_of(file) if file else made_up_weights():
            if array.nbytes:
                nr_pages = pages_for(array.nbytes)
                worker.map(nr_pages, name).put(0, array.tobytes())
                worker.holds[name] += nr_pages
    worker.obey()


if __name__ == "__main__":
    run(main, "model")
