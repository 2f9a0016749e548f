"""What is fixed in a chat template: its variables, a system prompt; on a real tokenizer."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.models.tiny_chat_model import chat_tokenizer, tiny_chat_folder
from triptych.callbacks.exporting.asking_form import exported_tokenizer
from triptych.datamodules.batches.chat_template import encode_prompts
from triptych.datamodules.batches.tokenizer import TokenizerConfig, build_tokenizer
from triptych.models.base_lm import BaseLMConfig
from triptych.models.chat_form import ChatForm
from triptych.models.commune.agents import Agents
from triptych.models.commune.agents_config import AgentsConfig, build_agents

SYSTEM = 'Reply with "one" word: \\n, {% raw %} {{ x }} é 🍎.\nNothing else.'
ASKED = [{"role": "user", "content": "Name a fruit."}]
# The end of Qwen3's template, with the variable that its card names.
THINKING = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content"
    " + '<|im_end|>' + '\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and enable_thinking is "
    "false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)


def test_a_system_prompt_is_a_system_message_of_every_conversation(smollm2: str, tmp_path: Path):
    config = TokenizerConfig(path=smollm2, system_prompt=SYSTEM)
    ours = build_tokenizer(config, list, "", tmp_path)
    own = chat_tokenizer(smollm2)
    system = {"role": "system", "content": SYSTEM}
    with_own = [{"role": "system", "content": "Be brief."}, *ASKED]
    expected = [
        list(own.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
        for messages in ([system, *ASKED], with_own)
    ]
    assert encode_prompts(ours, [ASKED, with_own]) == expected
    exported_tokenizer(ours, None, None).save_pretrained(tmp_path / "export")
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    found = exported.apply_chat_template(ASKED, add_generation_prompt=True)["input_ids"]
    assert list(found) == expected[0]


def test_arguments_of_the_template_are_its_defaults(smollm2: str):
    ours, own = chat_tokenizer(smollm2), chat_tokenizer(smollm2)
    ours.chat_template = own.chat_template = {"default": THINKING, "other": "\nX"}
    ChatForm({"enable_thinking": False}).fix(ours)

    def ids(tokenizer, **given):
        return tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, **given)

    assert ids(ours) == ids(own, enable_thinking=False)
    assert ids(ours) != ids(own)
    assert ids(ours, enable_thinking=True) == ids(own)
    other = {"chat_template": "other", "tokenize": False}
    assert ours.apply_chat_template(ASKED, **other) == own.apply_chat_template(ASKED, **other)


@pytest.mark.parametrize(
    ("form", "template", "message"),
    [
        (ChatForm({"enable_thinkin": False}), THINKING, "its variables are enable_thinking"),
        (ChatForm({"x": 1}), None, "the tokenizer has none"),
        (ChatForm(system_prompt="Stop at <|im_end|>"), THINKING, r"spells the special token <\|im"),
        (ChatForm(system_prompt="Hi"), "{{ messages[-1].content }}", "leaves system messages out"),
        (ChatForm(system_prompt="Hi"), "{{ raise_exception('no system') }}", "no system"),
    ],
)
def test_what_a_template_cannot_take_is_refused(smollm2: str, form, template, message):
    tokenizer = chat_tokenizer(smollm2)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        form.fix(tokenizer)
    assert tokenizer.chat_template == template


def test_agents_keep_their_chat_form(smollm2: str, tmp_path: Path):
    folder = tiny_chat_folder(tmp_path / "model", smollm2)
    config = AgentsConfig([BaseLMConfig(pretrained=folder)], 2, system_prompt="Be brief.")
    agents = build_agents(config)
    agents.save_pretrained(tmp_path / "agents")
    system = {"role": "system", "content": "Be brief."}
    expected = encode_prompts(chat_tokenizer(smollm2), [[system, *ASKED]])
    for kept in (agents, Agents.load(tmp_path / "agents")):
        assert encode_prompts(kept[1].tokenizer, [ASKED]) == expected
