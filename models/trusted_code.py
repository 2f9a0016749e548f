"""Which code a file from elsewhere may name: Triptych's own, and modules that the user trusts."""

import os
from collections.abc import Collection

TRUSTED_MODULES = "TRIPTYCH_TRUSTED_MODULES"


def refuse_foreign_code(
    class_path: str,
    what: str,
    own_package: str,
    trusted_modules: Collection[str] = (),
    remedy: str = "",
) -> None:
    """Refuse a class from an untrusted module outside of Triptych, before its import.

    A model's folder may come from anybody, and importing a module runs its code.

    Args:
        class_path: Read from a file.
        what: What it names, for the message.
        own_package: Package of Triptych that the class may come from.
        trusted_modules: Modules and packages, added to those in the environment variable
            `TRIPTYCH_TRUSTED_MODULES` (separated by commas).
        remedy: Another remedy than the variable, for the message.

    Raises:
        ValueError: if the class is foreign.
    """
    module = class_path.rpartition(".")[0]
    named = [name.strip() for name in os.environ.get(TRUSTED_MODULES, "").split(",")]
    for trusted in (own_package, *trusted_modules, *filter(None, named)):
        if f"{module}.".startswith(f"{trusted}."):
            return
    raise ValueError(
        f"{what} {class_path} is not part of Triptych, and loading it would run the code of the "
        f"module {module!r}. If you trust that module, set the environment variable "
        f"{TRUSTED_MODULES}={module} (several: separated by commas){remedy}"
    )
