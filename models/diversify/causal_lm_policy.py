"""A causal language model as a policy that answers prompts."""

# Shapes: G prompts, B completions, P prompt positions, T completion positions

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from triptych.models.diversify.frozen_reference import frozen_copy
from triptych.models.diversify.policy_with_reference import PolicyWithReference
from triptych.models.diversify.rollout import Rollout
from triptych.models.diversify.sampling import sample_completions
from triptych.models.diversify.scoring import (
    completion_log_prob,
    completion_log_prob_and_entropy,
    scoring_plan,
)
from triptych.models.diversify.scoring_plan import Part
from triptych.models.end_tokens import use_special_tokens
from triptych.models.host_to_device import send
from triptych.models.lora import adapters_off, has_adapters, merged_state_dict
from triptych.models.progress_bars import no_progress_bars
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.weight_precision import narrow_frozen


class CausalLMPolicy(PolicyWithReference[PreTrainedModel]):
    """Samples replies to prompts with a transformers causal LM, and scores them.

    The reference of a model with adapters (LoRA) is the model with its adapters off. Otherwise it
    is a frozen copy of all that can change (`frozen_reference`): twice the parameters where all
    learn, one more value table where only the values learn.

    Args:
        model: The language model, with its adapters, if any. Parameters that will not be trained
            are frozen already.
        max_new_tokens: Longest completion, end token included.
        tokenizer: Its tokenizer; None: call `use_tokenizer` before the first sample.
        chunk_tokens: Largest number of tokens with logits in memory at once in scoring.
        micro_batch_tokens: Largest number of tokens with a graph in memory at once in scoring
            (`triptych.models.diversify.scoring`); None: all.
        frozen_dtype: Precision of frozen matrices under autocast to bfloat16; see `use_autocast`.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        max_new_tokens: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chunk_tokens: int = 1024,
        micro_batch_tokens: int | None = None,
        frozen_dtype: Literal["float32", "bfloat16"] | None = None,
    ) -> None:
        for name, number in (
            ("max_new_tokens", max_new_tokens),
            ("chunk_tokens", chunk_tokens),
            ("micro_batch_tokens", micro_batch_tokens),
        ):
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}: set it to at least 1")
        super().__init__(model, None if has_adapters(model) else frozen_copy(model))
        self.max_new_tokens = max_new_tokens
        self.chunk_tokens = chunk_tokens
        self.micro_batch_tokens = micro_batch_tokens
        self.frozen_dtype = frozen_dtype
        self._computes_in_bfloat16 = False
        #: The last scored rollout and its plan: policy and reference read the same tokens.
        self._planned: tuple[Rollout, list[Part]] | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        #: Tokens that end a completion.
        self.end_ids: list[int] = []
        if tokenizer is not None:
            self.use_tokenizer(tokenizer)

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Set the data's tokenizer, and the model's special tokens to match it.

        Completions end at each token that tokenizer, config, generation config or chat template
        names as an end (`end_tokens`).

        Raises:
            ValueError: if it has no end token, or more tokens than the model.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no end token (eos_token), so no completion could ever end: give "
                "a tokenizer that has one"
            )
        if len(tokenizer) > self.model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens but the model embeds only "
                f"{self.model.config.vocab_size}: use the model's own tokenizer"
            )
        self.tokenizer = tokenizer
        self.end_ids = use_special_tokens(self.model, tokenizer)

    def use_autocast(self, precision: str, on_accelerator: bool) -> None:
        """Prepare for a run under autocast, before the first sample.

        Under `bf16-mixed`, frozen matrices become bfloat16 as `frozen_dtype` says: those of the
        reference, and those of the model that lose nothing by it (`narrow_frozen`). Samples and
        scores are then always computed under autocast. Models with memory keep their own matrices,
        since deltas of slots know their model by its bytes.

        Args:
            precision: The trainer's, such as `bf16-mixed` or `32-true`.
            on_accelerator: Whether the run is not on the CPU.

        Raises:
            ValueError: if `frozen_dtype` is bfloat16 and the precision another.
        """
        if precision != "bf16-mixed":
            if self.frozen_dtype == "bfloat16":
                raise ValueError(
                    f"policy.frozen_dtype is bfloat16, but trainer.precision is {precision}: set "
                    "the precision to bf16-mixed, or frozen_dtype to null"
                )
            return
        if self.frozen_dtype != "bfloat16" and not (self.frozen_dtype is None and on_accelerator):
            return
        self._computes_in_bfloat16 = True
        own = list(self.model.parameters())
        for reference in self._reference:
            narrow_frozen(reference, only_lossless=False, keep=own)
        if not value_tables(self.model):
            narrow_frozen(self.model, only_lossless=True)

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self._computes_in_bfloat16:
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)

    # -- sampling ---------------------------------------------------------------------------------

    def sample(
        self,
        prompts: Sequence[Mapping[str, Any]],
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Rollout:
        """Sample completions of each prompt; no gradient, no recorded accesses of memory layers.

        Args:
            prompts: Rows with `prompt_ids`, a list of token ids, and `prompt`, their text.
            num_samples: Completions per prompt, which form a group.
            generator: Source of randomness; None: torch's CPU generator.
            temperature: Use values other than 1 only in evaluation: `log_prob_B` is then that of
                the tempered distribution, but `token_log_prob` is not.

        Raises:
            ValueError: if a prompt is empty, a prompt and its completion do not fit into the
                model's context, a number is out of range, or there is no tokenizer.
        """
        return self._sample(self.model, prompts, num_samples, generator, temperature)

    @torch.no_grad()
    def reference_sample(
        self,
        prompts: Sequence[Mapping[str, Any]],
        num_samples: int,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Sample completions from the reference; arguments and errors as `sample`."""
        if self._reference:
            return self._sample(self._reference[0], prompts, num_samples, generator, 1.0)
        with adapters_off(self.model):
            return self._sample(self.model, prompts, num_samples, generator, 1.0)

    def _sample(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Mapping[str, Any]],
        num_samples: int,
        generator: torch.Generator | None,
        temperature: float,
    ) -> Rollout:
        if self.tokenizer is None:
            raise ValueError("the policy has no tokenizer: call use_tokenizer first")
        if num_samples < 1 or not prompts or not temperature > 0:
            raise ValueError(
                f"asked for {num_samples} samples of {len(prompts)} prompts at temperature "
                f"{temperature}: all three have to be above 0"
            )
        pad = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad is None else pad
        prompt_ids_GP, prompt_mask_GP = self._pad_prompts(prompts, pad_id)
        with self._autocast():
            made = sample_completions(
                model,
                prompt_ids_GP,
                prompt_mask_GP,
                num_samples,
                self.max_new_tokens,
                self.end_ids,
                pad_id,
                generator,
                temperature,
            )
        length_B1 = made.token_mask_BT.sum(1, keepdim=True)
        replies = [
            ids[:length] for length, *ids in torch.cat([length_B1, made.token_ids_BT], 1).tolist()
        ]
        records = [row for row in prompts for _ in range(num_samples)]
        groups = torch.arange(len(prompts), device=prompt_ids_GP.device)
        return Rollout(
            prompts=[str(row.get("prompt", "")) for row in records],
            texts=self.tokenizer.batch_decode(replies, skip_special_tokens=True),
            group_B=groups.repeat_interleave(num_samples),
            prompt_ids_BP=prompt_ids_GP.repeat_interleave(num_samples, 0),
            prompt_mask_BP=prompt_mask_GP.repeat_interleave(num_samples, 0),
            token_ids_BT=made.token_ids_BT,
            token_mask_BT=made.token_mask_BT,
            finished_B=made.finished_B,
            log_prob_B=made.token_log_prob_BT.sum(1),
            token_log_prob_BT=made.token_log_prob_BT,
            records=records,
        )

    @property
    def _room(self) -> int | None:
        """Tokens of the longest prompt that leaves room for a completion; None: any."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return None if positions is None else positions - self.max_new_tokens

    def refuse_long_prompts(self, sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Check before a run that all its prompts fit.

        Args:
            sets: Rows with `prompt_ids`, by the name of their set.

        Raises:
            ValueError: if prompts and their completions do not fit into the model's context.
        """
        room = self._room
        lengths = [(len(row["prompt_ids"]), row) for rows in sets.values() for row in rows]
        too_long = [] if room is None else [pair for pair in lengths if pair[0] > room]
        if not too_long or room is None:
            return
        longest, row = max(too_long, key=lambda pair: pair[0])
        remedy = f"set data.init_args.max_prompt_tokens to {room}, which leaves them out, or "
        raise ValueError(
            f"{len(too_long)} of {len(lengths)} prompts do not fit: the model has "
            f"{room + self.max_new_tokens} positions, policy.max_new_tokens is "
            f"{self.max_new_tokens}, and the longest prompt has {longest} tokens "
            f"({str(row.get('prompt', ''))[:60]!r}): {remedy if room > 0 else ''}"
            "lower policy.max_new_tokens"
        )

    def _pad_prompts(
        self, prompts: Sequence[Mapping[str, Any]], pad_id: int
    ) -> tuple[Tensor, Tensor]:
        all_ids = [list(row["prompt_ids"]) for row in prompts]
        lengths = [len(ids) for ids in all_ids]
        if not min(lengths):
            raise ValueError(
                f"prompt {lengths.index(0)} has no tokens (prompt_ids is empty): give it at least "
                "one, such as the tokenizer's bos_token"
            )
        longest = max(lengths)
        room = self._room
        if room is not None and longest > room:
            raise ValueError(
                f"prompt {lengths.index(longest)} has {longest} tokens and max_new_tokens is "
                f"{self.max_new_tokens}, but the model has {room + self.max_new_tokens} positions: "
                "shorten one of them"
            )
        device = self.model.device
        ids = [[pad_id] * (longest - len(ids)) + ids for ids in all_ids]
        length_G = send(torch.tensor(lengths, dtype=torch.int64), device)
        mask_GP = torch.arange(longest, device=device) >= longest - length_G[:, None]
        return send(torch.tensor(ids, dtype=torch.int64), device), mask_GP

    # -- scoring ----------------------------------------------------------------------------------

    def token_log_prob(self, rollout: Rollout) -> Tensor:
        """Compute the log-probability of every sampled token, (B, T) in nats, differentiable."""
        return self._score(self.model, rollout)

    @torch.no_grad()
    def reference_token_log_prob(self, rollout: Rollout) -> Tensor:
        """Compute `token_log_prob` under the reference policy, without gradient.

        Raises:
            ValueError: if the model has adapters and its value tables learn too.
        """
        if self._reference:
            return self._score(self._reference[0], rollout)
        if not has_adapters(self.model):
            raise RuntimeError("the adapters were merged, so the reference is lost")
        if any(table.anchor is not None for table in value_tables(self.model)):
            raise ValueError(
                "the model has adapters and its value tables learn (SparseMemoryFinetuning), so "
                "without adapters it is no longer the reference: leave one of them out"
            )
        with adapters_off(self.model):
            return self._score(self.model, rollout)

    def token_log_prob_and_entropy(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Compute `token_log_prob` and the entropy over the vocabulary at every sampled token."""
        with self._autocast():
            return completion_log_prob_and_entropy(
                self.model,
                rollout.prompt_ids_BP,
                rollout.prompt_mask_BP,
                rollout.token_ids_BT,
                rollout.token_mask_BT,
                self.chunk_tokens,
                plan=self._plan(rollout),
            )

    def _score(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        with self._autocast():
            return completion_log_prob(
                model,
                rollout.prompt_ids_BP,
                rollout.prompt_mask_BP,
                rollout.token_ids_BT,
                rollout.token_mask_BT,
                self.chunk_tokens,
                plan=self._plan(rollout),
            )

    def _plan(self, rollout: Rollout) -> list[Part]:
        if self._planned is None or self._planned[0] is not rollout:
            plan = scoring_plan(
                self.model,
                rollout.prompt_ids_BP,
                rollout.prompt_mask_BP,
                rollout.token_mask_BT,
                micro_batch_tokens=self.micro_batch_tokens,
            )
            self._planned = (rollout, plan)
        return self._planned[1]

    # -- export -----------------------------------------------------------------------------------

    def export_state_dict(self) -> dict[str, Tensor]:
        """Return the weights for `load_memory_lm`, with adapters merged."""
        if has_adapters(self.model):
            return merged_state_dict(self.model)
        state: dict[str, Tensor] = self.model.state_dict()
        return state

    def export(self, folder: str | Path) -> None:
        """Save a plain model and its tokenizer for `init_from`."""
        with no_progress_bars():
            self.model.save_pretrained(folder, state_dict=self.export_state_dict())
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
