"""The process with the pretended GPU, started once for all tests of a pytest worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pretended_gpu.client import PretendedGPU
from tests.pretended_gpu.guard import GuardUnavailableError, build
from triptych import ROOT


@pytest.fixture(scope="session")
def guard_library() -> Path:
    try:
        return build(ROOT / ".cache" / "pretended_gpu")
    except GuardUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def gpu(guard_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PretendedGPU]:
    process = PretendedGPU(guard_library, tmp_path_factory.mktemp("pretended_gpu"))
    yield process
    process.close()
