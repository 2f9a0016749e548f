"""Closed-book recall: the model answers questions from its weights alone."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from transformers import PreTrainedModel

from triptych.callbacks.remember.probes.base import (
    DocumentScore,
    DocumentScorer,
    Probe,
    ProbeSetting,
    on_device,
)
from triptych.callbacks.trainer_parts import is_first_rank
from triptych.datamodules.batches.length_batches import LengthBatch, left_padded, length_batches
from triptych.datamodules.batches.prompted_documents import encode_continuations, prompt_length
from triptych.datamodules.remember.facts.asked_facts import AskedFact
from triptych.datamodules.remember.probe_rows import draw_rows
from triptych.metrics.language_modeling import TokenNLL
from triptych.metrics.question_answering import answer_in_reply, exact_match, token_f1
from triptych.metrics.remember.retention import GroupMeans
from triptych.models.end_tokens import turn_end
from triptych.models.generation import continue_greedily
from triptych.models.long_loop import with_progress

Scoring = Literal["generate", "teacher_forced"]


class Recall(Probe):
    """Asks for facts, and scores the answers against every accepted answer.

    With `teacher_forced`, an answer is right if each token of an accepted answer, and the end after
    it, is the most likely one given those before. This is exact match of greedy decoding in tokens.
    It costs one forward pass over the accepted answers instead of one per generated token.
    `generate` compares texts and accepts more (case, punctuation, articles, other tokens of the
    same text). So its exact match is never below that of `teacher_forced`, and it also gives an F1.

    A question must be answered and then ended. In a statement more text follows, so only the
    answer's own tokens count: `generate` writes as many tokens as the taught answer has.

    In chat form the model writes to the end of its turn, and its whole reply counts. A reply is
    mostly a sentence, so the main number is then `answer_in_reply`: whether it names an accepted
    answer.

    Numbers: `exact_match`; with `generate`, `f1`, and in chat form `answer_in_reply`; with
    `teacher_forced`, `answer_nll_nats_per_token` of the taught answer.

    Args:
        scoring: "generate" writes answers and scores their text (exact match and F1).
            "teacher_forced" checks whether greedy decoding would write an accepted answer (exact
            match in tokens), at a much lower cost.
        max_new_tokens: Longest generated answer to a question; null: 16, in chat form 48.
        **kwargs: Arguments of `Probe`.
    """

    headline = "exact_match"

    def __init__(
        self,
        scoring: Scoring = "teacher_forced",
        max_new_tokens: PositiveInt | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.scoring = scoring
        self.max_new_tokens = max_new_tokens
        self._asked: list[AskedFact] = []

    @abstractmethod
    def ask(self, setting: ProbeSetting) -> list[AskedFact]:
        """Read the questions or statements."""

    def sets(self, asked: Sequence[AskedFact]) -> dict[str, list[int]]:
        """Name the sets of facts with separate recall, by indices into `asked`.

        The number of the set `early_` is called `early_exact_match`. The set "" holds all facts.
        """
        return {"": list(range(len(asked)))}

    def prepare(self, setting: ProbeSetting) -> None:
        """Read and tokenise the questions or statements; see the base class."""
        asked = draw_rows(self.ask(setting), self.most_rows(setting), self.seed)
        generates = self.scoring == "generate"
        in_chat = any(fact.in_chat for fact in asked)
        self._max_new_tokens = self.max_new_tokens or (48 if in_chat else 16)
        if in_chat and generates:
            self.headline = "answer_in_reply"
        encoded = encode_continuations(
            setting.row_format.tokenizer,
            [fact.continuations for fact in asked],
            setting.row_format.context_length,
            self.on_long_row,
            room=self._max_new_tokens if generates else 0,
        )
        place_of = {item: place for place, item in enumerate(encoded.items)}
        self._asked = [asked[item] for item in encoded.items]
        self._documents = encoded.documents
        self._fact_of = [place_of[item] for item in encoded.item_of]
        self._sets = self.sets(self._asked)
        self._sets_of: list[list[int]] = [[] for _ in self._asked]
        for number, facts in enumerate(self._sets.values()):
            for fact in facts:
                self._sets_of[fact].append(number)
        self.num_rows_used, self.num_rows_left_out = len(self._asked), encoded.num_left_out
        self._tokenizer = setting.row_format.tokenizer
        if generates:
            self._plan_generation(setting)
        else:
            self._scorer = DocumentScorer(
                self._documents, self._fact_of, setting, self.tokens_per_batch
            )

    def measure(self, model: PreTrainedModel, limit_batches: int | None = None) -> dict[str, float]:
        """Ask for the facts and score the answers; see the base class."""
        if self.scoring == "generate":
            return self._measure_generated(model, limit_batches)
        return self._measure_teacher_forced(model, limit_batches)

    # -- teacher-forced ---------------------------------------------------------------------------

    def _measure_teacher_forced(
        self, model: PreTrainedModel, limit_batches: int | None
    ) -> dict[str, float]:
        scores = self._scorer.score(model, limit_batches, greedy=True)
        answers: dict[int, list[DocumentScore | None]] = {}
        for document, fact in enumerate(self._fact_of):
            answers.setdefault(fact, []).append(scores.get(document))
        right: dict[int, float] = {}
        nll = on_device(TokenNLL(), model)
        for fact, found in answers.items():
            complete = [score for score in found if score is not None]
            if len(complete) == len(found):
                right[fact] = float(any(score.is_greedy for score in complete))
                nll.update(complete[0].nll_nats, complete[0].num_tokens)
        values = self._means(model, {"exact_match": right})
        return values | {"answer_nll_nats_per_token": float(nll.compute()["nll_nats_per_token"])}

    # -- generated --------------------------------------------------------------------------------

    def _plan_generation(self, setting: ProbeSetting) -> None:
        first_document: dict[int, int] = {}
        for document, fact in enumerate(self._fact_of):
            first_document.setdefault(fact, document)
        taught = [self._documents[first_document[fact]] for fact in range(len(self._asked))]
        self._prompts = [document.ids[: prompt_length(document)] for document in taught]
        # In a statement, the model writes as many tokens as the answer has.
        num_written = [
            self._max_new_tokens if fact.continuations[0].ends else len(document) - len(prompt)
            for fact, document, prompt in zip(self._asked, taught, self._prompts, strict=True)
        ]
        self._batches: list[tuple[LengthBatch, int]] = []
        for count in sorted(set(num_written)):
            facts = [fact for fact, written in enumerate(num_written) if written == count]
            lengths = [len(self._prompts[fact]) + count for fact in facts]
            places = list(range(len(facts)))
            for batch in length_batches(lengths, places, self.tokens_per_batch, setting.shard):
                rows = tuple(facts[place] for place in batch.rows)
                self._batches.append((LengthBatch(rows, batch.counts), count))

    def _measure_generated(
        self, model: PreTrainedModel, limit_batches: int | None
    ) -> dict[str, float]:
        exact: dict[int, float] = {}
        f1: dict[int, float] = {}
        named: dict[int, float] = {}
        batches, title = self._batches[:limit_batches], "batches of closed-book questions"
        for planned, count in with_progress(batches, title, len(batches), is_first_rank(), False):
            texts = self._generate(model, planned, count)
            if not planned.counts:
                continue
            for fact, text in zip(planned.rows, texts, strict=True):
                accepted = self._asked[fact].answers
                exact[fact] = float(exact_match(text, accepted))
                f1[fact] = token_f1(text, accepted)
                if self._asked[fact].in_chat:
                    named[fact] = float(answer_in_reply(text, accepted))
        scores = {"exact_match": exact, "f1": f1}
        if any(fact.in_chat for fact in self._asked):
            scores["answer_in_reply"] = named
        return self._means(model, scores)

    def _generate(self, model: PreTrainedModel, planned: LengthBatch, count: int) -> list[str]:
        prompts = [self._prompts[fact] for fact in planned.rows]
        prompt_ids, prompt_mask = left_padded(prompts, self._tokenizer.pad_token_id)
        texts = continue_greedily(
            model,
            self._tokenizer,
            prompt_ids.to(model.device),
            prompt_mask.to(model.device),
            count,
            also_ends=(turn_end(self._tokenizer),),
        )
        return [
            (text if self._asked[fact].in_chat else text.split("\n")[0]).strip()
            for fact, text in zip(planned.rows, texts, strict=True)
        ]

    # -- both -------------------------------------------------------------------------------------

    def _means(
        self, model: PreTrainedModel, scores: dict[str, dict[int, float]]
    ) -> dict[str, float]:
        """Average scores over each set of facts and over all processes."""
        values = {}
        for name, by_fact in scores.items():
            means = on_device(GroupMeans(len(self._sets)), model)
            pairs = [(s, score) for fact, score in by_fact.items() for s in self._sets_of[fact]]
            groups = torch.tensor([group for group, _ in pairs], dtype=torch.int64)
            means.update(groups, [score for _, score in pairs])
            for prefix, value in zip(self._sets, means.compute().reshape(-1).tolist(), strict=True):
                values[prefix + name] = value
        return values
