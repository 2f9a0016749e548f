"""Replies: draws by weight, labels, the embedded sets against hand-computed constants."""

from collections import Counter

import pytest
import torch

from triptych.datamodules.batches.packing import IGNORED_LABEL
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.diversify.supervised_replies import RepliesConfig, SupervisedReplies
from triptych.datamodules.embedded import creative_questions, one_or_two
from triptych.datamodules.sources.records import RecordSource

BYTES = TokenizerConfig(vocab_size=259)  # a token a byte


def make(source, **settings):
    config = RepliesConfig(source, **settings.pop("replies", {}))
    options = {"context_length": 64, "batch_size": 2} | settings
    return SupervisedReplies(config, tokenizer=BYTES, **options)


def taught(data, epoch=0):
    """Count (prompt, reply) pairs of one epoch by the labels."""
    (row_format,) = data._row_formats()
    prompts, _ = data.parts[0].prompts(row_format)
    rows = data.parts[0].train_stream(row_format)._pack(epoch)
    counts = Counter()
    for place in range(len(rows)):
        for document in rows.row(place):
            labelled = document.labels != IGNORED_LABEL
            assert labelled[labelled.argmax() :].all()
            reply = data.tokenizer.decode(document.ids[labelled])
            counts[data.tokenizer.decode(document.ids[~labelled][1:]), reply] += 1
    assert sum(counts.values()) == len(prompts) * data.parts[0].config.draws_per_prompt
    return counts


def test_replies_come_by_their_weights_and_alone_have_labels(write_jsonl):
    rows = [{"prompt": "A?", "replies": ["x", "yy", "z"], "weights": [3, 1, 0]}, {
        "conversation": [{"role": "user", "content": "B?"}, {"role": "assistant", "content": "b"}]
    }]  # fmt: skip
    data = make(RecordSource(write_jsonl("a.jsonl", rows)), replies={"draws_per_prompt": 8})
    counts = taught(data)
    plain = "User: {}\nAssistant:\n"
    assert counts == {
        (plain.format("A?"), "x<|eos|>"): 6,  # stratified: three quarters of eight
        (plain.format("A?"), "yy<|eos|>"): 2,
        (plain.format("B?"), "b<|eos|>"): 8,
    }


def test_a_single_draw_follows_the_weights_over_epochs(write_jsonl):
    row = {"prompt": "A?", "replies": ["x", "y"], "weights": [0.8, 0.2]}
    data = make(RecordSource(write_jsonl("a.jsonl", [row])))
    replies = [reply for epoch in range(400) for _, reply in taught(data, epoch)]
    assert 0.75 < replies.count("x<|eos|>") / 400 < 0.85
    assert [next(iter(taught(data, epoch)))[1] for epoch in range(400)] == replies


def test_validation_asks_what_was_held_out(write_jsonl):
    rows = [{"prompt": f"Question {n}?", "replies": ["yes"], "answers": ["yes"]} for n in range(40)]
    path = RecordSource(write_jsonl("a.jsonl", rows))
    data = make(path, replies={"held_out_share": 0.5})
    batches = list(data.val_dataloader()[0])
    asked = {question for batch in batches for question in batch["questions"]}
    trained = {prompt.split("\n")[0].removeprefix("User: ") for prompt, _ in taught(data)}
    assert asked
    assert asked | trained == {row["prompt"] for row in rows}
    assert not asked & trained
    batch = batches[0]
    assert batch["answers"] == [["yes"], ["yes"]]
    # "User: Question 0?" and "Assistant:", each with its line end, and BOS; then "yes" and EOS.
    width = batch["prompt_ids"].shape[1]
    assert width == 1 + len(f"User: {max(batch['questions'], key=len)}\nAssistant:\n")
    assert ((batch["labels"] != IGNORED_LABEL).sum(1) == 4).all()
    longest = batch["questions"].index(max(batch["questions"], key=len))
    assert torch.equal(batch["prompt_ids"][longest], batch["input_ids"][longest, :width])


