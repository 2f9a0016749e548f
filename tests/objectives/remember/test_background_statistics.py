"""Background statistics: counted as a dictionary would, added up, kept in a file, refused."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.remember.memory_blocks import memory_layers, value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm
from triptych.models.tensor_file import save_tensors
from triptych.objectives.remember.background_collector import BackgroundCollector
from triptych.objectives.remember.background_statistics import (
    BackgroundStatistics,
    index_fingerprint,
    tokenizer_fingerprint,
)
from triptych.objectives.remember.slot_scores import TableStatistics, slot_scores, top_slots

VOCABULARY = 23
ROWS, LENGTH = 3, 6


def memory_model(seed=0, **memory):
    torch.manual_seed(seed)
    base = BaseLMConfig(hidden_size=16, num_layers=3, num_heads=2, max_position_embeddings=32)
    settings = {"layers": [0, 2], "num_keys": 4, "num_heads": 2, "top_k": 2} | memory
    return build_memory_lm(base, MemoryConfig(**settings), VOCABULARY)


def word_tokenizer(*words):
    vocabulary = {word: number for number, word in enumerate(["<pad>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


TOKENIZER = word_tokenizer("a", "b")


def document(seed, padding=2):
    """Rows of one segment each; the last `padding` positions of each are none of it."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (ROWS, LENGTH), generator=generator)
    segments = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    if padding:
        ids[:, -padding:] = segments[:, -padding:] = 0
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    return {"input_ids": ids, "position_ids": positions, "segment_ids": segments}


def collect(model, *documents):
    collector = BackgroundCollector(model, TOKENIZER)
    for one in documents:
        collector.add_document(one)
    return collector.statistics()


def assert_equal(one: BackgroundStatistics, other: BackgroundStatistics):
    for mine, others in zip(one.tables, other.tables, strict=True):
        assert torch.equal(mine.document_frequency_S, others.document_frequency_S)
        assert torch.equal(mine.counts_S, others.counts_S)
        assert mine.num_documents == others.num_documents
    names = ("num_documents", "num_tokens", "rows_per_document", "tokens_per_row")
    for name in (*names, "tokenizer_fingerprint", "index_fingerprint"):
        assert getattr(one, name) == getattr(other, name), name


def slots_by_brute_force(layer, hidden_M):
    """The slots one token reads, by the score of every pair of half keys."""
    keys_H2NE = layer.index.keys.detach().double().numpy()
    query = layer.query(hidden_M).detach().double().numpy().reshape(2, 2, -1)
    for head in range(2):
        scores = {
            4 * i + j: query[head, 0] @ keys_H2NE[head, 0, i]
            + query[head, 1] @ keys_H2NE[head, 1, j]
            for i, j in itertools.product(range(4), range(4))
        }
        yield from sorted(scores, key=scores.get)[-2:]


@pytest.mark.parametrize("share_values", [True, False])
def test_counts_equal_a_search_token_by_token(share_values):
    model = memory_model(share_values=share_values)
    documents = [document(seed) for seed in range(4)]
    inputs = defaultdict(list)  # what each layer was given, document by document
    for number, layer in enumerate(memory_layers(model)):
        layer.register_forward_pre_hook(lambda _, args, n=number: inputs[n].append(args[0]))
    found = collect(model, *documents)

    num_tables = 1 if share_values else 2
    assert len(found.tables) == num_tables
    for table in range(num_tables):
        layers = [0, 1] if share_values else [table]
        counts, frequencies = Counter(), Counter()
        for number in range(4):
            read = Counter()
            for layer, row, position in itertools.product(layers, range(ROWS), range(LENGTH - 2)):
                hidden_M = inputs[layer][number][row, position]
                read.update(slots_by_brute_force(memory_layers(model)[layer], hidden_M))
            counts += read
            frequencies.update(set(read))
        statistics = found.tables[table]
        assert statistics.counts_S.tolist() == [counts[slot] for slot in range(16)]
        assert statistics.document_frequency_S.tolist() == [frequencies[s] for s in range(16)]
        assert 0 < sum(frequencies.values()) < 4 * 16  # some slots are read, and some are not
    assert found.num_documents == found.tables[0].num_documents == 4
    assert found.num_tokens == 4 * ROWS * (LENGTH - 2)
    assert (found.rows_per_document, found.tokens_per_row) == (ROWS, LENGTH)


