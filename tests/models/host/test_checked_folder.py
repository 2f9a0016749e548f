"""Damaged exports are refused by the file's name; edited cards and older exports are not."""

import json
import random
import shutil
import subprocess

import pytest
import torch

from tests.models.diversify.molecules.tiny_molecules import tiny_rnn
from triptych.models.adapter_folder import load_causal_lm
from triptych.models.base_lm import BaseLMConfig
from triptych.models.diversify.molecules.smiles_rnn import load_smiles_rnn
from triptych.models.host.checked_folder import (
    SUMS_FILE,
    check_folder,
    read_settings,
    refresh_checksums,
    write_checksums,
)
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm
from triptych.models.tensor_file import load_tensors, save_tensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Exports of a memory model and of a prior."""
    folder = tmp_path_factory.mktemp("exports")
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=32)
    memory = MemoryConfig(layers=[1], num_keys=4, num_heads=1, top_k=2, key_dim=8)
    build_memory_lm(base, memory, vocab_size=20).save_pretrained(folder / "memory")
    tiny_rnn().save_pretrained(folder / "prior")
    (folder / "memory" / "README.md").write_text("a card")
    for name in ("memory", "prior"):
        write_checksums(folder / name)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


LOADERS = {"memory": load_memory_lm, "prior": load_smiles_rnn}
SETTINGS = {"memory": "config.json", "prior": "smiles_rnn.json"}


@pytest.mark.parametrize("name", LOADERS)
def test_a_model_that_is_saved_again_loads(copy, name):
    folder = copy / name
    card = copy / name / "README.md"
    lines = (folder / SUMS_FILE).read_text().splitlines()
    model = LOADERS[name](folder)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model.save_pretrained(folder)
    again = LOADERS[name](folder)
    assert torch.equal(next(again.parameters()), next(model.parameters()))
    changed = (folder / SUMS_FILE).read_text().splitlines()
    assert {line[66:] for line in changed} >= {line[66:] for line in lines}
    assert not card.exists() or any(line.endswith("README.md") for line in changed)


def test_files_beside_a_saved_folder_keep_their_sums(tmp_path):
    for name in ("agents.json", "model_0/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    write_checksums(tmp_path)
    for name in ("agents.json", "model_0/config.json"):
        (tmp_path / name).write_text('{"changed": 1}')
    refresh_checksums(tmp_path / "model_0")
    check_folder(tmp_path / "model_0")
    with pytest.raises(ValueError, match=r"agents\.json is damaged"):
        check_folder(tmp_path)


@pytest.mark.parametrize("name", LOADERS)
def test_every_flipped_bit_in_the_weights_is_found(copy, name):
    path = copy / name / "model.safetensors"
    content = path.read_bytes()
    LOADERS[name](copy / name)
    chosen = random.Random(8)
    for _ in range(40):
        changed = bytearray(content)
        changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged: it differs from"):
            LOADERS[name](copy / name)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        LOADERS[name](copy / name)
    path.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing, which .*SHA256SUMS"):
        LOADERS[name](copy / name)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("text", ["{}", "[]", "null", "{", "[" * 100_000, '{"model_type": 3}'])
def test_settings_without_a_checksum_are_one_sentence_that_names_them(copy, name, text):
    (copy / name / "SHA256SUMS").unlink()  # as in an older export, or after an edit
    (copy / name / SETTINGS[name]).write_text(text)
    with pytest.raises(ValueError, match=str(copy / name)):
        LOADERS[name](copy / name)


@pytest.mark.parametrize("load", [load_memory_lm, lambda folder: load_causal_lm(str(folder))])
def test_weights_cut_short_without_a_checksum_are_one_sentence(copy, load):
    folder = copy / "memory"
    (folder / "SHA256SUMS").unlink()
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-50])
    with pytest.raises(ValueError, match=rf"{folder} cannot be loaded \(SafetensorError"):
        load(folder)


def test_cards_and_added_files_may_change(copy):
    (copy / "memory" / "README.md").write_text("another card")
    (copy / "memory" / "added.json").write_text("{}")
    check_folder(copy / "memory")
    check_folder(copy)  # has no checksums


def test_files_of_an_agent_are_found_in_the_folder_above(tmp_path):
    (tmp_path / "agent_0").mkdir()
    path = tmp_path / "agent_0" / "model.safetensors"
    path.write_bytes(b"weights")
    write_checksums(tmp_path)
    check_folder(tmp_path / "agent_0")
    path.write_bytes(b"weightz")
    with pytest.raises(ValueError, match=r"agent_0/model\.safetensors is damaged"):
        check_folder(tmp_path / "agent_0")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_other_programs_read_the_checksums(whole):
    command = ["sha256sum", "-c", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=whole / "memory", check=False).returncode == 0


def test_the_description_of_tensors_has_a_checksum_too(tmp_path):
    path = tmp_path / "entry.safetensors"
    save_tensors(path, {"a": torch.arange(4.0)}, {"facts": ["author/The Little Prince"]})
    content = path.read_bytes()
    assert load_tensors(path)[1] == {"facts": ["author/The Little Prince"]}
    taken = []
    for place in range(8, len(content) - 16):
        for bit in (0, 2, 5):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            try:
                tensors, description = load_tensors(path)
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017
                continue
            taken.append((place, tensors, description))
    # Blanks at the end of the head, at most: the content is the same.
    assert all(torch.equal(t["a"], torch.arange(4.0)) for _, t, _ in taken)
    assert all(d == {"facts": ["author/The Little Prince"]} for *_, d in taken)


def test_files_without_a_checksum_of_the_description_are_read(tmp_path):
    from safetensors.torch import save_file

    from triptych.models.tensor_file import _checksum

    tensors = {"a": torch.ones(2)}
    old = json.dumps({"description": {"x": 1}, "sha256": _checksum(tensors)})
    save_file(tensors, tmp_path / "old.safetensors", metadata={"description": old})
    assert load_tensors(tmp_path / "old.safetensors")[1] == {"x": 1}


def test_a_key_of_settings_is_named(tmp_path):
    (tmp_path / "agents.json").write_text('{"models": 3}')
    with pytest.raises(ValueError, match=r"agents\.json has another kind of value for 'models'"):
        read_settings(tmp_path / "agents.json", models=list)
    with pytest.raises(ValueError, match=r"agents\.json has no 'names'"):
        read_settings(tmp_path / "agents.json", names=list)
