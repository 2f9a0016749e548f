"""A stream of facts in training: batches, validation, and resuming."""

import itertools

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.fact_paraphrases import ParaphrasesConfig
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.fact_templates import Fact, FactTemplates
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.datamodules.sources.records import RecordSource

TEMPLATES = FactTemplates.from_file()
NEW = {"skip_facts": 1490}


def stream(facts=None, **settings):
    settings = {"tokenizer": TokenizerConfig(vocab_size=400), **settings}
    return FactStream(FactsConfig(**{**NEW, **(facts or {})}), **settings)


def read(data, count):
    loader = data.train_dataloader()
    epochs = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return list(itertools.islice(epochs, count))


def texts(data, batch):
    return data.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) if torch.is_tensor(one[key]) else one[key] == other[key]
        for key in one
    )


def test_a_batch_is_one_fact_in_all_its_statements():
    data = stream()
    assert len(data.facts) == 20
    assert len(data.train_dataloader()) == 20
    for number, batch in enumerate(read(data, 20)):
        (index,) = set(batch["group"].tolist())
        fact = data.facts[index]
        assert batch["fact_ids"] == [fact.id]
        assert batch["visit"].item() == number
        assert texts(data, batch) == [r.text for r in TEMPLATES.statements(fact)]


def test_rows_are_padded_and_never_packed():
    data = stream()
    for batch in read(data, 20):
        mask = batch["segment_ids"] > 0
        assert batch["segment_ids"].max() == 1
        assert (batch["input_ids"] == data.tokenizer.bos_token_id).sum(dim=1).eq(1).all()
        assert (batch["input_ids"] == data.tokenizer.eos_token_id).sum(dim=1).eq(1).all()
        assert (batch["input_ids"][~mask] == data.tokenizer.pad_token_id).all()
        assert (mask.sum(dim=1).max() == mask.shape[1]).all()
        assert (batch["labels"][~mask] == -100).all()
        assert len(batch["source_ids"]) == len(mask)


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_labels_are_where_the_loss_is_to_be(loss_on):
    data = stream({"loss_on": loss_on})
    for batch in read(data, 20):
        answer = data.facts[batch["group"][0]].answers[0]
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            labelled = data.tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
            whole = data.tokenizer.decode(ids, skip_special_tokens=True)
            assert labelled == (f" {answer}" if loss_on == "answer" else whole)


