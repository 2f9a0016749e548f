"""Fixtures of the contract tests of metrics."""

from collections.abc import Iterator

import pytest

from tests.metrics.metric_variants import take_small_network


@pytest.fixture
def small_network() -> Iterator[None]:
    """Let metrics of network activations take a small stand-in."""
    with take_small_network():
        yield
