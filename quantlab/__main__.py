"""Everything around a run: ``quantlab COMMAND``, installed as ``quantlab``."""

import argparse
from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from quantlab.errors import report_user_errors
from quantlab.records import record
from quantlab.report.bar import Bar
from quantlab.report.listing import listing
from quantlab.report.terminal import sweep_summary
from quantlab.report.texts import Texts
from quantlab.sources.readers import reader


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(prog="quantlab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    collect = commands.add_parser("aggregate", help="collect the records of a sweep again")
    collect.add_argument("directory", type=Path, metavar="DIR", help="a sweep's directory")
    collect.set_defaults(run=_aggregate, settings=[])
    page = commands.add_parser("report", help="write a sweep's report again, with other settings")
    page.add_argument("directory", type=Path, metavar="DIR", help="a sweep's directory")
    page.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="report.lang=es, report.bar.rel_err=0.05"
    )
    page.set_defaults(run=_aggregate)
    check = commands.add_parser("verify", help="check a sweep against its manifest and schemas")
    check.add_argument("directory", type=Path, metavar="DIR", help="a sweep's directory")
    check.set_defaults(run=_verify)
    again = commands.add_parser("reproduce", help="do one run again and compare bit for bit")
    again.add_argument("directory", type=Path, metavar="RUN_DIR", help="where record.json is")
    again.set_defaults(run=_reproduce)
    tensors = commands.add_parser("tensors", help="list what a file of tensors holds")
    tensors.add_argument("path", type=Path, metavar="PATH", help="npy, npz, safetensors or gguf")
    tensors.add_argument(
        "--include", action="append", metavar="PATTERN", help="choose these names, e.g. '*weight'"
    )
    tensors.add_argument("--exclude", action="append", metavar="PATTERN", help="leave these out")
    tensors.set_defaults(run=_tensors)
    asked = parser.parse_args()
    with report_user_errors():
        asked.run(asked)


def _aggregate(asked: argparse.Namespace) -> None:
    from quantlab.report.aggregate import (
        aggregate,  # pandas and matplotlib, which no other command needs
    )

    bar, t = _report_settings(asked.directory, asked.settings)
    done = aggregate(asked.directory, bar, t)
    print(sweep_summary(done.findings, done.files, t))
    if done.findings.failures:
        raise SystemExit(1)


def _report_settings(directory: Path, settings: list[str]) -> tuple[Bar, Texts]:
    """Return what was asked of a sweep's report, but for what the command line asks."""
    from quantlab.sweep.job import report_settings

    config = OmegaConf.create({"report": {"lang": "en", "bar": asdict(Bar())}})
    OmegaConf.set_struct(config, True)
    launched = directory / "multirun.yaml"  # the config of the sweep, as Hydra composed it
    if launched.exists():
        config.report.merge_with(OmegaConf.select(OmegaConf.load(launched), "report") or {})
    config.merge_with_dotlist(settings)
    return report_settings(config)


def _verify(asked: argparse.Namespace) -> None:
    from quantlab.verify import faults

    found = list(faults(asked.directory))
    if found:
        print("\n".join(found))
        raise SystemExit(1)
    print(f"{asked.directory} is what its manifest says")


def _reproduce(asked: argparse.Namespace) -> None:
    from quantlab.verify import reproduce

    one, differing = reproduce(asked.directory)
    if differing:
        print("\n".join(differing))
        print(f"{asked.directory} does not come out again{_versions(one['versions'])}")
        raise SystemExit(1)
    print(f"{asked.directory}: every figure comes out again, bit for bit")


def _versions(then: dict[str, str]) -> str:
    """Say which versions have changed since a record was written."""
    now = record.versions()
    changed = [
        f"{name} {then.get(name)}, now {now[name]}" for name in now if then.get(name) != now[name]
    ]
    return f": it was recorded with {'; '.join(changed)}" if changed else ""


def _tensors(asked: argparse.Namespace) -> None:
    read = reader(asked.path)
    source = read(str(asked.path), asked.include, asked.exclude)
    source.require_matches()
    print(listing(source.entries))


if __name__ == "__main__":
    main()
