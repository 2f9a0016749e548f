"""When a fact has been learned and the steps left for it can be passed over."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class VisitProgress:
    """Follows a stream of facts, each visited for several batches, and ends a visit early.

    A visit is over once its loss is below `stop_below_nats`. The loss is that of a batch before its
    step: the batch that tells that a fact is known already takes no step either.

    Args:
        stop_below_nats: Mean loss in nats per token below which a visit is over; None: never.

    Attributes:
        current: Number of the visit that the last batch belonged to.
        is_over: Whether that visit has ended early.
        last_nats: Loss of the last batch that was run, in nats per token.
        num_visits: Visits begun so far.
        num_ended_early: Those of them that ended early.
    """

    stop_below_nats: float | None = None
    current: int | None = None
    is_over: bool = False
    last_nats: float | None = None
    num_visits: int = 0
    num_ended_early: int = 0

    def begin(self, visit: int) -> bool:
        """Take note of the visit that a batch belongs to; says whether to pass the batch over.

        >>> visits = VisitProgress(stop_below_nats=0.5)
        >>> visits.begin(7), visits.ends_with(0.4), visits.begin(7), visits.begin(8)
        (False, True, True, False)
        """
        if visit != self.current:
            self.current, self.is_over = visit, False
            self.num_visits += 1
        return self.is_over

    def ends_with(self, nats_per_token: float) -> bool:
        """Take note of a batch's loss before its step; says whether the visit is over with it."""
        self.last_nats = nats_per_token
        if self.stop_below_nats is not None and nats_per_token < self.stop_below_nats:
            self.is_over = True
            self.num_ended_early += 1
        return self.is_over

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, in plain values."""
        state = asdict(self)
        del state["stop_below_nats"]  # a setting, not a state
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.__dict__.update(state)
