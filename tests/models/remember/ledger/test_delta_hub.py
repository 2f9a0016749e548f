"""Slot deltas in folders and on a stand-in for the hub: pushed, fetched, applied, refused."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from tests.hub_stand_in import Hub, running_hub
from tests.lit_modules.remember.tiny_export import export_tiny_model
from triptych.cli import main
from triptych.models.remember.ledger import delta_hub
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.slot_deltas import SlotDelta, diff
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_lm import load_memory_lm


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with running_hub() as (kept, address):
        monkeypatch.setattr(delta_hub, "HfApi", lambda: HfApi(endpoint=address, token="hf_test"))
        yield kept


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return export_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def delta(base) -> SlotDelta:
    """Two rows that learned a fact."""
    model, taught = load_memory_lm(base), load_memory_lm(base)
    (table,) = value_tables(taught)
    table.weight.data[[3, 7]] += 1.0
    made = diff(model, taught, "by hand")
    return SlotDelta(made.tables, made.base, ("capital-of-peru",), made.label)


def values(model) -> torch.Tensor:
    (table,) = value_tables(model)
    return table.weight.detach().clone()


def test_a_delta_goes_over_the_hub_to_another_copy_of_its_model(hub, base, delta, tmp_path):
    address = delta.push_to_hub("me/facts", private=True)
    assert address.endswith("/me/facts/commit/1234")
    assert set(hub.files) == {"slot_delta.safetensors", "README.md"}
    ((_, created),) = hub.requests
    assert created["visibility"] == "private"
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.tags == ["triptych", "memory-layers", "slot-delta"]
    assert "capital-of-peru" in card.text
    assert delta.base.around in card.text

    fetched = SlotDelta.from_pretrained("me/facts")
    assert fetched.facts == ("capital-of-peru",)
    model = load_memory_lm(base)
    before = values(model)
    fetched.apply(model)
    changed = (values(model) != before).any(1).nonzero().flatten()
    assert changed.tolist() == [3, 7]

    out = tmp_path / "with_facts"
    main(["ledger", "apply", "me/facts", "--model", str(base), "--out", str(out)])
    assert torch.equal(values(load_memory_lm(out)), values(model))
    fetched.revert(model)
    assert torch.equal(values(model), before)


def test_another_base_is_refused(hub, delta, tmp_path):
    delta.push_to_hub("me/facts")
    other = load_memory_lm(export_tiny_model(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="the delta of capital-of-peru was made on another base"):
        SlotDelta.from_pretrained("me/facts").apply(other)


def test_what_the_hub_lacks_is_said(hub, delta):
    with pytest.raises(ValueError, match=r"the hub gives no slot_delta\.safetensors of this name"):
        SlotDelta.from_pretrained("me/nothing")
    delta.push_to_hub("me/facts")
    with pytest.raises(ValueError, match=r"gives no entry_000003\.safetensors"):
        SlotDelta.from_pretrained("me/facts", "entry_000003.safetensors")
    hub.files["slot_delta.safetensors"] = hub.files["slot_delta.safetensors"][:-3]
    with pytest.raises(ValueError, match=r"cut short|damaged"):
        SlotDelta.from_pretrained("me/facts", revision="cut")


def test_a_delta_is_found_in_folders(delta, tmp_path):
    delta.save_pretrained(tmp_path / "own")
    assert SlotDelta.from_pretrained(tmp_path / "own").facts == delta.facts
    Ledger([delta]).save(tmp_path / "one")
    assert SlotDelta.from_pretrained(tmp_path / "one").num_rows == 2
    Ledger([delta, SlotDelta(delta.inverse().tables, delta.base)]).save(tmp_path / "two")
    with pytest.raises(ValueError, match=r"has 2 entries: name one by file='entry_000000\."):
        SlotDelta.from_pretrained(tmp_path / "two")
    second = SlotDelta.from_pretrained(tmp_path / "two", "entry_000001.safetensors")
    assert second.facts == ()
    with pytest.raises(FileNotFoundError, match="there is no slot delta"):
        SlotDelta.from_pretrained(tmp_path)
