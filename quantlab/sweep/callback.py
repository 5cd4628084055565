"""What happens before and after a single run."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from quantlab.errors import report_user_errors
from quantlab.records import record
from quantlab.records.parts import read_division
from quantlab.report.bar import run_settings
from quantlab.sweep.job import make_directory, require_valid


class Single(Callback):
    """Refuses bad settings before a single run, prints its figures at the end."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a run whose settings make no sense, then make its directory."""
        with report_user_errors():
            require_valid(config)
            make_directory(Path(config.hydra.run.dir))

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the figures, and end the program with its error if it has one."""
        from quantlab.report.terminal import run_summary  # which the runs of a sweep do without

        with report_user_errors():  # a record that could not be written is an error too
            one = kwargs["job_return"].return_value
        bar, t = run_settings(config)
        directory = Path(config.hydra.runtime.output_dir)
        if one["tensors"]:
            print(run_summary(one, bar, t))
        part = read_division(one["config"].get("dist"))
        if part and part.parts > 1:
            print(t("run_of_part", **part._asdict(), n=len(one["tensors"])))
        if one["tensors"] or not one["error"]:  # a part of a source may be empty
            print(t("run_written", record=directory / record.NAME, directory=directory))
        if one["error"]:
            raise SystemExit(f"quantlab: {one['error']}")
