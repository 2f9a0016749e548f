"""The base model's settings in every family, and their errors."""

import pytest

from triptych.models.base_lm import BaseLMConfig, build_base_lm

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_reach_the_family(family):
    model = build_base_lm(BaseLMConfig(family=family, hidden_size=32, num_layers=3), vocab_size=50)
    config = model.config
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == (family, 32, 3)
    assert (config.num_attention_heads, config.vocab_size) == (4, 50)
    assert config.max_position_embeddings == 512
    assert model.get_input_embeddings().weight.shape == (50, 32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    inner = 128 if family == "gpt2" else 88  # 4 x 32; 8/3 x 32 rounded up to eights
    widths = {size for p in model.parameters() if p.ndim == 2 for size in p.shape}
    assert inner in widths


@pytest.mark.parametrize("family", FAMILIES)
def test_untied_embeddings_and_a_given_width(family):
    base = BaseLMConfig(family=family, hidden_size=32, tie_embeddings=False, intermediate_size=40)
    model = build_base_lm(base, vocab_size=50)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert 40 in {size for p in model.parameters() for size in p.shape}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_every_dropout_of_the_family(family, dropout):
    settings = BaseLMConfig(family=family, dropout=dropout).to_transformers(50).to_dict()
    names = {"attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"} & settings.keys()
    assert len(names) == (3 if family == "gpt2" else 1)
    assert all(settings[name] == dropout for name in names)


def test_grouped_query_attention_and_overrides():
    base = BaseLMConfig(num_kv_heads=2, overrides={"rms_norm_eps": 1e-4})
    config = base.to_transformers(50)
    assert config.num_key_value_heads == 2
    assert config.rms_norm_eps == 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hidden_size": 30, "num_heads": 4},
            "base.num_heads=4 does not divide base.hidden_size=30; choose a divisor",
        ),
        (
            {"num_heads": 4, "num_kv_heads": 3},
            "base.num_kv_heads=3 does not divide base.num_heads=4; choose a divisor",
        ),
    ],
)
def test_heads_that_do_not_divide(settings, message):
    with pytest.raises(ValueError, match=message):
        BaseLMConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "lama"}, "base.family='lama' is not a model_type.*try llama"),
        (
            {"overrides": {"rope_tetha": 1.0}},
            r"base.overrides \['rope_tetha'\] are not settings of",
        ),
        ({"family": "gpt2", "num_kv_heads": 2}, "gpt2 has no grouped-query.*drop num_kv_heads"),
    ],
)
def test_settings_the_family_does_not_have(settings, message):
    with pytest.raises(ValueError, match=message):
        BaseLMConfig(**settings).to_transformers(50)


def test_a_pretrained_model_with_too_few_tokens(tmp_path):
    build_base_lm(BaseLMConfig(hidden_size=32), vocab_size=50).save_pretrained(tmp_path)
    base = BaseLMConfig(pretrained=str(tmp_path))
    assert build_base_lm(base, vocab_size=50).config.vocab_size == 50
    with pytest.raises(ValueError, match=r"tokenizer has 51 tokens but .* embeds only 50: use"):
        build_base_lm(base, vocab_size=51)
