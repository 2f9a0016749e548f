"""How far are scored log-probabilities from the sampled ones?

`python -m benchmarks.sampling_gap --model FOLDER [--prompts 2] [--samples 8] [--tokens 64]`

The policy samples replies to short questions and scores them, as in a step of policy optimisation,
in each precision. Both compute the same function. Sampling reads token by token with a cache and
scoring reads whole completions, so half precision rounds them differently. Shown are the mean and
the largest difference of a token, the largest difference of a whole completion, and the share of
completions with an importance weight at the default threshold.

Without `--model` the model is a small Qwen2 with random weights, whose numbers say little.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from triptych.benchmarks.report import (
    Report,
    at_most,
    benchmark_parser,
    describe_device,
    prepare_device,
    run_main,
    wide_console,
)
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.text.text_corpus import TextCorpus
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.diversify.importance import importance_weight

#: As in the settings of `PolicyOptimization`.
THRESHOLD = 1e-3
MOST_IN_FLOAT32 = 1e-4
QUESTIONS = (
    "Name a fruit.",
    "Write one sentence about the sea.",
    "Which number do you like best, and why?",
    "Give a name for a small black cat.",
)
#: Name -> dtype of the weights, and autocast's dtype, if any. Rounded weights come last.
PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "32-true": (torch.float32, None),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "bf16-true": (torch.bfloat16, None),
}


def measure(
    policy: CausalLMPolicy,
    prompts: list[dict[str, Any]],
    num_samples: int,
    autocast: torch.dtype | None,
) -> dict[str, float]:
    """Sample replies, score them, and compare their log-probabilities."""
    device = policy.model.device
    context = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
    with torch.no_grad(), context:
        rollout = policy.sample(prompts, num_samples, torch.Generator(device).manual_seed(0))
        scored_BT = policy.token_log_prob(rollout)
    assert rollout.token_log_prob_BT is not None
    gap_BT = (scored_BT - rollout.token_log_prob_BT).double()
    weight_B = importance_weight(gap_BT, THRESHOLD)
    assert weight_B is not None
    return {
        "mean_nats_per_token": float(gap_BT.abs().sum() / rollout.token_mask_BT.sum()),
        "largest_nats_of_a_token": float(gap_BT.abs().max()),
        "largest_nats_of_a_completion": float(gap_BT.sum(-1).abs().max()),
        "weighted_share": float((gap_BT.abs() > THRESHOLD).any(-1).double().mean()),
        "mean_weight": float(weight_B.mean()),
        "num_tokens": int(rollout.token_mask_BT.sum()),
    }


def prompts_for(tokenizer: PreTrainedTokenizerBase, number: int) -> list[dict[str, Any]]:
    """Return questions as prompts, in the tokenizer's chat template if it has one."""
    rows = []
    for question in (QUESTIONS * number)[:number]:
        text: Any = question
        if tokenizer.chat_template is not None:
            chat = [{"role": "user", "content": question}]
            text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
        rows.append({"prompt": text, "prompt_ids": ids})
    return rows


def model_and_tokenizer(
    folder: Path | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the folder's model in float32; without a folder build a small one."""
    if folder is None:
        torch.manual_seed(0)
        tokenizer = TextCorpus(tokenizer=TokenizerConfig(vocab_size=512)).tokenizer
        base = BaseLMConfig(family="qwen2", hidden_size=128, num_layers=6)
        return build_base_lm(base, len(tokenizer)), tokenizer
    return load_memory_lm(folder).float(), AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False
    )


def main(arguments: list[str] | None = None) -> Report:
    """Run the benchmark, print the report and write its JSON."""
    parser = benchmark_parser("How far are scored log-probabilities from the sampled ones?")
    parser.add_argument("--model", type=Path, help="folder of a saved causal language model")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8, help="completions of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="longest completion")
    options = parser.parse_args(arguments)
    tokens = 8 if options.quick else options.tokens
    device = prepare_device(options.device, options.threads)
    report = Report("sampling_gap", describe_device(device))
    model, tokenizer = model_and_tokenizer(options.model)
    prompts = prompts_for(tokenizer, options.prompts)
    table = Table("precision", "mean", "largest token", "largest completion", "weighted", "tokens")
    numbers = report.more["precisions"] = {}
    for name, (dtype, autocast) in PRECISIONS.items():
        module: Any = model
        policy = CausalLMPolicy(module.to(device, dtype).eval(), tokens, tokenizer)
        numbers[name] = row = measure(policy, prompts, options.samples, autocast)
        table.add_row(
            name,
            f"{row['mean_nats_per_token']:.2e}",
            f"{row['largest_nats_of_a_token']:.2e}",
            f"{row['largest_nats_of_a_completion']:.3f}",
            f"{row['weighted_share']:.0%}",
            f"{row['num_tokens']:,}",
        )
    console = wide_console()
    console.print("differences in nats")
    console.print(table)
    report.checks["mean in float32"] = at_most(
        numbers["32-true"]["mean_nats_per_token"], MOST_IN_FLOAT32
    )
    report.print_checks(console)
    return report.finish(options.out, console)


if __name__ == "__main__":
    run_main(main)
