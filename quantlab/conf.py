"""The folders of configs, and the options of config groups in them.

They stand beside the package in a clone, inside it in a wheel; a ``--config-dir`` adds a folder.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
INSTALLED = PACKAGE / "conf"
CONF = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "conf"
FOLDERS = [CONF]
MISSING = "???"  # the value, in a yaml, of what has to be given
INSTRUCTIONS = ("_target_", "_partial_")  # to Hydra; they are no settings


def add_folder(folder: Path) -> None:
    """Look for options in another folder too."""
    if folder not in FOLDERS:
        FOLDERS.append(folder)


def option_names(group: str) -> list[str]:
    """List the options of a config group, those of groups below it included."""
    folders = (folder / group for folder in FOLDERS)
    paths = ((folder, path) for folder in folders for path in folder.rglob("*.yaml"))
    return sorted({path.relative_to(folder).with_suffix("").as_posix() for folder, path in paths})


def load_option(group: str, option: str) -> dict[str, Any] | None:
    """Load the yaml of an option, such as ``mode/mx/fp4``, or None if there is no such file.

    Values are unresolved. Those of the bases in its ``defaults`` give way to its own.
    """
    paths = (folder / group / f"{option}.yaml" for folder in FOLDERS)
    path = next((path for path in paths if path.is_file()), None)
    return None if path is None else _load(path)


def needs_setting(group: str, option: str) -> bool:
    """Test whether an option has a setting without a value, such as the path of a plan."""
    config = load_option(group, option) or {}
    return any(value == MISSING for _, value in _leaves(group, config.get(group, config)))


def changed_settings(group: str, option: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """List the settings in which a config differs from its option, by their dotted keys.

    All of them if the option has no yaml.
    """
    of_option = load_option(group, option) or {}
    defaults = dict(_leaves(group, of_option.get(group, of_option)))
    return {
        key: value
        for key, value in _leaves(group, config)
        if key not in defaults or defaults[key] != value
    }


def _leaves(prefix: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(f"{prefix}.{key}", value)
        elif key not in INSTRUCTIONS:
            yield f"{prefix}.{key}", value


@cache
def _load(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf  # which importing this module does without

    content: Any = OmegaConf.load(path)
    bases = [base for base in content.pop("defaults", []) if str(base).startswith("/base/")]
    merged = OmegaConf.merge(
        *(OmegaConf.load(CONF / f"{base[1:]}.yaml") for base in bases), content
    )
    plain: Any = OmegaConf.to_container(merged)
    return plain
