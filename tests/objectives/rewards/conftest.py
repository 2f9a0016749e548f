"""Rollouts without a policy, and a reward model of a few hundred weights."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from triptych.models.diversify.rollout import Rollout

WORDS = ["<unk>", "good", "bad", "fruit", "name", "a", "one"]
PAD, EOS, USER, REPLY = "<pad>", "<eos>", "<user>", "<reply>"  # added after the words: 7 to 10
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<reply>' }} {{ m.content }} "
    "{% endfor %}<eos>"
)


@pytest.fixture(scope="session")
def rollout_of():
    """Makes a rollout of texts; each is alone in its group unless `groups` says otherwise."""

    def make(texts, groups=None, prompt="Name a fruit.", record=None):
        count = len(texts)
        ones = torch.ones(count, 1)
        return Rollout(
            prompts=[prompt] * count,
            texts=list(texts),
            group_B=torch.tensor(groups if groups is not None else range(count), dtype=torch.int64),
            prompt_ids_BP=ones.long(),
            prompt_mask_BP=ones.bool(),
            token_ids_BT=ones.long(),
            token_mask_BT=ones.bool(),
            finished_B=torch.ones(count, dtype=torch.bool),
            log_prob_B=-torch.ones(count),
            reference_log_prob_B=-torch.ones(count),
            records=[{} if record is None else record] * count,
        )

    return make


@pytest.fixture(scope="session")
def reward_model_folder(tmp_path_factory) -> str:
    """A folder with a classifier of random weights, a tokenizer of words, and a chat template."""
    folder = tmp_path_factory.mktemp("reward_model")
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
    )
    tokenizer.add_tokens([PAD, EOS, USER, REPLY], special_tokens=True)
    tokenizer.pad_token, tokenizer.eos_token = PAD, EOS
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=len(WORDS) + 4, num_labels=1, pad_token_id=7, max_position_embeddings=32,
        **sizes, **heads,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return str(folder)
