"""Config classes of memory models, made for each transformers family.

A class adds a `model_type` (`memory-llama`, ...). Loaders that do not know it fail, whereas a plain
AutoModel would drop the memory with only a warning. Importing this module registers `FAMILIES` with
`AutoConfig`, and `import triptych` imports it together with transformers. A saved model also brings
`MODELING_FILE` with its classes, for programs that never import Triptych: they load the model with
`trust_remote_code=True`.
"""

from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

MODEL_TYPE_PREFIX = "memory-"
MODELING_FILE = "modeling_triptych.py"
#: Families that `AutoConfig` and `AutoModelForCausalLM` know after `import triptych`.
FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "gpt2", "gemma", "gemma2", "gemma3_text"),
    *("phi3", "olmo2", "smollm3", "gpt_neox", "granite", "stablelm"),
)
#: Families whose models take a memory, and are saved and loaded again. The tests hold these;
#: other families are checked when memory is put in.
DENSE_FAMILIES = (
    *FAMILIES,
    *("qwen3_5_text", "gemma4_text", "gpt_neo", "gptj", "phi", "starcoder2", "cohere", "ernie4_5"),
    *("exaone4", "glm4", "nemotron", "internlm3", "seed_oss", "hunyuan_v1_dense"),
)
MIXTURE_FAMILIES = ("mixtral", "qwen3_moe", "qwen3_next")
_AUTO_MAP = {
    "AutoConfig": "modeling_triptych.MemoryConfig",
    "AutoModelForCausalLM": "modeling_triptych.MemoryModel",
}
# transformers reads the imports of this file, and asks for `pip install triptych` without it.
_MODELING_CODE = '''\
"""The classes of this model. Its memory layers are those of Triptych: pip install triptych."""

from triptych.models.host.checked_folder import read_settings
from triptych.models.remember.memory_family import memory_model_class_of

MemoryModel = memory_model_class_of("{model_type}")
MemoryConfig = MemoryModel.config_class
'''

_config_classes: dict[Any, Any] = {}


def memory_config_class(family: Any) -> Any:
    """Return the family's config class with a new `model_type` and the memory's settings."""
    if family not in _config_classes:
        model_type = MODEL_TYPE_PREFIX + str(family.model_type)

        def init(self: Any, memory: dict[str, Any] | None = None, **settings: Any) -> None:
            _register_model(model_type)
            family.__init__(self, **settings)
            self.memory = memory
            self.auto_map = dict(_AUTO_MAP)

        def save_pretrained(self: Any, save_directory: Any, **options: Any) -> Any:
            saved = family.save_pretrained(self, save_directory, **options)
            code = _MODELING_CODE.format(model_type=model_type)
            (Path(save_directory) / MODELING_FILE).write_text(code)
            return saved

        namespace = {
            "model_type": model_type,
            "__init__": init,
            "__module__": __name__,
            "__reduce__": lambda self: (_empty_config, (family,), self.__dict__),
            "save_pretrained": save_pretrained,
            "register_for_auto_class": classmethod(lambda *_, **__: None),  # it is, by `_AUTO_MAP`
        }
        made = type(f"Memory{family.__name__}", (family,), namespace)
        AutoConfig.register(model_type, made)
        _config_classes[family] = made
    return _config_classes[family]


def register_family_of(folder: str | Path) -> None:
    """Register the family of an exported memory model, for loaders that read its config.

    `AutoTokenizer` does: of a `model_type` that it does not know, it warns that the tokenizer may
    not work.

    Args:
        folder: Any model's folder, or a name on the hub, of which nothing is read.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        return
    from triptych.models.host.checked_folder import read_settings

    model_type = str(read_settings(file).get("model_type"))
    family = model_type.removeprefix(MODEL_TYPE_PREFIX)
    if family != model_type and family in CONFIG_MAPPING:
        memory_config_class(CONFIG_MAPPING[family])


def _register_model(model_type: str) -> None:
    """Register the model class of a config that is in use; this imports torch."""
    from triptych.models.remember.memory_family import memory_model_class_of

    memory_model_class_of(model_type)


def _empty_config(family: Any) -> Any:
    """Create the object that unpickling fills; the class cannot be imported by its name."""
    made = memory_config_class(family)
    return made.__new__(made)


for _family in FAMILIES:
    if _family in CONFIG_MAPPING:  # the installed transformers may be older
        memory_config_class(CONFIG_MAPPING[_family])
