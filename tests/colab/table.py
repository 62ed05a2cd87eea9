"""What the person who rehearses reads."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from colab.rehearsal import Outcome

_WIDTH = 300  # TensorFlow can say a lot in one line
_ROW = "{:32} {:>6}  {:8} {:>8}  {}"


def tell(outcome: Outcome) -> None:
    """Prints how a notebook fared, as soon as it is known."""
    print(f"{outcome.name}: {'failed' if outcome.problems else 'passed'}", flush=True)
    for line in outcome.notes + outcome.problems:
        print("   ", textwrap.shorten(line, _WIDTH), flush=True)


def show(outcomes: Sequence[Outcome], output: Path, seconds: float) -> int:
    """Prints the table and what Setup added; returns the exit status."""
    print("\n" + _ROW.format("notebook", "s", "project", "packages", ""))
    for outcome in outcomes:
        verdict = "failed" if outcome.problems else "passed"
        packages = f"+{len(outcome.added)}"
        print(
            _ROW.format(outcome.name, f"{outcome.seconds:.0f}", outcome.project, packages, verdict)
        )
    added = {f"{name} {version}" for outcome in outcomes for name, version in outcome.added.items()}
    print(f"\nAdded to what Colab has: {', '.join(sorted(added)) or 'nothing'}")
    failed = sum(bool(outcome.problems) for outcome in outcomes)
    print(
        f"{len(outcomes)} runs, {failed} failed, in {seconds:.0f} s; executed notebooks: {output}"
    )
    return int(failed > 0 or not outcomes)
