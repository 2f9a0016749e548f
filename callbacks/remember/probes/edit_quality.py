"""EasyEdit's four numbers: reliability, generalization, locality and portability."""

from collections.abc import Mapping
from typing import Any

from jsonargparse.typing import PositiveInt

from triptych.callbacks.remember.probes.base import ProbeSetting, Role
from triptych.callbacks.remember.probes.replies import Question, ReplyProbe, share
from triptych.datamodules.remember.facts.asked_facts import worded_facts
from triptych.datamodules.remember.facts.fact_templates import (
    Fact,
    FactTemplates,
    question_rendering,
)
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.datamodules.remember.probe_rows import draw_rows

KINDS = ("reliability", "generalization", "locality", "portability")


class EditQuality(ReplyProbe):
    """Asks taught facts, the same in other words, their neighbours, and what follows from them.

    Numbers, each a share of replies to all questions of its kind:

    - `reliability`: the fact's own question is answered;
    - `generalization`: a wording that was never taught is answered (the row's `held_out`, the last
      third of its `rephrase`, and held-out templates);
    - `locality`: the reply to a neighbour (the row's `locality`) is the same as at the first
      measurement, to the letter;
    - `portability`: a question that follows from the fact (the row's `portability`) is answered.

    A number without questions is left out. A question is answered if the reply names an accepted
    answer. Questions are asked in the form of `FactsConfig.form`: in the tokenizer's chat template,
    if it has one.

    Args:
        facts: The facts; null: those that the run's stream teaches.
        num_rows: Largest number of facts, drawn by `seed`; null: all.
        role: "learned", or "retained" to let `budget` count the loss of `reliability`.
        **kwargs: Arguments of `ReplyProbe`.

    Source: EasyEdit, 2308.07269; KnowEdit, 2401.01286. Deviation: they compare the tokens of a
    given answer, teacher-forced; here the model writes its reply.
    """

    headline = "reliability"

    def __init__(
        self,
        facts: FactsConfig | None = None,
        num_rows: PositiveInt | None = None,
        role: Role = "learned",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_rows=num_rows, role=role, **kwargs)
        self.facts = facts

    @property
    def shown(self) -> tuple[str, ...]:
        """The numbers that have questions."""
        kinds = {question.kind for question in self.questions}
        return tuple(kind for kind in KINDS if kind in kinds or kind == self.headline)

    def ask(self, setting: ProbeSetting) -> list[Question]:
        """Read the facts with their wordings, neighbours and follow-ups."""
        tokenizer = setting.row_format.tokenizer
        facts, templates = worded_facts(self.facts, setting.datamodule, self.data_dir, tokenizer)
        drawn = draw_rows(facts, self.most_rows(setting), self.seed)
        return [question for fact in drawn for question in _questions(fact, templates)]

    def scores(self, replies: Mapping[int, str], first: Mapping[int, str]) -> dict[str, float]:
        """Score replies; see the base class."""
        right: dict[str, list[bool]] = {kind: [] for kind in self.shown}
        for index, reply in replies.items():
            question = self.questions[index]
            same = reply == first[index]
            is_right = same if question.kind == "locality" else question.is_answered(reply)
            right[question.kind].append(is_right)
        return {kind: share(of) for kind, of in right.items()}


def _questions(fact: Fact, templates: FactTemplates) -> list[Question]:
    worded = [("reliability", fact.question)]
    held_out = templates.question_texts(fact, "held_out")
    worded += [("generalization", text) for text in held_out if text != fact.question]
    own = [
        Question(templates.asked(fact, text).prompt, fact.answers, kind, templates.chat)
        for kind, text in worded
    ]
    beside = [("locality", follow_up) for follow_up in fact.locality]
    beside += [("portability", f) for f in fact.portability if f.answers]
    return own + [
        Question(_prompt(f.prompt, templates), f.answers, kind, templates.chat)
        for kind, f in beside
    ]


def _prompt(text: str, templates: FactTemplates) -> str:
    """Ask a question in plain form; the beginning of a sentence is continued as it is."""
    if templates.chat or not text.rstrip().endswith(("?", "？")):
        return text.rstrip()
    return question_rendering(text.strip(), "").prompt
