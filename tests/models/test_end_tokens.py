"""Ends of replies, and options of `generate`, as the files of real chat models have them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.models.tiny_chat_model import (
    TEXT_END,
    TURN_END,
    TURN_START,
    chat_tokenizer,
    tiny_chat_folder,
)
from triptych.commands.asked_model import AskedModel
from triptych.lit_modules.commune.debate import end_mask, reply_tensors
from triptych.models.base_lm import BaseLMConfig
from triptych.models.commune.agent import load_agent
from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig, build_policy
from triptych.models.end_tokens import end_tokens, turn_end, use_special_tokens
from triptych.models.generation import continue_greedily

#: Texts end with one token and turns with another, as those of Gemma and Phi do.
TEXTS_END_OTHERWISE = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
#: All that a model's own settings could do to samples.
OPTIONS = {
    "do_sample": True,
    "temperature": 0.3,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.2,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 2,
    "suppress_tokens": [500, 501],
    "num_beams": 2,
    "max_length": 40,
}


def test_ends_are_those_of_all_files(smollm2: str, tmp_path: Path):
    folder = tiny_chat_folder(tmp_path, smollm2, TEXTS_END_OTHERWISE, eos_token_id=[TEXT_END, 4])
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = chat_tokenizer(folder)
    model.config.eos_token_id = [5, 28_000]  # the second is an ordinary word here
    assert turn_end(tokenizer) == TURN_END
    assert end_tokens(model, tokenizer) == [TEXT_END, 5, 4, TURN_END]
    assert use_special_tokens(model, tokenizer) == [TEXT_END, 5, 4, TURN_END]
    model.save_pretrained(tmp_path / "export")
    written = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [TEXT_END, 5, 4, TURN_END]
    tokenizer.chat_template = None
    assert turn_end(tokenizer) == TEXT_END
    assert end_tokens(AutoModelForCausalLM.from_pretrained(folder), tokenizer) == [TEXT_END, 4]


def ends_at_once(folder: str) -> None:
    """Let a model's likeliest token be the end of a turn, wherever it is."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        weight_VD = model.get_output_embeddings().weight
        weight_VD.mul_(0.01)
        model.model.norm.weight.zero_()
        model.model.norm.weight[0] = 1.0
        for layer in model.model.layers:  # only the embedding of the last token is left
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        weight_VD[:, 0] = 1.0
        weight_VD[TURN_END, 0] = 100.0
    model.save_pretrained(folder)


def test_replies_end_with_the_turn_wherever_they_are_made(smollm2: str, tmp_path: Path):
    folder = tiny_chat_folder(tmp_path, smollm2, TEXTS_END_OTHERWISE)
    ends_at_once(folder)
    config = CausalLMPolicyConfig(base=BaseLMConfig(pretrained=folder), max_new_tokens=8)
    tokenizer = chat_tokenizer(folder)
    policy = build_policy(config, len(tokenizer), tokenizer)
    rollout = policy.sample([{"prompt_ids": [TURN_START, 700], "prompt": "x"}], 4)
    assert rollout.finished_B.all()
    assert rollout.token_ids_BT[:, 0].tolist() == [TURN_END] * 4
    assert rollout.texts == [""] * 4

    agent = load_agent(folder)
    ids_BT = agent.generate(*agent.pad([[TURN_START, 700]]), max_new_tokens=8)
    assert ids_BT.tolist() == [[TURN_END]]
    assert end_mask(torch.tensor([[9, TURN_END, 9], [9, 9, TEXT_END]]), agent).tolist() == [
        [True, True, False],
        [True, True, True],
    ]
    ids_BT, _ = reply_tensors(agent, ["a"])
    assert ids_BT[0, -1] == TURN_END

    asked = AskedModel(Path(folder), "cpu")
    assert asked.replies([[TURN_START, 700]]) == [[""]]
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = torch.tensor([[TURN_START, 700]])
    assert continue_greedily(model, tokenizer, prompt, torch.ones_like(prompt), 8) == [""]


@pytest.fixture
def both(smollm2: str, tmp_path: Path) -> list[str]:
    """One model in two folders: with and without options of `generate`."""
    plain = tiny_chat_folder(tmp_path / "plain", smollm2)
    return [plain, tiny_chat_folder(tmp_path / "options", smollm2, **OPTIONS)]


def test_options_of_a_folder_change_no_sample_and_no_score(both: list[str]):
    tokenizer = chat_tokenizer(both[0])
    rollouts, scores = [], []
    for folder in both:
        config = CausalLMPolicyConfig(base=BaseLMConfig(pretrained=folder), max_new_tokens=24)
        policy = build_policy(config, len(tokenizer), tokenizer)
        generator = torch.Generator().manual_seed(1)
        rollout = policy.sample([{"prompt_ids": [TURN_START, 700], "prompt": "x"}], 16, generator)
        rollouts.append(rollout)
        scores.append(policy.token_log_prob(rollout).detach())
        # What was sampled has the probability that is scored.
        torch.testing.assert_close(rollout.token_log_prob_BT, scores[-1], atol=2e-4, rtol=0)
    assert torch.equal(rollouts[0].token_ids_BT, rollouts[1].token_ids_BT)
    assert torch.equal(scores[0], scores[1])


def test_options_of_a_folder_change_no_reply(both: list[str]):
    prompts, replies = [[TURN_START, 700], [TURN_START, 900, 901]], []
    for folder in both:
        asked, agent = AskedModel(Path(folder), "cpu"), load_agent(folder)
        padded = agent.pad(prompts)
        replies.append([asked.replies(prompts, 24), agent.generate(*padded, 24).tolist()])
        for temperature in (0.0, 0.7):
            torch.manual_seed(0)
            replies[-1] += [asked.replies(prompts, 24, temperature, samples=1)]
            torch.manual_seed(0)
            replies[-1] += [agent.generate(*padded, 24, temperature=temperature).tolist()]
    assert replies[0] == replies[1]
    # The options do something where they are wanted.
    made = []
    for folder in both:
        model = AutoModelForCausalLM.from_pretrained(folder)
        ids = torch.tensor(prompts[:1])
        made.append(model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24))
    assert made[0].tolist() != made[1].tolist()
