"""What a causal language model does to its last hidden states."""

from torch import Tensor, nn
from transformers import PreTrainedModel

# What a family may do to its logits beyond the output layer (Gemma, Cohere, Granite).
_LOGIT_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def output_weight(model: PreTrainedModel) -> Tensor | None:
    """The weight W (vocabulary, width) where logits = hidden @ W.T, and None where they are not.

    They are not in families whose output layer has a bias or that rescale its logits: there the
    logits are had from the model alone.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return None
    if any(getattr(model.config, name, None) for name in _LOGIT_SETTINGS):
        return None
    return head.weight
