"""A reward by a server of one's own: prompts and completions in, numbers out."""

import math
from collections.abc import Sequence
from typing import Any, Self

from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.remote.http_json import HttpConfig
from triptych.objectives.rewards.remote.remote_reward import RemoteReward, Rows


class RewardServer(RemoteReward):
    """Posts batches of completions to a server and reads one reward for each.

        request   {"prompts": ["Name a fruit."], "completions": ["A pear."],
                   "finished": [true], "num_tokens": [4], "answers": [["pear"]]}
        answer    {"rewards": [1.0]}, or the list alone; null where the reward does not apply

    Args:
        url: Address, such as http://localhost:8000/score.
        http: Time limit of a try, repetitions, concurrency and key; null: those of `HttpConfig`.
        batch_size: Completions of a request.
        fields: Fields of the data's rows to send as well, such as answers.
        least: Least reward of the server; null: unbounded.
        most: Largest reward of the server; null: unbounded.
        prompts_key: Name of the prompts in the request.
        completions_key: Name of the completions in the request (query for OpenRLHF's servers).
        rewards_key: Name of the rewards in the answer.

    Raises:
        ValueError: on construction, if an argument is out of range. An answer with another number
            of rewards is an error of the completions in its request.
    """

    def __init__(
        self,
        url: str,
        http: HttpConfig | None = None,
        batch_size: int = 16,
        fields: Sequence[str] = (),
        least: float | None = None,
        most: float | None = None,
        prompts_key: str = "prompts",
        completions_key: str = "completions",
        rewards_key: str = "rewards",
    ) -> None:
        super().__init__(url, http, batch_size)
        self.range = (-math.inf if least is None else least, math.inf if most is None else most)
        if not self.range[0] < self.range[1]:
            raise ValueError(f"least is {least} and most {most}: set least below most")
        self.fields = list(fields)
        self.prompts_key = prompts_key
        self.completions_key = completions_key
        self.rewards_key = rewards_key

    @classmethod
    def example(cls) -> Self:
        """Return a reward of a server that is not there, so that all rewards are nan."""
        return cls("http://127.0.0.1:9/score", HttpConfig(retries=0))

    def body(self, rollout: Rollout, rows: Rows) -> dict[str, Any]:
        """Return texts, whether they are finished, their lengths, and the chosen fields."""
        finished, num_tokens = rollout.finished_B.tolist(), rollout.num_tokens.tolist()
        columns = {
            self.prompts_key: [rollout.prompts[row] if rollout.prompts else "" for row in rows],
            self.completions_key: [rollout.texts[row] for row in rows],
            "finished": [finished[row] for row in rows],
            "num_tokens": [num_tokens[row] for row in rows],
        }
        for name in self.fields:
            columns[name] = [rollout.records[row].get(name) for row in rows]
        return columns

    def read(self, answer: Any, rows: Rows) -> list[float | None]:
        """Return the numbers of the answer."""
        if isinstance(answer, dict):
            if self.rewards_key not in answer:
                raise ValueError(
                    f"the answer has no {self.rewards_key!r}, only {', '.join(answer)}: "
                    "set rewards_key"
                )
            answer = answer[self.rewards_key]
        if not isinstance(answer, list) or len(answer) != len(rows):
            got = f"{len(answer)} values" if isinstance(answer, list) else type(answer).__name__
            raise ValueError(f"{len(rows)} completions were sent, and {got} came back")
        return answer
