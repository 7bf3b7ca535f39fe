"""A ksmd that compares checksums, as on a kernel that records no writes: start_ksmd(module=…)."""

import sys

from ksmemu.ksmd.__main__ import main

if __name__ == "__main__":
    main([*sys.argv[1:], "--tracker=checksum"])
