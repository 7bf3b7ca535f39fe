"""core/wire.h as the compiler lays it out, against wire.py."""

import json
import struct
import subprocess

import pytest

from ksmemu import wire
from tests.support.cores import ROOT

HEADS = {
    "order": (wire.ORDER, ["kind", "space", "id", "epoch", "nr_runs"]),
    "report": (wire.REPORT, ["kind", "space", "id", "epoch", "nr_spans", "frozen_ns"]),
}
ITEMS = {"run": wire.RUN, "span": wire.SPAN}
CONSTANTS = {
    "WIRE_VERSION": wire.VERSION,
    "ORDER_MAX_PAGES": wire.ORDER_MAX_PAGES,
    "FRAME_ZERO": wire.FRAME_ZERO,
    "ORDER_MERGE": wire.OrderKind.MERGE,
    "ORDER_REHOME": wire.OrderKind.REHOME,
    "ORDER_RENEW": wire.OrderKind.RENEW,
    "OUTCOME": wire.ReportKind.OUTCOME,
    "ADVISED": wire.ReportKind.ADVISED,
    "UNADVISED": wire.ReportKind.UNADVISED,
    "UNMAPPED": wire.ReportKind.UNMAPPED,
    "CLOSED": wire.ReportKind.CLOSED,
    "UNSHAREABLE": wire.ReportKind.UNSHAREABLE,
    "REFUSED": wire.ReportKind.REFUSED,
}


def fields_of(name):
    return HEADS[name][1] if name in HEADS else list(ITEMS[name].names)


def program():
    lines = []
    for name in [*HEADS, *ITEMS]:
        kind = f"struct ksmemu_{name}"
        lines += [f'say("{name}", sizeof({kind}));']
        for field in fields_of(name):
            lines += [f'say("{name}.{field}", offsetof({kind}, {field}));']
            lines += [f'say("{name}.{field}.size", sizeof((({kind} *)0)->{field}));']
    lines += [f'say("{name}", KSMEMU_{name});' for name in CONSTANTS]
    return f"""
#include <stddef.h>
#include <stdio.h>
#include "wire.h"
static void say(const char *name, unsigned long long n) {{ printf(",\\"%s\\":%llu", name, n); }}
int main(void) {{ printf("{{\\"\\":0"); {" ".join(lines)} printf("}}"); return 0; }}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return what the C compiler says of the header."""
    built = tmp_path_factory.mktemp("wire") / "wire"
    command = ["gcc", f"-I{ROOT / 'ksmemu/core'}", "-x", "c", "-", "-o", built]
    subprocess.run(command, input=program(), text=True, check=True)
    return json.loads(subprocess.run([built], capture_output=True, check=True).stdout)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_laid_out_as_in_c(compiled, name):
    layout, fields = HEADS[name]
    codes = layout.format.removeprefix("=")
    assert len(codes) == len(fields)
    assert layout.size == compiled[name]
    for index, field in enumerate(fields):
        assert struct.calcsize("=" + codes[:index]) == compiled[f"{name}.{field}"]
        assert struct.calcsize("=" + codes[index]) == compiled[f"{name}.{field}.size"]


@pytest.mark.parametrize("name", ITEMS)
def test_an_item_is_laid_out_as_in_c(compiled, name):
    layout = ITEMS[name]
    assert layout.itemsize == compiled[name]
    for field in layout.names:
        kind, offset = layout.fields[field]
        assert (offset, kind.itemsize) == (compiled[f"{name}.{field}"], compiled[f"{name}.{field}.size"])


def test_constants_are_those_of_c(compiled):
    assert {name: compiled[name] for name in CONSTANTS} == CONSTANTS


def test_the_longest_order_and_report_fit_into_a_socket_buffer():
    order = wire.ORDER.size + wire.ORDER_MAX_PAGES * wire.RUN.itemsize
    assert max(order, wire.REPORT_MAX_BYTES) < 212_992
