"""Everything around a run: ``quantlab COMMAND``, installed as ``quantlab``."""

from quantlab import interrupt

with interrupt.exit_during_imports():
    import argparse
    import shlex
    import sys
    from collections.abc import Callable
    from pathlib import Path

    import quantlab
    from quantlab.errors import report_user_errors
    from quantlab.records import disk
    from quantlab.report.bar import read_settings, row_bars, typed_settings
    from quantlab.report.listing import listing, listing_json
    from quantlab.report.terminal import sweep_summary
    from quantlab.sources.file import SELECTIONS
    from quantlab.sources.hub import is_hub_id
    from quantlab.sources.readers import DECODERS, reader_of, without_values
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
  quantlab apply multirun/mine model.safetensors planned.safetensors    to evaluate a plan
  quantlab check multirun/mine report.bar.sqnr_db=25   exit code 1 where a tensor misses it
  quantlab diff multirun/before multirun/after    exit code 1 where a figure became worse
  quantlab diff Q4_K_M.gguf Q5_K_M.gguf           two files, tensor by tensor
  quantlab export multirun/mine --to card         Markdown for a model card; or parquet, mlflow
  quantlab verify multirun/mine                   does every file match the manifest?
  quantlab reproduce multirun/mine/RUN            the same figures, bit for bit?
  quantlab look Q4_K_M.gguf F16.gguf              what did this file lose?
  quantlab doctor                                 what is installed, and what is not?
  quantlab tensors model.safetensors              names, shapes, and what is measured
  quantlab tensors hf://ORG/MODEL/FILE            the same of the hub, from the header alone
