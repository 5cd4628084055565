"""The bar and the language of a report, as a config or a sweep's directory has them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from quantlab.report.bar import Bar
from quantlab.report.tensor_verdict import NAME, read_verdict
from quantlab.report.texts import Texts

COMPOSED = ("multirun.yaml", ".hydra/config.yaml")  # of a sweep, and of a run alone


def report_settings(cfg: DictConfig) -> tuple[Bar, Texts]:
    """Return the bar and the words of the report; raises ValueError where they make no sense."""
    report = OmegaConf.select(cfg, "report", default=OmegaConf.create())
    if not isinstance(report, DictConfig):
        raise ValueError(f"report takes lang and bar, got {report!r}")
    values = cast("dict[str, Any]", OmegaConf.to_container(report, resolve=True))
    return Bar.of(values["bar"]) if "bar" in values else Bar(), Texts(values.get("lang", "en"))


def composed_settings(directory: Path, settings: Sequence[str]) -> tuple[Bar, Texts]:
    """Return the settings that a sweep or run had of its report, but for those given here.

    Settings are overrides such as ``report.bar.sqnr_db=25``. Raises ValueError where they make no
    sense, OmegaConf's errors where a key is unknown.
    """
    return report_settings(_composed(directory, settings))


def verdict_settings(directory: Path, settings: Sequence[str]) -> tuple[Bar, Texts]:
    """Return the settings of a sweep's latest verdict, but for those given here.

    Its bar is that of verdict.json, where there is one.
    """
    judged = read_verdict(directory)["bar"] if (directory / NAME).exists() else {}
    asked = [f"report.bar.{key}={json.dumps(value)}" for key, value in judged.items()]
    return report_settings(_composed(directory, [*asked, *settings]))


def _composed(directory: Path, settings: Sequence[str]) -> DictConfig:
    config = OmegaConf.create({"report": {"lang": "en", "bar": asdict(Bar())}})
    OmegaConf.set_struct(config, True)
    for name in COMPOSED:
        if (directory / name).exists():
            composed = OmegaConf.load(directory / name)
            config.report.merge_with(OmegaConf.select(composed, "report") or {})
    config.merge_with_dotlist(list(settings))
    return config
