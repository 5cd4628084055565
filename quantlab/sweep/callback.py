"""Check a single run before it starts, and print its figures when it has ended."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from quantlab.errors import report_user_errors
from quantlab.records import record
from quantlab.records.parts import read_division
from quantlab.report.bar import run_settings
from quantlab.sweep.job import make_directory, require_valid, run_environment, settings


class Single(Callback):
    """Refuse bad settings before a single run, print its figures at the end."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a run whose settings make no sense, then make its directory."""
        with report_user_errors(), run_environment(config):
            require_valid(settings(config))
            make_directory(Path(config.hydra.run.dir))

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
