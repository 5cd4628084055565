"""Ctrl-C that no library on the way can turn into another error."""

import signal
import threading

asked = threading.Event()


def listen() -> None:
    """Note a Ctrl-C beside raising KeyboardInterrupt.

    What it interrupts may raise something else on its way out: OmegaConf does.
    """
    signal.signal(signal.SIGINT, _note)


def require_none() -> None:
    """Raise KeyboardInterrupt when there was a Ctrl-C."""
    if asked.is_set():
        raise KeyboardInterrupt


def _note(*_: object) -> None:
    asked.set()
    raise KeyboardInterrupt
