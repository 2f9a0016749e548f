"""Requests with JSON in and out that are repeated where another try may help."""

import asyncio
import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

# Statuses after which the same request may succeed: timeouts, conflicts, limits, server errors.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MOST_SECONDS_BETWEEN = 30.0
# Of its own: the global generator belongs to training.
_chance = random.Random()


class RequestError(ConnectionError):
    """A request that failed for good: address, cause, and the number of tries."""


@dataclass(frozen=True)
class HttpConfig:
    """How a server is asked.

    Args:
        timeout_s: Longest time of one try, in seconds.
        retries: Further tries after a failed one, where another may help: the connection failed,
            the time was up, or the server answered 408, 409, 425, 429 or 5xx.
        backoff_s: Seconds before the first further try; doubled before each next one, to at most
            30. A server's Retry-After takes precedence, up to 30 too.
        concurrency: Requests at the same time.
        headers: Further headers of each request.
        api_key_env: Name of an environment variable with a key. It is sent as a bearer token and
            never stored; null: none.
    """

    timeout_s: PositiveFloat = 60.0
    retries: NonNegativeInt = 3
    backoff_s: NonNegativeFloat = 0.5
    concurrency: PositiveInt = 16
    headers: dict[str, str] = field(default_factory=dict)
    api_key_env: str | None = None

    def key(self) -> str | None:
        """Return the key; None if none is needed.

        Raises:
            ValueError: if its environment variable is not set.
        """
        key = os.environ.get(self.api_key_env) if self.api_key_env else None
        if self.api_key_env and not key:
            raise ValueError(
                f"the environment variable {self.api_key_env} is not set: set it to the server's "
                "key, or http.api_key_env to null"
            )
        return key

    def session(self) -> aiohttp.ClientSession:
        """Open a session; inside of the loop that uses it."""
        key = self.key()
        headers = self.headers | ({} if key is None else {"Authorization": f"Bearer {key}"})
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.concurrency),
            timeout=aiohttp.ClientTimeout(total=None),
            headers=headers,
            trust_env=True,
        )


async def post_json(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, Any], config: HttpConfig
) -> Any:
    """Post a body and return the answer.

    Raises:
        RequestError: if no try succeeded, or the answer is no JSON.
    """
    wait_s = config.backoff_s
    for tries in range(1, config.retries + 2):
        asked_s: float | None = None
        try:
            async with asyncio.timeout(config.timeout_s), session.post(url, json=body) as response:
                text = await response.text()
                if response.status < 300:
                    return _parsed(url, text)
                cause = f"{response.status} {response.reason}: {text[:300]}".strip()
                asked_s = _seconds(response.headers.get("Retry-After"))
                may_pass = response.status in _PASSING
        except TimeoutError:
            cause, may_pass = f"no answer within {config.timeout_s:g} s", True
        except aiohttp.InvalidURL as error:
            raise RequestError(f"{url} is no address ({error}): give http://host:port/") from None
        except aiohttp.ClientError as error:
            cause, may_pass = f"{type(error).__name__}: {error}", True
        if not may_pass or tries > config.retries:
            times = "1 try" if tries == 1 else f"{tries} tries"
            raise RequestError(f"{url} did not answer after {times}: {cause}")
        # A little chance, so that requests that failed together do not return together.
        pause_s = asked_s if asked_s is not None else wait_s * (0.75 + _chance.random() / 2)
        await asyncio.sleep(min(pause_s, _MOST_SECONDS_BETWEEN))
        wait_s *= 2
    raise AssertionError("the last try returns or raises")


def _parsed(url: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{url} answered no JSON ({error}): {text[:300]}") from None


def _seconds(header: str | None) -> float | None:
    """Read Retry-After; a date there is ignored."""
    return float(header) if header is not None and header.strip().isdigit() else None
