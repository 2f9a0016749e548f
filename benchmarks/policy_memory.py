"""How much memory does a policy step need, with micro-batches and gradient checkpointing?

`python -m benchmarks.policy_memory --model FOLDER [--out FILE]`

A step scores completions under the reference and the policy, forms RLOO's loss with the KL in the
reward, and updates all parameters by AdamW. Prompts and completions are random tokens of one
length, the same for every variant. Each variant runs in a process of its own. Its peak is the most
resident memory of the step, less what Python and its libraries hold before the model is loaded:
weights of policy and reference, gradients, AdamW's moments, activations, and what the allocator
keeps for itself. `saved` are the bytes that autograd holds for the backward pass when it begins.
`gradient` is the largest difference to the gradient of one pass, relative to the norm of the
parameter's gradient.

Without `--model` the policy is a small random Qwen2.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from triptych.benchmarks.paired import most_resident_bytes
from triptych.benchmarks.report import (
    Report,
    at_most,
    benchmark_parser,
    describe_device,
    prepare_device,
    run_main,
    wide_console,
)
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.diversify.rollout import Rollout
from triptych.models.gradient_checkpointing import checkpoint_blocks
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.diversify.policy_loss import PolicySamples, Rloo

ONE_PASS = "one pass"
MOST_OF_ONE_PASS = 0.4
MOST_DIFFERENCE = 1e-6
BETA = 0.03
# Shapes: B completions, P prompt positions, T completion positions


@dataclass(frozen=True)
class Variant:
    """What is measured, all that its process needs.

    Attributes:
        model: Folder of the policy; None: a small random one.
        micro_batch_tokens: As of the policy.
        checkpointing: Whether decoder blocks are checkpointed.
        num_prompts: Prompts of the step.
        num_samples: Completions of a prompt.
        prompt_tokens: Tokens of a prompt.
        new_tokens: Tokens of a completion.
        threads: Torch's threads.
    """

    model: str | None = None
    micro_batch_tokens: int | None = None
    checkpointing: bool = False
    num_prompts: int = 8
    num_samples: int = 8
    prompt_tokens: int = 32
    new_tokens: int = 64
    threads: int = 1

    @property
    def name(self) -> str:
        """What differs from one pass over all tokens."""
        parts = []
        if self.micro_batch_tokens is not None:
            parts.append(f"{self.micro_batch_tokens} tokens at a time")
        if self.checkpointing:
            parts.append("checkpointing")
        return ", ".join(parts) or ONE_PASS


@dataclass(frozen=True)
class Usage:
    """Memory and time of one step.

    Attributes:
        peak_bytes: Most resident memory, less that before the model was loaded.
        weights_bytes: Parameters of policy and reference, gradients, and AdamW's moments.
        saved_bytes: What autograd holds for the backward pass.
        seconds: Scoring, backward and update.
    """

    peak_bytes: int
    weights_bytes: int
    saved_bytes: int
    seconds: float


def measure(variant: Variant, gradients: Path) -> Usage:
    """Run one step in this process, and save its gradients."""
    torch.set_num_threads(variant.threads)
    before = most_resident_bytes()
    policy, rollout = _policy(variant), _rollout(variant)
    model, optimizer = policy.model, AdamW(policy.model.parameters(), lr=1e-6)
    for parameter in model.parameters():  # a step before, which made AdamW's moments
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    began = time.perf_counter()
    reference_B = policy.reference_log_prob(rollout)
    saved = _SavedBytes(model)
    with torch.autograd.graph.saved_tensors_hooks(saved, _unchanged):
        log_prob_BT = policy.token_log_prob(rollout)
    reward_B = (rollout.token_ids_BT % 2 == 0).float().mean(1)
    loss = Rloo()(
        PolicySamples(
            log_prob_BT=log_prob_BT,
            token_mask_BT=rollout.token_mask_BT,
            reward_B=reward_B - BETA * (log_prob_BT.detach().sum(1) - reference_B),
            group_B=rollout.group_B,
        )
    ).mean()
    loss.backward()
    optimizer.step()
    seconds = time.perf_counter() - began
    peak = most_resident_bytes() - before
    torch.save({name: p.grad for name, p in model.named_parameters()}, gradients)
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    return Usage(peak, 5 * own, saved.total, seconds)


class _SavedBytes:
    """Counts the bytes of tensors that autograd saves, each storage once, without parameters."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.total = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _policy(variant: Variant) -> CausalLMPolicy:
    if variant.model is None:
        torch.manual_seed(0)
        base = BaseLMConfig(family="qwen2", hidden_size=256, num_layers=6, num_heads=4)
        model = build_base_lm(base, 4096)
    else:
        model = load_memory_lm(variant.model).float()
    if variant.checkpointing:
        checkpoint_blocks(model)
    return CausalLMPolicy(model, variant.new_tokens, micro_batch_tokens=variant.micro_batch_tokens)


