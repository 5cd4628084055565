"""The folders of configs, and the options of config groups in them.

They stand beside the package in a clone, inside it in a wheel; a ``--config-dir`` adds a folder.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from inspect import Parameter, signature
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
    if any(value == MISSING for _, value in _leaves(group, config.get(group, config))):
        return True
    shared = _shared_settings(group)
    unset = {key for key in shared if config.get(key) is None}
    return bool(unset) and bool(unset & _required(_parameters(config), shared))


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


def own_settings(group: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the settings that all options of a group share and the class of this one lacks.

    ``conf/base/GROUP.yaml`` has what is shared, so that a sweep can set ``block.size`` whatever the
    block. One that is null is not set: groups had no axis before they could have one. Raises
    ValueError where the class takes one that is not set.
    """
    shared = _shared_settings(group)
    if not shared:
        return dict(config)
    parameters = _parameters(config)
    own = {
        key: value
        for key, value in config.items()
        if key not in shared or (key in parameters and value is not None)
    }
    for key in _required(parameters, shared) - own.keys():
        option = config["_target_"].rpartition(".")[2].lower()
        raise ValueError(f"{group}={option} takes a setting of its own: add {group}.{key}=...")
    return own


def _shared_settings(group: str) -> set[str]:
    base = CONF / "base" / f"{group}.yaml"
    return {*_load(base)} if base.is_file() else set()


def _parameters(config: Mapping[str, Any]) -> Mapping[str, Parameter]:
    """Return the parameters of the class that a config names, nothing where it names none."""
    from hydra.utils import get_class  # which importing this module does without

    return signature(get_class(config["_target_"])).parameters if "_target_" in config else {}


def _required(parameters: Mapping[str, Parameter], shared: set[str]) -> set[str]:
    return {key for key in shared & parameters.keys() if parameters[key].default is Parameter.empty}


def instantiate_with(config: Mapping[str, Any], **objects: Any) -> Any:
    """Instantiate what a config in plain containers names, with objects in place of its settings.

    They are given as they are: Hydra would make a config of a dataclass.
    """
    from hydra.utils import instantiate  # which importing this module does without

    settings = {key: value for key, value in config.items() if key not in objects}
    return instantiate(settings, _partial_=True)(**objects) if objects else instantiate(settings)


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
