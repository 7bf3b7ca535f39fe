"""Profit, and when it is negative: a page that is looked at costs 64 bytes, one that is saved earns 4096.

$ python examples/profit.py
pages tracked  saved     profit
         1260      0     -80640  nothing is equal: books, and no gain
         1280     20          0  one page in 64 is saved: it pays for the books of all
         1380    120     403200  from here on it pays
         1380      0     -88320  all that was equal is rewritten: the books remain
"""

import numpy as np

import ksmemu

PAGE_WORDS = 512


def pages(first, nr):
    """Return an array of mergeable pages, numbered in their first word."""
    array = ksmemu.AddressSpace(nr * 4096).ndarray((nr, PAGE_WORDS), "u8")
    ksmemu.madvise(array)
    array[:, 0] = np.arange(first, first + nr)
    return array


def show(why):
    """Print the figures once every page has been scanned."""
    ksmd.wait_full_scans(4)
    saved, profit = ksmd.read("pages_sharing"), ksmd.read("general_profit")
    print(f"{ksmd.read('pages_tracked'):>13} {saved:>6} {profit:>10}  {why}")


with ksmemu.Ksmd(run=1, pages_to_scan=10_000, smart_scan=0) as ksmd:
    print("pages tracked  saved     profit")
    unique = pages(1, 1260)
    show("nothing is equal: books, and no gain")
    few = pages(1, 20)
    show("one page in 64 is saved: it pays for the books of all")
    more = pages(21, 100)
    show("from here on it pays")
    few += 10_000
    more += 10_000
    show("all that was equal is rewritten: the books remain")
