"""Files and folders that are either complete or absent; see `triptych.models.host.atomic_file`."""

from triptych.models.host.atomic_file import atomic_file, atomic_folder, recover_folder

__all__ = ["atomic_file", "atomic_folder", "recover_folder"]