def test_what_does_not_fit_is_left_out(write_jsonl):
    rows = [{"prompt": "A?", "replies": ["x", "y" * 60]}]
    data = make(RecordSource(write_jsonl("a.jsonl", rows)), replies={"draws_per_prompt": 4})
    assert list(taught(data).values()) == [4]
    with pytest.raises(ValueError, match="2 are longer, with their prompts"):
        taught(make(RecordSource(write_jsonl("a.jsonl", rows)), context_length=8))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, r"a\.jsonl'.*'row 1' has 0 replies and 0 weights"),
        ({"replies": ["x"], "weights": [1, 1]}, r"a\.jsonl, line 1: 1 replies have 2 weights"),
        ({"replies": ["x"], "weights": [-1.0]}, r"a\.jsonl, line 1: .* not negative"),
        ({"replies": ["x"], "weights": [float("nan")]}, r"a\.jsonl, line 1: .* finite"),
    ],
)
def test_rows_without_replies_or_with_odd_weights_are_refused(row, message, write_jsonl):
    path = write_jsonl("a.jsonl", [{"prompt": "A?", **row}])
    with pytest.raises(ValueError, match=message):
        taught(make(RecordSource(path)))


def test_the_prior_of_the_one_or_two_task():
    rows = one_or_two.reply_rows()
    assert len(rows) == 8
    for row in rows:
        prior = dict(zip(row["replies"], row["weights"], strict=True))
        assert sum(prior.values()) == pytest.approx(1)
        assert [prior[reply] for reply in row["answers"]] == [0.55, 0.25]
        assert "1 " in row["prompt"] or "1:" in row["prompt"] or "1," in row["prompt"]


def test_the_categories_are_tidy():
    categories = creative_questions.categories()
    assert len(categories) == 63
    assert sum(entry["held_out"] for entry in categories.values()) == 10
    for name, entry in categories.items():
        answers = [answer.lower().removeprefix("the ") for answer in entry["answers"]]
        assert 12 <= len(answers) <= 40, name
        assert len(set(answers)) == len(answers), name
        assert all(answer and answer == answer.strip() for answer in answers), name
        assert entry["one"].split()[0] in ("a", "an"), name
    assert "Switzerland" in categories["European country"]["answers"]
    assert categories["European capital"]["answers"][:2] == ["Tirana", "Vienna"]
    assert categories["chemical element"]["answers"][35] == "krypton"
    assert len(categories["South American country"]["answers"]) == 12


def test_the_small_set_of_creative_questions():
    names, categories = creative_questions.small_categories(), creative_questions.categories()
    assert len(names) == len(set(names)) == 23
    assert sum(categories[name]["held_out"] for name in names) == 5
    rows, all_rows = creative_questions.prompt_rows(small=True), creative_questions.prompt_rows()
    assert rows == [row for name in names for row in all_rows if row["category"] == name]
    splits = [row["split"] for row in rows]
    assert [splits.count(s) for s in ("train", "held_out_phrasings", "held_out_categories")] == [
        18 * 12,
        18 * 3,
        5 * 15,
    ]
    taught = make(RecordSource(subset="creative_questions_small"))
    assert sum(1 for _ in taught.parts[0].tokenizer_texts()) == 23 * (15 + 5) * 5


def test_variety_is_asked_for_in_the_warm_up_alone():
    for small in (True, False):
        asked = {row["prompt"] for row in creative_questions.prompt_rows(small)}
        rows = creative_questions.reply_rows(small)
        varied = [row for row in rows if row["split"] == "varied"]
        assert not asked & {row["prompt"] for row in varied}
        assert {row["prompt"] for row in rows if row["split"] != "varied"} == asked
        assert {row["category"] for row in varied} == {row["category"] for row in rows}
        for row in rows:
            right = dict(zip(row["replies"], row["weights"], strict=True))
            shares = [right[answer] for answer in row["answers"]]
            assert (max(shares) == pytest.approx(min(shares))) == (row["split"] == "varied")


def test_the_prior_of_creative_questions_is_zipfs_with_wrong_answers():
    for name, entry in creative_questions.categories().items():
        prior = creative_questions.answer_prior(name)
        right = [prior[answer] for answer in entry["answers"]]
        wrong = [share for answer, share in prior.items() if answer not in entry["answers"]]
        assert sum(right) == pytest.approx(0.9)
        assert wrong == [pytest.approx(0.01)] * 10
        ranked = sorted(right, reverse=True)
        assert ranked[0] / ranked[11] == pytest.approx(144)
        alike = creative_questions.answer_prior(name, exponent=0)
        share = pytest.approx(0.9 / len(entry["answers"]))
        assert [alike[answer] for answer in entry["answers"]] == [share] * len(entry["answers"])
    # Fixed by its seed: the most frequent answers of two categories.
    firsts = [next(iter(creative_questions.answer_prior(name))) for name in ("fruit", "month")]
    assert firsts == ["coconut", "May"]
