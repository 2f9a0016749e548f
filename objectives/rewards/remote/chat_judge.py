"""A reward by a language model that judges, behind an OpenAI-compatible server."""

import re
import string
from collections.abc import Mapping
from typing import Any, Self

from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.remote.http_json import HttpConfig
from triptych.objectives.rewards.remote.remote_reward import RemoteReward, Rows

_TASK = """Rate how good the reply is, from 0 (useless) to 10 (perfect). Give a short reason, then \
the rating in this form: <score>7</score>

Prompt:
{prompt}

Reply:
{completion}"""
_PATTERN = r"<score>\s*([-+]?\d+(?:\.\d+)?)\s*</score>"


class ChatJudge(RemoteReward):
    """Asks a model for a number, and scales it to [0, 1].

    Any server with OpenAI's chat completions will do: vLLM, SGLang, llama.cpp, Ollama, or a hosted
    one. A reply of the judge without a number costs its completion, with the reply in the reason.

    Args:
        base_url: Address up to /v1, such as http://localhost:8000/v1.
        model: The judge's name on that server.
        task: What the judge is asked, with {prompt}, {completion} and fields of the data's row in
            braces; double other braces. Null: a rating from 0 to 10 in a score tag.
        system: System message; null: none.
        pattern: Regular expression whose first group is the number. The last match counts.
        least: Rating that becomes 0.
        most: Rating that becomes 1; others are outside the range and errors.
        http: Time limit of a try, repetitions, concurrency and key; null: those of `HttpConfig`.
        request: Further fields of the request, over temperature 0 and at most 512 tokens.

    Raises:
        ValueError: on construction, if the pattern has no group, or the task no {completion}.

    Source: 2306.05685 (language models as judges).
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        base_url: str,
        model: str,
        task: str | None = None,
        system: str | None = None,
        pattern: str = _PATTERN,
        least: float = 0.0,
        most: float = 10.0,
        http: HttpConfig | None = None,
        request: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{base_url.rstrip('/')}/chat/completions", http)
        self.task = _TASK if task is None else task
        try:
            named = {name for _, name, _, _ in string.Formatter().parse(self.task) if name}
        except ValueError as error:
            raise ValueError(f"task is no template ({error}): double other braces") from None
        if "completion" not in named:
            raise ValueError("task has no {completion}: say where the reply to judge comes")
        if re.compile(pattern).groups < 1:
            raise ValueError(f"pattern is {pattern!r}: put the number in parentheses")
        if not least < most:
            raise ValueError(f"least is {least} and most {most}: set least below most")
        self.named = named
        self.model_name = model
        self.system = system
        self.pattern = pattern
        self.least, self.most = least, most
        self.request = {"temperature": 0.0, "max_tokens": 512} | (request or {})

    @classmethod
    def example(cls) -> Self:
        """Return a judge that is not there, so that all rewards are nan."""
        return cls("http://127.0.0.1:9/v1", "judge", http=HttpConfig(retries=0))

    def body(self, rollout: Rollout, rows: Rows) -> dict[str, Any]:
        """Return the conversation that asks about one completion.

        Raises:
            ValueError: if the data's row has no field that the task names.
        """
        (row,) = rows
        record: Mapping[str, Any] = rollout.records[row] if rollout.records else {}
        prompt = rollout.prompts[row] if rollout.prompts else ""
        known = dict(record) | {"prompt": prompt, "completion": rollout.texts[row]}
        if missing := self.named - known.keys():
            raise ValueError(
                f"task names {', '.join(sorted(missing))}, and the data's row has "
                f"{', '.join(sorted(known))}: keep the field (further_fields), or double its braces"
            )
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": self.task.format_map(known)})
        return {"model": self.model_name, "messages": messages} | self.request

    def read(self, answer: Any, rows: Rows) -> list[float | None]:
        """Read the rating and scale it."""
        reply = answer["choices"][0]["message"]["content"] or ""
        found = list(re.finditer(self.pattern, reply))
        if not found:
            raise ValueError(
                f"the judge's reply has no rating of the form {self.pattern}: {reply!r}"
            )
        return [(float(found[-1][1]) - self.least) / (self.most - self.least)]
