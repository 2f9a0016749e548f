"""Huge pages: advice that changes no value, and is taken where the system has them."""

import re
import sys
from pathlib import Path

import pytest
import torch

from triptych.models.remember.values.huge_pages import prefer_huge_pages

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGE = 2 << 20


def advised_ranges() -> list[tuple[int, int]]:
    """Memory of this process that is marked for huge pages, as the kernel tells it."""
    ranges, found = [], (0, 0)
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            found = (int(match[1], 16), int(match[2], 16))
        elif line.startswith("VmFlags:") and "hg" in line.split():
            ranges.append(found)
    return ranges


@pytest.mark.skipif(not SWITCH.exists(), reason="the system has no transparent huge pages")
def test_whole_huge_pages_within_the_tensor_are_advised():
    table = torch.empty(5 * HUGE_PAGE // 4)
    table.normal_()
    before = table.clone()
    assert prefer_huge_pages(table)
    start = -(-table.data_ptr() // HUGE_PAGE) * HUGE_PAGE
    end = (table.data_ptr() + 4 * table.numel()) // HUGE_PAGE * HUGE_PAGE
    assert end - start >= 4 * HUGE_PAGE
    assert any(first <= start and end <= last for first, last in advised_ranges())
    assert torch.equal(table, before)


def test_what_cannot_lie_in_huge_pages_is_left_alone():
    assert not prefer_huge_pages(torch.zeros(1000))
    assert not prefer_huge_pages(torch.zeros(0))
    assert not prefer_huge_pages(torch.empty(HUGE_PAGE, device="meta"))


@pytest.mark.skipif(sys.platform != "linux", reason="the other systems are not asked")
def test_other_systems_are_not_asked(monkeypatch):
    from triptych.models import huge_pages

    monkeypatch.setattr(huge_pages.sys, "platform", "darwin")
    huge_pages._advise.cache_clear()
    try:
        assert not prefer_huge_pages(torch.empty(4 * HUGE_PAGE))
    finally:
        huge_pages._advise.cache_clear()
