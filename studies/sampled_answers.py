"""What exported policies answer to held-out questions: k samples each, and their numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

NUM_SAMPLES = 10
REWARD, RIGHT = "right answers (share)", "different right answers at 10"
ANY, EAD, EMBEDDED = "different answers at 10", "EAD", "embedding distance"


class Sampler:
    """Samples held-out questions of the embedded set and measures what comes.

    Args:
        sets: Names of the held-out sets.
        num_prompts: So many prompts of each, the first ones; None: all.
        embedder: Of the embedding distance; None: all-MiniLM-L6-v2.
    """

    def __init__(
        self, sets: Sequence[str], num_prompts: int | None = None, embedder: Any = None
    ) -> None:
        from datamodules.embedded.creative_questions import prompt_rows

        self.embedder = embedder
        self.rows = {
            name: [row for row in prompt_rows() if row["split"] == name][:num_prompts]
            for name in sets
        }

    def measure(self, export: Path, seed: int, temperature: float = 1.0) -> dict[str, float]:
        """Numbers of a policy: `<set>: <number>` for each set.

        Args:
            export: Folder of the model and its tokenizer.
            seed: Of the samples.
            temperature: Of sampling.
        """
        import torch

        from datamodules.chat_template import encode_prompts
        from metrics.distinct_answers import DistinctAnswers
        from metrics.embedding_diversity import EmbeddingDistance
        from metrics.prompt_metric import samples_by_group
        from metrics.text_diversity import ExpectationAdjustedDistinct

        policy = _policy(export)
        numbers = {}
        for name, rows in self.rows.items():
            messages = [[{"role": "user", "content": row["prompt"]}] for row in rows]
            ids = encode_prompts(policy.tokenizer, messages)
            prompts = [row | {"prompt_ids": i} for row, i in zip(rows, ids, strict=True)]
            answers = DistinctAnswers()
            ead = ExpectationAdjustedDistinct(compat="rlfh-gen-div", overall=False)
            embedded = EmbeddingDistance(self.embedder, overall=False)
            for start in range(0, len(prompts), 64):
                part = prompts[start : start + 64]
                generator = torch.Generator().manual_seed(1000 * seed + start)
                rollout = policy.sample(part, NUM_SAMPLES, generator, temperature)
                samples = samples_by_group(rollout.texts, rollout.group_B)
                answers.update(samples, [row["answers"] for row in part])
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
            place = name.replace("_", " ")
            numbers |= {f"{place}: {key}": float(value) for key, value in values.items()}
        return numbers | {"temperature": temperature}


def _policy(export: Path) -> Any:
    from transformers import AutoTokenizer

    from models.causal_lm_policy import CausalLMPolicy
    from models.memory_lm import load_memory_lm

    model = load_memory_lm(export).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(export, local_files_only=True)
    return CausalLMPolicy(model, max_new_tokens=12, tokenizer=tokenizer)