def _rollout(variant: Variant) -> Rollout:
    draw = torch.Generator().manual_seed(0)
    count = variant.num_prompts * variant.num_samples

    def ids(rows: int, length: int) -> Tensor:
        return torch.randint(3, 4096, (rows, length), generator=draw)

    prompts_BP = ids(variant.num_prompts, variant.prompt_tokens)
    prompts_BP = prompts_BP.repeat_interleave(variant.num_samples, 0)
    completions_BT = ids(count, variant.new_tokens)
    return Rollout(
        prompts=[""] * count,
        texts=[""] * count,
        group_B=torch.arange(variant.num_prompts).repeat_interleave(variant.num_samples),
        prompt_ids_BP=prompts_BP,
        prompt_mask_BP=torch.ones_like(prompts_BP, dtype=torch.bool),
        token_ids_BT=completions_BT,
        token_mask_BT=torch.ones_like(completions_BT, dtype=torch.bool),
        finished_B=torch.zeros(count, dtype=torch.bool),
        log_prob_B=torch.zeros(count),
    )


def _child(variant: Variant, gradients: Path, out: Connection) -> None:
    out.send(measure(variant, gradients))


def in_own_process(run: Callable[..., None], *arguments: Any) -> Any:
    """Run a function of `(*arguments, pipe)` in a fresh process; return what it sends.

    Raises:
        RuntimeError: if the process ends without an answer.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        raise RuntimeError(f"the process for {arguments[0]} ended without an answer") from error
    finally:
        process.join()


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Compare gradients: the largest difference over the norm, of all parameters."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name] - theirs[name]).abs().max() / theirs[name].norm().clamp_min(1e-30))
        for name in theirs
    )


def main(arguments: list[str] | None = None) -> Report:
    """Measure the variants, and print a table."""
    parser = benchmark_parser("How much memory does a policy step need?")
    parser.add_argument("--model", help="folder of a language model; default: a small random one")
    parser.add_argument("--tokens", type=int, default=768, help="micro_batch_tokens")
    options = parser.parse_args(arguments)
    device = prepare_device("cpu", options.threads)
    sizes: dict[str, Any] = {"model": options.model, "threads": torch.get_num_threads()}
    if options.quick:
        sizes |= {"num_prompts": 4, "num_samples": 4}
    report = Report("memory of a policy step", describe_device(device))
    table = Table("variant", "peak", "of one pass", "weights", "saved", "gradient", "seconds")
    variants = [
        Variant(**sizes),
        Variant(micro_batch_tokens=options.tokens, **sizes),
        Variant(checkpointing=True, **sizes),
        Variant(micro_batch_tokens=options.tokens, checkpointing=True, **sizes),
    ]
    console = wide_console()
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "0.pt"
        for number, variant in enumerate(variants):
            gradients = Path(folder) / f"{number}.pt"
            with console.status(variant.name):
                usage: Usage = in_own_process(_child, variant, gradients)
            difference = largest_difference(torch.load(gradients), torch.load(plain))
            report.rows.append(
                {"name": variant.name, "size": variant.num_prompts * variant.num_samples}
                | asdict(usage)
                | {"gradient": difference}
            )
            share = usage.peak_bytes / report.rows[0]["peak_bytes"]
            console.print(f"{variant.name}: {usage.peak_bytes / 2**20:,.0f} MiB at the peak")
            table.add_row(
                variant.name,
                f"{usage.peak_bytes / 2**20:,.0f} MiB",
                f"{share:.2f}",
                f"{usage.weights_bytes / 2**20:,.0f} MiB",
                f"{usage.saved_bytes / 2**20:,.0f} MiB",
                f"{difference:.1e}",
                f"{usage.seconds:.1f}",
            )
            if number:
                report.checks[f"gradient, {variant.name}"] = at_most(difference, MOST_DIFFERENCE)
            if number == len(variants) - 1:
                report.checks[f"peak, {variant.name}"] = at_most(share, MOST_OF_ONE_PASS)
    console.print(table)
    report.print_checks(console)
    return report.finish(options.out, console)


if __name__ == "__main__":
    run_main(main)
