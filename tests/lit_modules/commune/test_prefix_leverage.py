"""The leverage of each place of a prefix, on a real chat model."""

import pytest
import torch

from triptych.datamodules.batches.chat_template import encode_prompts
from triptych.lit_modules.commune.prefix_leverage import prefix_leverage
from triptych.models.commune.agent import load_agent


def test_a_vector_among_the_users_words_has_the_most_leverage(smollm2):
    agent = load_agent(smollm2, "float32")
    texts = ("Anna is in the hall. Where is Anna?", "Name a fruit.")
    prompts = encode_prompts(agent.tokenizer, [[{"role": "user", "content": t}] for t in texts])
    ids, mask = agent.pad(prompts)
    replies = agent.reply(ids, mask, 4)
    found = prefix_leverage(agent, prompts, replies)
    # .196 against .023 in another sample of questions: the default place is that of the most
    assert max(found, key=found.get) == "user_text"
    assert found["user_text"] > 2 * found["before_prompt"] > 0
    assert agent.place == "before_prompt", "the agent is left as it was"
    agent.place = "user_text"
    with torch.no_grad():
        alone = agent.reply_logits(ids, mask, replies).softmax(-1)
        prefix = torch.randn(2, 1, agent.width, generator=torch.Generator().manual_seed(0))
        prefix *= agent.embedding_rms / prefix.square().mean(-1, keepdim=True).sqrt()
        told = agent.reply_logits(ids, mask, replies, prefix).softmax(-1)
    by_hand = (alone * (alone.log() - told.log())).sum(-1)
    assert set(replies.flatten().tolist()).isdisjoint(agent.end_ids), "every token counts"
    assert found["user_text"] == pytest.approx(float(by_hand.mean()), rel=1e-3)
