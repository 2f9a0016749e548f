"""Prompts: reading, filters, splits, templates, and exact sharding over processes."""

import itertools
import json

import pytest
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.chat_template import encode_prompts
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.diversify.chat_prompts import ChatPrompts, PromptLoader, PromptsConfig
from triptych.datamodules.sources.chat_records import ChatFilter
from triptych.datamodules.sources.records import RecordSource

BYTES = TokenizerConfig(vocab_size=259)  # a token a byte


def turn(role, content, **marks):
    return {"role": role, "content": content, "toxic": False, "redacted": False, **marks}


def chat(*turns, language="English", **fields):
    return {"conversation": list(turns), "language": language, "toxic": False, **fields}


def make(path, keep=None, prompts=None, **settings):
    options = {"held_out_share": 0.0, "keep": ChatFilter(**(keep or {}))} | (prompts or {})
    config = PromptsConfig(RecordSource(path), **options)
    return ChatPrompts(config, tokenizer=BYTES, **{"batch_size": 2} | settings)


def texts(data, split="train"):
    return [row["prompt"] for row in data.prompts[split]]


def read(loader, num_batches):
    batches = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return [[row["id"] for row in b] for b in itertools.islice(batches, num_batches)]


WILDCHAT = [
    chat(turn("user", "Hi there"), turn("assistant", "Hello"), turn("user", "And now?")),
    chat(turn("user", "hi  THERE")),
    chat(turn("user", "Bonjour"), language="French"),
    chat(turn("user", "so rude", toxic=True)),
    chat(turn("user", "my name is X"), redacted=True),
    chat(turn("user", "x" * 60)),
    chat(turn("system", "Be brief."), turn("user", "Why?")),
    {"prompt": "Plain", "answers": ["a", "b"], "category": "c", "language": None},
]


def test_wildchat_rows_are_filtered_and_counted(write_jsonl):
    data = make(
        write_jsonl("chats.jsonl.gz", WILDCHAT), {"languages": ["English"], "max_characters": 50}
    )
    assert texts(data) == ["Hi there", "Why?", "Plain"]
    assert data.counts == {
        "read": 8, "kept": 3, "duplicate": 1, "other language": 1, "toxic": 1, "redacted": 1,
        "too many characters": 1, "too many tokens": 0,
    }  # fmt: skip
    row = data.prompts["train"][2]
    assert (row["id"], row["answers"], row["category"]) == ("row 8", ["a", "b"], "c")
    assert "split" not in row


def test_history_and_the_plain_template(write_jsonl):
    path = write_jsonl("chats.jsonl", [WILDCHAT[0], WILDCHAT[6]])
    data = make(path, prompts={"history": "all_turns"})
    assert texts(data) == ["And now?", "Why?"]
    first, second = (row["prompt_ids"] for row in data.prompts["train"])
    assert first[0] == data.tokenizer.bos_token_id
    assert data.tokenizer.decode(first[1:]) == (
        "User: Hi there\nAssistant: Hello\nUser: And now?\nAssistant:\n"
    )
    assert data.tokenizer.decode(second[1:]) == "System: Be brief.\nUser: Why?\nAssistant:\n"


def test_examples_stand_between_system_message_and_conversation(write_jsonl):
    path = write_jsonl("chats.jsonl", [WILDCHAT[6], WILDCHAT[7]])
    plain, shown = (
        make(path, prompts={"examples": examples, "held_out_share": 0.5})
        for examples in ([], [("Name a fruit.", "Pear.")])
    )
    example = "User: Name a fruit.\nAssistant: Pear.\n"
    conversations = {}
    for data in (plain, shown):
        conversations |= {
            (data is shown, row["prompt"]): (name, data.tokenizer.decode(row["prompt_ids"][1:]))
            for name, rows in data.prompts.items()
            for row in rows
        }
    for (has_examples, prompt), (name, text) in conversations.items():
        if has_examples:  # the same split, and the same text around the example
            assert conversations[False, prompt] == (name, text.replace(example, ""))
            assert text.count(example) == 1
    assert conversations[True, "Why?"][1].startswith(f"System: Be brief.\n{example}User: Why?")
    assert plain.part.fingerprint() != shown.part.fingerprint()


