"""A ksmd told to merge, and asked when it has stopped: the counters move while a scan runs."""

SETTLED = ("pages_shared", "pages_sharing", "pages_volatile", "pages_unshared")


def merge(ksmd, scans=2):
    """Merge for some full scans, as the kernel's tests do, and go on."""
    ksmd.write("run", 1)
    ksmd.wait_full_scans(scans)


def settled(ksmd):
    """Stop, and return pages_shared, pages_sharing, pages_volatile and pages_unshared."""
    ksmd.write("run", 0)
    return tuple(ksmd.read(name) for name in SETTLED)


def shared_and_sharing(ksmd):
    return settled(ksmd)[:2]
