"""What stores into the control files change, but for `run`; and the advisor, which stores by itself."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from ksmemu.control.sysfs import ControlDirectory
from ksmemu.control.tunables import TUNABLES, U32_MAX
from ksmemu.ksmd.advisor import Advisor, Limits
from ksmemu.ksmd.domains import Domains

NO_ADVISOR, SCAN_TIME = 0, 1


class Tuning:
    """Obeys stores. Runs in: ksmd, one thread."""

    def __init__(self, domains: Domains, control: Callable[[], ControlDirectory]) -> None:
        self._domains = domains
        self._control = control
        self._mode = NO_ADVISOR
        self._advisor = Advisor()
        self._scan_started = self._cpu_before = 0.0

    def store(self, name: str, value: int) -> None:
        """Obey a store.

        Raises:
            OSError: EBUSY: not while pages are shared; EINVAL: the advisor sets pages_to_scan.
        """
        rules = self._domains.rules
        match name:
            case "pages_to_scan" if self._mode != NO_ADVISOR:
                raise OSError(errno.EINVAL, "the advisor sets it: advisor_mode=none first")
            case "max_page_sharing" if value != rules.max_page_sharing:
                self._check_nothing_shared()
                rules.max_page_sharing = value
            case "merge_across_nodes" if bool(value) != rules.merge_across_nodes:
                self._check_nothing_shared()
                rules.merge_across_nodes = bool(value)
                self._domains.forget()  # what waits was fingerprinted for the other way
            case "max_kernel_pages":
                rules.max_frames = value
            case "use_zero_pages":
                rules.use_zero_pages = bool(value)
            case "smart_scan":
                rules.smart_scan = bool(value)
            case "advisor_mode" if value != self._mode:
                self._mode = value
                self._start_advisor()
                start = "advisor_min_pages_to_scan"
                pages = self._control()[start] if value else TUNABLES["pages_to_scan"].default
                self._control().set("pages_to_scan", pages & U32_MAX)
            case _:
                pass  # in force already, or read where it is used

    def end_scan(self) -> None:
        """Let the advisor choose pages_to_scan anew, after a full scan."""
        if self._mode == NO_ADVISOR:
            return
        control, now, cpu = self._control(), time.monotonic(), time.process_time()
        limits = Limits(
            control["advisor_target_scan_time"],
            control["advisor_max_cpu"],
            control["advisor_max_pages_to_scan"],
        )
        self._advisor, pages = self._advisor.advise(
            limits,
            control["pages_to_scan"],
            int((now - self._scan_started) * 1000),
            int((cpu - self._cpu_before) * 1000),
        )
        self._scan_started, self._cpu_before = now, cpu
        control.set("pages_to_scan", pages)
        if self._domains.trace.is_on:
            self._domains.trace.advisor(self._advisor.scan_seconds, pages, self._advisor.cpu_percent)

    def _start_advisor(self) -> None:
        """Forget what the advisor has learned; as in the kernel the first scan is charged all of ksmd."""
        self._advisor = Advisor()
        self._scan_started, self._cpu_before = time.monotonic(), 0.0

    def _check_nothing_shared(self) -> None:
        if any(domain.pool.nr_used for domain in self._domains):
            raise OSError(errno.EBUSY, "pages are shared: run=2 first")
