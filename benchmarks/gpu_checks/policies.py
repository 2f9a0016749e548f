"""Checks of policies: what is sampled is what is scored."""

# Shapes: B rows, T positions, V vocabulary

from typing import Any, Literal

import torch

from triptych.benchmarks.gpu_checks.check import Setting, largest_difference
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.diversify.molecules.smiles_rnn import SmilesRNN, SmilesRNNConfig
from triptych.models.diversify.sampling import sample_completions
from triptych.models.diversify.scoring import completion_log_prob


def molecules(setting: Setting) -> dict[str, Any]:
    """Read molecules token by token and at once, and compare the gradients with a CPU's."""
    numbers: dict[str, Any] = {}
    held = True
    cells: tuple[Literal["gru", "lstm"], ...] = ("gru", "lstm")
    for cell in cells:
        for dtype, bound in ((None, 1e-4), (torch.bfloat16, 2e-2)):
            torch.manual_seed(0)
            network = SmilesRNN(SmilesRNNConfig(cell, hidden_size=384), 64).eval()
            ids_BT = torch.randint(64, (setting.size(128, 4), setting.size(60, 8)))
            expected = _gradient(network, ids_BT, None)
            network.to(setting.device)
            ids_BT = ids_BT.to(setting.device)
            with torch.autocast(setting.device.type, dtype, enabled=dtype is not None):
                state, steps = network.first_state(len(ids_BT)), []
                for ids_B in ids_BT.unbind(1):
                    logits_BV, state = network.step(ids_B, state)
                    steps.append(logits_BV)
                apart = largest_difference(torch.stack(steps, 1), network(ids_BT))
            gradient = _gradient(network, ids_BT, dtype)
            name = f"{cell}_{'float32' if dtype is None else 'bf16-mixed'}"
            numbers[f"{name}_step_against_sequence"] = apart
            numbers[f"{name}_gradient_against_cpu"] = largest_difference(gradient, expected)
            # mypy cannot infer a lambda with defaults, which bind this round of the loop.
            numbers[f"{name}_ms"] = setting.milliseconds(
                lambda network=network, ids=ids_BT, dtype=dtype: _gradient(network, ids, dtype)  # type: ignore[misc]  # mypy infers no lambda with defaults
            )
            held = held and apart < bound and numbers[f"{name}_gradient_against_cpu"] < 10 * bound
    return numbers | {"held": held}


def _gradient(network: SmilesRNN, ids_BT: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    network.zero_grad()
    with torch.autocast(ids_BT.device.type, dtype, enabled=dtype is not None):
        logits_BTV = network(ids_BT[:, :-1])
    loss = torch.nn.functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), ids_BT[:, 1:].flatten()
    )
    loss.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def sampled_against_scored(setting: Setting) -> dict[str, Any]:
    """Compare log-probabilities of sampling with those of scoring, in nats a token."""
    torch.manual_seed(0)
    base = BaseLMConfig(
        family="llama",
        hidden_size=setting.size(576, 32),
        num_layers=setting.size(12, 2),
        num_heads=setting.size(9, 2),
    )
    with setting.device:
        model = build_base_lm(base, setting.size(49_152, 128)).eval()
    prompts_GP = torch.randint(16, 128, (4, 24), device=setting.device)
    mask_GP = torch.ones_like(prompts_GP, dtype=torch.bool)
    num_samples, length = 8, setting.size(64, 8)
    numbers: dict[str, Any] = {}
    for name, enabled in (("float32", False), ("bf16-mixed", True)):
        with (
            torch.no_grad(),
            torch.autocast(setting.device.type, torch.bfloat16, enabled=enabled),
        ):
            generator = torch.Generator(setting.device).manual_seed(1)
            made = sample_completions(
                model, prompts_GP, mask_GP, num_samples, length, [], 0, generator
            )
            scored_BT = completion_log_prob(
                model,
                prompts_GP.repeat_interleave(num_samples, 0),
                mask_GP.repeat_interleave(num_samples, 0),
                made.token_ids_BT,
                made.token_mask_BT,
            )
        apart_BT = (scored_BT - made.token_log_prob_BT).abs()
        numbers[f"{name}_mean_nats"] = float(apart_BT.mean())
        numbers[f"{name}_largest_nats"] = float(apart_BT.max())
    held = numbers["float32_largest_nats"] < 1e-3 and numbers["bf16-mixed_mean_nats"] < 3e-3
    return numbers | {"held": held}
