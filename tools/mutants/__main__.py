"""`python -m tools.mutants`: plants each bug of the table in a copy of the source; its test must fail."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bgpt_fast.files import write_json
from tools.mutants.mutant import Mutant, MutantError
from tools.mutants.run import copied_tree, outcomes
from tools.mutants.table import MUTANTS

ROOT = Path(__file__).resolve().parents[2]


def chosen(words: list[str]) -> list[Mutant]:
    """The mutants whose layer, file or test contains one of these words; all without words."""
    return [m for m in MUTANTS if not words or any(word in f"{m.layer} {m.file} {m.test}" for word in words)]


def main() -> int:
    """Returns 0 if all mutants are killed, 1 if one survives, 2 if one cannot be tried."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutants whose layer, file or test contains one of these")
    parser.add_argument("--json", type=Path, help="a file for the results")
    options = parser.parse_args()
    mutants = chosen(options.words)
    if not mutants:
        parser.error(f"expected words of a layer, file or test of the table, got {options.words}")
    results = []
    try:
        with copied_tree(ROOT) as copy:
            for outcome in outcomes(copy, mutants):
                results.append(outcome)
                mutant = outcome.mutant
                print(f"{outcome.result:<8}  {mutant.layer:<12}  {mutant.name}  ({outcome.seconds:.0f} s)", flush=True)
    except MutantError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    survivors = [outcome for outcome in results if outcome.result == "survived"]
    print(f"{len(results) - len(survivors)} of {len(results)} killed")
    if options.json is not None:
        write_json(options.json, {"killed": len(results) - len(survivors), "mutants": [r.to_dict() for r in results]})
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
