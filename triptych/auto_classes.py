"""Models with memory layers for transformers' Auto classes, registered by `import triptych`.

Importing Triptych imports neither torch nor transformers. If transformers' `AutoConfig` is imported
already, the models are registered at once, and otherwise as soon as it is.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_CONFIGS = "transformers.models.auto.configuration_auto"
# It imports the module above, and configs of families can only be imported when it is complete.
_MODELS = "transformers.models.auto.modeling_auto"


def register_with_transformers() -> None:
    """Register now, or when transformers' Auto classes are imported."""
    if _CONFIGS in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterAutoClasses())


def _register() -> None:
    # It may be what imports transformers just now, and then registers when it is complete.
    importlib.import_module("triptych.models.remember.memory_config_family")


class _AfterAutoClasses(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports transformers' Auto classes as usual, and then registers, once."""

    def __init__(self) -> None:
        self._asking_others = False
        self._usual: dict[str, importlib.abc.Loader] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in (_CONFIGS, _MODELS) or self._asking_others:
            return None
        self._asking_others = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking_others = False
        if spec is None or spec.loader is None:
            return None
        self._usual[name] = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._usual[spec.name].create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        usual = self._usual[module.__name__]
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = usual
        usual.exec_module(module)
        if module.__name__ == _MODELS or _MODELS not in sys.modules:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()
