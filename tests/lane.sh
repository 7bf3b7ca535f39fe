#!/bin/bash
# Run a command, as root, beside others: with a /dev/shm of its own, so that each sees only its own names and
# fills only its own room, and with its name before each line that it prints.
#
#   tests/lane.sh NAME COMMAND [ARGUMENT…]
set -euo pipefail
name=$1
shift

# sed ends when all has been said, also what is said after Ctrl-C.
unshare --mount sh -c 'mount -t tmpfs tmpfs /dev/shm && exec "$@"' "$name" "$@" 2>&1 |
	(trap '' INT TERM HUP && exec sed --unbuffered "s/^/$name| /")
