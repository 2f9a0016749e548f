"""Functions as users have them: one at a time, lists, TRL's, and coroutines."""

import asyncio


def vowels(text, prompt, record):
    return sum(letter in "aeiou" for letter in text)


def ended(text, prompt, record, finished, num_tokens):
    return num_tokens if finished else None


def words_of_all(texts, prompts, records, finished):
    return [len(text.split()) if end else None for text, end in zip(texts, finished, strict=True)]


def trl_columns(prompts, completions, completion_ids, answers, log_metric=None, **kwargs):
    log_metric("own/longest", max(map(len, completions)))
    kwargs["log_extra"]("ids", [len(ids) for ids in completion_ids])
    assert set(kwargs) == {"log_extra", "category"}
    rows = zip(prompts, completions, answers, strict=True)
    return [None if right is None else float(text in right) for _, text, right in rows]


def trl_few(completions):
    return [1.0 for _ in completions]


def trl_messages(completions, prompts, **kwargs):
    return [
        float(completion[0]["content"] == "1" and prompt[-1]["role"] == "user")
        for completion, prompt in zip(completions, prompts, strict=True)
    ]


def trl_needs_its_trainer(completions, trainer_state, **kwargs):
    return [float(trainer_state.global_step) for _ in completions]


def one_too_few(texts):
    return [1.0 for _ in texts[1:]]


together = most_together = 0


async def waits(text, prompt, record):
    global together, most_together
    together += 1
    most_together = max(most_together, together)
    await asyncio.sleep(0.02)
    together -= 1
    if text == "bad":
        raise ValueError("not this one")
    return float(len(text))


async def trl_waits(completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]
