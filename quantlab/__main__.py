"""Everything around a run: ``quantlab COMMAND``, installed as ``quantlab``."""

import argparse
import shlex
import sys
from pathlib import Path

import quantlab
from quantlab.errors import report_user_errors
from quantlab.report.bar import read_settings, row_bars, typed_settings
from quantlab.report.terminal import listing, stored_listing, sweep_summary
from quantlab.sources.readers import DECODERS, reader_of
from quantlab.sweep import app
from quantlab.sweep.launch import count_missing_runs

EXAMPLES = """
examples:
  quantlab run dist=hidden n_bits=4               one run, its figures printed
  quantlab run -m 'dist=glob(*)' mode=sym,asym    a sweep, every combination; quantlab run --help
  quantlab aggregate multirun/mine                results.json and the rest, from the records
  quantlab report multirun/mine report.lang=es    the report, with another bar or language
  quantlab plan multirun/mine --bits 4.5          which format for which tensor?
  quantlab plan multirun/mine --size 4GB --recipe llama.cpp
  quantlab check multirun/mine report.bar.sqnr_db=25   exit code 1 where a tensor misses it
  quantlab diff multirun/before multirun/after    exit code 1 where a figure became worse
  quantlab verify multirun/mine                   does every file match the manifest?
  quantlab reproduce multirun/mine/RUN            the same figures, bit for bit?
  quantlab tensors model.safetensors              names, shapes, and what is measured
"""


def main() -> None:
    """Do what the command line asks."""
    if sys.argv[1:2] == ["run"]:  # its arguments are Hydra's
        app.start(app.main, ["quantlab run", *sys.argv[2:]])
    else:
        arguments = _arguments()
        with report_user_errors(arguments.exit_code):
            arguments.command(arguments)


def _arguments() -> argparse.Namespace:
    """Parse the command line; settings may stand anywhere, also behind options."""
    parser = _parser()
    arguments, rest = parser.parse_known_args()
    are_settings = all("=" in each and not each.startswith("-") for each in rest)
    if rest and not ("settings" in arguments and are_settings):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.settings = [*arguments.settings, *rest]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quantlab",
        description="Measure what it costs to store a tensor in n bits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=quantlab.__version__)
    parser.set_defaults(exit_code=1)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("run", help="measure one combination, or with -m sweep many")
    command = commands.add_parser("aggregate", help="collect the records of a sweep again")
    command.add_argument("directory", type=Path, metavar="DIR", help="a sweep's directory")
    command.set_defaults(command=_aggregate, settings=[])
    command = commands.add_parser("report", help="write a report again, with other settings")
    command.add_argument("directory", type=Path, metavar="DIR", help="of a sweep or a single run")
    command.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="report.lang=es, report.bar.rel_err=0.05"
    )
    command.set_defaults(command=_aggregate)
    _add_plan(commands.add_parser("plan", help="choose a format for each tensor of a sweep"))
    command = commands.add_parser("check", help="fail where a tensor misses the bar, for CI")
    command.add_argument("directory", type=Path, metavar="DIR", help="a sweep's directory")
    command.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="report.bar.sqnr_db=25")
    command.set_defaults(command=_check, exit_code=2)
    command = commands.add_parser("diff", help="what became better or worse between two sweeps")
    command.add_argument("directories", type=Path, nargs=2, metavar="DIR", help="before and after")
    command.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="report.bar.rel_err=null")
    command.add_argument(
        "--tolerance", type=float, default=0.1, metavar="DB", help="of what counts as worse (0.1)"
    )
    command.set_defaults(command=_diff, exit_code=2)
    command = commands.add_parser("verify", help="check a sweep against its manifest and schemas")
    command.add_argument("directory", type=Path, metavar="DIR", help="a sweep's directory")
    command.set_defaults(command=_verify)
    command = commands.add_parser("reproduce", help="repeat one run and compare bit for bit")
    command.add_argument("directory", type=Path, metavar="RUN_DIR", help="where record.json is")
    command.set_defaults(command=_reproduce)
    command = commands.add_parser("tensors", help="list what a file of tensors holds")
    command.add_argument(
        "path", type=Path, metavar="PATH", help="npy, npz, safetensors, gguf or onnx"
    )
    command.add_argument(
        "--include", action="append", metavar="PATTERN", help="choose these names, e.g. '*weight'"
    )
    command.add_argument("--exclude", action="append", metavar="PATTERN", help="leave these out")
    command.set_defaults(command=_tensors)
    return parser