def test_padding_changes_nothing_whatever_it_holds():
    model = memory_model()
    padded, other_padding = document(0), document(0)
    other_padding["input_ids"][:, -2:] = 7
    assert_equal(collect(model, padded), collect(model, other_padding))
    assert collect(model, padded).tables[0].counts_S.sum() == ROWS * (LENGTH - 2) * 2 * 2 * 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # relative and absolute positions
def test_segments_of_a_row_are_read_as_rows_of_their_own(family):
    torch.manual_seed(0)
    base = BaseLMConfig(family, hidden_size=16, num_layers=3, num_heads=2)
    memory = MemoryConfig(layers=[0, 2], num_keys=8, num_heads=2, top_k=2)
    model = build_memory_lm(base, memory, VOCABULARY)
    with torch.no_grad():
        for parameter in model.base_model.parameters():
            parameter.mul_(5)  # at their usual scale, positions hardly decide what is read
    packed = document(0, padding=0)
    packed["segment_ids"][:, 3:] = 2
    packed["position_ids"] = torch.tensor([0, 1, 2, 0, 1, 2]).expand(ROWS, LENGTH)
    halves = [{name: t[:, half] for name, t in packed.items()} for half in (slice(3), slice(3, 6))]
    whole, alone = collect(model, packed), collect(model, *halves)
    assert torch.equal(whole.tables[0].counts_S, alone.tables[0].counts_S)


def test_a_document_may_come_in_pieces():
    model = memory_model()
    one = document(0)
    pieces = [{name: t[rows] for name, t in one.items()} for rows in (slice(2), slice(2, 3))]
    collector = BackgroundCollector(model, TOKENIZER)
    collector.add_document(*pieces)
    assert_equal(collector.statistics(), collect(model, one))


def test_statistics_are_a_snapshot():
    collector = BackgroundCollector(memory_model(), TOKENIZER)
    collector.add_document(document(0))
    before = collector.statistics()
    kept = before.tables[0].counts_S.clone()
    collector.add_document(document(1))
    assert torch.equal(before.tables[0].counts_S, kept)
    assert (before.num_documents, collector.statistics().num_documents) == (1, 2)


def test_the_model_is_left_as_it_was():
    model = memory_model()
    model.train()
    decoder = model.model.layers[1].eval()  # frozen parts may be in another mode than the rest
    first, second = memory_layers(model)
    first.recording, first.last_ids = True, torch.tensor([3])
    model.model.embed_tokens.weight.requires_grad_(False)
    table = value_tables(model)[0]
    table.weight.grad = torch.ones_like(table.weight)
    table.set_gradient("selected_rows")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()

    collect(model, document(0))

    assert model.training
    assert first.training
    assert not decoder.training
    assert first.recording
    assert torch.equal(first.last_ids, torch.tensor([3]))
    assert not second.recording
    assert second.last_ids is None
    assert not model.model.embed_tokens.weight.requires_grad
    assert torch.equal(table.weight.grad, torch.ones_like(table.weight))
    assert all(p.grad is None for p in model.parameters() if p is not table.weight)
    assert table.reads == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_model_is_restored_after_an_error():
    model = memory_model().train()
    broken = document(0)
    broken["input_ids"][0, 0] = VOCABULARY
    with pytest.raises(IndexError):
        collect(model, broken)
    assert model.training
    assert not any(layer.recording for layer in memory_layers(model))


