"""Settings that a tokenizer's chat template always has: its own variables, and a system prompt.

    ChatForm(template_args={"enable_thinking": False}).fix(tokenizer)

The settings become the first lines of the template itself. Whoever writes a conversation with this
tokenizer then writes the same one: data, agents, exports, and other programs that load the export.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

_ASKED = [{"role": "user", "content": "x"}]
# The tag with which transformers marks what an assistant wrote; Jinja does not know it.
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


@dataclass(frozen=True)
class ChatForm:
    """Variables of the chat template, and a system prompt for conversations without one.

    Args:
        template_args: Values of the template's own variables, such as `enable_thinking: false` for
            Qwen3.
        system_prompt: Content of a system message before every conversation that has none. None:
            what the template itself does.
    """

    template_args: dict[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None

    def __bool__(self) -> bool:
        """Return whether anything is set."""
        return bool(self.template_args) or self.system_prompt is not None

    def fix(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the settings into the tokenizer's chat templates, in place.

        Arguments of a later `apply_chat_template` take precedence over `template_args`.

        Args:
            tokenizer: The tokenizer of a chat model.

        Raises:
            ValueError: if there is no chat template, it does not read one of the variables or has
                no place for a system message, or the system prompt spells a special token.
        """
        if not self:
            return
        own = tokenizer.chat_template
        if own is None:
            raise ValueError(
                "template_args and system_prompt change a chat template, but the tokenizer has "
                "none: leave them out, or write a system message into the rows"
            )
        templates = {"default": own} if isinstance(own, str) else dict(own)
        self._refuse_unread(templates.get("default", ""))
        self._refuse_marks(tokenizer)
        start = "".join(_default(name, value) for name, value in self.template_args.items())
        if self.system_prompt is not None:
            start += _system_message(self.system_prompt)
        start += "{{- '' }}"  # else Jinja drops a newline with which the template begins
        changed = {name: start + text for name, text in templates.items()}
        tokenizer.chat_template = changed["default"] if isinstance(own, str) else changed
        if self.system_prompt is not None:
            try:
                self._refuse_unheard(tokenizer, self.system_prompt)
            except ValueError:
                tokenizer.chat_template = own
                raise

    def _refuse_unread(self, template: str) -> None:
        from jinja2 import Environment, meta

        syntax = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
        read = meta.find_undeclared_variables(syntax.parse(_GENERATION.sub("", template)))
        unread = sorted(set(self.template_args) - read)
        if unread:
            given = {"messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token"}
            known = ", ".join(sorted(read - given - {"raise_exception", "strftime_now"})) or "none"
            raise ValueError(
                f"template_args {', '.join(unread)}: the tokenizer's chat template does not read "
                f"this; its variables are {known}"
            )

    def _refuse_marks(self, tokenizer: PreTrainedTokenizerBase) -> None:
        marks = [token for token in tokenizer.all_special_tokens if token]
        spelled = [mark for mark in marks if mark in (self.system_prompt or "")]
        if spelled:
            raise ValueError(
                f"system_prompt spells the special token {spelled[0]}: leave it out, the chat "
                "template writes its own marks"
            )

    @staticmethod
    def _refuse_unheard(tokenizer: PreTrainedTokenizerBase, system_prompt: str) -> None:
        try:
            text: Any = tokenizer.apply_chat_template(
                _ASKED, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise errors of any type
            raise ValueError(
                f"the tokenizer's chat template refuses a system message ({error}): leave "
                "system_prompt out, and write it into the prompts"
            ) from error
        if system_prompt.strip() not in text:
            raise ValueError(
                "the tokenizer's chat template leaves system messages out: leave system_prompt "
                "out, and write it into the prompts"
            )


def _default(name: str, value: Any) -> str:
    return f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"


def _system_message(content: str) -> str:
    message = _literal({"role": "system", "content": content})
    return (
        "{%- if not messages or messages[0]['role'] != 'system' %}"
        f"{{%- set messages = [{message}] + messages %}}"
        "{%- endif %}"
    )


def _literal(value: Any) -> str:
    r"""Write a value in the language of templates.

    >>> _literal({"a": [True, None, 'say "x"']})
    '{"a": [true, none, "say \\"x\\""]}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    # Jinja reads the escapes of JSON, but not its pairs of surrogates.
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
