"""Exact probabilities of given replies under an exported policy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Shapes: N prompts, K replies


def reply_probabilities(
    export: str | Path, rows: Sequence[Mapping[str, Any]], replies: Sequence[str]
) -> list[list[float]]:
    """Compute the probability of each reply to each prompt, end token included.

    Args:
        export: Folder of the model and its tokenizer.
        rows: Rows with `messages` (role and content, the last one the user's), or with a `prompt`.
        replies: Texts, encoded by the tokenizer of the model.

    Returns:
        (N, K) probabilities.
    """
    import torch
    from transformers import AutoTokenizer

    from triptych.datamodules.batches.chat_template import encode_prompts, encode_replies
    from triptych.models.diversify.scoring import completion_log_prob
    from triptych.models.remember.memory_lm import load_memory_lm

    tokenizer: Any = AutoTokenizer.from_pretrained(
        export, local_files_only=True, trust_remote_code=False
    )
    prompts = encode_prompts(tokenizer, [_messages(row) for row in rows])
    answers = encode_replies(tokenizer, replies)
    pairs = [(prompt, answer) for prompt in prompts for answer in answers]
    widest, longest = max(map(len, prompts)), max(map(len, answers))
    prompt_ids = torch.zeros(len(pairs), widest, dtype=torch.int64)
    prompt_mask = torch.zeros(len(pairs), widest, dtype=torch.bool)
    token_ids = torch.zeros(len(pairs), longest, dtype=torch.int64)
    token_mask = torch.zeros(len(pairs), longest, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(pairs):
        prompt_ids[row, widest - len(prompt) :] = torch.tensor(prompt)
        prompt_mask[row, widest - len(prompt) :] = True
        token_ids[row, : len(answer)] = torch.tensor(answer)
        token_mask[row, : len(answer)] = True
    model = load_memory_lm(export).eval()
    with torch.no_grad():
        scores = completion_log_prob(model, prompt_ids, prompt_mask, token_ids, token_mask)
    probabilities: list[list[float]] = scores.sum(1).exp().view(len(rows), len(replies)).tolist()
    return probabilities


def _messages(row: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
    return row.get("messages") or [{"role": "user", "content": str(row["prompt"])}]
