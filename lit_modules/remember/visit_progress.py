"""Early stopping per fact: the remaining steps of a learned fact are skipped."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class VisitProgress:
    """Progress through a stream of facts, each visited for several batches.

    A visit is over once its loss is below `stop_below_nats`. The loss is that of a batch before its
    step, so the batch that shows that a fact is learned takes no step either.

    Args:
        stop_below_nats: Mean loss in nats per token below which a visit is over; None: never.

    Attributes:
        current: Number of the last batch's visit.
        is_over: True if that visit has ended early.
        last_nats: Loss of the last batch that was run, in nats per token.
        num_visits: Number of visits begun so far.
        num_ended_early: Number of visits that ended early so far.
    """

    stop_below_nats: float | None = None
    current: int | None = None
    is_over: bool = False
    last_nats: float | None = None
    num_visits: int = 0
    num_ended_early: int = 0

    def begin(self, visit: int) -> bool:
        """Note a batch's visit, and return True if the batch is to be skipped.

        >>> visits = VisitProgress(stop_below_nats=0.5)
        >>> visits.begin(7), visits.ends_with(0.4), visits.begin(7), visits.begin(8)
        (False, True, True, False)
        """
        if visit != self.current:
            self.current, self.is_over = visit, False
            self.num_visits += 1
        return self.is_over

    def ends_with(self, nats_per_token: float) -> bool:
        """Note a batch's loss before its step, and return True if it ends the visit."""
        self.last_nats = nats_per_token
        if self.stop_below_nats is not None and nats_per_token < self.stop_below_nats:
            self.is_over = True
            self.num_ended_early += 1
        return self.is_over

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream as plain values."""
        state = asdict(self)
        del state["stop_below_nats"]  # a setting, not a state
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position."""
        self.__dict__.update(state)
