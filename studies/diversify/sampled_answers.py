"""Samples and their metrics of exported policies on held-out questions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NUM_SAMPLES = 10
REWARD, RIGHT = "right answers (share)", "different right answers at 10"
ANY, EAD, EMBEDDED = "different answers at 10", "EAD", "embedding distance"


class EachTextOnce:
    """An embedder with a cache, since all arms give the same few answers.

    Args:
        embedder: Maps N texts to N vectors; None: all-MiniLM-L6-v2.
    """

    def __init__(self, embedder: Any = None) -> None:
        if embedder is None:
            from triptych.objectives.text_embedder import TextEmbedder

            embedder = TextEmbedder()
        self.embedder = embedder
        self._known: dict[str, Any] = {}

    def __call__(self, texts: Sequence[str]) -> Any:
        """Embed N texts as (N, D)."""
        import torch

        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= zip(new, torch.as_tensor(self.embedder(new)), strict=True)
        return torch.stack([self._known[text] for text in texts])


class Sampler:
    """Samples answers to held-out questions of the embedded set and measures them.

    Args:
        sets: Names of the held-out sets.
        num_prompts: Number of prompts from the start of each set; None: all.
        embedder: Embedder of the embedding distance; None: all-MiniLM-L6-v2.
        small: Use the small set of categories.
    """

    def __init__(
        self,
        sets: Sequence[str],
        num_prompts: int | None = None,
        embedder: Any = None,
        small: bool = True,
    ) -> None:
        from triptych.datamodules.embedded.creative_questions import prompt_rows

        self.embedder = EachTextOnce(embedder)
        self.rows = {
            name: [row for row in prompt_rows(small) if row["split"] == name][:num_prompts]
            for name in sets
        }

    def measure(self, export: Path, seed: int, temperature: float = 1.0) -> dict[str, float]:
        """Measure a policy: return `<set>: <number>` for each set, and the temperature.

        Args:
            export: Folder of the model and its tokenizer.
            seed: Seed of the samples.
            temperature: Sampling temperature.
        """
        from triptych.metrics.diversify.distinct_answers import DistinctAnswers
        from triptych.metrics.diversify.embedding_diversity import EmbeddingDistance
        from triptych.metrics.diversify.text_diversity import ExpectationAdjustedDistinct

        policy = _policy(export)
        numbers: dict[str, float] = {}
        for name in self.rows:
            answers = DistinctAnswers()
            ead = ExpectationAdjustedDistinct(compat="rlfh-gen-div", overall=False)
            embedded = EmbeddingDistance(self.embedder, overall=False)
            for samples, right in self._samples(policy, name, seed, temperature):
                answers.update(samples, right)
                ead.update(samples)
                embedded.update(samples)
            found = answers.compute()
            values = {
                REWARD: found["right_share"],
                RIGHT: found["distinct_right_answers"],
                ANY: found["distinct_answers"],
                EAD: ead.compute()["ead"],
                EMBEDDED: embedded.compute()["cosine_distance"],
            }
            numbers |= {f"{_words(name)}: {key}": float(value) for key, value in values.items()}
        return numbers | {"temperature": temperature}

    def rewards(
        self, export: Path, seed: int, temperatures: Sequence[float], set_name: str
    ) -> list[dict[str, float]]:
        """Measure the reward on one set at each temperature, under the keys of `measure`."""
        from triptych.metrics.diversify.distinct_answers import DistinctAnswers

        policy, numbers = _policy(export), []
        for temperature in temperatures:
            answers = DistinctAnswers()
            for samples, right in self._samples(policy, set_name, seed, temperature):
                answers.update(samples, right)
            reward = float(answers.compute()["right_share"])
            numbers.append({f"{_words(set_name)}: {REWARD}": reward, "temperature": temperature})
        return numbers

    def _samples(
        self, policy: Any, set_name: str, seed: int, temperature: float
    ) -> Iterator[tuple[Any, list[list[str]]]]:
        """Yield the samples of each prompt and the right answers of each prompt, in batches."""
        import torch

        from triptych.datamodules.batches.chat_template import encode_prompts
        from triptych.metrics.diversify.prompt_metric import samples_by_group

        rows = self.rows[set_name]
        messages = [[{"role": "user", "content": row["prompt"]}] for row in rows]
        ids = encode_prompts(policy.tokenizer, messages)
        prompts = [row | {"prompt_ids": i} for row, i in zip(rows, ids, strict=True)]
        for start in range(0, len(prompts), 64):
            part = prompts[start : start + 64]
            generator = torch.Generator().manual_seed(1000 * seed + start)
            rollout = policy.sample(part, NUM_SAMPLES, generator, temperature)
            samples = samples_by_group(rollout.texts, rollout.group_B)
            yield samples, [row["answers"] for row in part]


def _words(set_name: str) -> str:
    return set_name.replace("_", " ")


def _policy(export: Path) -> Any:
    from transformers import AutoTokenizer

    from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
    from triptych.models.remember.memory_lm import load_memory_lm

    model = load_memory_lm(export).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(
        export, local_files_only=True, trust_remote_code=False
    )
    return CausalLMPolicy(model, max_new_tokens=12, tokenizer=tokenizer)
