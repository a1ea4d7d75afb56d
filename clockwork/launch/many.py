"""Registration of many models in one run."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping

from clockwork.config.launch import REGISTRATIONS_AT_ONCE
from clockwork.errors import ClockworkError


def register_each(
    registrations: Mapping[str, Callable[[], object]], tell: Callable[[str, int, int], None]
) -> dict[str, ClockworkError]:
    """Carry out registrations, several at once, and return the failures by name. One failure stops no other.

    registrations: functions that register a model and return when it is ready, by name. tell: is called with
    "register", the number of ended registrations and that of all.
    """
    failed: dict[str, ClockworkError] = {}
    with concurrent.futures.ThreadPoolExecutor(REGISTRATIONS_AT_ONCE) as pool:
        names = {pool.submit(register): name for name, register in registrations.items()}
        try:
            for done, future in enumerate(concurrent.futures.as_completed(names), 1):
                try:
                    future.result()
                except ClockworkError as error:
                    failed[names[future]] = error
                tell("register", done, len(names))
        except BaseException:
            for future in names:
                future.cancel()
            raise
    return failed
