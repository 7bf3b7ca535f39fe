"""Processes with a /dev/shm of their own, as small as a test wants; as any user."""

import os

from tests.support.processes import Worker

_MOUNT = 'mount -t tmpfs -o size="$0" tmpfs /dev/shm && exec "$@"'


class SmallShmWorker(Worker):
    """A worker whose /dev/shm holds so many bytes; a ksmd that it starts shares that with it."""

    def __init__(self, nr_bytes):
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        prefix = ["unshare", *user, "--mount", "sh", "-c", _MOUNT, str(nr_bytes)]
        super().__init__(prefix=prefix)
