"""Builds and loads the shared library that makes torch believe in a CUDA device (guard.cpp)."""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


class GuardUnavailableError(RuntimeError):
    """The library cannot be built on this machine."""


def torch_folder() -> Path:
    """Where torch is installed, without importing it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def build(folder: Path) -> Path:
    """Compile the library, unless this very one lies in the folder; a few seconds.

    Raises:
        GuardUnavailableError: without g++ or torch's headers, or with a CUDA build of torch.
        RuntimeError: if g++ refuses the source, as with another version of torch's interface.
    """
    version = importlib.metadata.version("torch")
    digest = hashlib.sha256(SOURCE.read_bytes() + version.encode()).hexdigest()[:12]
    library = folder / f"guard-{digest}.so"
    if library.is_file():
        return library
    torch = torch_folder()
    if shutil.which("g++") is None:
        raise GuardUnavailableError("there is no g++ to build tests/pretended_gpu/guard.cpp")
    if not (torch / "include" / "c10" / "core" / "impl").is_dir():
        raise GuardUnavailableError(f"torch has no headers in {torch / 'include'}")
    if not sys.platform.startswith("linux"):
        raise GuardUnavailableError(f"the device was never pretended on {sys.platform}")
    if any((torch / "lib").glob("libtorch_cuda*")):
        raise GuardUnavailableError("this torch has the real CUDA library: use a build for the CPU")
    folder.mkdir(parents=True, exist_ok=True)
    partial = library.with_suffix(f".{os.getpid()}.partial")
    command = ["g++", "-O0", "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(partial)]
    command += [f"-I{torch / 'include'}", f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    built = subprocess.run(
        [*command, f"-Wl,-rpath,{torch / 'lib'}"], capture_output=True, text=True, check=False
    )
    if built.returncode != 0:
        raise RuntimeError(f"g++ does not build guard.cpp:\n{built.stderr[:4000]}")
    partial.rename(library)  # atomic: another worker may build the same
    return library


def load(library: Path) -> None:
    """Load the library into this process, before anything imports torch."""
    assert "torch" not in sys.modules, "load the guard before torch: torch counts devices once"
    ctypes.CDLL(str(library))
