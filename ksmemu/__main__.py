"""`python -m ksmemu`: the command line."""

from ksmemu.cli import main

if __name__ == "__main__":
    main()
