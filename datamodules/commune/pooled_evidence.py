"""A task in which evidence is spread over agents: shared digits, and a private nonce for each.

    shared digits    base 5; each agent sees each digit with probability .5; a digit that nobody
                     would see is given to a random agent
    private nonce    base 5; one for each agent, seen by that agent alone

    max_min          answer_i = max(digits) if nonce_i < 3 else min(digits)
    sum_modulo       answer_i = (sum of digits + nonce_i) mod 5

Each agent has its own right answer. It needs the others' digits for it, and never their nonces. So
an exchange has to carry the shared digits, and leakage of nonces can be probed. This task is ours;
in the paper's tasks every agent gets the same question, and nothing has to be exchanged.

A prompt consists of words: the messages, what the agent sees, and a mark before the answer.

    [1: A3 B? n2 .] [2: ...]  A? B4 n0 =

A single term says nothing about a sum, so the loss has no slope until all terms are combined.
Training questions with many zeros (`zero_share`) include sums of one and of two terms, which are
learned first. Held-out questions are not affected.
"""

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse.typing import PositiveInt
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from triptych.datamodules.batches.tokenizer import BOS, EOS, PAD
from triptych.datamodules.commune.debate_task import DebateTask, Question, Split

BASE = 5
LETTERS = "ABCDEFGH"
MOST_AGENTS = 5
Rule = Literal["max_min", "sum_modulo"]


@dataclass(frozen=True)
class Evidence:
    """The evidence that one agent sees.

    Attributes:
        digits: The shared digits, None for each that the agent does not see.
        nonce: The agent's private nonce.
    """

    digits: list[int | None]
    nonce: int

    def words(self) -> list[str]:
        """Return the words for a prompt or a message."""
        seen = ["?" if digit is None else str(digit) for digit in self.digits]
        return [*(f"{LETTERS[i]}{digit}" for i, digit in enumerate(seen)), f"n{self.nonce}"]


