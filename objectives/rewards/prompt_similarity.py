"""A reward for replies that are about their prompt, by embeddings of both."""

from typing import Self

import torch

from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.base import Reward, Scores
from triptych.objectives.text_embedder import Embedder, TextEmbedder, letter_counts

# Shapes: B completions


class PromptSimilarity(Reward):
    """The cosine of prompt and reply, cut at 0 and at a level that is enough, over that level.

    All replies that are about their prompt get 1, whatever they say. Without the cut the
    best reply repeats its prompt. The reward reads the topic alone, and knows neither sense nor
    grammar, so keep a KL or another reward beside it.

    Args:
        enough: Cosine from which on the reward is 1.
        finished_only: A reply that was cut off at the length limit gets 0.
        embedder: A callable from texts to vectors, or the name or path of a sentence-transformers
            model; null: all-MiniLM-L6-v2 as installed with the extra `embeddings`.

    Raises:
        ValueError: if `enough` is no cosine above 0.
    """

    range = (0.0, 1.0)
    scope = "completion"

    def __init__(
        self,
        enough: float = 0.5,
        finished_only: bool = True,
        embedder: Embedder | str | None = None,
    ) -> None:
        if not 0 < enough <= 1:
            raise ValueError(f"enough is {enough}: set it to a cosine above 0, at most 1")
        self.enough = enough
        self.finished_only = finished_only
        self.embedder = embedder if callable(embedder) else TextEmbedder(embedder, device="cpu")

    @classmethod
    def example(cls) -> Self:
        """Return a reward by counts of letters, which needs no model."""
        return cls(embedder=letter_counts)

    def score(self, rollout: Rollout) -> Scores:
        """Compare each reply with its prompt; an empty reply gets 0."""
        prompts, texts = list(rollout.prompts), [text.strip() for text in rollout.texts]
        different = list(dict.fromkeys([*prompts, *filter(None, texts)]))
        vectors = torch.as_tensor(self.embedder(different), dtype=torch.float32)
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        place = {text: number for number, text in enumerate(different)}
        reward_B = torch.zeros(len(rollout), dtype=torch.float32)
        finished = rollout.finished_B.tolist()
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            if text and (finished[row] or not self.finished_only):
                cosine = float(unit[place[prompt]] @ unit[place[text]])
                reward_B[row] = min(max(cosine, 0.0) / self.enough, 1.0)
        return Scores(reward_B)
