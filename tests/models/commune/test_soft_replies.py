import tokenizers
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.commune.agent import Agent
from triptych.models.commune.soft_replies import sample_soft_reply


def tokenizer_without_end():
    words = {"[PAD]": 0, **{f"word{number}": number for number in range(1, 12)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


def test_the_likeliest_tokens_are_a_greedy_reply_and_the_gradient_reaches_the_prefix():
    torch.manual_seed(0)
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=32)
    agent = Agent(build_base_lm(base, 12), tokenizer_without_end())
    ids, mask = agent.pad([[2, 3, 4], [5]])
    prefix = torch.randn(2, 2, 16, requires_grad=True)

    def likeliest(logits):
        soft = logits.softmax(-1)
        hard = F.one_hot(logits.argmax(-1), logits.shape[-1])
        return hard + soft - soft.detach()

    tokens, logits = sample_soft_reply(agent, ids, mask, prefix, 4, likeliest)
    greedy = agent.generate(ids, mask, 4, prefix.detach())
    assert torch.equal(tokens.argmax(-1), greedy)
    forced = agent.reply_logits(ids, mask, greedy, prefix)
    torch.testing.assert_close(logits, forced, rtol=1e-4, atol=1e-4)
    # the last token depends on the prefix through the tokens before it as well
    (tokens[:, -1] * torch.randn(12)).sum().backward()
    assert prefix.grad.abs().sum() > 0
