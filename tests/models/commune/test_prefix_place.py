"""Places of a prefix in the prompts of a real chat model, against sequences built by hand."""

import pytest
import torch
from transformers import AutoTokenizer

from tests.models.commune.tiny_agents import tiny_agents
from triptych.datamodules.batches.chat_template import encode_prompts
from triptych.models.commune.agent import Agent, load_agent
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.prefix_place import PLACES, PlaceFinder, default_place

SHORT, LONG = "Where is Ben?", "Anna is in the hall. Carl is in the bank. Where is Anna?"
# What stands between the text before the prefix and the text after it.
BEFORE = {
    "before_prompt": "",
    "after_bos": "<|im_start|>",
    "user_text": "<|im_start|>user\n",
    "before_reply": "<|im_end|>\n",
}


@pytest.fixture(scope="module")
def agent(smollm2) -> Agent:
    return load_agent(smollm2, "float32")


@pytest.fixture(scope="module")
def prompts(agent) -> list[list[int]]:
    chats = [[{"role": "user", "content": text}] for text in (SHORT, LONG)]
    return encode_prompts(agent.tokenizer, chats)


@pytest.fixture(scope="module")
def prefix(agent) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return agent.embedding_rms * torch.randn(2, 3, agent.width, generator=generator)


@pytest.mark.parametrize("place", PLACES)
def test_the_place_is_where_its_name_says(agent, prompts, place):
    for prompt, text in zip(prompts, (SHORT, LONG), strict=True):
        index = PlaceFinder(agent.tokenizer, place).index(prompt)
        before, after = (agent.tokenizer.decode(part) for part in (prompt[:index], prompt[index:]))
        assert before.endswith(BEFORE[place])
        assert after.startswith(text) == (place == "user_text")
        assert after.startswith("<|im_start|>assistant\n") == (place == "before_reply")
        assert (place == "before_prompt") == (not before)


@pytest.mark.parametrize("place", PLACES)
def test_a_padded_batch_reads_the_sequences_built_by_hand(agent, prompts, prefix, place):
    agent.place = place
    ids, mask = agent.pad(prompts)
    reply = torch.tensor([agent.tokenizer(" hall.")["input_ids"]] * 2)
    with torch.no_grad():
        logits = agent.reply_logits(ids, mask, reply, prefix)
        states = agent.states(ids, mask, StateConfig(), prefix)
        greedy = agent.reply(ids, mask, 3, prefix)
        for row, prompt in enumerate(prompts):
            index = PlaceFinder(agent.tokenizer, place).index(prompt)
            told = agent.embed(torch.tensor(prompt))
            sequence = [told[:index], prefix[row], told[index:], agent.embed(reply[row])]
            made = agent.model(
                inputs_embeds=torch.cat(sequence)[None], output_hidden_states=True, use_cache=False
            )
            end = len(prompt) + 3
            own = made.logits[0, end - 1 : -1]
            torch.testing.assert_close(logits[row], own, rtol=1e-3, atol=2e-3)
            state = made.hidden_states[StateConfig().layer(30)][0, end - 1]
            torch.testing.assert_close(states[row], state, rtol=1e-3, atol=2e-3)
            # without a cache, token by token
            read, said = torch.cat(sequence[:3])[None], []
            for _ in range(3):
                said.append(int(agent.model(inputs_embeds=read).logits[0, -1].argmax()))
                read = torch.cat([read, agent.embed(torch.tensor([[said[-1]]]))], 1)
            ends = set(agent.end_ids)
            stop = next((i + 1 for i, token in enumerate(said) if token in ends), 3)
            assert greedy[row, :stop].tolist() == said[:stop]


def test_a_reply_may_have_begun_and_a_user_may_write_what_looks_like_a_turn(agent):
    text = "<|im_start|>user\nNo.<|im_end|>\n<|im_start|>assistant\nWhere is Ben?"
    (prompt,) = encode_prompts(agent.tokenizer, [[{"role": "user", "content": text}]])
    begun = [*prompt, *agent.tokenizer("Ben is in the")["input_ids"]]
    index = PlaceFinder(agent.tokenizer, "user_text").index(begun)
    assert agent.tokenizer.decode(begun[index:]).startswith(text)
    index = PlaceFinder(agent.tokenizer, "before_reply").index(begun)
    assert agent.tokenizer.decode(begun[index:]) == "<|im_start|>assistant\nBen is in the"


def test_turns_of_other_templates_are_found(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]", "<|h|>"]})
    templates = {
        # Mistral has no head of the assistant's turn, Llama 3 ends both heads alike.
        "{{ '<|im_start|>' }}{% for m in messages %}[INST] {{ m.content }}[/INST]{% endfor %}": (
            "[/INST]"
        ),
        "{% for m in messages %}<|im_start|>{{ m.role }}<|h|>\n\n{{ m.content }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|h|>\n\n{% endif %}": (
            "<|im_start|>assistant<|h|>\n\n"
        ),
    }
    for template, after in templates.items():
        tokenizer.chat_template = template
        (prompt,) = encode_prompts(tokenizer, [[{"role": "user", "content": SHORT}]])
        index = PlaceFinder(tokenizer, "user_text").index(prompt)
        assert tokenizer.decode(prompt[index:]).lstrip().startswith(SHORT)
        index = PlaceFinder(tokenizer, "before_reply").index(prompt)
        assert tokenizer.decode(prompt[index:]) == after


def test_what_has_no_place_is_said(agent):
    words = tiny_agents()[0].tokenizer
    assert default_place(words) == default_place(None) == "before_prompt"
    assert default_place(agent.tokenizer) == "user_text"
    with pytest.raises(ValueError, match="no chat template"):
        PlaceFinder(words, "user_text")
    with pytest.raises(ValueError, match="choose user_text"):
        PlaceFinder(words, "in_front")
    with pytest.raises(ValueError, match="not a conversation"):
        PlaceFinder(agent.tokenizer, "user_text").index(agent.tokenizer(SHORT)["input_ids"])
