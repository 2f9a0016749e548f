"""Terms that callbacks add to a module's loss."""

from lightning.pytorch import Callback, LightningModule

from triptych.protocols import AddsLossTerms, LossTerm, missing


def add_loss_term(callback: Callback, pl_module: LightningModule, term: LossTerm) -> None:
    """Append to the module's loss terms, once even if the module is set up several times.

    Args:
        callback: Owner of the term, for the message.
        pl_module: A module that adds loss terms.
        term: `term(module, batch)` returns a scalar; its mean over ranks is added to the loss.

    Raises:
        ValueError: if the module does not add loss terms.
    """
    if not isinstance(pl_module, AddsLossTerms):
        raise missing(AddsLossTerms, pl_module, type(callback).__name__)
    if term not in pl_module.loss_terms:
        pl_module.loss_terms.append(term)
