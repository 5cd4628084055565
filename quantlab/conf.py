"""Where the configs are: beside the package in a clone, inside it in a wheel."""

from pathlib import Path

PACKAGE = Path(__file__).parent
INSTALLED = PACKAGE / "conf"
CONF = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "conf"
