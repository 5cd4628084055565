"""Ctrl-C and SIGTERM that no library on the way can turn into another error."""

import signal
import threading

requested = threading.Event()


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


def _on_interrupt(*_: object) -> None:
    requested.set()
    raise KeyboardInterrupt
