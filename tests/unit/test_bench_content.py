"""What the memory of a benchmark holds is known in advance, and what is said to be equal is."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from ksmemu.bench.content import WORDS, Fills, Image, Random, Scattered, own_random
from ksmemu.bench.guests import Guest, expected_sharing

NR = 1009


def filled(content):
    pages = np.full((content.nr_pages, WORDS), 0xABAD1DEA, dtype=np.uint64)
    content.fill(pages)
    return [page.tobytes() for page in pages]


def distinct(*contents):
    return len({page for content in contents for page in filled(content)})


def test_random_pages_have_no_like_but_with_the_same_seed():
    assert distinct(Random(NR)) == NR
    assert distinct(Random(NR), Random(NR)) == NR
    assert distinct(Random(NR), own_random(NR, 0), own_random(NR, 1)) == 3 * NR


def test_of_scattered_every_second_page_is_common_and_at_another_place():
    one, two = filled(Scattered(NR - 1, 0)), filled(Scattered(NR - 1, 1))
    common = set(one) & set(two)
    assert len(common) == (NR - 1) // 2
    assert all(page in common for page in one[::2])
    assert all(page in common for page in two[1::2])
    assert not any(one[at] in common and one[at + 1] in common for at in range(NR - 2))
    distances = {two.index(page) - at for at, page in enumerate(one) if page in common}
    assert 0 not in distances
    assert len(distances) > 1


def test_fills_are_zeros_and_ones():
    assert set(filled(Fills(NR))) == {bytes(4096), b"\xff" * 4096}


def test_an_image_is_its_file(tmp_path):
    (tmp_path / "image").write_bytes(np.arange(7 * WORDS, dtype=np.uint64).tobytes() + b"tail")
    content = Image(tmp_path / "image")
    assert content.nr_pages == 7
    assert b"".join(filled(content)) == np.arange(7 * WORDS, dtype=np.uint64).tobytes()


def test_of_guests_half_is_common_and_a_quarter_zeros():
    guests = [collections.Counter(filled(Guest(4096, rank))) for rank in range(3)]
    common = guests[0] & guests[1] & guests[2]
    zeros = common.pop(bytes(4096))
    assert zeros >= 1024
    assert sum(common.values()) + zeros == 4096 // 2 + 1024
    assert filled(Guest(4096, 0)) != filled(Guest(4096, 1))


def test_guests_have_runs_of_1_to_64_pages():
    """Neighbours of the first guest that are neighbours in the second one too."""
    first, second = (filled(Guest(16_384, rank)) for rank in range(2))
    counts = collections.Counter(first)
    place = {page: at for at, page in enumerate(second) if counts[page] == 1}
    runs, length, last = [], 0, None
    for page in first:
        at = place.get(page)
        if at is None or last is None or at != last + 1 or length == 64:
            if length:
                runs.append(length)
            length = 0
        length += at is not None
        last = at
    assert max(runs) <= 64
    assert 5 < np.mean(runs) < 20


@pytest.mark.parametrize("limit", [2, 3, 256])
def test_expected_sharing_is_what_counting_finds(limit):
    contents = (Random(NR), Random(NR), Fills(NR))
    fills = [NR // 2, NR - NR // 2]
    expected = NR - NR * (limit < 2) + sum(count - -(-count // limit) for count in fills)
    assert expected_sharing(contents, limit) == expected


def test_nothing_is_saved_among_unique_pages():
    assert expected_sharing((own_random(NR, 0), own_random(NR, 1)), 256) == 0
