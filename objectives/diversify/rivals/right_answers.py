"""What losses that tell right from wrong completions read of a batch."""

# Shapes: B completions

from torch import Tensor

from triptych.objectives.diversify.kl import sequence_log_prob
from triptych.objectives.diversify.policy_loss import PolicySamples


def scored_reward(samples: PolicySamples, reader: str) -> Tensor:
    """Return the rewards as they were scored, (B,), nan where `reward_B` is.

    Args:
        samples: The completions.
        reader: Name of the loss, for the error.

    Raises:
        ValueError: if the samples hold none.
    """
    if samples.scored_reward_B is None:
        raise ValueError(
            f"{reader} needs scored_reward_B: `reward_B` holds the KL too, and does not say which "
            "completions are right"
        )
    return samples.scored_reward_B.masked_fill(~samples.scored, float("nan"))


def sampled_log_prob(samples: PolicySamples) -> Tensor:
    """Return the log-probability of each completion when it was sampled, (B,), in nats.

    Without gradient. It is that of the current policy where the samples are its own.
    """
    old_BT = samples.old_log_prob_BT
    old_BT = samples.log_prob_BT.detach() if old_BT is None else old_BT
    return sequence_log_prob(old_BT, samples.token_mask_BT)
