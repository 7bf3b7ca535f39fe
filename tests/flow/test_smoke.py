def test_two_spaces_of_one_worker_merge(ksmd, start_worker):
    worker = start_worker()

    def fill(state, pages):
        import os

        import ksmemu

        state.spaces = [ksmemu.AddressSpace(pages * 4096) for _ in range(2)]
        data = os.urandom(pages * 4096)
        for space in state.spaces:
            at = space.mmap(len(data))
            space.write(at, data)
            space.madvise(at, len(data), ksmemu.MADV_MERGEABLE)

    worker.call(fill, 23)
    ksmd.wait_full_scans(3)
    assert ksmd.read("pages_shared") == 23
    assert ksmd.read("pages_sharing") == 23
