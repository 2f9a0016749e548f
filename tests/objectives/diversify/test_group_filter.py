"""Groups of equal rewards, and completions near the length limit."""

import math

import pytest
import torch

from triptych.objectives.diversify.group_filter import GroupFilter, in_equal_group
from triptych.objectives.diversify.overlong import Overlong

NAN = math.nan


def test_equal_groups_by_hand():
    reward = torch.tensor([1.0, 0.0, 0.3, NAN, 0.3, NAN, 0.5, 1.0, 1.0 + 1e-9])
    group = torch.tensor([4, 4, 0, 0, 0, 7, 2, 3, 3])
    # 4: two rewards; 0: equal where scored; 7: none scored; 2: alone; 3: equal but for rounding
    expected = [False, False, *[True] * 7]
    assert in_equal_group(reward, group).tolist() == expected
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = in_equal_group(reward[order], group[order])
    assert shuffled.tolist() == [expected[i] for i in order.tolist()]


def test_the_soft_penalty_is_that_of_dapo():
    """Equation 13 with L_max = 20480 and L_cache = 4096, the paper's."""
    lengths = torch.tensor([0, 16384, 17408, 18432, 20480, 30000])
    found = Overlong(buffer=4096).addition(lengths, 20480)
    assert found.tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert Overlong(buffer=4096, penalty=0.2).addition(lengths, 20480)[4] == pytest.approx(-0.2)
    assert not Overlong(mask_unfinished=True).addition(lengths, 20480).any()


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: GroupFilter("resample", 0), "most_tries"),
        (Overlong, "overlong does nothing"),
        (lambda: Overlong(buffer=0), "buffer is 0"),
        (lambda: Overlong(buffer=4, penalty=-1.0), "penalty"),
    ],
)
def test_mistakes_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()
