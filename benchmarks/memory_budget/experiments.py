"""The budget of an experiment, from its settings; one function for each kind of module."""

# Shapes in names: B rows, P prompt positions, T completion positions, V vocabulary

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from transformers import PretrainedConfig

from triptych.benchmarks.memory_budget.activations import (
    Activations,
    block_activations,
    memory_activations,
    num_parameters,
)
from triptych.benchmarks.memory_budget.budget import Budget
from triptych.benchmarks.memory_budget.hub_models import NUM_PARAMETERS, hub_config
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_config import MemoryConfig

Settings = dict[str, Any]

FLOAT, HALF = 4, 2  # bytes
#: Copies of a chunk's logits that exist at once in the output layer's backward pass.
_LOGIT_COPIES = 3
#: In sampling: logits and probabilities in float32, their cumulative sum in float64.
_SAMPLING_BYTES_PER_LOGIT = 2 * FLOAT + 8
#: Longest question of MATH in tokens, with the instruction; est.
_QUESTION_TOKENS = 512
#: Tokens of the model's tokenizer where the data train one.
_CHUNK_TOKENS = 1024


class _Model:
    """One language model of an experiment: its sizes, precision and activations."""

    def __init__(self, base: Settings, vocab_size: int, trained: bool, mixed: bool) -> None:
        made = BaseLMConfig(**base)
        self.config: PretrainedConfig = (
            made.to_transformers(vocab_size)
            if made.pretrained is None
            else hub_config(made.pretrained)
        )
        self.num_parameters = num_parameters(self.config)
        kept_in_files = made.pretrained is not None and made.pretrained_dtype in (None, "bfloat16")
        # What learns is float32, whatever the files hold; what is frozen is bfloat16 under mixed
        # precision.
        self.is_half = not trained and (mixed or kept_in_files)
        self.mixed = mixed
        self.checkpointing = bool(base.get("gradient_checkpointing"))

    @property
    def weight_bytes(self) -> float:
        return self.num_parameters * (HALF if self.is_half else FLOAT)

    def block(self, learns: Any, masked: bool = False) -> Activations:
        return block_activations(
            self.config,
            learns=learns,
            weights=torch.bfloat16 if self.is_half else torch.float32,
            autocast=self.mixed and not self.is_half,
            masked=masked,
        )

    def activations(self, num_tokens: int, learns: Any = "all", masked: bool = False) -> float:
        """Return what a pass over so many tokens keeps until its backward pass."""
        block, blocks = self.block(learns, masked), int(self.config.num_hidden_layers)
        hidden = num_tokens * self.config.hidden_size * (HALF if self.is_half else FLOAT)
        if self.checkpointing:  # each block keeps its input, and one is computed again
            return float(blocks * hidden + block.of(num_tokens) + hidden)
        return float(blocks * block.of(num_tokens) + hidden)

    def inference(self, num_tokens: int) -> float:
        """Return what a pass without gradients needs at once: about one block."""
        return self.block("all").per_token * num_tokens

    def cast_bytes(self) -> float:
        """Return the bytes of the weights cast for decoding under mixed precision."""
        return self.num_parameters * HALF if self.mixed and not self.is_half else 0.0

    def cache_bytes(self, num_tokens: int) -> float:
        """Return the bytes of keys and values of so many tokens."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // config.num_attention_heads
        bytes_each = HALF if self.mixed or self.is_half else FLOAT
        return float(2 * config.num_hidden_layers * heads * head_dim * bytes_each * num_tokens)

    def logits_bytes(self, num_rows: int, copies_bytes: float) -> float:
        return float(num_rows * self.config.vocab_size * copies_bytes)


def language_model_budget(budget: Budget, model: Settings, data: Settings, mixed: bool) -> None:
    """Pretraining, or healing of a memory in a frozen model."""
    only_memory = model.get("train_only") == "memory"
    vocab_size = data["tokenizer"]["vocab_size"]
    base = model.get("base") or {}
    lm = _Model(base, vocab_size, trained=not only_memory, mixed=mixed)
    memory = MemoryConfig(**model["memory"]) if model.get("memory") else None
    _hold_learnt(budget, "model", lm, learns=not only_memory)
    tokens = data["batch_size"] * data["context_length"]
    kept = lm.activations(tokens, "inputs" if only_memory else "all")
    if memory is not None:
        kept += _hold_memory(budget, memory, lm, tokens)
    logits = lm.logits_bytes(min(tokens, _CHUNK_TOKENS), _LOGIT_COPIES * FLOAT)
    budget.phases["forward and backward pass"] = kept + logits


def policy_budget(budget: Budget, model: Settings, data: Settings, mixed: bool) -> None:
    """Policy optimisation of a language model."""
    policy = model["policy"]
    adapters = policy["trainable"] == "lora"
    lm = _Model(policy["base"], data["tokenizer"]["vocab_size"], not adapters, mixed)
    if adapters:
        _hold_learnt(budget, "policy", lm, learns=False)
        learnt = _adapter_parameters(lm.config, (policy["lora"] or {}).get("rank", 16))
        budget.hold("adapters, gradients, AdamW", learnt * FLOAT * 4)
    else:
        _hold_learnt(budget, "policy", lm, learns=True)
        budget.hold("reference", lm.num_parameters * (HALF if mixed else FLOAT))
    _hold_judges(budget, model)
    prompts, samples = data["batch_size"], model["num_samples"]
    prompt, reply = data["max_prompt_tokens"], policy["max_new_tokens"]
    rows = prompts * max(samples, model["eval_samples"])
    budget.phases["sampling"] = (
        lm.cast_bytes()
        + lm.cache_bytes(rows * (prompt + reply))
        + lm.logits_bytes(rows, _SAMPLING_BYTES_PER_LOGIT)
    )
    tokens = prompts * prompt + prompts * samples * reply
    in_a_pass = min(tokens, max(model.get("micro_batch_tokens") or tokens, prompt + reply))
    gradient_of_output = lm.logits_bytes(lm.config.hidden_size, 0 if adapters else FLOAT)
    budget.phases["scoring and backward pass"] = (
        lm.activations(in_a_pass, masked=True)
        + lm.logits_bytes(policy["chunk_tokens"], _LOGIT_COPIES * FLOAT)
        + gradient_of_output
    )
    budget.notes.append(f"every prompt and reply at its longest: {tokens:,} tokens a step")


def codec_budget(budget: Budget, model: Settings, data: Settings, mixed: bool) -> None:
    """Training of a codec on the states of frozen agents."""
    config = model["agents"]
    lm = _hold_agents(budget, config, mixed)
    width = lm.config.hidden_size * (config["num_agents"] or len(config["bases"]))
    codec = model["codec"]
    sizes = [width, *codec["encoder_hidden"], codec["num_latents"]]
    sizes += [codec["num_latents"], *codec["decoder_hidden"], width]
    learnt = sum(before * after for before, after in pairwise(sizes))
    budget.hold("codec, gradients, Adam", learnt * FLOAT * 4)
    _collect_states(budget, lm, data)
    penalty = model["penalty"]
    probes = penalty["num_columns"] * penalty["num_samples"]
    budget.phases["codec step"] = (data["batch_size"] + 2 * probes) * sum(sizes) * FLOAT * 2


def adapter_budget(budget: Budget, model: Settings, data: Settings, mixed: bool) -> None:
    """Training of a prefix adapter; gradients flow through the frozen agents."""
    config = model["agents"]
    lm = _hold_agents(budget, config, mixed)
    agents = config["num_agents"] or len(config["bases"])
    reply = data["task"]["init_args"]["max_new_tokens"]
    heard = (agents - 1) * reply if model["text_between_rounds"] else 0
    row = _QUESTION_TOKENS + heard + model["max_reference_tokens"]
    tokens = data["batch_size"] * row
    _collect_states(budget, lm, data)
    eval_rows = data["eval_batch_size"]
    budget.phases["debate"] = (
        lm.cache_bytes(eval_rows * (row + reply))
        + lm.inference(eval_rows * row)
        + lm.logits_bytes(eval_rows, 2 * FLOAT)
    )
    logits = data["batch_size"] * model["max_reference_tokens"]
    budget.phases["forward and backward pass"] = agents * (
        lm.activations(tokens, "inputs") + lm.logits_bytes(logits, 2 * FLOAT)
    )
    budget.notes.append(
        f"questions of at most {_QUESTION_TOKENS} tokens, every reply at its longest"
    )


def recurrent_budget(budget: Budget, model: Settings, data: Settings, mixed: bool) -> None:
    """Prior training of a recurrent model of molecules, which is small."""
    rnn, gates = model["rnn"], {"gru": 3, "lstm": 4}[model["rnn"]["cell"]]
    width, vocabulary = rnn["hidden_size"], 128
    learnt = gates * width * (width * (2 * rnn["num_layers"] - 1) + rnn["embedding_size"] + 2)
    learnt += vocabulary * (width + rnn["embedding_size"])
    budget.hold("model, gradients, AdamW", learnt * FLOAT * 4)
    tokens = data["batch_size"] * data["context_length"]
    budget.phases["forward and backward pass"] = (
        tokens * FLOAT * (2 * (gates + 2) * width * rnn["num_layers"] + 3 * vocabulary)
    )
    rows = min(model["num_final_samples"], 10_000)
    budget.phases["sampling"] = rows * FLOAT * (2 * (gates + 2) * width + 4 * vocabulary)


BUDGETS: dict[str, Callable[[Budget, Settings, Settings, bool], None]] = {
    "MemoryPretraining": language_model_budget,
    "PolicyOptimization": policy_budget,
    "ThoughtAutoencoder": codec_budget,
    "ThoughtAdapter": adapter_budget,
    "MoleculePretraining": recurrent_budget,
}


def _hold_learnt(budget: Budget, name: str, lm: _Model, learns: bool) -> None:
    budget.hold(f"{name}: weights", lm.weight_bytes)
    if learns:
        budget.hold(f"{name}: gradients", lm.num_parameters * FLOAT)
        budget.hold(f"{name}: AdamW", lm.num_parameters * FLOAT * 2)


def _hold_memory(budget: Budget, memory: MemoryConfig, lm: _Model, tokens: int) -> float:
    """Add tables, keys and gates; return what their layers keep of a pass."""
    width = lm.config.hidden_size
    value_dim, key_dim = memory.value_dim or width, memory.key_dim or width // 2
    tables = 1 if memory.share_values else len(memory.layers)
    slots = tables * memory.num_slots * value_dim
    bytes_each = HALF if memory.value_dtype == "bfloat16" else FLOAT
    budget.hold("memory: values", slots * bytes_each)
    if memory.value_gradient == "dense":
        budget.hold("memory: gradients", slots * bytes_each)
    budget.hold("memory: AdamW", slots * FLOAT * 2)
    layer = memory.num_heads * (2 * memory.num_keys * key_dim // 2 + width * key_dim)
    layer += 2 * width * value_dim if memory.gated else 0
    budget.hold("memory: keys, queries, gates", len(memory.layers) * layer * FLOAT * 4)
    kept = memory_activations(memory, width).of(tokens)
    return len(memory.layers) * kept


def _hold_judges(budget: Budget, model: Settings) -> None:
    """Add the reward model and the models of the metrics."""
    reward = model["reward"].get("init_args", {})
    if isinstance(reward.get("model"), str):
        count = num_parameters(hub_config(reward["model"]))
        size = HALF if reward.get("dtype") == "bfloat16" else FLOAT
        budget.hold("reward model", count * size)
    for metric in model.get("metrics") or []:
        judge = (metric.get("init_args") or {}).get("judge") or {}
        name = (judge.get("init_args") or {}).get("model")
        if name is not None:
            budget.hold("judge of the metrics", NUM_PARAMETERS[name] * FLOAT)


def _hold_agents(budget: Budget, agents: Settings, mixed: bool) -> _Model:
    """Add the frozen agents; several agents of one base share its weights."""
    models = [
        _Model(base, 0, trained=False, mixed=mixed or agents.get("dtype") == "bfloat16")
        for base in agents["bases"]
    ]
    for lm in models:
        budget.hold("agents: weights", lm.weight_bytes)
    return models[0]


def _collect_states(budget: Budget, lm: _Model, data: Settings) -> None:
    tokens = data["state_batch_size"] * _QUESTION_TOKENS
    budget.phases["states of the agents"] = lm.inference(tokens) + lm.cache_bytes(tokens)


def _adapter_parameters(config: PretrainedConfig, rank: int) -> int:
    """Count the parameters of adapters at all matrices of all blocks."""
    width, inner = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries = config.num_attention_heads * head_dim
    keys = config.num_key_value_heads * head_dim
    sides = 2 * (width + queries) + 2 * (width + keys) + 3 * (width + inner)
    return int(config.num_hidden_layers * rank * sides)