"""


def main() -> None:
    """Run the command of the command line."""
    with report_user_errors():
        interrupt.listen()
        if sys.argv[1:2] == ["run"]:  # its arguments are Hydra's
            app.start(app.main, ["quantlab run", *sys.argv[2:]])
            return
        arguments = _parse_arguments()
        with report_user_errors(arguments.exit_code):
            arguments.command(arguments)


def _parse_arguments() -> argparse.Namespace:
    """Parse the command line; settings may stand anywhere, also behind options."""
    parser = _make_parser()
    arguments, rest = parser.parse_known_args()
    are_settings = all("=" in text and not text.startswith("-") for text in rest)
    if rest and not ("settings" in arguments and are_settings):
        parser.error(f"unrecognized arguments: {' '.join(rest)}: see quantlab {sys.argv[1]} --help")
    if rest:
        arguments.settings = [*arguments.settings, *rest]
    return arguments


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quantlab",
        description="Measure what it costs to store a tensor in n bits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=quantlab.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("run", help="measure one combination, or with -m sweep many")
    command = commands.add_parser("aggregate", help="collect the records of a sweep again")
    _take_directory(command, _aggregate)
    command.set_defaults(settings=[])
    command = commands.add_parser("report", help="write a report again, with other settings")
    _take_directory(command, _aggregate, "of a sweep or a single run")
    _take_settings(command, "report.lang=es, report.bar.rel_err=0.05")
    command = commands.add_parser("plan", help="choose a format for each tensor of a sweep")
    _take_directory(command, _plan, exit_code=2)
    _take_settings(command, "report.bar.sqnr_db=25")
    _take_plan_options(command)
    command = commands.add_parser("apply", help="write a checkpoint as a plan brings it back")
    command.add_argument("plan", type=Path, metavar="PLAN", help="plan.json, or its directory")
    command.add_argument("model", type=Path, metavar="MODEL", help="the checkpoint")
    command.add_argument("out", type=Path, metavar="OUT", help="the file to write")
    command.set_defaults(command=_apply, exit_code=1)
    command = commands.add_parser("check", help="fail where a tensor misses the bar, for CI")
    _take_directory(command, _check, exit_code=2)
    _take_settings(command, "report.bar.sqnr_db=25")
    command = commands.add_parser("diff", help="what differs between two sweeps, or two files")
    command.add_argument("paths", nargs=2, metavar="PATH", help="before and after")
    command.add_argument("--json", action="store_true", help="of two files: as JSON")
    _take_settings(command, "report.bar.rel_err=null")
    command.add_argument(
        "--tolerance", type=float, default=0.1, metavar="DB", help="of what counts as worse (0.1)"
    )
    command.set_defaults(command=_diff, exit_code=2)
    command = commands.add_parser("export", help="write a sweep for other tools")
    _take_directory(command, _export)
    command.add_argument("--to", required=True, metavar="FORM", help="card, parquet or mlflow")
    command.add_argument(
        "--output", metavar="PLACE", help="the file, or MLflow's tracking URI; a card is printed"
    )
    command = commands.add_parser("verify", help="check a sweep against its manifest and schemas")
    _take_directory(command, _verify)
    command = commands.add_parser("reproduce", help="repeat one run and compare bit for bit")
    _take_directory(command, _reproduce, "where record.json is", metavar="RUN_DIR")
    command = commands.add_parser("look", help="what a file is, and what it lost, in ten lines")
    command.add_argument("path", metavar="FILE", help="gguf, safetensors or onnx; hf://ORG/MODEL")
    command.add_argument("original", nargs="?", metavar="ORIGINAL", help="what it was made from")
    command.set_defaults(command=_look, exit_code=1)
    command = commands.add_parser("doctor", help="which packages are here, and what is missing")
    command.set_defaults(command=_doctor, exit_code=1)
    command = commands.add_parser("tensors", help="list what a file of tensors holds")
    _take_file(command)
    return parser


def _take_directory(
    command: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    help: str = "a sweep's directory",
    metavar: str = "DIR",
    exit_code: int = 1,
) -> None:
    command.add_argument("directory", type=Path, metavar=metavar, help=help)
    command.set_defaults(command=run, exit_code=exit_code)


def _take_settings(command: argparse.ArgumentParser, example: str) -> None:
    # without a default argparse would list them among what is required
    command.add_argument("settings", nargs="*", default=[], metavar="KEY=VALUE", help=example)


def _take_plan_options(command: argparse.ArgumentParser) -> None:
    budget = command.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--bits", metavar="N", help="at most so many bits per value; several, 4,5,6, for a table"
    )
    budget.add_argument("--size", metavar="SIZE", help="at most so large, e.g. 60MB or 4GiB")
    budget.add_argument("--kl", type=float, metavar="BITS", help="that the answers lose at most")
    budget.add_argument(
        "--bar", action="store_true", help="for each tensor the cheapest format that meets the bar"
    )
    command.add_argument(
        "--recipe", metavar="RUNTIME", help="in terms of llama.cpp, torchao, mlx, onnxruntime, ..."
    )
    command.add_argument(
        "--context", type=int, metavar="N", help="also the size of keys and values of N tokens"
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="directory of the files, else that of the sweep"
    )
    command.add_argument(
        "--by", metavar="FIGURE", help="sqnr_db (default), out_sqnr_db, or kl of a model's answers"
    )
    command.add_argument(
        "--weights",
        type=Path,
        metavar="CSV",
        help="lines of tensor,alpha, or a sweep of mode=noise",
    )
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


def _take_file(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "path", metavar="PATH", help="npy, npz, safetensors, gguf or onnx; hf://ORG/MODEL/FILE"
    )
    command.add_argument(
        "--include", action="append", metavar="PATTERN", help="choose these names, e.g. '*weight'"
    )
    command.add_argument("--exclude", action="append", metavar="PATTERN", help="leave these out")
    command.add_argument(
        "--select", choices=SELECTIONS, default="weights", help="norms, biases and constants too"
    )
    command.add_argument("--json", action="store_true", help="as JSON, with the totals")
    command.set_defaults(command=_tensors, exit_code=1)


def _aggregate(arguments: argparse.Namespace) -> None:
    from quantlab.records.collection import require_records
    from quantlab.records.manifest import require_one_sweep
    from quantlab.report.aggregate import aggregate  # pandas, matplotlib: no other command's

    directory = arguments.directory
    require_records(directory)  # before a lock is left in what is no sweep
    require_one_sweep(directory)
    for folder in (directory, *directory.glob("plots")):
        disk.require_writable(folder, f"copy {directory} and give the copy")
    with disk.lock_directory(directory):
        settings = read_settings(directory, [*typed_settings(directory), *arguments.settings])
        done = aggregate(directory, settings)
    print(sweep_summary(done.findings, done.files, settings.texts))
    n_missing, n_runs = count_missing_runs(directory)
    if n_missing:
        print(f"\n{n_missing} of {n_runs} runs have no record: the command of the sweep does them")
    if done.findings.failures or done.findings.incomplete:
        raise SystemExit(1)


def _plan(arguments: argparse.Namespace) -> None:
    from quantlab.plans.plan import run_command

    command = shlex.join(sys.argv[1:])
    for text in run_command(arguments.directory, arguments.settings, vars(arguments), command):
        print(text, flush=True)  # the plan before its files, which may not be writable


def _apply(arguments: argparse.Namespace) -> None:
    from quantlab.plans.apply import apply_plan

    done = apply_plan(arguments.plan, arguments.model, arguments.out)
    print(
        f"{done.n_replaced} tensors as the plan brings them back, {done.n_copied} as they were:",
        *done.files,
        sep="\n",
    )


def _check(arguments: argparse.Namespace) -> None:
    from quantlab.records.answers import read_rows
    from quantlab.records.table import read_aggregate
    from quantlab.report.answers import find_outputs
    from quantlab.report.choices import find_choices, stored_rows
    from quantlab.report.verdict import Check

    sweep = read_aggregate(arguments.directory)
    settings = read_settings(arguments.directory, arguments.settings)
    rows = settings.judged(sweep.rows)
    check = Check(
        find_choices(rows, sweep.levels),
        row_bars(rows),
        sweep.failures,
        stored_rows(rows, sweep.levels),
        sweep.incomplete,
        sweep.unmeasured,
        find_outputs(settings.judged(read_rows(sweep))),
    )
    print("\n".join(check.lines(settings.texts)))
    if not check.has_passed:
        raise SystemExit(1)


def _diff(arguments: argparse.Namespace) -> None:
    are_files = [is_hub_id(path) or Path(path).is_file() for path in arguments.paths]
    missing = [path for path in arguments.paths if not is_hub_id(path) and not Path(path).exists()]
    if any(are_files) and missing:
        raise ValueError(f"{missing[0]} is not there: name two sweeps or two files")
    if any(are_files) and not all(are_files):
        raise ValueError("a diff is of two sweeps or of two files: give two of a kind")
    if all(are_files):
        before, after = arguments.paths
        _diff_files(before, after, as_json=arguments.json)
    elif arguments.json:
        raise ValueError("--json is of two files: results.json has the figures of a sweep")
    else:
        _diff_sweeps(arguments)


def _diff_files(before: str, after: str, *, as_json: bool) -> None:
    from quantlab.report.files import diff_files, file_diff_summary

    compared = diff_files(before, after)
    whole = not sys.stdout.isatty()
    print(compared.to_json() if as_json else file_diff_summary(compared, whole=whole))
    if not compared.is_whole:
        raise SystemExit(1)


def _diff_sweeps(arguments: argparse.Namespace) -> None:
    from quantlab.records.answers import read_rows
    from quantlab.records.table import read_aggregate
    from quantlab.report.diff import diff, diff_summary, require_tolerance

    sweeps = [read_aggregate(Path(path)) for path in arguments.paths]
    settings = read_settings(sweeps[1].directory, arguments.settings)
    before, after = (sweep._replace(rows=settings.judged(sweep.rows)) for sweep in sweeps)
    tolerance = require_tolerance(arguments.tolerance)
    answers = (settings.judged(read_rows(sweep)) for sweep in sweeps)
    changes = diff(before, after, *answers)
    print(diff_summary(changes, tolerance, settings.texts))
    if changes.is_worse(tolerance):
        raise SystemExit(1)


def _verify(arguments: argparse.Namespace) -> None:
    from quantlab.verify import find_faults

    sentences = list(find_faults(arguments.directory))
    if sentences:
        print("\n".join(sentences))
        raise SystemExit(1)
    print(f"{arguments.directory} matches its manifest")


def _reproduce(arguments: argparse.Namespace) -> None:
    from quantlab.verify import reproduce

    differing, changed = reproduce(arguments.directory)
    if differing:
        print("\n".join(differing))
        reason = f": it was recorded with {'; '.join(changed)}" if changed else ""
        print(f"{arguments.directory} was not reproduced{reason}")
        raise SystemExit(1)
    print(f"{arguments.directory}: reproduced, every figure bit for bit")


def _look(arguments: argparse.Namespace) -> None:
    from quantlab.report.files import summarize_file, summarize_loss

    path, original, whole = arguments.path, arguments.original, not sys.stdout.isatty()
    if original:
        print(summarize_loss(path, original, whole=whole))
    else:
        print(summarize_file(path, whole=whole))


def _export(arguments: argparse.Namespace) -> None:
    from quantlab.report.export import export  # pandas

    print(export(arguments.directory, arguments.to, arguments.output))


def _doctor(_: argparse.Namespace) -> None:
    from quantlab.report.doctor import diagnose

    print(diagnose())


def _tensors(arguments: argparse.Namespace) -> None:
    with without_values(arguments.path) as path:
        read = reader_of(path)
        source = read(str(path), arguments.include, arguments.exclude, select=arguments.select)
        source.require_matches()
        if arguments.json:
            print(listing_json(source.entries))
            return
        decoder = DECODERS.get(source.format)
        stored = decoder(source.path) if decoder else None
        whole = not sys.stdout.isatty()
        print(listing(source.entries, stored, arguments.path, whole=whole))


if __name__ == "__main__":
    main()
