"""The Hydra app behind run.py and ``quantlab run``, and what stands around each of its runs."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from quantlab import interrupt
from quantlab.conf import CONF, option_names
from quantlab.errors import options_hint, report_user_errors
from quantlab.records import record
from quantlab.records.parts import read_division
from quantlab.report.bar import run_settings
from quantlab.sweep import job


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(config: DictConfig) -> record.Record:
    """Measure what the config describes, in a run directory of its own."""
    return job.run(config, HydraConfig.get())


def start(app: Callable[[], object], argv: Sequence[str] | None = None) -> None:
    """Run a Hydra app on `argv`, by default that of the process, until Ctrl-C ends it in order.

    The errors of its user are sentences.
    """
    with report_user_errors():
        interrupt.listen()
        command, *arguments = sys.argv if argv is None else argv
        typed = [name_output(expand_home(text)) for text in arguments]
        sys.argv[:] = [command, *defer_settings(typed)]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # have Hydra hand us its errors, not print them
        # joblib's pool, when it is stopped, leaves semaphores to a process that clears them away
        # and complains of it
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
        require_options(arguments)
        app()


def require_options(arguments: Sequence[str]) -> None:
    """Raise ValueError for a number as the option of a group; Hydra would not name the group.

    >>> require_options(["block=32"])
    Traceback (most recent call last):
    ValueError: block=32 names no option; for groups of 32 values: block=group block.size=32
    """
    for argument in arguments:
        typed = re.match(r"(\w+)=(?:.*,)?(\d[\d.]*)(?=,|$)", argument)
        if typed and (options := option_names(typed[1])):
            group, number = typed.groups()
            hint = options_hint(group, [name for name in options if "/" not in name])
            if group == "block":
                hint = f"for groups of {number} values: block=group block.size={number}"
            raise ValueError(f"{group}={number} names no option; {hint}")


def expand_home(argument: str) -> str:
    """Expand ``~`` where a value begins with it: shells do so only at the start of a word.

    >>> expand_home("dist.path=~/a.npy") == f"dist.path={Path.home()}/a.npy"
    True
    """
    return re.sub(r"(?<=[=,])~(?=[/,]|$)", lambda _: str(Path.home()), argument)


def name_output(argument: str) -> str:
    """Add a key for an output of a model, of which no config knows the names.

    >>> name_output("model.outputs.y=logits")
    '++model.outputs.y=logits'
    """
    return re.sub(r"^model\.outputs\.", "++model.outputs.", argument)


def defer_settings(arguments: Sequence[str]) -> list[str]:
    """Leave the settings of a mode to the sweeper, where a sweep has several modes.

    Hydra would hold ``mode.imatrix=FILE`` against the default mode, before it expands
    ``mode=glob(ggml/*)``; a choice of one value waits for the modes.

    >>> defer_settings(["-m", "mode=sym,file/gguf", "mode.path=a.gguf"])
    ['-m', 'mode=sym,file/gguf', 'mode.path=choice(a.gguf)']
    """
    swept = any(re.match(r"mode=.*[,(]", text) for text in arguments)
    if not swept or not {"-m", "--multirun"} & set(arguments):
        return [*arguments]
    return [re.sub(r"^(mode\.\w+)=([^,()\[\]{}]+)$", r"\1=choice(\2)", text) for text in arguments]


class Single(Callback):
    """Check a single run before it starts, and print its figures when it has ended."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a run whose settings make no sense, then make its directory."""
        with report_user_errors(), job.run_environment(config):
            job.require_valid(job.settings(config))
            job.make_directory(Path(config.hydra.run.dir))

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the figures, and end the program with the error of the run if it has one."""
        from quantlab.report.terminal import run_summary  # which the runs of a sweep do without

        with report_user_errors():  # a record that could not be written is an error too
            run = kwargs["job_return"].return_value
            bar, texts = run_settings(config)
            directory = Path(config.hydra.runtime.output_dir)
            if run["tensors"]:
                print(run_summary(run, bar, texts))
            part = read_division(run["config"].get("dist"))
            if part and part.parts > 1:
                print(texts("run_of_part", **part._asdict(), n=len(run["tensors"])))
            if run["tensors"] or not run["error"]:  # a part of a source may be empty
                path = directory / record.NAME
                print(texts("run_written", record=path, directory=directory))
            if run["error"]:
                raise ValueError(run["error"])