def test_facts_together_and_visits_repeated():
    data = stream(facts_per_batch=3, steps_per_visit=4, shuffle=False)
    assert len(data.train_dataloader()) == 7 * 4
    batches = read(data, 29)
    assert [batch["visit"].item() for batch in batches] == [n // 4 for n in range(29)]
    assert all(same(batches[0], batch) for batch in batches[1:4])
    assert batches[0]["fact_ids"] == [fact.id for fact in data.facts[:3]]
    assert batches[24]["fact_ids"] == [fact.id for fact in data.facts[18:]]
    assert batches[0]["group"].unique().tolist() == [0, 1, 2]
    assert batches[28]["visit"].item() == 7  # the second pass
    assert batches[28]["fact_ids"] == batches[0]["fact_ids"]


def test_the_order_is_drawn_by_the_seed():
    def order(**settings):
        return [batch["fact_ids"][0] for batch in read(stream(**settings), 40)]

    first = order(seed=3)
    assert first == order(seed=3)
    assert first != order(seed=4)
    assert sorted(first[:20]) == sorted(first[20:])
    assert first[:20] != first[20:]


def test_the_same_batches_every_time():
    for one, other in zip(read(stream(), 25), read(stream(num_workers=2), 25), strict=True):
        assert same(one, other)


def test_few_wordings_are_drawn_anew_in_each_pass():
    data = stream(paraphrases=ParaphrasesConfig(per_fact=3), shuffle=False, steps_per_visit=2)
    batches = read(data, 80)
    assert all(len(batch["group"]) == 3 for batch in batches)
    assert all(same(batches[n], batches[n + 1]) for n in range(0, 80, 2))
    changed = [texts(data, batches[n]) != texts(data, batches[n + 40]) for n in range(0, 40, 2)]
    assert sum(changed) > 10
    for batch in batches:
        known = [r.text for r in TEMPLATES.statements(data.facts[batch["group"][0]])]
        found = texts(data, batch)
        assert len(set(found)) == 3
        assert set(found) <= set(known)
    assert [texts(data, b) for b in batches] == [texts(data, b) for b in read(data, 80)]


class OtherRank(FactStream):
    """Return the stream of one of several processes."""

    shard = Shard()

    @property
    def _shard(self):
        return self.shard


def test_processes_share_a_facts_wordings():
    alone = stream()
    ranks = []
    for rank in range(2):
        data = OtherRank(FactsConfig(**NEW), tokenizer=TokenizerConfig(vocab_size=400))
        data.shard = Shard(rank, 2)
        ranks.append(read(data, 20))
    for batch, first, second in zip(read(alone, 20), *ranks, strict=True):
        assert first["fact_ids"] == second["fact_ids"] == batch["fact_ids"]
        assert first["visit"] == second["visit"] == batch["visit"]
        shared = [*texts(alone, first), *texts(alone, second)]
        assert sorted(shared) == sorted(texts(alone, batch))
        assert len(first["group"]) - len(second["group"]) in (0, 1)


# --- validation -----------------------------------------------------------------------------------


def loaders(data):
    return {loader.name: list(loader) for loader in data.val_dataloader()}


def test_taught_statements_and_unseen_questions_are_asked():
    data = stream()
    asked = loaders(data)
    assert list(asked) == ["facts", "statements"]
    taught = {text for batch in read(data, 20) for text in texts(data, batch)}
    (questions,), (statements,) = asked["facts"], asked["statements"]
    assert len(questions["questions"]) == len(statements["questions"]) == 20
    for fact, question in zip(data.facts, questions["questions"], strict=True):
        assert question in TEMPLATES.question_texts(fact, "held_out")
        assert not any(question in text for text in taught)
    for row, fact in enumerate(data.facts):
        prompt = statements["questions"][row]
        assert statements["answers"][row] == list(fact.answers)
        whole = data.tokenizer.decode(statements["input_ids"][row], skip_special_tokens=True)
        assert whole in taught
        assert whole.removeprefix(prompt).rstrip(".") == f" {fact.answers[0]}"
        mask = statements["prompt_mask"][row].bool()
        given = data.tokenizer.decode(statements["prompt_ids"][row][mask], skip_special_tokens=True)
        assert given == prompt
        labels = statements["labels"][row]
        labelled = data.tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
        assert labelled == f" {fact.answers[0]}"


def test_statements_need_not_be_asked():
    assert list(loaders(stream(ask_statements=False))) == ["facts"]
    questions = ParaphrasesConfig(wordings="questions")
    assert list(loaders(stream(paraphrases=questions))) == ["facts"]


def test_only_statements_that_the_first_pass_teaches_are_asked():
    data = stream(paraphrases=ParaphrasesConfig(wordings="both", per_fact=6), seed=5)
    taught = {text for batch in read(data, 20) for text in texts(data, batch)}
    (batch,) = loaders(data)["statements"]
    for ids, question in zip(batch["input_ids"], batch["questions"], strict=True):
        assert data.tokenizer.decode(ids, skip_special_tokens=True) in taught
        assert not question.startswith("Question:")


def test_statements_that_go_on_after_their_answer_are_not_asked(write_jsonl):
    rows = [
        {"id": "a", "question": "Who?", "answers": ["Ann"], "relation": "none"},
        {"id": "b", "question": "What?", "answers": ["Bob"], "relation": "none"},
    ]
    paraphrases = [
        {"id": "a", "paraphrases": ["It was Ann who came.", "So Ann, I say.", "There was Ann!"]},
        {"id": "b", "paraphrases": ["It was Bob who came."]},
    ]
    data = stream(
        {
            "source": RecordSource(write_jsonl("facts.jsonl", rows)),
            "skip_facts": 0,
            "validation_questions": "own_question",
        },
        paraphrases=ParaphrasesConfig(
            "file", file=RecordSource(write_jsonl("paraphrases.jsonl", paraphrases))
        ),
    )
    (batch,) = loaders(data)["statements"]
    assert batch["questions"] == ["There was"]
    assert batch["answers"] == [["Ann"]]


# --- resuming -------------------------------------------------------------------------------------


class Recorder(LightningModule):
    """A model of one number per token that records its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0, 1, 400))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return (self.weight[batch["input_ids"]] ** 2).mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Killed(Exception):  # noqa: N818
    """Simulate the end of the process."""


class SaveAndDie(Callback):
    """Write a checkpoint after a number of batches and stop."""

    def __init__(self, after: int, path: str) -> None:
        self._after, self._path = after, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if len(pl_module.seen) == self._after:
            trainer.save_checkpoint(self._path)
            raise Killed


def fit(callbacks=(), ckpt_path=None, accumulate=1, **settings):
    """Two passes over twenty facts, each visited three times in a row."""
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    data = stream(**{"steps_per_visit": 3, **settings})
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


def test_an_epoch_is_a_pass():
    seen = fit().seen
    assert len(seen) == 120
    assert [batch["visit"].item() for batch in seen] == [n // 3 for n in range(120)]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("after", "accumulate", "lost"), [(1, 1, 0), (31, 1, 0), (60, 1, 0), (65, 1, 0), (32, 3, 2)]
)
def test_a_run_stopped_within_a_visit_goes_on_exactly(
    tmp_path, after, accumulate, lost, num_workers
):
    whole = fit(accumulate=accumulate)
    path = str(tmp_path / "killed.ckpt")
    with pytest.raises(Killed):
        fit([SaveAndDie(after, path)], None, accumulate, num_workers=num_workers)
    resumed = fit((), path, accumulate, num_workers=num_workers)
    rest = whole.seen[after - lost :]
    assert len(resumed.seen) == len(rest)
    assert all(same(one, other) for one, other in zip(resumed.seen, rest, strict=True))
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.parametrize(
    "changed",
    [
        {"facts": {"skip_facts": 1489}},
        {"facts": {"loss_on": "all"}},
        {"steps_per_visit": 2},
        {"facts_per_batch": 2},
        {"shuffle": False},
        {"seed": 1},
        {"paraphrases": ParaphrasesConfig(per_fact=2)},
    ],
)
def test_another_stream_is_refused(tmp_path, changed):
    path = str(tmp_path / "killed.ckpt")
    with pytest.raises(Killed):
        fit([SaveAndDie(4, path)])
    with pytest.raises(ValueError, match="cannot continue where it stopped"):
        # The same tokenizer for all facts.
        fit((), path, **changed, tokenizer=TokenizerConfig(saved_tokenizer(tmp_path)))


def saved_tokenizer(tmp_path):
    folder = str(tmp_path / "tokenizer")
    stream().tokenizer.save_pretrained(folder)
    return folder


# --- user errors ----------------------------------------------------------------------------------


def test_a_validation_source_with_a_taken_name_is_refused():
    with pytest.raises(ValueError, match=r"an entry 'statements'.*choose another name"):
        stream(facts={"validation_sources": {"statements": RecordSource()}})


@pytest.mark.parametrize("settings", [{"facts_per_batch": -1}, {"steps_per_visit": 0}])
def test_an_empty_visit_is_refused_and_not_waited_for(settings):
    with pytest.raises(ValueError, match="set both to at least 1"):
        stream(**settings).train_dataloader()


def test_a_fact_longer_than_the_context_is_named(write_jsonl):
    rows = [
        {"id": "short", "question": "Who?", "answers": ["Ann"], "statement": "It was Ann."},
        {"id": "long", "question": "Who?", "answers": ["Ann"], "statement": "so " * 30 + "Ann."},
    ]
    facts = {"source": RecordSource(write_jsonl("facts.jsonl", rows)), "skip_facts": 0}
    data = stream(facts, context_length=20)
    complaint = r"fact 'long' has \d+ tokens.*context_length is 20 and a fact is never cut"
    for ask in (data.prepare_data, data.train_dataloader):
        with pytest.raises(ValueError, match=complaint):
            ask()


def test_the_embedded_default_needs_no_settings():
    data = FactStream()
    assert len(data.facts) == 1510
    assert isinstance(data.facts[0], Fact)
    assert read(data, 1)[0]["visit"].item() == 0
