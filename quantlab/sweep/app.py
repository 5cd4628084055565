"""The app behind ``quantlab run``, that of run.py, and what both set up before Hydra starts."""

import os
import re
import sys
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from quantlab import interrupt
from quantlab.conf import CONF
from quantlab.errors import report_user_errors
from quantlab.records.record import Record
from quantlab.sweep import job


@hydra.main(
    version_base="1.3",
    config_path=str(CONF),
    config_name="config",
)
def main(cfg: DictConfig) -> Record:
    """Measure what the config describes, in a run directory of its own."""
    return job.run(cfg, HydraConfig.get())


def deferred(arguments: list[str]) -> list[str]:
    """Return arguments in which the settings of a mode wait for the modes that are swept.

    Hydra would hold ``mode.imatrix=FILE`` against the default mode, before it expands
    ``mode=glob(ggml/*)``; as a choice of one value it is left to the sweeper.

    >>> deferred(["-m", "mode=sym,file/gguf", "mode.path=a.gguf"])
    ['-m', 'mode=sym,file/gguf', 'mode.path=choice(a.gguf)']
    """
    swept = any(re.match(r"mode=.*[,(]", each) for each in arguments)
    if not swept or not {"-m", "--multirun"} & set(arguments):
        return arguments
    return [re.sub(r"^(mode\.\w+)=([^,()\[\]{}]+)$", r"\1=choice(\2)", each) for each in arguments]


def start(app: Callable[[], object]) -> None:
    """Run a Hydra app whose user errors are sentences, and which Ctrl-C ends in order."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # have Hydra hand us its errors instead of printing them
    # joblib's pool, when it is stopped, leaves semaphores to a process that clears them away and
    # complains of it
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    sys.argv[1:] = deferred(sys.argv[1:])
    interrupt.listen()
    with report_user_errors():
        app()