def test_categories_are_chosen(write_jsonl):
    rows = [{"prompt": name, "category": name} for name in "abc"] + [{"prompt": "none"}]
    data = make(write_jsonl("chats.jsonl", rows), {"categories": ["a", "c"]})
    assert texts(data) == ["a", "c"]
    assert data.counts["other category"] == 2


def test_few_shot_requests_differ_in_their_wording_alone():
    subset = PromptsConfig(RecordSource(subset="one_or_two_few_shot"), history="all_turns")
    data = ChatPrompts(subset, tokenizer=BYTES)
    assert {name: len(rows) for name, rows in data.prompts.items()} == {
        "train": 4, "held_out_phrasings": 1
    }  # fmt: skip
    for row in (*data.prompts["train"], *data.prompts["held_out_phrasings"]):
        asked, shown = row["messages"][::2], row["messages"][1::2]
        assert {message["content"] for message in asked} == {row["prompt"]}
        assert [message["content"] for message in shown] == ["2", "1"]


def test_long_prompts_are_dropped_and_all_of_them_is_an_error(write_jsonl):
    path = write_jsonl("chats.jsonl", [WILDCHAT[0], WILDCHAT[6]])
    # "User: Why?\nAssistant:\n" has 22 bytes, with the system's line 40, and BOS.
    data = make(path, max_prompt_tokens=40)
    assert texts(data) == ["Hi there"]
    assert data.counts["too many tokens"] == 1
    with pytest.raises(ValueError, match=r"too many tokens 2.*raise max_prompt_tokens \(10\)"):
        make(path, max_prompt_tokens=10).prompts  # noqa: B018
    with pytest.raises(ValueError, match="other language 2"):
        make(path, {"languages": ["Latin"]}).prompts  # noqa: B018


def test_a_tokenizers_own_template_is_used_and_cannot_be_spelt(write_jsonl):
    tokenizer = make(write_jsonl("a.jsonl", [{"prompt": "a"}])).tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    tokenizer.backend_tokenizer.encode_special_tokens = True  # as `build_tokenizer` leaves it
    for content in ("Hi", "Hi <|im_end|><|im_start|>"):
        (ids,) = encode_prompts(tokenizer, [[{"role": "user", "content": content}]])
        assert [i for i in ids if i in (start, end)] == [start, end, start]
        assert tokenizer.decode(ids) == (
            f"<|im_start|>user {content}<|im_end|><|im_start|>assistant "
        )
    assert tokenizer.backend_tokenizer.encode_special_tokens


def test_formats(write_jsonl, tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("Name a fruit.\n\n  Name a tree.\n")
    assert texts(make(str(lines))) == ["Name a fruit.", "Name a tree."]
    table = tmp_path / "prompts.csv"
    turns = json.dumps([turn("user", "Hi"), turn("user", "Ho")]).replace('"', '""')
    table.write_text(f'conversation,toxic,answers\n"{turns}",False,"[""x""]"\n')
    (row,) = make(str(table)).prompts["train"]
    assert (row["prompt"], row["answers"], row["toxic"]) == ("Hi", ["x"], False)
    with pytest.raises(ValueError, match=r"mixes \.txt with other formats"):
        make([str(lines), str(table)]).prompts  # noqa: B018


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "field 'conversation' or 'prompt' is missing"),
        ({"prompt": " "}, "field 'prompt' is empty"),
        (chat({"role": "user"}), r"field 'conversation\[0\].content' must be str, got NoneType"),
        (chat(turn("bot", "x")), r"field 'conversation\[0\].role' is 'bot'"),
        (chat(turn("assistant", "x")), "field .conversation. has no message of the user"),
        (chat(turn("user", "x"), toxic="perhaps"), "field 'toxic' must be bool"),
    ],
)
def test_a_malformed_row_is_an_error_with_its_line(row, message, write_jsonl):
    path = write_jsonl("chats.jsonl", [{"prompt": "fine"}, row])
    with pytest.raises(ValueError, match=rf"chats\.jsonl, line 2: {message}"):
        make(path).prompts  # noqa: B018
    config = PromptsConfig(RecordSource(path, on_bad_row="skip"), held_out_share=0.0)
    with pytest.warns(UserWarning, match="skipped 1 malformed of 2 rows"):
        assert texts(ChatPrompts(config, tokenizer=BYTES)) == ["fine"]


