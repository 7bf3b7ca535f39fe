"""Medians, ratios and lines: what `ksmemu bench` makes of its rounds."""

from __future__ import annotations

import json

import pytest

from ksmemu.bench.report import block, heading, number, summarise

PAIR = ("kernel", "ksmemu")
KERNEL = [{"wall_s": 4.0, "scans": 7}, {"wall_s": 6.0, "scans": 7}, {"wall_s": 5.0, "scans": 7}]
OWN = [
    {"wall_s": 1.0, "kept_percent": 90.0},
    {"wall_s": 3.0, "kept_percent": 91.0},
    {"wall_s": 2.0, "kept_percent": 89.0},
]


def test_a_spread_is_the_median_between_least_and_most():
    figure = summarise({"kernel": KERNEL, "ksmemu": OWN})["wall_s"].spreads
    assert figure["kernel"] == {"median": 5.0, "min": 4.0, "max": 6.0, "rounds": [4.0, 6.0, 5.0]}
    assert figure["ksmemu"]["median"] == 2.0


def test_the_ratio_is_that_of_what_ran_side_by_side():
    """The rounds differ 4, 2 and 2.5 times, and 2, 2 and 5 times when the order of one engine is turned."""
    assert summarise({"kernel": KERNEL, "ksmemu": OWN})["wall_s"].ratio == 2.5
    assert summarise({"kernel": KERNEL, "ksmemu": OWN[::-1]})["wall_s"].ratio == 2.0


def test_only_costs_that_both_have_get_a_ratio():
    found = summarise({"kernel": KERNEL, "ksmemu": OWN})
    assert [name for name, figure in found.items() if figure.ratio is not None] == ["wall_s"]
    alone = summarise({"ksmemu": OWN})
    assert {(figure.ratio, *figure.spreads) for figure in alone.values()} == {(None, "ksmemu")}
    both = summarise({"kernel": [{"kept_percent": 9.0}], "ksmemu": [{"kept_percent": 3.0}]})
    assert both["kept_percent"].ratio is None


def test_nothing_is_divided_by_zero():
    assert summarise({"kernel": [{"cpu_s": 1.0}], "ksmemu": [{"cpu_s": 0.0}]})["cpu_s"].ratio is None


def test_the_figures_survive_json():
    found = {name: f.as_json() for name, f in summarise({"kernel": KERNEL, "ksmemu": OWN}).items()}
    assert json.loads(json.dumps(found)) == found
    assert found["wall_s"].keys() == {"kernel", "ksmemu", "ratio"}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 98765.4])
def test_lines_have_80_columns_at_most(scale):
    rounds = {
        engine: [{name: value * scale for name, value in figures.items()} for figures in several]
        for engine, several in (("kernel", KERNEL), ("ksmemu", OWN))
    }
    lines = [heading(PAIR), *block("a: 3 x 4 MiB, of something", summarise(rounds), PAIR)]
    assert max(map(len, lines)) <= 80
    assert len({line.index("kernel") for line in lines if "kernel" in line}) == 1


def test_a_block_names_medians_and_ratio():
    title, wall, *_ = block("twins: two", summarise({"kernel": KERNEL, "ksmemu": OWN}), PAIR)
    assert title == "twins: two"
    assert wall.split() == ["wall_s", "5", "(4-6)", "2", "(1-3)", "2.5"]


@pytest.mark.parametrize(("pages", "is_said"), [(0, False), (3, True)])
def test_a_run_that_the_mapping_budget_ended_says_so(pages, is_said):
    lines = block("scattered", summarise({"ksmemu": [{"left_pages": pages}]}), PAIR)
    assert any("vm.max_map_count" in line for line in lines) == is_said


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (1.0, "1"), (987.6, "988"), (65795, "65795")]
)
def test_numbers_have_three_digits_and_counts_all_of_them(value, text):
    assert number(value) == text
