"""Model classes of memory models, made for each transformers family.

A class is a subclass of the family's class, and inherits training, `generate` and
`save_pretrained`. `memory_config_family` has the config classes.
"""

from collections.abc import Collection
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from triptych.models.host.checked_folder import refresh_checksums
from triptych.models.remember.memory_blocks import add_memory
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_config_family import MODEL_TYPE_PREFIX, memory_config_class
from triptych.models.trusted_code import refuse_foreign_code

_model_classes: dict[Any, Any] = {}


def memory_model_class(family: Any) -> Any:
    """Return the family's causal LM class that also builds memory layers from its config."""
    if family not in _model_classes:
        config_class = memory_config_class(family.config_class)

        def init(self: Any, config: Any, trusted_modules: Collection[str] = ()) -> None:
            family.__init__(self, config)
            if config.memory is not None:
                memory = MemoryConfig(**config.memory)
                refuse_foreign_index(memory, trusted_modules)  # the config may come from a file
                add_memory(self, memory)

        def save_pretrained(self: Any, save_directory: Any, *args: Any, **options: Any) -> None:
            family.save_pretrained(self, save_directory, *args, **options)
            refresh_checksums(save_directory)

        namespace = {
            "save_pretrained": save_pretrained,
            "config_class": config_class,
            "__init__": init,
            "__module__": __name__,
            "__reduce__": lambda self: (_empty_model, (family,), self.__dict__),
            "register_for_auto_class": classmethod(lambda *_, **__: None),  # the config names it
        }
        made = type(f"Memory{family.__name__}", (family,), namespace)
        AutoModelForCausalLM.register(config_class, made)
        _convert_files_alike(family, made)
        _model_classes[family] = made
    return _model_classes[family]


def _convert_files_alike(family: Any, made: Any) -> None:
    """Read and write a memory class's files as its family's: mixtures keep experts one by one.

    transformers looks conversions of weights up by the names of class and `model_type`.
    """
    names = {
        family.__name__: made.__name__,
        family.config_class.model_type: made.config_class.model_type,
    }
    for name, memory_name in names.items():
        mapping = get_checkpoint_conversion_mapping(name)
        if mapping is not None:
            register_checkpoint_conversion_mapping(memory_name, mapping, overwrite=True)


def _empty_model(family: Any) -> Any:
    """Create the object that unpickling fills; see `memory_config_family._empty_config`."""
    made = memory_model_class(family)
    return made.__new__(made)


def memory_model_class_of(model_type: str) -> Any:
    """Return the memory class for a `memory-...` model_type read from a file.

    Raises:
        ValueError: if the family is unknown to the installed transformers.
    """
    family = type(AutoConfig.for_model(model_type.removeprefix(MODEL_TYPE_PREFIX)))
    return memory_model_class(AutoModelForCausalLM._model_mapping[family])


def refuse_foreign_index(memory: MemoryConfig, trusted_modules: Collection[str]) -> None:
    """Refuse an index from an untrusted module outside of Triptych, before its import.

    A model's folder may come from anybody, and importing a module runs its code.

    Args:
        memory: Read from a file.
        trusted_modules: Modules and packages, added to those in the environment variable
            `TRIPTYCH_TRUSTED_MODULES` (separated by commas).

    Raises:
        ValueError: if the index is foreign.
    """
    module = memory.index.rpartition(".")[0]
    refuse_foreign_code(
        memory.index,
        "the model's slot index",
        "triptych.models",
        trusted_modules,
        f", or call load_memory_lm(..., trusted_modules=[{module!r}])",
    )


def become_memory_model(model: PreTrainedModel, memory: MemoryConfig) -> None:
    """Change a plain model into its family's memory model, in place, and add the memory."""
    settings = model.config.to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        settings.pop(name, None)
    family = type(model)
    attention = model.config._attn_implementation
    config_class = memory_config_class(type(model.config))
    plain, model.config = model.config, config_class(memory=memory.to_dict(), **settings)
    model.config._attn_implementation = attention
    for module in model.modules():  # as after loading, where all parts share the config
        if getattr(module, "config", None) is plain:
            vars(module)["config"] = model.config
    model.__class__ = memory_model_class(family)
    add_memory(model, memory)
