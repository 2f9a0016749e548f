"""The parts of a GPU's memory in one experiment, and their peak."""

from dataclasses import dataclass, field

GIB = 2**30
#: CUDA's context with the kernels of torch and its libraries, est.
CONTEXT_BYTES = 0.8 * GIB
#: Share that the allocator loses between blocks, est.; expandable segments lose less.
FRAGMENTATION = 0.08


@dataclass
class Budget:
    """Bytes of one GPU.

    Attributes:
        name: The experiment.
        card_gib: Size of the card that its configuration names; None if it names none.
        resident: What is there from the first step to the last.
        phases: What a phase of a step needs beside it; phases do not overlap.
        notes: What was assumed.
    """

    name: str
    card_gib: int | None = None
    resident: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> float:
        """The largest sum, with the context and what the allocator loses."""
        held = sum(self.resident.values()) + max(self.phases.values(), default=0.0)
        return held * (1 + FRAGMENTATION) + CONTEXT_BYTES

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within the named card; None if it names none."""
        return None if self.card_gib is None else self.peak <= self.card_gib * GIB

    def hold(self, name: str, num_bytes: float) -> None:
        """Add a resident part, if it is not empty."""
        if num_bytes:
            self.resident[name] = self.resident.get(name, 0.0) + num_bytes
