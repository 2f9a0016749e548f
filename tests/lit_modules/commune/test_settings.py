"""Settings that are wrong are refused before anything trains."""

import pytest

from triptych.lit_modules.commune.thought_autoencoder import StructureConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, "structure.threshold is 1.5"),
        ({"threshold": -0.1}, "from 0 to below 1"),
        ({"num_samples": 0}, "structure.num_samples is 0"),
        ({"num_bootstraps": -1}, "structure.num_bootstraps is -1"),
    ],
)
def test_a_structure_that_cannot_be_read_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StructureConfig(**settings)
