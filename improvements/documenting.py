"""The two tables of the lifecycle as Markdown, made from the code that runs them."""

from __future__ import annotations

from improvements.models import MOVES, State
from improvements.pipeline import PIPELINE


def law() -> str:
    """MOVES: what may happen."""
    rows = ["| from | may move to |", "|---|---|"]
    for state in State:
        targets = ", ".join(target.value for target in State if target in MOVES[state])
        rows.append(f"| {state.value} | {targets or '— (the end)'} |")
    return "\n".join(rows)


def machine() -> str:
    """PIPELINE: what does happen."""
    rows = ["| state | step | passed | inconclusive | failed, no data | other endings |", "|---|---|---|---|---|---|"]
    for state, step in PIPELINE.items():
        endings = ", ".join(f"{name}: {target.value}" for name, target in step.endings.items())
        passed = step.passed.value if step.passed else "settled"
        inconclusive = (step.inconclusive or step.failed).value
        rows.append(
            f"| {state.value} | {step.does} | {passed} | {inconclusive} | {step.failed.value} | {endings or '—'} |"
        )
    return "\n".join(rows)


TABLES = {"law": law, "machine": machine}


def rewritten(text: str) -> str:
    """`text` with everything between `<!-- table: NAME -->` and `<!-- end -->` made anew."""
    for name, table in TABLES.items():
        start = f"<!-- table: {name} -->\n"
        before, found, rest = text.partition(start)
        if not found:
            raise ValueError(f"the document has no line {start.strip()!r}")
        _, _, after = rest.partition("<!-- end -->")
        text = f"{before}{start}{table()}\n<!-- end -->{after}"
    return text
