"""Delay SIGTERM and Ctrl-C until the current work is saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

NOTICE = b"\nFinishing this step and saving a checkpoint; press Ctrl-C again to stop at once.\n"


@dataclass
class StopRequest:
    """The signal that requested a stop; 0 if there was none."""

    signal: int = 0


@contextlib.contextmanager
def delayed_interrupts() -> Iterator[StopRequest]:
    """Context manager: SIGTERM and Ctrl-C only record a request until it ends, then take their usual effect.

    A second Ctrl-C takes its usual effect at once. Signals that are ignored stay ignored. Signals reach the
    main thread alone; in another thread this changes nothing. Worker processes inherit the handlers: there
    Ctrl-C changes nothing, since the step at hand needs them, and SIGTERM takes its usual effect.
    """
    stop_requested = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return

    owner = os.getpid()

    def note(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:
            if number == signal.SIGTERM:
                signal.signal(number, before[signal.SIGTERM])
                os.kill(os.getpid(), number)
            return
        stop_requested.signal = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
            os.write(2, NOTICE)  # print is not safe in a handler

    before = {
        number: signal.getsignal(number) or signal.SIG_DFL  # None is a handler that Python did not set
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, note)
    try:
        yield stop_requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop_requested.signal:
        os.kill(os.getpid(), stop_requested.signal)
