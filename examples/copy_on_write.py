"""A copy on write, watched from both sides: the process that writes, and the one that does not.

$ python examples/copy_on_write.py
                  left                     right                    pages saved
not merged        'ours' in its own memory 'ours' in its own memory 0
merged            'ours' in a frame        'ours' in a frame        7
left has written  'mine' in a copy         'ours' in a frame        7
ksmd has seen it  'mine' in its own memory 'ours' in a frame        6
"""

import multiprocess

import ksmemu

NR_PAGES, PAGE, WHICH = 7, 4096, 3


def side(pipe):
    """Hold what the other side holds; then write to a page, and say what it shows, as often as asked."""
    with ksmemu.AddressSpace(NR_PAGES * PAGE) as space:
        start = space.mmap(space.size)
        space.madvise(start, space.size, ksmemu.MADV_MERGEABLE)
        space.write(start, b"".join(b"ours%04092d" % page for page in range(NR_PAGES)))
        address = start + WHICH * PAGE
        for text in iter(pipe.recv, None):
            space.write(address, text)
            pipe.send(f"{space.read(address, 4).decode()!r} in {what_is_mapped(address)}")


def what_is_mapped(address):
    """Ask the kernel: bit 61 of an entry says that the page is of a file, 56 that nobody else maps it."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        entry = int.from_bytes(pagemap.read(8), "little")
    return "a copy" if not entry >> 61 & 1 else "its own memory" if entry >> 56 & 1 else "a frame"


def show(when, *texts):
    """Let each side write its text to the page, if it has one, and say what it holds there."""
    for (pipe, _), text in zip(ends, texts, strict=True):
        pipe.send(text)
    print(f"{when:<17}", *(f"{pipe.recv():<24}" for pipe, _ in ends), ksmd.read("pages_sharing"))


with ksmemu.Ksmd(pages_to_scan=10_000) as ksmd:
    ends = [multiprocess.Pipe() for _ in range(2)]
    for _, theirs in ends:
        multiprocess.Process(target=side, args=(theirs,)).start()
    print(f"{'':17} {'left':<24} {'right':<24} pages saved")
    show("not merged", b"", b"")
    ksmd.write("run", 1)
    ksmd.wait_full_scans(3)
    ksmd.write("run", 0)  # what comes next, the kernel does alone
    show("merged", b"", b"")
    show("left has written", b"mine", b"")
    ksmd.write("run", 1)
    ksmd.wait_full_scans(3)
    show("ksmd has seen it", b"", b"")
    for pipe, _ in ends:
        pipe.send(None)
