"""Recall of facts that are known to be taught: those of pretraining, or the stream's own."""

from collections.abc import Sequence
from typing import Literal

from triptych.callbacks.remember.probes.base import ProbeSetting, Role
from triptych.callbacks.remember.probes.recall import Recall, Scoring
from triptych.datamodules.batches.prompted_documents import OnLongRow
from triptych.datamodules.remember.facts.asked_facts import (
    AskedFact,
    Wording,
    ask_facts,
    ask_skipped_facts,
    ask_taught_facts,
)
from triptych.datamodules.remember.facts.facts import FactsConfig

OfStream = Literal["taught", "skipped"]


class FactRecall(Recall):
    """Asks facts in wordings by relation; numbers and scorings are those of `recall.Recall`.

    Of a stream's own facts it can tell apart those of the earliest visits
    (`first_20_visits_exact_match`, and so on), and all visits in groups of a size
    (`visits_1_to_20_exact_match`). Measured after each group, these make up the matrix R of
    `retention`; the callback then gives backward and forward transfer and forgetting.

    Args:
        facts: The facts asked: `source`, `templates` and what chooses among the facts; null: those
            of the run's stream of facts.
        wording: "held_out" (questions that never teach), "training" (questions that may),
            "own_question" (the source's), or "statement" (statements to complete; of a stream's
            facts, such as it teaches). One of a fact's wordings is drawn by `seed`.
        of_stream: Which of the stream's: "taught", or "skipped", those that its `skip_facts` passes
            over because the model was pretrained on them.
        first_visits: Also tell the recall of the facts of the first so many visits; null: do not.
        visits_per_group: Also tell the recall of each group of so many visits; null: do not.
        scoring: "generate" writes answers and scores their text (exact match and F1);
            "teacher_forced" finds out whether the accepted answers would be written (exact match in
            tokens), far cheaper.
        max_new_tokens: Longest answer that is generated.
        role: "retained" where forgetting is measured, "learned" where learning is.
        num_rows: Ask at most so many facts, drawn by `seed`; null: all.
        seed: Draws facts and wordings, apart from the seed of training.
        data_dir: Where relative paths start; null: the environment's TRIPTYCH_DATA, or ./data.
        on_long_row: What becomes of a fact longer than the model's context: "error", "cut" or
            "skip".
        tokens_per_batch: Most tokens that go through the model at once, padding included.

    Raises:
        ValueError: if a setting is out of range, or asks for visits where `facts` are given.
    """

    def __init__(
        self,
        facts: FactsConfig | None = None,
        wording: Wording = "held_out",
        of_stream: OfStream = "taught",
        first_visits: int | None = None,
        visits_per_group: int | None = None,
        scoring: Scoring = "teacher_forced",
        max_new_tokens: int = 16,
        role: Role = "learned",
        num_rows: int | None = None,
        seed: int = 0,
        data_dir: str | None = None,
        on_long_row: OnLongRow = "error",
        tokens_per_batch: int = 4096,
    ) -> None:
        super().__init__(
            scoring, max_new_tokens, role, num_rows, seed, data_dir, on_long_row, tokens_per_batch
        )
        for name, value in (("first_visits", first_visits), ("visits_per_group", visits_per_group)):
            if value is not None and value < 1:
                raise ValueError(f"the probe's {name} is {value}: set it to at least 1")
            if value is not None and (facts is not None or of_stream != "taught"):
                raise ValueError(
                    f"the probe has {name} and facts that the stream does not teach, so that none "
                    "is visited: leave one of the two out"
                )
        self.facts = facts
        self.of_stream: OfStream = of_stream
        self.wording: Wording = wording
        self.first_visits = first_visits
        self.visits_per_group = visits_per_group

    @property
    def shown(self) -> tuple[str, ...]:
        """The recall of all facts, and that of the earliest ones."""
        if self.first_visits is None:
            return (self.headline,)
        return (self.headline, f"first_{self.first_visits}_visits_{self.headline}")

    def ask(self, setting: ProbeSetting) -> list[AskedFact]:
        """Word the facts."""
        if self.facts is not None:
            return ask_facts(self.facts, self.wording, self.seed, self.data_dir)
        if self.of_stream == "skipped":
            return ask_skipped_facts(setting.datamodule, self.wording, self.seed)
        return ask_taught_facts(setting.datamodule, self.wording, self.seed, setting.row_format)

    def sets(self, asked: Sequence[AskedFact]) -> dict[str, list[int]]:
        """All facts, those of the first visits, and those of each group of visits."""
        sets = super().sets(asked)
        visits = [fact.visit or 0 for fact in asked]  # None where none is taught: no sets then
        if self.first_visits is not None:
            early = [place for place, visit in enumerate(visits) if visit < self.first_visits]
            sets[f"first_{self.first_visits}_visits_"] = early
        if self.visits_per_group is not None:
            num_visits = max(visits) + 1
            for first in range(0, num_visits, self.visits_per_group):
                last = min(first + self.visits_per_group, num_visits)
                name = f"visits_{first + 1}_to_{last}_"
                sets[name] = [p for p, visit in enumerate(visits) if first <= visit < last]
                self.groups[name + self.headline] = last
        return sets
