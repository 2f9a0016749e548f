"""Molecules for a prior: reading, filters, splits, spellings, batches, resuming."""

import gzip
import itertools
import warnings

import numpy as np
import pyarrow.parquet
import pytest
from rdkit import Chem

from triptych.datamodules.batches.bucketed_stream import BucketedStream
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.diversify.molecules import smiles_filters
from triptych.datamodules.diversify.molecules.smiles import Smiles, SmilesConfig
from triptych.datamodules.diversify.molecules.smiles_filters import (
    SmilesFilters,
    prepare,
    prepare_all,
)
from triptych.datamodules.diversify.molecules.smiles_splits import SmilesSplit, split_molecules
from triptych.datamodules.diversify.molecules.smiles_tokenizer import atomwise_tokenizer
from triptych.datamodules.diversify.molecules.smiles_tokens import split_smiles, vocabulary_of
from triptych.datamodules.embedded.molecules import drugs, grow_molecules
from triptych.datamodules.sources.records import RecordSource

FEW = ["OCC", "c1ccccc1Cl", "CCN", "CC(C)C", "CCCCBr", "C1CCCCC1", "CCOC", "CC#N"]
CANONICAL = [Chem.CanonSmiles(text) for text in FEW]
HALVES = SmilesSplit(validation_share=0.25)


def data(path, context_length=32, batch_size=2, **config):
    settings = {"split": HALVES, **config}
    source = RecordSource(str(path), **settings.pop("source", {}))
    config = SmilesConfig(source, **settings)
    return Smiles(config, context_length=context_length, batch_size=batch_size)


@pytest.fixture
def smi(tmp_path):
    def write(lines, name="few.smi"):
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def read(loader, count):
    return list(itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), count))


@pytest.mark.parametrize("kind", [".smi", ".txt", ".csv", ".jsonl", ".parquet", ".smi.gz"])
def test_every_kind_of_file_reads_alike(kind, tmp_path, write_jsonl, smi):
    if kind == ".jsonl":
        path = write_jsonl("few.jsonl", [{"smiles": text} for text in FEW])
    elif kind == ".parquet":
        path = tmp_path / "few.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"smiles": FEW}), path)
    elif kind == ".smi.gz":
        path = tmp_path / "few.smi.gz"
        path.write_bytes(gzip.compress("\n".join(FEW).encode()))
    else:
        path = smi((["smiles"] if kind == ".csv" else []) + FEW, f"few{kind}")
    splits = data(path).splits
    assert sorted(splits["train"] + splits["validation"]) == sorted(CANONICAL)
    assert len(splits["validation"]) == 2
    assert splits["test"] == []


def test_a_string_that_is_no_molecule_names_file_line_and_field(smi, tmp_path):
    path = smi(["CCO", "C1CC", "CCN"])
    with pytest.raises(ValueError, match=r"few\.smi, line 2: field 'smiles' is 'C1CC'"):
        _ = data(path).splits
    bad = data(smi([*FEW[:6], "C1CC"], "b.smi"), source={"on_bad_row": "skip"})
    with pytest.warns(UserWarning, match="skipped 1 malformed of 7 rows"):
        found = bad.part.molecules
    assert len(found.smiles) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # kept on disk, and not read again
        again = data(tmp_path / "b.smi", source={"on_bad_row": "skip"}).part.molecules
    assert again == found
    with pytest.raises(ValueError, match=r"line 2: field 'smiles' is missing"):
        _ = data(smi(["name", "x"], "c.csv")).splits


def test_a_limit_counts_molecules_and_not_skipped_rows(smi):
    path = smi(["C1CC", *FEW])
    with pytest.warns(UserWarning, match="skipped 1"):
        found = data(path, source={"on_bad_row": "skip", "limit": 4}).part.molecules.smiles
    assert found == CANONICAL[:4]


