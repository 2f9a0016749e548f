"""Recall of taught facts: those of pretraining, or those of the run's stream."""

from collections.abc import Sequence
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from triptych.callbacks.remember.probes.base import ProbeSetting, Role
from triptych.callbacks.remember.probes.recall import Recall
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
    """Asks for facts in wordings by relation; `Recall` describes numbers and scorings.

    For a stream's own facts it can also measure those of the earliest visits
    (`first_20_visits_exact_match`), and all visits in groups of a size
    (`visits_1_to_20_exact_match`). Measured after each group, these form the matrix R of
    `retention`, from which the callback computes backward and forward transfer and forgetting.

    Args:
        facts: The facts: `source`, `templates` and their selection; null: those of the run's stream
            of facts.
        wording: "held_out" (questions that never teach), "training" (questions that may teach),
            "own_question" (that of the source), or "statement" (statements to complete; for a
            stream's facts, those that it teaches). One wording of each fact is drawn by `seed`.
        of_stream: Which facts of the stream: "taught", or "skipped" (those that its `skip_facts`
            leaves out because the model was pretrained on them).
        first_visits: Also measure the facts of the first n visits; null: do not.
        visits_per_group: Also measure each group of n visits; null: do not.
        role: "retained" if the probe measures forgetting, "learned" if it measures learning.
        **kwargs: Arguments of `Recall`.

    Raises:
        ValueError: if visits are asked for where `facts` are given.
    """

    def __init__(
        self,
        facts: FactsConfig | None = None,
        wording: Wording = "held_out",
        of_stream: OfStream = "taught",
        first_visits: PositiveInt | None = None,
        visits_per_group: PositiveInt | None = None,
        role: Role = "learned",
        **kwargs: Any,
    ) -> None:
        super().__init__(role=role, **kwargs)
        for name, value in (("first_visits", first_visits), ("visits_per_group", visits_per_group)):
            if value is not None and (facts is not None or of_stream != "taught"):
                raise ValueError(
                    f"the probe has {name}, but the stream does not teach its facts, so none is "
                    "visited: leave one of the two out"
                )
        self.facts = facts
        self.of_stream: OfStream = of_stream
        self.wording: Wording = wording
        self.first_visits = first_visits
        self.visits_per_group = visits_per_group

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the recall of all facts and of the earliest ones."""
        if self.first_visits is None:
            return (self.headline,)
        return (self.headline, f"first_{self.first_visits}_visits_{self.headline}")

    def ask(self, setting: ProbeSetting) -> list[AskedFact]:
        """Word the facts as questions or statements, in the form of `FactsConfig.form`."""
        tokenizer = setting.row_format.tokenizer
        if self.facts is not None:
            return ask_facts(self.facts, self.wording, self.seed, self.data_dir, tokenizer)
        if self.of_stream == "skipped":
            return ask_skipped_facts(setting.datamodule, self.wording, self.seed, tokenizer)
        return ask_taught_facts(setting.datamodule, self.wording, self.seed, setting.row_format)

    def sets(self, asked: Sequence[AskedFact]) -> dict[str, list[int]]:
        """Name the sets of all facts, of the first visits, and of each group of visits."""
        sets = super().sets(asked)
        visits = [
            fact.visit or 0 for fact in asked
        ]  # None if no fact is taught: then there are no sets
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
