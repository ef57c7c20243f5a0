"""How a run is asked to stop."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.core.environment import PARENT, launched, whole_number


@contextmanager
def on_signals(ask: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Call `ask` on each SIGINT and SIGTERM meanwhile; yield what lets them act as before."""
    before = {number: signal.signal(number, lambda *_: ask()) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield restore
    finally:
        restore()


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether to stop: after a first SIGINT or SIGTERM, or once the process's parent is gone.

    A second signal acts as usual; but where another process has started this one, ending it is left to that one.
    """
    asked, parent = [], whole_number(PARENT)

    def ask() -> None:
        asked.append(True)
        if not launched():
            restore()

    with on_signals(ask) as restore:
        yield lambda: bool(asked or (parent and os.getppid() != parent))
