"""Ctrl-C and SIGTERM: one line and one exit code, whatever they interrupt.

It imports nothing of weight, so that a program can begin with it.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 130  # of what Ctrl-C ended, as shells have it
MESSAGE = "quantlab: interrupted"
requested = threading.Event()


@contextmanager
def exit_during_imports() -> Iterator[None]:
    """End the program at once on a Ctrl-C in a block of imports, which take a second or more.

    There is nothing to save yet, and some packages turn KeyboardInterrupt into an ImportError.
    """
    handler = signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def listen() -> None:
    """Note a Ctrl-C or SIGTERM beside raising KeyboardInterrupt.

    The interrupted code may raise something else on its way out: OmegaConf does.
    """
    signal.signal(signal.SIGINT, _on_interrupt)
    signal.signal(signal.SIGTERM, _on_interrupt)


def require_none() -> None:
    """Raise KeyboardInterrupt if there was a Ctrl-C or SIGTERM."""
    if requested.is_set():
        raise KeyboardInterrupt


def _exit(*_: object) -> None:
    os.write(2, f"{MESSAGE}\n".encode())
    os._exit(EXIT_CODE)


def _on_interrupt(*_: object) -> None:
    requested.set()
    raise KeyboardInterrupt
