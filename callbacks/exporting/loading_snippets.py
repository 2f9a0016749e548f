"""Python that loads an exported folder and uses it, for its model card."""

from transformers import PreTrainedTokenizerBase

from triptych.callbacks.exporting.asking_form import TRAINING_TEMPLATE
from triptych.callbacks.exporting.export_kind import ExportKind

EXAMPLE_QUESTION = "What is the capital of France?"

_LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
"""
_ASK = """\
messages = [{{"role": "user", "content": "{question}"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{named}
)
"""
_CONTINUE = """\
inputs = tokenizer(tokenizer.bos_token + "The capital of France", return_tensors="pt")
"""
_GENERATE = """\
output = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(output, skip_special_tokens=True))
"""
_OTHERS = {
    "molecules": """\
from triptych.models.diversify.molecules.smiles_policy import load_molecule_policy

policy = load_molecule_policy("{name}")
start = {{"prompt_ids": [policy.tokenizer.bos_token_id], "prompt": ""}}
print(policy.sample([start], num_samples=10).texts)
""",
    "agents": """\
from triptych.models.commune.agents import Agents

agents = Agents.load("{name}")
print(agents.names)
""",
    "thoughts": """\
from triptych.models.commune.thought_system import ThoughtSystem

system = ThoughtSystem.load("{name}")
print(system.agents.names, system.relevant_KZ)
""",
}


def loading_snippet(
    kind: ExportKind, name: str, tokenizer: PreTrainedTokenizerBase | None, has_memory: bool
) -> str:
    """Write the lines.

    Args:
        kind: What the folder holds.
        name: The folder, or its name on the hub.
        tokenizer: The exported tokenizer; None: the folder has none.
        has_memory: Whether the model has memory layers, which `import triptych` registers.
    """
    if kind in _OTHERS:
        return _OTHERS[kind].format(name=name)
    lines = (
        "import triptych  # registers models with memory layers\n" if has_memory else ""
    ) + _LOAD
    template = tokenizer.chat_template if tokenizer is not None else None
    if tokenizer is None:
        lines = lines.replace(", AutoTokenizer", "").partition("tokenizer = ")[0]
    elif template is not None:
        named = isinstance(template, dict) and TRAINING_TEMPLATE in template
        argument = f',\n    chat_template="{TRAINING_TEMPLATE}",' if named else ""
        lines += _ASK.replace("{named}", argument) + _GENERATE
    else:
        lines += _CONTINUE + _GENERATE
    return lines.format(name=name, question=EXAMPLE_QUESTION)