def test_dropout_plays_no_part():
    torch.manual_seed(0)
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2, dropout=0.5)
    model = build_memory_lm(base, MemoryConfig(num_keys=4, top_k=2), VOCABULARY).train()
    assert_equal(collect(model, document(0)), collect(model, document(0)))


def test_two_halves_merged_equal_the_whole(tmp_path):
    model = memory_model(share_values=False)
    documents = [document(seed) for seed in range(5)]
    for number, half in enumerate([documents[:2], documents[2:]]):
        collect(model, *half).save(tmp_path / f"half_{number}.safetensors")
    halves = [BackgroundStatistics.load(tmp_path / f"half_{n}.safetensors") for n in range(2)]
    whole = collect(model, *documents)
    assert_equal(halves[0].merge(halves[1]), whole)
    assert_equal(halves[1].merge(halves[0]), whole)
    assert whole.num_documents == 5


def test_ranks_add_up_even_if_one_had_nothing_to_read():
    model = memory_model()
    documents = [document(seed) for seed in range(3)]
    ranks = [BackgroundCollector(model, TOKENIZER) for _ in range(3)]
    for rank, number in ((0, 0), (0, 2), (1, 1)):
        ranks[rank].add_document(documents[number])
    asked = []
    for rank in ranks[1:]:  # what the others contribute to each sum, in the order of the sums
        sums = []
        rank.reduce(lambda tensor, sums=sums: sums.append(tensor.clone()) or tensor)
        asked.append(sums)
    others = iter([sum(tensors) for tensors in zip(*asked, strict=True)])
    ranks[0].reduce(lambda tensor: tensor + next(others))
    assert_equal(ranks[0].statistics(), collect(model, *documents))


def test_statistics_say_what_finetuning_asks(tmp_path):
    model = memory_model()
    collect(model, document(0), document(1)).save(tmp_path / "background.safetensors")
    background = BackgroundStatistics.load(tmp_path / "background.safetensors")
    background.check(model, TOKENIZER)
    counts_S = collect(model, document(2)).tables[0].counts_S
    rows = top_slots(slot_scores("tfidf", counts_S, background.tables[0]), 3)
    frequencies = background.tables[0].document_frequency_S
    scores = counts_S.numpy() * np.log(3 / (frequencies.numpy() + 1))
    assert set(rows.tolist()) <= set(np.flatnonzero(scores > 0))


# -- the file -------------------------------------------------------------------------------------


