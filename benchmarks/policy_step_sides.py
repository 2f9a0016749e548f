"""One step of policy optimisation, ours and TRL's, on the same tiny Qwen2, prepared for timing."""

import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from triptych.benchmarks.paired import Side, synchronize
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.diversify.rollout import Rollout
from triptych.models.progress_bars import no_progress_bars
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.policy_loss import PolicySamples, Rloo

OURS = "ours, RLOO"
OURS_MARA = "ours, RLOO with MARA"
TRL = "TRL's RLOOTrainer"
SAMPLING, GENERATE = "sampling alone, ours", "sampling alone, transformers' generate"
BETA = 0.03
LEARNING_RATE = 1e-6
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class PolicySizes:
    """Sizes of a step."""

    num_prompts: int = 4
    num_samples: int = 16
    prompt_tokens: int = 32
    new_tokens: int = 64
    vocab_size: int = 4096
    hidden_size: int = 128
    num_layers: int = 5

    @property
    def batch(self) -> int:
        """Completions per step."""
        return self.num_prompts * self.num_samples


@dataclass
class Parts:
    """Seconds of the parts of our steps, one entry per step."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def time(self, part: str, device: torch.device) -> Iterator[None]:
        """Time the code inside the context."""
        synchronize(device)
        began = time.perf_counter()
        yield
        synchronize(device)
        self.seconds.setdefault(part, []).append(time.perf_counter() - began)


class PolicySides:
    """Both sides of the comparison, with separate models of the same initial weights.

    Args:
        sizes: Sizes of a step.
        device: Device of the step.
    """

    def __init__(self, sizes: PolicySizes, device: torch.device) -> None:
        self.sizes = sizes
        self.device = device
        self.tokenizer: PreTrainedTokenizerBase = number_tokenizer(sizes.vocab_size)
        generator = torch.Generator().manual_seed(0)
        shape = (sizes.num_prompts, sizes.prompt_tokens)
        ids = torch.randint(2, sizes.vocab_size, shape, generator=generator).tolist()
        self.prompts = [
            {"prompt_ids": row, "prompt": " ".join(str(number) for number in row)} for row in ids
        ]
        self.policy = CausalLMPolicy(self._model(), sizes.new_tokens, self.tokenizer).to(device)
        self._begin()

    def _begin(self) -> None:
        self.optimizer = _adamw(self.policy.model)
        self.parts = Parts()
        #: TRL loads policy and reference from this folder and writes to it.
        self._folder = tempfile.TemporaryDirectory(prefix="policy_step_")

    def score(self, text: str) -> float:
        """Compute the reward of a completion."""
        return share_of_even_numbers(text)

    def _model(self) -> PreTrainedModel:
        torch.manual_seed(0)
        sizes = self.sizes
        base = BaseLMConfig(
            family="qwen2",
            hidden_size=sizes.hidden_size,
            num_layers=sizes.num_layers,
            num_heads=4,
            max_position_embeddings=sizes.prompt_tokens + sizes.new_tokens,
        )
        return build_base_lm(base, sizes.vocab_size)

    def close(self) -> None:
        """Remove the folder that TRL loads from."""
        self._folder.cleanup()

    @property
    def num_parameters(self) -> int:
        """Parameters of the policy, without its reference."""
        return sum(parameter.numel() for parameter in self.policy.parameters())

    # -- ours -------------------------------------------------------------------------------------

    def our_step(self, with_mara: bool) -> Side:
        """Return our step: sample, reward, score, update."""
        mara = Mara(threshold=0.5) if with_mara else None
        name = OURS_MARA if with_mara else OURS
        return Side(name, lambda: self._step(mara), lambda: self.optimizer.zero_grad())

    def _step(self, mara: Mara | None) -> None:
        policy, parts, device = self.policy, self.parts, self.device
        with parts.time("sampling", device):
            rollout = policy.sample(self.prompts, self.sizes.num_samples)
        with parts.time("reward", device):
            reward_B = torch.tensor([self.score(text) for text in rollout.texts])
            reward_B = reward_B.to(device)
        with parts.time("scoring by the reference", device):
            reference_B = policy.reference_log_prob(rollout)
        with parts.time("MARA", device):
            if mara is not None:
                augmented = mara.augment(reward_B, reference_B, rollout.group_B, BETA)
                reward_B = augmented.reward_B
        with parts.time("update", device):
            self._update(rollout, reward_B - BETA * (rollout.log_prob_B - reference_B))

    def _update(self, rollout: Rollout, reward_B: Tensor) -> None:
        samples = PolicySamples(
            log_prob_BT=self.policy.token_log_prob(rollout),
            token_mask_BT=rollout.token_mask_BT,
            reward_B=reward_B,
            group_B=rollout.group_B,
        )
        Rloo()(samples).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    # -- sampling alone ---------------------------------------------------------------------------

    def our_sampling(self) -> Side:
        """Return our sampling of token ids and log-probabilities for one step."""
        return Side(SAMPLING, lambda: self.policy.sample(self.prompts, self.sizes.num_samples))

    def generate(self) -> Side:
        """Return `generate` for as many completions, with one copy of the prompt each."""
        rows = [{"input_ids": row["prompt_ids"]} for row in self.prompts]
        padded = self.tokenizer.pad(rows, padding_side="left", return_tensors="pt")
        ids, mask = (
            padded[name].to(self.device).repeat_interleave(self.sizes.num_samples, 0)
            for name in ("input_ids", "attention_mask")
        )
        settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
        limit = {"max_new_tokens": self.sizes.new_tokens, "attention_mask": mask}

        model: Any = self.policy.model  # transformers adds `generate` in a mixin without types

        @torch.no_grad()
        def run() -> None:
            made = model.generate(ids, **settings, **limit)
            self.tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)

        return Side(GENERATE, run)

    # -- TRL --------------------------------------------------------------------------------------

    def trl_step(self) -> Side:
        """Return `training_step` of TRL, clipping and AdamW, without logs and loop."""
        return Side(TRL, self._trl_step, lambda: self.trainer.optimizer.zero_grad())

    @cached_property
    def trainer(self) -> Any:
        """The trainer of TRL in the state that its `train` sets up."""
        with warnings.catch_warnings():  # TRL uses deprecated names of its dependencies
            warnings.simplefilter("ignore")
            from datasets import Dataset
            from trl import RLOOConfig, RLOOTrainer

            sizes, folder = self.sizes, self._folder.name
            arguments = RLOOConfig(
                output_dir=folder,
                per_device_train_batch_size=sizes.batch,
                gradient_accumulation_steps=1,
                num_generations=sizes.num_samples,
                max_completion_length=sizes.new_tokens,
                beta=BETA,
                learning_rate=LEARNING_RATE,
                weight_decay=0.0,
                max_grad_norm=MAX_GRADIENT_NORM,
                bf16=False,
                gradient_checkpointing=False,  # the default is slower and needs less memory
                model_init_kwargs={"dtype": "float32"},
                use_cpu=self.device.type == "cpu",
                report_to="none",
                disable_tqdm=True,
            )
            trainer: Any = RLOOTrainer(
                self._trl_model(),
                self._trl_reward,
                arguments,
                Dataset.from_list([{"prompt": row["prompt"]} for row in self.prompts]),
                processing_class=self.tokenizer,
                **self._trl_adapters(),
            )
        trainer.optimizer = _adamw(trainer.model)
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    def _trl_model(self) -> str:
        """Return the folder of the model that TRL starts from."""
        with no_progress_bars():
            self._model().save_pretrained(self._folder.name)
        return self._folder.name

    def _trl_adapters(self) -> dict[str, Any]:
        """Return the arguments that give TRL's model adapters."""
        return {}

    def _trl_reward(self, completions: list[Any], **_: Any) -> list[float | None]:
        return [self.score(_text_of(completion)) for completion in completions]

    @cached_property
    def _trl_batch(self) -> list[dict[str, Any]]:
        return next(iter(self.trainer.get_train_dataloader()))

    def _trl_step(self) -> None:
        trainer = self.trainer
        trainer.model.train()
        trainer.training_step(trainer.model, self._trl_batch, None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), MAX_GRADIENT_NORM)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()


def number_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer in which every number from 2 to `vocab_size - 1` is a token and its id."""
    words = {"<pad>": 0, "<end>": 1} | {str(number): number for number in range(2, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def share_of_even_numbers(text: str) -> float:
    """Compute a reward of negligible cost.

    >>> share_of_even_numbers("2 3 4 5")
    0.5
    """
    words = text.split()
    return sum(int(word) % 2 == 0 for word in words) / max(1, len(words))


def _text_of(completion: str | list[dict[str, str]]) -> str:
    """Return the text of a completion, which TRL gives as a message where the prompt is one."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _adamw(model: PreTrainedModel) -> AdamW:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return AdamW(learning, lr=LEARNING_RATE, weight_decay=0.0)