def test_filters_by_hand():
    filters = SmilesFilters(max_tokens=8, elements=["C", "N", "O"])
    left_out = {
        "CC.O": "several parts",
        "CC(=O)[O-]": "charge",
        "C[N+](C)(C)CC(=O)[O-]": "length",  # neutral in sum, but long
        "CCCl": "elements",
        "CCCCCCCCC": "length",
        "CCCCCCCC": None,
    }
    assert {text: prepare(text, filters).left_out for text in left_out} == left_out
    nitro = "C[N+](=O)[O-]"
    assert prepare(nitro, SmilesFilters(charges="neutral_sum")).left_out is None
    assert prepare(nitro, SmilesFilters(charges="none")).left_out == "charge"
    assert prepare("CC(=O)[O-]", SmilesFilters(charges="any")).left_out is None
    assert prepare("C[Si]", SmilesFilters(elements=None)).left_out is None
    assert prepare("C1CC", filters).smiles is None
    with pytest.raises(ValueError, match="from 5 to 4 tokens"):
        SmilesFilters(min_tokens=5, max_tokens=4)


def test_stereo_is_stripped_or_kept_and_repeats_are_counted(smi):
    path = smi(["C[C@H](N)O", "C[C@@H](N)O", "OC(N)C", *FEW])
    flat = data(path).part.molecules
    assert flat.smiles == ["CC(N)O", *CANONICAL]
    assert flat.left_out == {"repeats": 2}
    solid = data(path, filters=SmilesFilters(keep_stereo=True)).part.molecules
    assert solid.smiles[:3] == ["C[C@H](N)O", "C[C@@H](N)O", "CC(N)O"]


def test_isotopes_have_their_own_option_and_no_hydrogen_is_spelled_out(smi):
    lines = ["[2H]C([2H])([2H])O d3-methanol", "CO", "[13CH3]c1ccccc1", "[H]/N=C(/C)N", "[H][H]"]
    path = smi([*lines, "[2H]C([2H])F", "C=C", "CC"])
    kept = data(path).part.molecules
    assert kept.smiles[:4] == ["[2H]C([2H])([2H])O", "CO", "[13CH3]c1ccccc1", "CC(=N)N"]
    assert kept.left_out == {"hydrogen": 1}
    natural = data(path, filters=SmilesFilters(keep_isotopes=False)).part.molecules
    assert natural.smiles[:4] == ["CO", "Cc1ccccc1", "CC(=N)N", "CF"]
    assert natural.left_out == {"hydrogen": 1, "repeats": 1}


def test_what_is_left_out_is_said(smi, caplog):
    module = data(smi(["CC.O", "CC[O-]", *FEW, "OCC"]))
    with caplog.at_level("INFO"):
        left_out = module.left_out
    assert left_out == {"several parts": 1, "charge": 1, "repeats": 1}
    assert "left out: several parts 1, charge 1, repeats 1" in caplog.text


def test_molecules_that_a_vocabulary_cannot_spell_are_left_out_on_request(smi, tmp_path):
    atomwise_tokenizer(vocabulary_of(["CCO", "CCN", "CBr", "c1ccccc1"])).save_pretrained(tmp_path)
    settings = {"tokenizer": str(tmp_path), "split": SmilesSplit(validation_share=0.4)}
    path = smi([*FEW, "CCI"])
    refusing = data(path, **settings)
    refusing.setup("fit")
    with pytest.raises(ValueError, match="unknown_tokens to leave_out"):
        refusing.train_dataloader()
    made = data(path, unknown_tokens="leave_out", **settings)
    assert made.left_out == {"unknown tokens": 2}  # Cl and I
    spelled = made.splits["train"] + made.splits["validation"]
    assert sorted(spelled) == sorted(text for text in CANONICAL if "Cl" not in text)
    assert made.part.fingerprint() != refusing.part.fingerprint()
    made.setup("fit")
    read(made.train_dataloader(), 2)
    with pytest.raises(ValueError, match="spells no molecule"):
        _ = data(smi(["CI", "CCI"], "i.smi"), unknown_tokens="leave_out", **settings).splits


def test_several_processes_prepare_as_one(monkeypatch):
    texts = [*drugs().values(), "C1CC"]
    alone = prepare_all(texts, SmilesFilters(), num_processes=1)
    monkeypatch.setattr(smiles_filters, "FEWEST_FOR_POOL", 1)
    monkeypatch.setattr(smiles_filters, "CHUNK", 50)
    assert prepare_all(texts, SmilesFilters(), num_processes=2) == alone
    assert alone[-1].smiles is None


