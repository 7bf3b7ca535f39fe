"""Lives of clients (lives.py) without end, led by what they reach in ksmd: make fuzz SECONDS=600.

What it finds it writes to a file; give that to it as an argument, and it lives that life again.
"""

import sys

import atheris

with atheris.instrument_imports(include=["ksmemu.ksmd", "ksmemu.wire"]):
    from tests.support.lives import Lives


def main():
    normal, secure = Lives(), Lives(secure=True)
    atheris.Setup(sys.argv, lambda data: (secure if data[:1] > b"\x7f" else normal)(data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