def _aggregate(arguments: argparse.Namespace) -> None:
    from quantlab.report.aggregate import (
        aggregate,  # pandas and matplotlib, which no other command needs
    )

    typed = typed_settings(arguments.directory)
    settings = read_settings(arguments.directory, [*typed, *arguments.settings])
    done = aggregate(arguments.directory, settings)
    print(sweep_summary(done.findings, done.files, settings.texts))
    n_missing, n_runs = count_missing_runs(arguments.directory)
    if n_missing:
        print(f"\n{n_missing} of {n_runs} runs have no record: the command of the sweep does them")
    if done.findings.failures:
        raise SystemExit(1)


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=Path, metavar="DIR", help="a sweep's directory")
    command.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="report.bar.sqnr_db=25")
    budget = command.add_mutually_exclusive_group(required=True)
    budget.add_argument("--bits", type=float, metavar="N", help="at most so many bits per value")
    budget.add_argument("--size", metavar="SIZE", help="at most so large, e.g. 60MB or 4GiB")
    budget.add_argument(
        "--bar", action="store_true", help="for each tensor the cheapest format that meets the bar"
    )
    command.add_argument(
        "--recipe", metavar="RUNTIME", help="in terms of llama.cpp, torchao, mlx, or as json"
    )
    command.add_argument("--by", default="sqnr_db", metavar="FIGURE", help="sqnr_db or out_sqnr_db")
    command.add_argument("--weights", type=Path, metavar="CSV", help="lines of tensor,alpha")
    command.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN=FORMAT",
        help="what tensors must have, e.g. 'output.weight=q8_0'",
    )
    command.add_argument(
        "--same",
        action="append",
        default=[],
        metavar="PATTERN",
        help="what takes one format together, e.g. 'blk.0.attn_[qkv].weight'",
    )
    command.set_defaults(command=_plan, exit_code=2)


def _plan(arguments: argparse.Namespace) -> None:
    from quantlab.plans.plan import run_command

    command = shlex.join(sys.argv[1:])
    for text in run_command(arguments.directory, arguments.settings, vars(arguments), command):
        print(text, flush=True)  # the plan before its files, which may not be writable


def _check(arguments: argparse.Namespace) -> None:
    from quantlab.records.table import read_aggregate
    from quantlab.report.choices import find_choices
    from quantlab.report.sentences import check_lines

    sweep = read_aggregate(arguments.directory)
    settings = read_settings(arguments.directory, arguments.settings)
    rows = settings.judged(sweep.rows)
    choices = find_choices(rows, sweep.levels)
    print("\n".join(check_lines(choices, row_bars(rows), sweep.failures, settings.texts)))
    if sweep.failures or not all(choice.meets for choice in choices):
        raise SystemExit(1)


def _diff(arguments: argparse.Namespace) -> None:
    from quantlab.records.table import read_aggregate
    from quantlab.report.diff import diff, diff_summary, require_tolerance

    sweeps = [read_aggregate(directory) for directory in arguments.directories]
    settings = read_settings(sweeps[1].directory, arguments.settings)
    before, after = (sweep._replace(rows=settings.judged(sweep.rows)) for sweep in sweeps)
    tolerance = require_tolerance(arguments.tolerance)
    found = diff(before, after)
    print(diff_summary(found, tolerance, settings.texts))
    if found.is_worse(tolerance):
        raise SystemExit(1)


def _verify(arguments: argparse.Namespace) -> None:
    from quantlab.verify import faults

    found = list(faults(arguments.directory))
    if found:
        print("\n".join(found))
        raise SystemExit(1)
    print(f"{arguments.directory} matches its manifest")


def _reproduce(arguments: argparse.Namespace) -> None:
    from quantlab.verify import reproduce

    differing, changed = reproduce(arguments.directory)
    if differing:
        print("\n".join(differing))
        why = f": it was recorded with {'; '.join(changed)}" if changed else ""
        print(f"{arguments.directory} was not reproduced{why}")
        raise SystemExit(1)
    print(f"{arguments.directory}: reproduced, every figure bit for bit")


def _tensors(arguments: argparse.Namespace) -> None:
    read = reader_of(arguments.path)
    source = read(str(arguments.path), arguments.include, arguments.exclude)
    source.require_matches()
    print(listing(source.entries))
    decoder = DECODERS.get(source.format)
    if decoder and (quantized := stored_listing(decoder(source.path))):
        print(f"\n{quantized}")


if __name__ == "__main__":
    main()