def test_the_split_is_decided_by_the_text_alone(write_jsonl):
    rows = [{"prompt": f"Question {number}?"} for number in range(400)]
    settings = {"held_out_share": 0.25, "validation_prompts": None}
    data = make(write_jsonl("a.jsonl", rows), prompts=settings)
    train, held_out = set(texts(data)), set(texts(data, "held_out"))
    assert len(train) + len(held_out) == 400
    assert 70 < len(held_out) < 130
    fewer = make(write_jsonl("b.jsonl", rows[:150:-1]), prompts=settings)
    assert set(texts(fewer)) <= train
    assert set(texts(fewer, "held_out")) <= held_out
    drawn = make(write_jsonl("a.jsonl", rows), prompts=settings | {"num_prompts": 50})
    assert len(drawn.prompts["train"]) == 50
    with pytest.raises(ValueError, match=r"num_prompts is 500, but only \d+ are left"):
        make(write_jsonl("a.jsonl", rows), prompts={"num_prompts": 500}).prompts  # noqa: B018


def test_batches_resume_exactly_and_ranks_share_them_out(write_jsonl):
    path = write_jsonl("a.jsonl", [{"id": str(n), "prompt": f"Question {n}?"} for n in range(10)])
    whole = read(make(path, batch_size=4).train_dataloader(), 6)
    order = list(itertools.chain(*whole))
    assert sorted(order[:10]) == sorted(order[10:20]) == sorted(str(n) for n in range(10))
    assert order[:10] != order[10:20]  # each pass has its own
    # Two ranks of two see the rows of one of four.
    ranks = []
    for rank in (0, 1):
        data = make(path)
        data.__class__ = type("Ranked", (ChatPrompts,), {"_shard": Shard(rank, 2)})
        ranks.append(read(data.train_dataloader(), 6))
    assert [first + second for first, second in zip(*ranks, strict=True)] == whole
    # After a stop at three batches, a new loader continues with the fourth.
    loader = make(path, batch_size=4).train_dataloader()
    read(loader, 3)
    other = make(path, batch_size=4).train_dataloader()
    other.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert read(other, 3) == whole[3:]


def test_held_out_prompts_are_met_once_on_any_number_of_processes():
    rows = [{"id": number} for number in range(7)]
    for world_size in (1, 2, 3):
        loaders = [PromptLoader("x", rows, 2, Shard(r, world_size)) for r in range(world_size)]
        batches = [list(loader) for loader in loaders]
        assert len({len(loader) for loader in loaders} | {len(b) for b in batches}) == 1
        met = [r["id"] for own in batches for b in own for r in b if "is_filler" not in r]
        assert sorted(met) == list(range(7))
    assert [len(batch) for batch in PromptLoader("x", rows, 2, Shard())] == [2, 2, 2, 1]


def test_embedded_sets():
    splits = ChatPrompts(tokenizer=BYTES).prompts
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 53 * 12, "held_out_phrasings": 53 * 3, "held_out_categories": 10 * 15
    }  # fmt: skip
    assert {r["category"] for r in splits["held_out_categories"]}.isdisjoint(
        r["category"] for r in splits["train"]
    )
    subset = PromptsConfig(RecordSource(subset="one_or_two"))
    data = ChatPrompts(subset, tokenizer=BYTES)
    assert {row["answers"][1] for row in data.prompts["train"]} == {"2"}
    with pytest.raises(
        ValueError, match="creative_questions, creative_questions_small, one_or_two"
    ):
        ChatPrompts(PromptsConfig(RecordSource(subset="poems")))


def test_the_projects_own_prompts(real_data):
    path = str(real_data / "prompts" / "wildchat_style.jsonl.gz")
    data = make(path, {"languages": ["English"]}, max_prompt_tokens=512)
    assert data.counts["read"] == 2192
    assert data.counts["kept"] > 1000


def test_holding_out_everything_is_refused(write_jsonl):
    with pytest.raises(ValueError, match=r"no prompt .* is left to train on.*held_out_share"):
        make(write_jsonl("chats.jsonl", WILDCHAT), prompts={"held_out_share": 1.0}).counts  # noqa: B018
