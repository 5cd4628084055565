"""Everything after a run: ``python -m quantlab aggregate DIR``, installed as ``quantlab``."""

import argparse
from pathlib import Path

from quantlab import report
from quantlab.aggregate import aggregate
from quantlab.errors import told


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(prog="quantlab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    collect = commands.add_parser("aggregate", help="collect the records of a sweep again")
    collect.add_argument("directory", type=Path, metavar="DIR", help="a sweep's directory")
    with told():
        done = aggregate(parser.parse_args().directory)
    print(report.sweep(done))
    if done.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