class PooledEvidence(DebateTask):
    """The embedded task of debates.

    Args:
        rule: `max_min`, or the harder `sum_modulo`.
        num_agents: Number of agents, 2 to 5.
        num_digits: Number of shared digits, 1 to 8.
        num_train: Number of training questions.
        num_val: Number of held-out questions.
        seed: Seed of all questions.
        zero_share: Share of digits and nonces in training questions that are set to 0; in [0, 1).

    Raises:
        ValueError: on settings out of range.
    """

    max_new_tokens = 2
    num_private_classes = BASE

    def __init__(
        self,
        rule: Rule = "max_min",
        num_agents: int = 3,
        num_digits: int = 2,
        num_train: PositiveInt = 8192,
        num_val: PositiveInt = 1024,
        seed: int = 0,
        zero_share: float = 0.0,
    ) -> None:
        for name, value, least, most in (
            ("num_agents", num_agents, 2, MOST_AGENTS),
            ("num_digits", num_digits, 1, len(LETTERS)),
        ):
            if not least <= value <= most:
                raise ValueError(
                    f"task.{name} is {value}: set it to at least {least} and at most {most}"
                )
        if not 0 <= zero_share < 1:
            raise ValueError(f"task.zero_share is {zero_share}: set it to at least 0 and below 1")
        self.rule: Rule = rule
        self.num_agents: int = num_agents
        self.num_digits = num_digits
        self.sizes = {"train": num_train, "val": num_val, "test": num_val}
        self.seed = seed
        self.zero_share = zero_share
        self.tokenizer = word_tokenizer(num_digits, num_agents)
        self.report_classes = [BASE + 1] * num_digits + [BASE]

    def answer(self, digits: Sequence[int], nonce: int) -> int:
        """Return the right answer of an agent with this nonce.

        >>> task = PooledEvidence()
        >>> task.answer([1, 4], nonce=2), task.answer([1, 4], nonce=3)
        (4, 1)
        >>> PooledEvidence("sum_modulo").answer([3, 4], nonce=1)
        3
        """
        if self.rule == "sum_modulo":
            return (sum(digits) + nonce) % BASE
        return max(digits) if nonce < 3 else min(digits)

    def draw(self, rng: random.Random, zero_share: float = 0.0) -> Question:
        """Draw a question."""
        digits = [rng.randrange(BASE) for _ in range(self.num_digits)]
        nonces = [rng.randrange(BASE) for _ in range(self.num_agents)]
        if zero_share:
            digits, nonces = (
                [0 if rng.random() < zero_share else value for value in values]
                for values in (digits, nonces)
            )
        seen = [[rng.random() < 0.5 for _ in digits] for _ in nonces]
        for place in range(self.num_digits):
            if not any(row[place] for row in seen):
                seen[rng.randrange(self.num_agents)][place] = True
        evidence = [
            Evidence([d if s else None for d, s in zip(digits, row, strict=True)], nonce)
            for row, nonce in zip(seen, nonces, strict=True)
        ]
        answers = [str(self.answer(digits, nonce)) for nonce in nonces]
        return Question(answers, evidence, nonces)

    def questions(self, split: Split) -> list[Question]:
        """Draw the questions of a split."""
        rng = random.Random(f"{self.seed} {split}")
        return [self.draw(rng, self._zero_share(split)) for _ in range(self.sizes[split])]

    def _zero_share(self, split: Split) -> float:
        return self.zero_share if split == "train" else 0.0

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        agent: int,
        messages: Sequence[Sequence[str]] | None = None,
    ) -> list[list[int]]:
        """Encode the prompts' words; messages come first."""
        heard = messages or [[] for _ in questions]
        texts = [
            " ".join([*said, *question.evidence_of(agent).words(), "="])
            for question, said in zip(questions, heard, strict=True)
        ]
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def read_answer(self, reply: str) -> str | None:
        """Return the first word if it is a digit."""
        words = reply.split()
        return words[0] if words and words[0] in {str(d) for d in range(BASE)} else None

    def messages(
        self,
        questions: Sequence[Question],
        replies: Sequence[Sequence[str]],
        agent: int,
        max_tokens: int | None = None,
    ) -> list[list[str]]:
        """Return the others' evidence, since their answers alone would help nobody.

        A message has a word for each digit, one for the nonce, and a full stop. `max_tokens` keeps
        the first words. Replies are not used.
        """
        texts = []
        for question in questions:
            said = []
            for other, evidence in enumerate(question.evidence):
                if other != agent:
                    words = [*evidence.words(), "."][:max_tokens]
                    said.append(" ".join([f"{other}:", *words]))
            texts.append(said)
        return texts

    def report(self, question: Question, agent: int) -> list[int]:
        """Return the digits (the last class for an unseen one) and the nonce."""
        evidence: Evidence = question.evidence_of(agent)
        return [*(BASE if d is None else d for d in evidence.digits), evidence.nonce]

    def single_optimum(self) -> float:
        """Compute the best expected accuracy of an agent without messages.

        By enumeration: an agent that sees some digits gives the most likely answer. The rule that
        somebody gets each unseen digit raises the probability of seeing it.

        >>> round(PooledEvidence().single_optimum(), 3)
        0.667
        """
        # Seen by chance, or given because nobody saw it.
        share = 0.5 + 0.5**self.num_agents / self.num_agents
        total = 0.0
        for seen in itertools.product([True, False], repeat=self.num_digits):
            weight = share ** sum(seen) * (1 - share) ** (len(seen) - sum(seen))
            total += weight * self._optimum_given(seen)
        return total

    def _optimum_given(self, seen: Sequence[bool]) -> float:
        counts: dict[tuple[int, ...], dict[int, int]] = {}
        for digits in itertools.product(range(BASE), repeat=len(seen)):
            for nonce in range(BASE):
                known = (nonce, *(d if s else -1 for d, s in zip(digits, seen, strict=True)))
                right = counts.setdefault(known, {})
                answer = self.answer(digits, nonce)
                right[answer] = right.get(answer, 0) + 1
        best = sum(max(right.values()) for right in counts.values())
        return best / sum(sum(right.values()) for right in counts.values())

    def fingerprint(self, split: Split) -> str:
        """Hash rule, sizes, seed and the share of zeros."""
        size = self.sizes[split]
        settings: tuple[object, ...] = (
            self.rule,
            self.num_agents,
            self.num_digits,
            size,
            self.seed,
        )
        if share := self._zero_share(split):
            settings += (share,)
        return hashlib.sha256(repr((settings, split)).encode()).hexdigest()

    def reference_replies(self, questions: Sequence[Question], agent: int) -> list[str]:
        """Return the right answers."""
        return [question.answer_of(agent) for question in questions]


def word_tokenizer(num_digits: int, num_agents: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer of the task's words, split at spaces."""
    values = [*map(str, range(BASE)), "?"]
    words = [
        *(BOS, EOS, PAD, "=", "."),
        *map(str, range(BASE)),
        *(f"{letter}{value}" for letter in LETTERS[:num_digits] for value in values),
        *(f"n{value}" for value in range(BASE)),
        *(f"{agent}:" for agent in range(num_agents)),
    ]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=PAD)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    kind: Any = PreTrainedTokenizerFast  # its constructor has no types
    made: PreTrainedTokenizerFast = kind(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    return made
