"""Draw the figure of a study again, from its saved results.

    python -m studies.redraw one_or_two runs/studies/one_or_two/results.json figure.png

No run is repeated. Results that an earlier version saved may lack the curves of `molecules` and
`retention` and the bounds of `telepathy`. The study adds them; it repeats no finished run.
"""

import argparse
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

#: Study -> module with its `draw_results`.
STUDIES = {
    "one_or_two": "one_or_two",
    "creative_qa": "creative_qa",
    "pass_at_k": "pass_at_k",
    "molecules": "molecules",
    "real_facts": "remember.real_facts.real_facts_figure",
    "retention": "remember.retention.retention_figure",
    "telepathy": "commune.telepathy_figure",
    "identifiability": "commune.identifiability_figure",
}


def main(args: Sequence[str] | None = None) -> Path:
    """Draw the figure and return its path."""
    parser = argparse.ArgumentParser(description="Draw the figure of a study from its results.")
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("results", type=Path, help="its results.json")
    parser.add_argument("figure", type=Path, help="the PNG file to write")
    options = parser.parse_args(args)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    try:
        import_module(f"triptych.studies.{STUDIES[options.study]}").draw_results(
            results, options.figure
        )
    except KeyError as error:
        parser.error(
            f"{options.results} has no {error}: run the study again, which repeats no finished run"
        )
    return Path(options.figure)


if __name__ == "__main__":
    main()
