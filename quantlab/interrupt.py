"""Ctrl-C that no library on the way can turn into another error."""

import signal
import threading

requested = threading.Event()


def listen() -> None:
    """Note a Ctrl-C beside raising KeyboardInterrupt.

    What it interrupts may raise something else on its way out: OmegaConf does.
    """
    signal.signal(signal.SIGINT, _on_interrupt)


def require_none() -> None:
    """Raise KeyboardInterrupt when there was a Ctrl-C."""
    if requested.is_set():
        raise KeyboardInterrupt


def _on_interrupt(*_: object) -> None:
    requested.set()
    raise KeyboardInterrupt
