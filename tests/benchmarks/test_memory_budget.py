"""Every shipped experiment for real GPUs fits the card that its file names."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from triptych import ROOT
from triptych.benchmarks.memory_budget.__main__ import CONFIGS, budget_of, main
from triptych.benchmarks.memory_budget.activations import block_activations, num_parameters
from triptych.benchmarks.memory_budget.budget import GIB
from triptych.benchmarks.memory_budget.composed import named_card
from triptych.benchmarks.memory_budget.hub_models import hub_config


def test_list_holds_every_config_that_names_a_gpu():
    experiments = [
        path
        for folder in ("remember", "diversify", "commune")
        for path in (ROOT / "configs" / folder).glob("*.yaml")
    ]
    naming = {str(path.relative_to(ROOT)) for path in experiments if named_card(path)}
    assert naming == set(CONFIGS)


@pytest.mark.parametrize("config", CONFIGS)
def test_experiment_fits_its_card(config: str):
    budget = budget_of(ROOT / config)
    assert budget.card_gib is not None
    assert budget.fits, f"{budget.peak / GIB:.1f} GiB on a card of {budget.card_gib}"


def test_parameters_are_those_of_the_published_models():
    # Counts on the models' pages: 0.6B and 1.7B with tied embeddings.
    assert num_parameters(hub_config("Qwen/Qwen3-0.6B")) == 596_049_920
    assert num_parameters(hub_config("Qwen/Qwen3-1.7B")) == 1_720_574_976


@pytest.mark.parametrize("masked", [False, True])
def test_activations_equal_a_real_pass(masked: bool):
    """Fake tensors at another length give what real tensors of a small model keep."""
    config = hub_config("Qwen/Qwen3-0.6B")
    config.hidden_size, config.intermediate_size = 64, 160
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 16
    found = block_activations(config, autocast=False, masked=masked)
    mask = torch.ones(1, 1, 512, 512, dtype=torch.bool).tril() if masked else None

    def kept(blocks: int) -> int:
        torch.manual_seed(0)
        settings = config.to_dict() | {"num_hidden_layers": blocks, "vocab_size": 64}
        settings.pop("layer_types", None)
        model = AutoModelForCausalLM.from_config(type(config)(**settings)).eval()
        own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
        seen: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        hidden_BTD = torch.zeros(1, 512, 64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.base_model(inputs_embeds=hidden_BTD, attention_mask=mask, use_cache=False)
        return sum(t.untyped_storage().nbytes() for place, t in seen.items() if place not in own)

    real = kept(2) - kept(1)
    if masked:  # fake attention also keeps a mask of float numbers in each block
        assert real < found.of(512) < 1.3 * real
    else:
        assert found.of(512) == pytest.approx(real, rel=0.02)


def test_a_card_that_is_too_small_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = (ROOT / "configs/remember/retrofit_qwen3.yaml").read_text()
    text = text.replace("../data", str(ROOT / "configs/data"))
    config = tmp_path / "small.yaml"
    config.write_text("# One GPU of 8 GB.\n" + text)
    with pytest.raises(SystemExit):
        main([str(config)])
    assert "DOES NOT FIT" in capsys.readouterr().out
