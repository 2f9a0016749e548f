"""What one run of the retention study comes to."""

import json
from pathlib import Path

NEW, STATEMENT, BEFORE = "NEW, questions", "NEW, statements", "NEW, questions, before"
OLD, TEXT = "OLD", "text (nats/token)"
OLD_DROP, TEXT_RISE, EARLY = "OLD, points lost", "text, percent", "first 20 facts"


def numbers_of(run: Path) -> dict[str, float]:
    """What one run learned and forgot."""
    measured = json.loads((run / "forgetting.json").read_text())["rows"]
    start, end = (
        {
            (row["probe"], row["metric"]): row["value"]
            for row in measured
            if (row["step"], row["visit"]) == (at["step"], at["visit"])
        }
        for at in (measured[0], measured[-1])
    )
    exact, nll = "exact_match", ("text", "nll_nats_per_token")
    return {
        NEW: end["new_question", exact],
        STATEMENT: end["new_statement", exact],
        BEFORE: start["new_question", exact],
        OLD: end["old", exact],
        OLD_DROP: 100 * (start["old", exact] - end["old", exact]),
        TEXT: end[nll],
        TEXT_RISE: 100 * (end[nll] / start[nll] - 1),
        EARLY: end["new_question", f"first_20_visits_{exact}"],
    }
