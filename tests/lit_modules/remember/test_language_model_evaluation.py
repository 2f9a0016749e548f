"""What a validation counts, and what only fills up a batch."""

import torch

from tests.lit_modules.remember.test_memory_pretraining import batch, module
from triptych.lit_modules.remember.language_model_evaluation import LanguageModelEvaluation


def usage(*rows: dict) -> dict[str, float]:
    pl_module = module().eval()
    evaluation = LanguageModelEvaluation(pl_module.model, max_new_tokens=1, num_samples=0)
    tensors = {k: torch.cat([r[k] for r in rows]) for k in rows[0] if k != "name"}
    evaluation.record_reads(True)
    with torch.no_grad():
        nll = pl_module.next_token_nll(tensors)
    evaluation.add_likelihood(tensors | {"name": "text"}, nll)
    computed = evaluation.compute()
    assert any(name.startswith("memory/") for name in computed)
    return {name: float(value) for name, value in computed.items()}


def test_rows_that_fill_up_a_batch_count_nowhere():
    torch.manual_seed(0)
    rows = [batch([1, 5, 6, 7]), batch([1, 9, 2])]
    filler = batch([1, 9, 2]) | {"labels": torch.full((1, 12), -100)}
    torch.manual_seed(0)
    alone = usage(*rows)
    torch.manual_seed(0)
    assert usage(*rows, filler) == alone
