"""Workers as programs: started, asked line by line under a deadline, ended."""

import hashlib
import os
import select
import subprocess
import sys

from tests.support.cores import ROOT

PAGE = os.sysconf("SC_PAGE_SIZE")
DEADLINE = 30.0


class WorkerProgram:
    """`python -m workers.NAME …`, ready to be asked; leaving the context ends it."""

    def __init__(self, name, directory, *arguments):
        command = [sys.executable, "-m", f"workers.{name}", *map(str, arguments), "--dir", str(directory)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.pid = self.process.pid
        self._received = b""

    def wait_ready(self):
        assert self.answer() == f"ready {self.pid}"
        return self

    def ask(self, line):
        """Send a line and return its answer; any second line would be taken for the next answer."""
        self.process.stdin.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
        return self.answer()

    def answer(self):
        while b"\n" not in self._received:
            assert select.select([self.process.stdout], [], [], DEADLINE)[0], "no answer"
            more = self.process.stdout.read(1 << 16)
            assert more, f"it ended: {self.process.wait(DEADLINE)}"
            self._received += more
        line, self._received = self._received.split(b"\n", 1)
        return line.decode()

    def end(self):
        """Close its input; return its status and what it still said."""
        self.process.stdin.close()
        said = self._received + self.process.stdout.read()
        return self.process.wait(DEADLINE), said

    def __enter__(self):
        return self.wait_ready()

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class ImageWorker(WorkerProgram):
    """`python -m workers.image FILE…`."""

    def __init__(self, directory, *files):
        super().__init__("image", directory, *files)


def padded(data):
    return data + bytes(-len(data) % PAGE)


def sha256(*images):
    return hashlib.sha256(b"".join(map(padded, images))).hexdigest()
