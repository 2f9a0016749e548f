"""What has had no effect for many steps in a row is told, once."""

import pytest

from triptych.objectives.diversify.step_diagnosis import StepDiagnosis


def told(diagnosis: StepDiagnosis, *step, times: int = 1) -> list[str]:
    return [str(found) for _ in range(times) for found in diagnosis.after_step(*step)]


def test_rewards_that_are_alike_for_long():
    diagnosis = StepDiagnosis(has_mara=False, steps_alike=3)
    assert told(diagnosis, 1.0, 0, 0.0, times=2) == []
    assert told(diagnosis, 0.5, 0, 0.0) == []  # one prompt told its completions apart
    assert told(diagnosis, None, 0, 0.0) == []
    assert told(diagnosis, 1.0, 0, 0.0, times=2) == []
    (found,) = told(diagnosis, 1.0, 0, 0.0, times=9)
    assert found.startswith("warning: For 3 steps in a row all completions of each prompt")


def test_maras_shift_tells_equal_rewards_apart():
    diagnosis = StepDiagnosis(has_mara=True, steps_alike=3)
    assert told(diagnosis, 1.0, 16, 0.4, times=9) == []


def test_mara_with_nothing_to_do():
    diagnosis = StepDiagnosis(has_mara=True)
    assert told(diagnosis, 0.5, 16, 2.0, times=9) == []
    assert told(diagnosis, 0.5, 16, 1e-6, times=4) == []
    (found,) = told(diagnosis, 1.0, 16, 0.0, times=9)
    assert "MARA has had nothing to do for 5 steps in a row" in found
    assert "a smaller learning rate, a larger beta" in found
    assert told(StepDiagnosis(has_mara=True), 0.5, 1, 0.0, times=9) == []  # its own anchor
    assert told(StepDiagnosis(has_mara=False), 0.5, 16, 0.0, times=9) == []


@pytest.mark.parametrize("before", [2, 6])
def test_a_resumed_training_counts_on(before):
    first = StepDiagnosis(has_mara=True)
    said = told(first, 0.5, 8, 0.0, times=before)
    resumed = StepDiagnosis(has_mara=True)
    resumed.load_state_dict(first.state_dict())
    assert len(said + told(resumed, 0.5, 8, 0.0, times=6)) == 1
