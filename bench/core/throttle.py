"""Something that is done now and then."""

import time


class Throttle:
    """True when at least `seconds` have passed since it last was, or since it was made."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._last = seconds, time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True
