"""`python -m tests.mutants [name ...]`: breaks a copy of the package and requires the named tests to fail."""

import argparse
import os
import sys

from tests.mutants import runs
from tests.mutants.catalogue import MUTANTS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="mutants to run; all if none is given")
    parser.add_argument("--list", action="store_true", help="list the mutants and their tests, run nothing")
    parser.add_argument("--tested", action="store_true", help="do not ask first that the tests pass unbroken")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"unknown mutants: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    width = max(len(mutant.name) for mutant in MUTANTS)
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.name:{width}}  {mutant.file:24}  {', '.join(mutant.tests)}")
        return 0

    with runs.processes(os.cpu_count()) as pool:
        if not arguments.tested:
            nodes = sorted({node for mutant in chosen for node in mutant.tests})
            code, output = pool.submit(runs.healthy, nodes).result()
            if code != runs.PASSED:
                print(output[-6000:], "The tests must pass before anything is broken.", sep="\n")
                return 2
        survived = 0
        for mutant, result in zip(chosen, pool.map(runs.verdict, chosen), strict=True):
            survived += result != "caught"
            print(f"{mutant.name:{width}}  {result}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
