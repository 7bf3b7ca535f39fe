"""Counts that the kernel's own tests expect."""


def shared_and_sharing(nr, limit):
    """Return pages_shared and pages_sharing of nr equal pages under max_page_sharing = limit.

    The last page finds no partner if nr % limit == 1.
    Source: assert_ksm_pages_count() of the kernel's selftests/mm/ksm_tests.c.
    """
    if nr % limit in (0, 1):
        return nr // limit, nr // limit * (limit - 1)
    return nr // limit + 1, nr - (nr // limit + 1)
