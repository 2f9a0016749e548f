"""Packed documents are kept apart by each kind of attention, in each family that says so."""

import shutil

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.models.diversify.tiny_policies import VOCABULARY
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm
from triptych.models.segment_mask import (
    KEEPS_DOCUMENTS_APART,
    packed_attention,
    segment_attention_mask,
)
from triptych.objectives.batch_nll import batch_nll

FLASH = "flash_by_the_borders"  # a stand-in, since the kernels need a GPU
SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 4}
OVERRIDES = {
    "gemma2": {"attn_logit_softcapping": None},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
}
SEGMENTS = torch.tensor([[1] * 9 + [2] * 6 + [3] * 9, [1] * 9 + [2] * 11 + [0] * 4])
POSITIONS = torch.tensor([[*range(9), *range(6), *range(9)], [*range(9), *range(11), 0, 0, 0, 0]])
IDS = torch.randint(1, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
REAL = SEGMENTS > 0


def flash_by_the_borders(module, query, key, value, attention_mask, **kwargs):
    """Attention within the documents that a flash kernel of variable length would be given."""
    assert attention_mask is None
    borders = kwargs.pop("cu_seq_lens_q")
    assert borders.dtype == torch.int32
    assert torch.equal(borders, kwargs.pop("cu_seq_lens_k"))
    lengths = borders.diff().long()
    assert lengths.max() <= kwargs.pop("max_length_q") == kwargs.pop("max_length_k")
    document = torch.arange(len(lengths)).repeat_interleave(lengths).view(query.shape[0], -1)
    mask = (document[:, None, :, None] == document[:, None, None]).tril()
    window = kwargs.get("sliding_window")
    if window:
        mask = mask.triu(1 - window)
    kwargs.pop("is_causal", None)
    return sdpa_attention_forward(module, query, key, value, mask, is_causal=False, **kwargs)


AttentionInterface.register(FLASH, flash_by_the_borders)


def build(family, attention=None):
    torch.manual_seed(0)
    base = BaseLMConfig(
        **SIZES,
        family=family,
        overrides=OVERRIDES.get(family, {}),
        attn_implementation=None if attention == FLASH else attention,
    )
    model = build_base_lm(base, VOCABULARY).eval()
    if attention == FLASH:  # as an option it would be looked for on the Hub
        model.config._attn_implementation = FLASH
    return model


@torch.no_grad()
def hidden(model, **inputs):
    inputs = inputs or packed_attention(model.config, SEGMENTS, POSITIONS)
    return model.base_model(input_ids=IDS, use_cache=False, **inputs).last_hidden_state


@torch.no_grad()
def each_alone(model):
    """Read every document by itself."""
    made = torch.zeros(*IDS.shape, model.config.hidden_size)
    for row in range(2):
        for segment in SEGMENTS[row].unique():
            where = SEGMENTS[row] == segment
            ids = IDS[row : row + 1, where]
            made[row, where] = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    return made


@pytest.mark.parametrize("family", sorted(KEEPS_DOCUMENTS_APART))
def test_masks_positions_and_borders_keep_documents_apart(family):
    model = build(family)
    alone = each_alone(model)
    by_mask = hidden(model)
    by_position = hidden(model, position_ids=POSITIONS, attention_mask=None)
    by_border = hidden(build(family, FLASH))
    for made in (by_mask, by_position, by_border):
        torch.testing.assert_close(made[REAL], alone[REAL], rtol=0, atol=5e-6)
    if model.config._attn_implementation == "sdpa":
        assert torch.equal(by_mask[REAL], by_position[REAL])


@pytest.mark.parametrize("family", ["gemma2", "gpt_neo", "gptj", "llama"])
def test_eager_attention_adds_its_mask(family):
    model = build(family, "eager")
    torch.testing.assert_close(hidden(model)[REAL], each_alone(model)[REAL], rtol=0, atol=5e-6)
    mask = segment_attention_mask(SEGMENTS)
    wrong = hidden(model, position_ids=POSITIONS, attention_mask=mask)
    assert (wrong - hidden(model)).abs().max() > 0.01  # a mask of bools hides nothing


@pytest.mark.parametrize("family", ["stablelm", "nemotron"])
def test_a_family_that_drops_the_borders_is_refused(family):
    model = build(family, FLASH)
    with pytest.raises(ValueError, match=f"{family} is not known .* base.attn_implementation"):
        hidden(model)


def test_the_loss_is_the_same_and_memory_models_keep_the_option():
    losses = []
    for attention in (None, FLASH, "eager"):
        torch.manual_seed(0)
        base = BaseLMConfig(**SIZES, attn_implementation=None if attention == FLASH else attention)
        memory = MemoryConfig(layers=[1], num_keys=8, num_heads=2, top_k=4)
        model = build_memory_lm(base, memory, VOCABULARY)
        if attention == FLASH:
            model.config._attn_implementation = FLASH
        assert model.config._attn_implementation == (attention or "sdpa")
        batch = {"input_ids": IDS, "position_ids": POSITIONS, "segment_ids": SEGMENTS}
        loss = batch_nll(model, batch | {"labels": IDS.where(REAL, -100)}).sum_nats
        loss.backward()
        losses.append((loss.detach(), model.get_input_embeddings().weight.grad))
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the kernel is compiled by g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of transformers and torch.compile
def test_flex_attention_finds_documents_by_their_positions():
    alone = each_alone(build("llama"))
    made = hidden(build("llama", "flex_attention"))
    torch.testing.assert_close(made[REAL], alone[REAL], rtol=0, atol=5e-6)


def test_an_implementation_that_cannot_be_had_names_the_option():
    for attention in ("flash_attention_2", "nonsense"):
        with pytest.raises(ValueError, match=f"base.attn_implementation='{attention}'.*sdpa"):
            build("llama", attention)


def test_a_pretrained_model_takes_the_option(tmp_path):
    build("llama").save_pretrained(tmp_path)
    for attention, expected in ((None, "sdpa"), ("eager", "eager")):
        base = BaseLMConfig(pretrained=str(tmp_path), attn_implementation=attention)
        assert build_base_lm(base, VOCABULARY).config._attn_implementation == expected
