"""Mistakes of a person, told in one sentence instead of a traceback."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException


@contextmanager
def told() -> Iterator[None]:
    """End the program on an error: one sentence for a mistake, a traceback for a bug of ours.

    SystemExit also leaves a Hydra callback, where any other exception becomes a warning.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as mistake:
        raise SystemExit(f"quantlab: {sentence(mistake)}") from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def sentence(mistake: BaseException) -> str:
    """Return what was wrong, where, and what to do, in one line."""
    if isinstance(mistake, MissingConfigException) and mistake.options:
        group, _, option = str(mistake.missing_cfg_file).rpartition("/")
        return f"{group}={option} does not exist: choose one of {', '.join(mistake.options)}"
    cause = mistake.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(cause)
    if isinstance(mistake, InstantiationException) and cause:
        return sentence(cause)
    return " ".join(str(mistake).split())


def _unknown_key(cause: ConfigAttributeError | ConfigKeyError) -> str:
    known = cause.parent_node.keys() if cause.parent_node else ()
    choices = sorted(str(key) for key in known if key not in ("hydra", "_target_"))
    return f"unknown key {cause.full_key}: choose one of {', '.join(choices)}"
