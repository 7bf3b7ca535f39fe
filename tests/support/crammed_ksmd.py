"""A ksmd whose pool stays in /dev/shm however small that is: there it meets ENOSPC."""

from ksmemu.ksmd import pool
from ksmemu.ksmd.__main__ import main

if __name__ == "__main__":
    pool._SHARE = pool.PAGE_SIZE * 1024
    main()
