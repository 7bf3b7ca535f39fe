"""Stores into a control directory as a client makes them, one write(2) each; and odd texts to store."""

import errno
import os

ODD = [
    b"",
    b"\n",
    b"\n1",
    b"0",
    b"1",
    b"1\n",
    b"1\n\n",
    b"1\r\n",
    b" 1",
    b"1 ",
    b"\t1",
    b"+1",
    b"+0\n",
    b"-1",
    b"-0",
    b"+",
    b"-",
    b"++1",
    b"+-1",
    b"--1",
    b"1.0",
    b"1e3",
    b"1_0",
    b"0x1",
    b"0X1",
    b"010",
    b"0b1",
    b"1\0junk",
    b"1\n\0junk",
    b"\0001",
    b"\0",
    b"2",
    b"2\n",
    b"3",
    b"17",
    b"2147483647",
    b"2147483648",
    b"-2147483648",
    b"-2147483649",
    b"4294967295",
    b"4294967296",
    b"4294967297x",
    b"9223372036854775808",
    b"-9223372036854775809",
    b"18446744073709551615",
    b"18446744073709551616",
    b"-18446744073709551616",
    b"99999999999999999999x",
    b"y",
    b"Yes\n",
    b"true",
    b"on",
    b"oN\n",
    b"o",
    b"of",
    b"off\n",
    b"n",
    b"false",
    b"enable",
    b"Disabled",
    b"\xff\xfe",
    "²".encode(),
    "٣".encode(),
    b"none",
    b"none\n",
    b"none\n\n",
    b" none",
    b"none\0x",
    b"None",
    b"scan-time",
    b"scan-time\n",
    b"scan-timex",
    b"scan",
    b"[none] scan-time\n",
    b"0" * 4095 + b"1",
    b"0" * 4096 + b"1",
    b"1\n" + b"0" * 5000,
    b"9" * 4097,
]


def store(folder, name, text, offset=0):
    """Return what write(2) returns, or the name of its errno."""
    fd = os.open(folder / name, os.O_WRONLY)
    try:
        return os.pwrite(fd, text, offset)
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        os.close(fd)


def shown(folder, name):
    return (folder / name).read_text()


def mounts(directory):
    """Return the lines of mountinfo that name a place in a directory."""
    with open("/proc/self/mountinfo") as lines:
        return [line for line in lines if f"{directory}/" in line]
