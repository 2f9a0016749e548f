"""The rival without training: the KV cache of another agent's note is passed on (as in LatentMAS).

An agent continues from the caches that the others made while they read their notes. This needs
agents of one model. With two agents it is the same as reading the other's note as text, except that
the note is not read again; with more, each cache was made without the others' notes.

Source: LatentMAS, 2511.20639, which passes the caches of generated latent steps too.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from triptych.datamodules.commune.debate_task import Question
from triptych.datamodules.commune.noted_questions import NotedQuestions
from triptych.models.commune.agent import Agent

# Shapes of keys and values: one row, heads, tokens, width of a head


@dataclass(frozen=True)
class PassedReplies:
    """Replies with passed caches.

    Attributes:
        replies: For each agent its reply to each question.
        bytes_per_question: Bytes of the caches that all agents receive.
        milliseconds_per_question: Wall time of all agents, caches included.
    """

    replies: list[list[str]]
    bytes_per_question: float
    milliseconds_per_question: float


@torch.no_grad()
def replies_with_passed_caches(
    agent: Agent, task: NotedQuestions, questions: Sequence[Question]
) -> PassedReplies:
    """Let every agent answer from the others' caches, greedily, one question at a time.

    Args:
        agent: The model of all agents.
        task: The task.
        questions: Questions to answer.
    """
    num_agents = task.num_agents or len(questions[0].evidence)
    num_bytes, begin = 0, time.perf_counter()
    replies: list[list[str]] = [[] for _ in range(num_agents)]
    for question in questions:
        read = [_note_part(agent, task, question, number) for number in range(num_agents)]
        made = [_cache(agent, ids) for ids, _ in read]
        for number in range(num_agents):
            others = [other for other in range(num_agents) if other != number]
            cache, length = _joined([made[other] for other in others], read[others[0]][1])
            num_bytes += sum(
                part.numel() * part.element_size()
                for layer in cache.layers
                for part in _tensors(layer)
            )
            (prompt,) = task.encode(agent.tokenizer, [question], number)
            rest = prompt[read[number][1] :]
            replies[number].append(_continued(agent, cache, length, rest, task.max_new_tokens))
    milliseconds = 1000 * (time.perf_counter() - begin) / len(questions)
    return PassedReplies(replies, num_bytes / len(questions), milliseconds)


def _note_part(
    agent: Agent, task: NotedQuestions, question: Question, number: int
) -> tuple[list[int], int]:
    """Return the prompt up to the end of the agent's note, and the length before the note."""
    own = question.evidence_of(number)
    prompts = []
    for note, asked in ((own["note"], "7"), (own["note"], "x"), ("7", "x")):
        changed = [dict(evidence) for evidence in question.evidence]
        changed[number] = {"note": note, "question": asked, "start": ""}
        prompts += task.encode(agent.tokenizer, [replace(question, evidence=changed)], number)
    same, other_question, other_note = prompts
    return same[: _common(same, other_question)], _common(other_question, other_note)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two prompts have in common from their beginning."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _cache(agent: Agent, ids: Sequence[int]) -> DynamicCache:
    device = agent.model.device
    made = agent.model(input_ids=torch.tensor([list(ids)], device=device), use_cache=True)
    cache: DynamicCache = made.past_key_values
    return cache


def _joined(caches: Sequence[DynamicCache], head: int) -> tuple[DynamicCache, int]:
    """Put caches one after another, the head of the prompt only once; return the positions used."""
    joined = DynamicCache()
    for layer in range(len(caches[0].layers)):
        parts = [_tensors(cache.layers[layer]) for cache in caches]
        keys, values = (
            torch.cat(
                [of_part[:, :, head if place else 0 :] for place, of_part in enumerate(kind)], 2
            )
            for kind in zip(*parts, strict=True)
        )
        joined.update(keys, values, layer)
    return joined, max(cache.get_seq_length() for cache in caches)


def _tensors(layer: Any) -> tuple[Tensor, Tensor]:
    """Return keys and values of a layer of a cache."""
    return layer.keys, layer.values


def _continued(
    agent: Agent, cache: DynamicCache, position: int, rest: Sequence[int], max_new_tokens: int
) -> str:
    """Read the rest of a prompt after a cache, and write a reply."""
    model: Any = agent.model
    ids, written = list(rest), []
    ends = {agent.tokenizer.eos_token_id}
    for _ in range(max_new_tokens):
        places = torch.arange(position, position + len(ids), device=model.device)[None]
        length = cache.get_seq_length() + len(ids)
        output = model(
            input_ids=torch.tensor([ids], device=model.device),
            attention_mask=torch.ones(1, length, dtype=torch.int64, device=model.device),
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        )
        token = int(output.logits[0, -1].argmax())
        if token in ends:
            break
        written.append(token)
        position, ids = position + len(ids), [token]
    return str(agent.tokenizer.decode(written, skip_special_tokens=True))
