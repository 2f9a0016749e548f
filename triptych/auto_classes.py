"""Models with memory layers for transformers' Auto classes, registered by `import triptych`.

Importing Triptych imports neither torch nor transformers. If transformers is imported already, the
models are registered at once, and otherwise as soon as it is.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def register_with_transformers() -> None:
    """Register now, or when transformers' `AutoConfig` is imported."""
    if _AUTO_CONFIG in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterAutoConfig())


def _register() -> None:
    from triptych.models.remember.memory_config_family import register_families

    register_families()


class _AfterAutoConfig(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports `AutoConfig` as usual, and then registers; it acts once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _AUTO_CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        self._usual = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._usual
        self._usual.exec_module(module)
        _register()