def test_the_file_is_whole_or_as_before(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "background.safetensors"
    first = collect(memory_model(), document(0))
    first.save(path)
    monkeypatch.setattr("triptych.models.tensor_file.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        collect(memory_model(), document(1)).save(path)
    assert_equal(BackgroundStatistics.load(path), first)
    assert [file.name for file in path.parent.iterdir()] == ["background.safetensors"]


def test_files_that_are_none_of_ours(tmp_path):
    good = tmp_path / "good.safetensors"
    collect(memory_model(), document(0)).save(good)
    cut_short = tmp_path / "cut.safetensors"
    cut_short.write_bytes(good.read_bytes()[:-10])
    weights = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, weights)
    something_else = tmp_path / "delta.safetensors"
    save_tensors(something_else, {"a": torch.zeros(1)}, {"kind": "delta"})
    how = r"collect them anew: .*configs/remember/background_statistics\.yaml"
    with pytest.raises(
        FileNotFoundError, match=f"there are no background statistics .*none.*{how}"
    ):
        BackgroundStatistics.load(tmp_path / "none.safetensors")
    for path in (cut_short, weights, something_else):
        with pytest.raises(ValueError, match=f"{path.name}.*{how}"):
            BackgroundStatistics.load(path)


# -- what they are statistics of ------------------------------------------------------------------


def test_the_fingerprint_is_that_of_all_but_the_values(tmp_path):
    model = memory_model()
    before = index_fingerprint(model)
    with torch.no_grad():
        value_tables(model)[0].weight[3] += 1
    assert index_fingerprint(model) == before
    for name, parameter in model.named_parameters():
        if name == "memory_values.0.weight":
            continue
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 1
            assert index_fingerprint(model) != before, name
            parameter.copy_(kept)
    assert index_fingerprint(model) == before
    model.save_pretrained(tmp_path)
    assert index_fingerprint(load_memory_lm(tmp_path)) == before


def test_statistics_stay_valid_while_only_values_learn():
    model = memory_model()
    background = collect(model, document(0))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    table = value_tables(model)[0]
    table.weight.requires_grad_(True)
    model(document(1)["input_ids"]).logits.square().sum().backward()
    torch.optim.SGD([table.weight], lr=1.0).step()
    background.check(model, TOKENIZER)


def test_tokenizers_differ_by_what_ids_they_give(tmp_path):
    fingerprint = tokenizer_fingerprint(TOKENIZER)
    assert tokenizer_fingerprint(word_tokenizer("a", "b")) == fingerprint
    assert tokenizer_fingerprint(word_tokenizer("b", "a")) != fingerprint
    same = word_tokenizer("a", "b")
    same(
        ["a", "a b"], padding=True, truncation=True, max_length=1
    )  # leaves its mark in the backend
    assert tokenizer_fingerprint(same) == fingerprint
    same.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(PreTrainedTokenizerFast.from_pretrained(tmp_path)) == fingerprint


def test_statistics_of_something_else_are_refused():
    background = collect(memory_model(), document(0))
    how = r"collect them anew: .*configs/remember/background_statistics\.yaml"
    with pytest.raises(ValueError, match=f"another tokenizer.*{how}"):
        background.check(memory_model(), word_tokenizer("a", "c"))
    with pytest.raises(ValueError, match=f"another model.*{how}"):
        background.check(memory_model(seed=1), TOKENIZER)
    with pytest.raises(ValueError, match=rf"\[16\] slots, .* tables of \[25\] slots.*{how}"):
        background.check(memory_model(num_keys=5), TOKENIZER)
    with pytest.raises(ValueError, match=rf"\[16\] slots, .* tables of \[16, 16\] slots.*{how}"):
        background.check(memory_model(share_values=False), TOKENIZER)
    plain = build_base_lm(BaseLMConfig(hidden_size=16, num_layers=1, num_heads=2), VOCABULARY)
    with pytest.raises(ValueError, match=r"no memory layers.*remember/pretrain\.yaml"):
        background.check(plain, TOKENIZER)
    with pytest.raises(ValueError, match="no memory layers"):
        BackgroundCollector(plain, TOKENIZER)


def test_only_parts_of_the_same_thing_are_merged():
    background = collect(memory_model(), document(0))
    shorter = {name: t[:, :4] for name, t in document(0).items()}
    fewer = {name: t[:2] for name, t in document(0).items()}
    for other, name in [
        (collect(memory_model(seed=1), document(0)), "index_fingerprint"),
        (collect(memory_model(), shorter), "tokens_per_row is 6 in one and 4"),
        (collect(memory_model(), fewer), "rows_per_document is 3 in one and 2"),
    ]:
        with pytest.raises(ValueError, match=f"{name}.*collect them anew"):
            background.merge(other)
    tables = (TableStatistics(torch.zeros(16), torch.zeros(16), 1),)
    elsewhere = BackgroundStatistics(
        tables, 1, ROWS, LENGTH, "another", background.index_fingerprint
    )
    with pytest.raises(ValueError, match="tokenizer_fingerprint is"):
        background.merge(elsewhere)


def test_documents_have_one_size():
    collector = BackgroundCollector(memory_model(), TOKENIZER)
    with pytest.raises(ValueError, match="no document was added"):
        collector.statistics()
    collector.add_document(document(0))
    for other in (slice(2), slice(None)), (slice(None), slice(4)):
        with pytest.raises(ValueError, match="3 rows of 6 were expected"):
            collector.add_document({name: t[other] for name, t in document(1).items()})
    assert collector.num_documents == 1
