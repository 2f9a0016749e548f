"""Metrics of a validation pass over text and questions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from triptych.metrics.language_modeling import TokenNLL
from triptych.metrics.question_answering import AnswerInReply, ExactMatch, TokenF1, exact_match
from triptych.metrics.remember.slot_usage import SlotUsage
from triptych.models.generation import continue_greedily
from triptych.models.remember.memory_blocks import (
    memories_beside,
    memory_block_numbers,
    memory_layers,
)
from triptych.objectives.batch_nll import Batch
from triptych.objectives.language_modeling import IGNORED_LABEL, NextTokenNLL

#: Mean over tokens of rms(added by the memory) / rms(FFN's output).
FFN_SHARE = "ffn_share"
# Below it a memory that has learned has no effect.
_NOTHING = 1e-3


def warning_of_no_effect(values: Mapping[str, Tensor]) -> str | None:
    """Return a warning if no memory adds anything that counts to its FFN, else None.

    Args:
        values: Of `LanguageModelEvaluation.compute`, after something was learned.

    >>> warning_of_no_effect({"memory/layer_14/ffn_share": torch.tensor(0.2)})
    >>> text = warning_of_no_effect({"memory/layer_14/ffn_share": torch.tensor(4e-5)})
    >>> text.partition(":")[0]
    'memory adds 0.004% of its FFN (block 14)'
    """
    shares = {
        name.removesuffix(f"/{FFN_SHARE}").rpartition("_")[2]: value.item()
        for name, value in values.items()
        if name.endswith(f"/{FFN_SHARE}")
    }
    if not shares or max(shares.values()) >= _NOTHING:
        return None
    blocks = f"block{'s' if len(shares) > 1 else ''} {', '.join(shares)}"
    return (
        f"memory adds {100 * max(shares.values()):.1g}% of its FFN ({blocks}): it has no effect on "
        "this text. Heal it longer or at larger rates, teach with learning_rate_scale: relative, "
        "or insert it with start: zero_values"
    )


class LanguageModelEvaluation:
    """Metrics of a validation epoch: likelihoods, answers and slot usage, over all ranks.

    Args:
        model: The language model.
        max_new_tokens: Longest answer or continuation to generate.
        num_samples: Generated answers to keep as examples from each set of questions.

    Attributes:
        samples: Examples of this epoch, one dict each: set, prompt, expected, output, exact_match.
    """

    def __init__(self, model: PreTrainedModel, max_new_tokens: int, num_samples: int) -> None:
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.num_samples = num_samples
        self.layers = memory_layers(model)
        self.blocks = memory_block_numbers(model)
        self._beside = {id(beside.memory): beside for beside in memories_beside(model)}
        self.metrics: dict[str, Metric] = {}
        self.samples: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Start an epoch."""
        self.samples = []
        for metric in self.metrics.values():
            metric.reset()

    def record_reads(self, recording: bool) -> None:
        """Switch the recording of read slots in all layers on or off."""
        for layer in self.layers:
            layer.recording, layer.last_ids = recording, None
        for beside in self._beside.values():
            beside.last_shares_BT = None

    def add_likelihood(self, batch: Batch, nll: NextTokenNLL) -> None:
        """Count a batch's likelihood, and the slots that its tokens read if they were recorded."""
        self._metric(f"{batch['name']}/nll", TokenNLL).update(
            nll.sum_nats, nll.num_tokens, nll.num_bytes(batch["num_bytes"])
        )
        # A row without labels pads a rank's last batch: a copy of a row that is counted elsewhere.
        is_own_B1 = (batch["labels"] != IGNORED_LABEL).any(1, keepdim=True)
        keep_mask = ((batch["segment_ids"] > 0) & is_own_B1)[..., None, None]
        for number, layer in zip(self.blocks, self.layers, strict=True):
            if layer.last_ids is not None:
                usage = self._metric(f"memory/layer_{number}", SlotUsage, layer.index.num_slots)
                usage.update(layer.last_ids, keep_mask)
            beside = self._beside.get(id(layer))
            if beside is not None and beside.last_shares_BT is not None:
                share = self._metric(f"memory/layer_{number}/{FFN_SHARE}", MeanMetric)
                share.update(beside.last_shares_BT, keep_mask[..., 0, 0].float())

    def add_answers(self, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> None:
        """Ask the batch's questions, closed book and greedily, and score the answers."""
        name = batch["name"]
        predictions = self.generate(tokenizer, batch["prompt_ids"], batch["prompt_mask"])
        # A row without accepted answers pads a rank's last batch.
        whole = batch.get("whole_reply", False)
        rows = [
            (question, answers, (prediction if whole else prediction.split("\n")[0]).strip())
            for question, answers, prediction in zip(
                batch["questions"], batch["answers"], predictions, strict=True
            )
            if answers
        ]
        accepted = [answers for _, answers, _ in rows]
        given = [prediction for *_, prediction in rows]
        self._metric(f"{name}/exact_match", ExactMatch).update(given, accepted)
        self._metric(f"{name}/f1", TokenF1).update(given, accepted)
        if whole:
            self._metric(f"{name}/answer_in_reply", AnswerInReply).update(given, accepted)
        room = max(0, self.num_samples - sum(row["set"] == name for row in self.samples))
        self.samples += [
            {
                "set": name,
                "prompt": question,
                "expected": " | ".join(answers),
                "output": prediction,
                "exact_match": exact_match(prediction, answers),
            }
            for question, answers, prediction in rows[:room]
        ]

    def generate(
        self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Tensor, prompt_mask: Tensor
    ) -> list[str]:
        """Continue left-padded prompts greedily and return the continuations alone."""
        return continue_greedily(
            self.model, tokenizer, prompt_ids, prompt_mask, self.max_new_tokens
        )

    def compute(self) -> dict[str, Tensor]:
        """Return every metric of the epoch under its log key; a collective operation under DDP."""
        values: dict[str, Tensor] = {}
        for name, metric in self.metrics.items():
            result = metric.compute()
            if isinstance(metric, TokenNLL):
                asked = f"{name.removesuffix('/nll')}/f1" in self.metrics
                prefix = f"val/{name.removesuffix('/nll')}/"
                prefix += "answer_" if asked else ""
                values[f"{prefix}nll_nats_per_token"] = result["nll_nats_per_token"]
                if not asked:
                    values[f"{prefix}bits_per_byte"] = result["bits_per_byte"]
                    values[f"{prefix}perplexity"] = result["perplexity"]
            elif isinstance(metric, SlotUsage):
                values |= {f"{name}/{key}": value for key, value in result.items()}
            elif isinstance(metric, MeanMetric):
                values[name] = result
            else:
                values[f"val/{name}"] = result
        return {name: value.float() for name, value in values.items()}

    def _metric(self, name: str, kind: type[Metric], *args: Any) -> Any:
        if name not in self.metrics:
            device: torch.device = self.model.device
            self.metrics[name] = kind(*args).to(device)
        return self.metrics[name]
