"""Policies around one network, with a frozen copy of it as the reference."""

from collections.abc import Callable
from typing import Generic, Self, TypeVar

from torch import Tensor, nn

from triptych.models.diversify.frozen_reference import copied_fingerprint
from triptych.models.diversify.policy import Policy

Network = TypeVar("Network", bound=nn.Module)


class PolicyWithReference(Policy, Generic[Network]):
    """A network that always runs in eval mode, and its frozen reference.

    The network has no dropout, in training either: sampling and scoring need one distribution. The
    reference is not part of checkpoints. A resumed run builds it again, from the same `init_from`
    or the same seed; its hash in the checkpoint shows whether it is the same to the bit.

    Args:
        model: The network.
        reference: The reference; None: the subclass derives it from the network, by switching
            adapters off.
    """

    model: Network

    def __init__(self, model: Network, reference: Network | None) -> None:
        super().__init__()
        self.model = model.eval()
        # In a tuple, so that its parameters and memory layers are not this module's.
        self._reference: tuple[Network, ...] = () if reference is None else (reference,)
        self._fingerprint = "adapters off"
        if reference is not None:
            self._fingerprint = copied_fingerprint(model, reference)

    def train(self, mode: bool = True) -> Self:
        """Set the flag; the network stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the reference along (`to`, `cuda`, `half`)."""
        for reference in self._reference:
            reference._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def get_extra_state(self) -> str:
        """Return the reference's hash, which torch keeps in the `state_dict`."""
        return self._fingerprint

    def set_extra_state(self, state: str) -> None:
        """Check that a checkpoint's reference is this one.

        Raises:
            ValueError: if it is another.
        """
        if state != self._fingerprint:
            raise ValueError(
                "the checkpoint's run had another reference policy than this one: give the model "
                "the settings in the checkpoint's config.yaml, above all init_from and "
                "seed_everything"
            )