def test_tokens():
    assert split_smiles("C[C@@H](Br)c1[nH]cc%12/C=C\\Cl") == [
        *["C", "[C@@H]", "(", "Br", ")", "c", "1", "[nH]", "c", "c", "%12", "/", "C", "=", "C"],
        *["\\", "Cl"],
    ]
    with pytest.raises(ValueError, match="'X', which is no SMILES token"):
        split_smiles("CX")
    vocabulary = vocabulary_of(["C[C@H](N)O", "F/C=C/F"])
    assert {"[C@H]", "[C@@H]", "/", "\\", "%10"} <= set(vocabulary)
    tokenizer = atomwise_tokenizer(vocabulary)
    ids = tokenizer("C[C@H](N)Br")["input_ids"]
    assert tokenizer.decode(ids[:-1]) == "C[C@H](N)"
    assert ids[-1] == tokenizer.unk_token_id
    assert len(tokenizer) == len(vocabulary) + 4
    spelled = [tokenizer.bos_token_id, *ids[:2], tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(spelled, skip_special_tokens=True) == "C[C@H]"


def test_no_scaffold_is_in_two_splits():
    scaffolds = [f"s{n % 40}" for n in range(200)] + ["big"] * 300 + [f"x{n}" for n in range(500)]
    split = SmilesSplit("scaffold", validation_share=0.2, test_share=0.1)
    parts = split_molecules(scaffolds, split)
    assert sorted(itertools.chain(*parts)) == list(range(1000))
    names = [{scaffolds[index] for index in part} for part in parts]
    assert len(set.union(*names)) == sum(map(len, names))
    assert "big" in names[0]
    assert [len(part) for part in parts[1:]] == [200, 100]
    assert parts == split_molecules(scaffolds, split)
    assert parts != split_molecules(scaffolds, SmilesSplit("scaffold", 0.2, 0.1, seed=1))
    with pytest.raises(ValueError, match=r"leave 10 to train and 0 to validate"):
        split_molecules(["one"] * 10, split)
    with pytest.raises(ValueError, match=r"validation_share is 0\.5 and split\.test_share is 0\.5"):
        SmilesSplit(validation_share=0.5, test_share=0.5)


def test_batches_are_padded_documents_and_nothing_is_left_out(smi):
    module = data(smi(FEW))
    tokenizer = module.tokenizer
    batches = read(module.train_dataloader(), 3)
    texts = []
    for batch in batches:
        assert {"input_ids", "position_ids", "segment_ids", "labels"} <= set(batch)
        for ids, labels, segments, positions in zip(
            *(batch[k] for k in ("input_ids", "labels", "segment_ids", "position_ids")), strict=True
        ):
            length = int(segments.sum())
            assert ids[0] == tokenizer.bos_token_id
            assert ids[length - 1] == tokenizer.eos_token_id
            assert (ids[length:] == tokenizer.pad_token_id).all()
            assert labels[1:length].tolist() == ids[1:length].tolist()
            assert labels[0] == -100
            assert (labels[length:] == -100).all()
            assert positions[:length].tolist() == list(range(length))
            texts.append(tokenizer.decode(ids, skip_special_tokens=True))
        assert (batch["segment_ids"].sum(1)).max() == batch["input_ids"].shape[1]
    assert sorted(texts) == sorted(module.splits["train"])
    (validation,) = module.val_dataloader()
    (batch,) = list(validation)
    found = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert sorted(found) == sorted(module.splits["validation"])


def test_random_spellings_change_with_the_epoch_and_stay_the_molecule(smi):
    path = smi(list(drugs().values())[:12])
    module = data(path, 128, 9, spelling="random", split=SmilesSplit(validation_share=0.25))
    epochs = read(module.train_dataloader(), 3)
    spelled = [
        module.tokenizer.batch_decode(e["input_ids"], skip_special_tokens=True) for e in epochs
    ]
    for texts in spelled:
        assert {Chem.CanonSmiles(text) for text in texts} == set(module.splits["train"])
    assert len({text for texts in spelled for text in texts}) > 20
    again = read(
        data(path, 128, 9, spelling="random", split=module.part.config.split).train_dataloader(), 3
    )
    assert all((a["input_ids"] == b["input_ids"]).all() for a, b in zip(epochs, again, strict=True))


def test_buckets_are_of_similar_length_and_every_epoch_differs():
    lengths = np.random.default_rng(0).integers(5, 60, 1003)
    stream = BucketedStream(lengths, 10, seed=1)
    rows = [row for row, _ in itertools.islice(stream.read(), 2000)]
    first = np.array([row.index for row in rows[:1000]]).reshape(-1, 10)
    spans = np.ptp(lengths[first], axis=1)
    assert spans.mean() < 5  # 50 or so without buckets
    assert len(np.unique(first)) == 1000
    assert [row.epoch for row in rows[999:1001]] == [0, 1]
    assert [row.index for row in rows[1000:]] != first.ravel().tolist()
    # The longest batch does not always come first.
    assert len({int(lengths[first][k].max()) for k in range(5)}) > 1


def test_two_processes_see_the_rows_of_one(smi, monkeypatch):
    path = smi(list(drugs().values())[:40])
    whole = read(data(path, 128, 4).train_dataloader(), 3)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(Smiles, "_shard", Shard(rank, 2))
        halves.append(read(data(path, 128, 2).train_dataloader(), 3))
    for batch, left, right in zip(whole, *halves, strict=True):
        found = [row[row != 2].tolist() for half in (left, right) for row in half["input_ids"]]
        assert found == [row[row != 2].tolist() for row in batch["input_ids"]]


def test_a_resumed_loader_goes_on_where_it_stopped(smi):
    path = smi(FEW)
    straight = read(data(path, spelling="random").train_dataloader(), 7)
    stopped = data(path, spelling="random").train_dataloader()
    read(stopped, 4)
    resumed = data(path, spelling="random").train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    for batch, expected in zip(read(resumed, 3), straight[4:], strict=True):
        assert batch["input_ids"].tolist() == expected["input_ids"].tolist()


def test_a_given_tokenizer_is_used_and_must_know_all_tokens(smi, tmp_path):
    few = data(smi(FEW))
    few.tokenizer.save_pretrained(str(tmp_path / "prior"))
    more = data(smi(FEW[:5], "more.smi"), tokenizer=str(tmp_path / "prior"))
    assert more.tokenizer.get_vocab() == few.tokenizer.get_vocab()
    other = data(
        smi([*FEW, *["CCCS"] * 9, "CS", "CSC"], "other.smi"), tokenizer=str(tmp_path / "prior")
    )
    with pytest.raises(ValueError, match="does not know all tokens of"):
        other.prepare_data()


def test_mistakes_say_what_to_do(smi):
    with pytest.raises(ValueError, match=r"raise data\.context_length"):
        data(smi(FEW), context_length=4).train_dataloader()
    with pytest.raises(ValueError, match="do not fill a batch of 100"):
        data(smi(FEW), batch_size=100).train_dataloader()
    with pytest.raises(ValueError, match=r"loosen data\.smiles\.filters"):
        _ = data(smi(FEW), filters=SmilesFilters(elements=["P"])).splits


def test_drugs_and_what_grows_from_them():
    assert len(drugs()) >= 60
    grown = grow_molecules(120)
    assert grown == grow_molecules(120)
    assert grown[90:] != grow_molecules(120, seed=1)[90:]
    assert len(set(grown)) == 120
    assert grown == [Chem.CanonSmiles(text) for text in grown]
    sizes = [Chem.MolFromSmiles(text).GetNumHeavyAtoms() for text in grown[len(drugs()) :]]
    assert min(sizes) >= 10
    assert max(sizes) <= 36


def test_real_molecules(real_data):
    source = {"limit": 300}
    module = data(real_data / "smiles" / "zinc_200k.csv.gz", 128, 16, source=source)
    assert 150 < len(module.part.molecules.smiles) <= 300
    assert not any("@" in text or "/" in text for text in module.splits["train"])
    assert read(module.train_dataloader(), 1)[0]["input_ids"].shape[0] == 16
