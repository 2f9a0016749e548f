"""The base of rewards that ask a server: in the background, many requests at once."""

import asyncio
from abc import abstractmethod
from concurrent.futures import Future
from typing import Any, Literal

import aiohttp
import torch

from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.background_loop import collect, submit
from triptych.objectives.rewards.base import Reward, Scores
from triptych.objectives.rewards.remote.http_json import HttpConfig, post_json

# Shapes: B completions

Rows = range  # rewards have an attribute of that name


class RemoteReward(Reward):
    """Sends completions to a server, in requests of at most `batch_size` completions.

    Requests start while the module still computes log-probabilities under the reference. One that
    fails for good costs its own completions, which get the reason. If all fail, the run stops: see
    `stop_after_failures` of `PolicyOptimization`.

    Args:
        url: Address of the requests.
        http: Time limit, repetitions, concurrency and key; null: those of `HttpConfig`.
        batch_size: Completions of a request.
    """

    scope: Literal["completion", "group"] = "completion"

    def __init__(self, url: str, http: HttpConfig | None = None, batch_size: int = 1) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"the address is {url!r}: give one that begins with http:// or https://"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: set it to at least 1")
        self.url = url
        self.http = http or HttpConfig()
        self.batch_size = batch_size
        self._begun: tuple[Rollout, Future[list[Any]]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_begun": None}

    @abstractmethod
    def body(self, rollout: Rollout, rows: Rows) -> dict[str, Any]:
        """Return the JSON that asks for the rewards of some rows."""

    @abstractmethod
    def read(self, answer: Any, rows: Rows) -> list[float | None]:
        """Return the rewards in an answer, one for each row; None where it does not apply.

        Raises:
            ValueError: if the answer is not as it should be.
        """

    def prepare(self, device: torch.device) -> None:
        """Look for the key.

        Raises:
            ValueError: if the environment has none under its name.
        """
        self.http.key()

    def begin(self, rollout: Rollout) -> None:
        """Start the requests in the background."""
        self._begun = rollout, submit(self._ask(rollout))

    def score(self, rollout: Rollout) -> Scores:
        """Collect the answers, of requests that have begun or begin now."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] is not rollout:
            begun[1].cancel()
            begun = None
        parts = collect(submit(self._ask(rollout)) if begun is None else begun[1])
        reward_B = torch.full((len(rollout),), torch.nan, dtype=torch.float32)
        scores = Scores(reward_B)
        for rows, result in zip(self._requests(rollout), parts, strict=True):
            if isinstance(result, Exception):
                reason = f"{type(result).__name__}: {result}"
                scores.errors |= dict.fromkeys(rows, reason)
                scores.exception = scores.exception or result
                continue
            part = Scores.of_values(result)
            reward_B[list(rows)] = part.reward_B
            scores.not_applicable |= {rows[row] for row in part.not_applicable}
        return scores

    def _requests(self, rollout: Rollout) -> list[Rows]:
        count = len(rollout)
        return [
            range(start, min(start + self.batch_size, count))
            for start in range(0, count, self.batch_size)
        ]

    async def _ask(self, rollout: Rollout) -> list[Any]:
        """Ask for the rewards of all rows; an exception where a request failed."""
        async with self.http.session() as session:
            asked = [self._one(session, rollout, rows) for rows in self._requests(rollout)]
            return await asyncio.gather(*asked, return_exceptions=True)

    async def _one(
        self, session: aiohttp.ClientSession, rollout: Rollout, rows: Rows
    ) -> list[float | None]:
        answer = await post_json(session, self.url, self.body(rollout, rows), self.http)
        try:
            rewards = self.read(answer, rows)
            Scores.of_values(rewards)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(f"{self.url} answered otherwise than expected: {error}") from error
        return rewards
