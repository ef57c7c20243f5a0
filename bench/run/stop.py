"""How a runner is asked to stop."""

import os
import signal
from types import FrameType, TracebackType

from bench.core.environment import PARENT, launched, whole_number


class StopRequests:
    """Whether this process is to stop: after a first SIGINT or SIGTERM, or once the process that started it is gone.

    A second signal acts as usual; but where another process has started this one, ending it is left to that one.
    """

    def __init__(self) -> None:
        self.asked, self.parent = False, whole_number(PARENT)
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def __call__(self) -> bool:
        return self.asked or bool(self.parent and os.getppid() != self.parent)

    def __enter__(self) -> "StopRequests":
        for number in self.before:
            signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not launched():
            self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
