"""Files of every kind of data, with one fault in a row or in the bytes."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.parquet

Row = dict[str, Any]
ROWS = 8
RowFault = tuple[Callable[[], Any], bool]  # changes the rows; whether they must be refused
# Makes the bytes; whether they must be refused, and by the line.
ByteFault = tuple[Callable[[], bytes], bool, bool]


def rows_of(kind: str) -> list[Row]:
    """Make the rows of a right file."""
    names = ["Peru", "Chile", "Kenya", "Nepal", "Norway", "Cuba", "Oman", "Laos"]
    molecules = [
        "CCO",
        "c1ccccc1O",
        "CC(=O)N",
        "CCN(CC)CC",
        "O=C(O)c1ccccc1",
        "CCCl",
        "C1CCNCC1",
        "CC#N",
    ]
    makers: dict[str, Callable[[int], Row]] = {
        "text": lambda i: {"text": f"A text about {names[i]}, number {i}. It has two sentences."},
        "facts": lambda i: {
            "question": f"What is the capital of {names[i]}?",
            "answers": [f"City{i}"],
            "id": f"f{i}",
        },
        "prompts": lambda i: {
            "prompt": f"Name a thing from {names[i]}.",
            "answers": [f"a{i}", "b"],
            "category": "c",
        },
        "replies": lambda i: {
            "prompt": f"Name a city of {names[i]}.",
            "replies": [f"City{i}", "Town"],
        },
        "smiles": lambda i: {"smiles": molecules[i]},
        "documents": lambda i: {
            "text": f"{names[i]} is a place. It has {i} hills and a river.",
            "id": f"d{i}",
            "title": names[i],
        },
        "reasoning": lambda i: {
            "question": f"What is {i} plus {i}?",
            "answer": f"It is {2 * i}. #### {2 * i}",
        },
    }
    return [makers[kind](i) for i in range(ROWS)]


KEY = {
    "text": "text",
    "facts": "question",
    "prompts": "prompt",
    "replies": "prompt",
    "smiles": "smiles",
    "documents": "text",
    "reasoning": "question",
}
FORMATS = {
    "text": ["jsonl", "csv", "parquet", "txt", "jsonl.gz"],
    "facts": ["jsonl", "csv", "parquet", "jsonl.gz", "csv.gz"],
    "prompts": ["jsonl", "csv", "parquet", "txt", "jsonl.gz"],
    "replies": ["jsonl", "parquet", "jsonl.gz"],
    "smiles": ["smi", "csv", "jsonl", "parquet", "smi.gz", "csv.gz"],
    "documents": ["jsonl", "csv", "parquet", "jsonl.gz"],
    "reasoning": ["jsonl", "csv", "parquet", "jsonl.gz"],
}


def encode(rows: list[Row], form: str, kind: str) -> bytes:
    """Write rows as the bytes of a file.

    Args:
        rows: The rows.
        form: Suffix of the file's name, such as "csv.gz", which is written without the gz.
        kind: Kind of the data, a key of `FORMATS`.
    """
    form = form.removesuffix(".gz")
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if form == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(
            out, fieldnames=list(dict.fromkeys(name for row in rows for name in row))
        )
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
            )
        return out.getvalue().encode()
    if form == "parquet":
        binary = io.BytesIO()
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        pyarrow.parquet.write_table(pyarrow.table(columns), binary, write_page_checksum=True)
        return binary.getvalue()
    return "".join(row[KEY[kind]] + "\n" for row in rows).encode()


def row_fault(rows: list[Row], kind: str, chance: random.Random, form: str) -> tuple[str, bool]:
    """Change a row, and return the fault's name and whether it must be refused."""
    key, place = KEY[kind], chance.randrange(1, ROWS)
    row = rows[place]
    faults: dict[str, RowFault] = {
        "missing field": (lambda: row.pop(key), True),
        "null field": (lambda: row.update({key: None}), True),
        "number in a text field": (
            lambda: row.update({key: 17}),
            form.startswith(("jsonl", "parquet")),
        ),
        "list in a text field": (
            lambda: row.update({key: [1, [2]]}),
            form.startswith(("jsonl", "parquet")),
        ),
        "object in a text field": (
            lambda: row.update({key: {"a": {"b": 1}}}),
            form.startswith(("jsonl", "parquet")),
        ),
        "bool in a text field": (
            lambda: row.update({key: True}),
            form.startswith(("jsonl", "parquet")),
        ),
        "empty text": (
            lambda: row.update({key: ""}),
            kind not in ("text", "documents") and form.startswith(("jsonl", "csv", "parquet")),
        ),
        "white space alone": (
            lambda: row.update({key: " \t "}),
            kind not in ("text", "documents") and form.startswith(("jsonl", "csv", "parquet")),
        ),
        "extra field": (lambda: row.update({"zzz": 1}), False),
        "lone surrogate": (
            lambda: row.update({key: row[key] + "\ud800"}),
            form.startswith("jsonl"),
        ),
        "NUL in text": (lambda: row.update({key: row[key] + "\0tail"}), kind == "smiles"),
        "control characters": (
            lambda: row.update({key: row[key] + "\x1b[2J\x07\x85\u2028"}),
            kind == "smiles",
        ),
        "emoji and right-to-left marks": (
            lambda: row.update({key: row[key] + "\u202e\U0001f600\ufeff"}),
            kind == "smiles",
        ),
        "huge text": (
            lambda: row.update({key: row[key] + " words" * 50_000}),
            kind == "smiles" and not form.startswith("smi"),
        ),
        "one letter 300,000 times": (
            lambda: row.update({key: row[key] + "x" * 300_000}),
            kind == "smiles",
        ),
        "special tokens in text": (
            lambda: row.update({key: row[key] + "<|eos|><|bos|><|pad|>"}),
            kind == "smiles",
        ),
        "trailing junk": (
            lambda: row.update({key: row[key] + " trailing junk"}),
            kind == "smiles" and not form.startswith("smi"),
        ),
        "all rows alike": (lambda: [each.update(rows[0]) for each in rows], False),
    }
    of_kinds: dict[str, dict[str, RowFault]] = {
        "facts": {
            "answers empty": (lambda: row.update(answers=[]), True),
            "answers a number": (lambda: row.update(answers=3), True),
            "answers of numbers": (
                lambda: row.update(answers=[1, 2]),
                form.startswith(("jsonl", "csv")),
            ),
            "answers with an empty one": (lambda: row.update(answers=["", "a"]), False),
            "answers all empty": (lambda: row.update(answers=["", " "]), True),
            "duplicate id": (lambda: row.update(id=rows[0]["id"]), True),
            "id a number": (lambda: row.update(id=3), form.startswith("jsonl")),
            "answers nested": (lambda: row.update(answers=[["a"]]), True),
        },
        "prompts": {
            "answers a number": (lambda: row.update(answers=3), True),
            "answers nested": (lambda: row.update(answers=[["a"]]), True),
            "toxic a word": (lambda: row.update(toxic="perhaps"), form != "txt"),
            "conversation a word": (lambda: row.update(conversation="hi"), True),
            "conversation without role": (
                lambda: row.update(conversation=[{"content": "hi"}]),
                True,
            ),
            "conversation of nobody": (
                lambda: row.update(conversation=[{"role": "robot", "content": "hi"}]),
                True,
            ),
            "conversation empty": (lambda: row.update(conversation=[]), True),
            "message a number": (
                lambda: row.update(conversation=[{"role": "user", "content": 3}]),
                True,
            ),
            "message of two users": (
                lambda: row.update(
                    conversation=[
                        {"role": "user", "content": "a"},
                        {"role": "user", "content": "b"},
                    ]
                ),
                False,
            ),
            "message empty": (
                lambda: row.update(conversation=[{"role": "user", "content": ""}]),
                False,
            ),
        },
        "replies": {
            "replies empty": (lambda: row.update(replies=[]), True),
            "replies null": (lambda: row.update(replies=None), True),
            "weights of another length": (
                lambda: [each.update(weights=[1.0] * (3 if each is row else 2)) for each in rows],
                True,
            ),
            "weights negative": (
                lambda: [
                    each.update(weights=[-1.0, 2.0] if each is row else [1.0, 1.0]) for each in rows
                ],
                True,
            ),
            "weights nan": (
                lambda: [
                    each.update(weights=[float("nan"), 2.0] if each is row else [1.0, 1.0])
                    for each in rows
                ],
                True,
            ),
            "weights infinite": (
                lambda: [
                    each.update(weights=[float("inf"), 2.0] if each is row else [1.0, 1.0])
                    for each in rows
                ],
                True,
            ),
            "weights all zero": (
                lambda: [
                    each.update(weights=[0.0, 0.0] if each is row else [1.0, 1.0]) for each in rows
                ],
                True,
            ),
            "reply a number": (lambda: row.update(replies=[1]), form.startswith("jsonl")),
            "reply empty": (lambda: row.update(replies=["", "a"]), False),
        },
        "smiles": {
            "no molecule": (lambda: row.update(smiles="C1CC"), True),
            "words": (lambda: row.update(smiles="benzene"), True),
            "wrong valence": (lambda: row.update(smiles="C(C)(C)(C)(C)C"), True),
            "enormous": (lambda: row.update(smiles="C" * 5000), True),
            "deep branches": (lambda: row.update(smiles="C(" * 900 + "C" + ")" * 900), False),
            "isotopes and charges": (lambda: row.update(smiles="[13C@@H2+3:7]"), False),
            "query atoms": (lambda: row.update(smiles="[#6]~[*]"), False),
            "reaction": (lambda: row.update(smiles="CCO>>CC=O"), True),
            "extension": (lambda: row.update(smiles="CCO |$_R1;;$|"), not form.startswith("smi")),
            "many fragments": (lambda: row.update(smiles=".".join(["C"] * 500)), False),
        },
        "documents": {
            "duplicate id": (lambda: row.update(id=rows[0]["id"]), False),
            "id a number": (lambda: row.update(id=3), form.startswith("jsonl")),
            "augmentations a number": (lambda: row.update(augmentations=3), True),
            "augmentations nested": (lambda: row.update(augmentations=[["a"]]), True),
        },
        "reasoning": {
            "answer without a number": (lambda: row.update(answer="nobody knows"), True),
            "answer null": (lambda: row.update(answer=None), True),
            "number nan": (lambda: (row.update(number=float("nan")), row.pop("answer")), True),
            "number infinite": (lambda: (row.update(number=float("inf")), row.pop("answer")), True),
            "number a word": (lambda: row.update(number="many"), True),
            "huge number": (lambda: row.update(answer="#### " + "9" * 5000), False),
        },
    }
    more = of_kinds.get(kind, {})
    faults |= more
    name = chance.choice(sorted(faults))
    change, must = faults[name]
    change()
    if form in ("txt", "smi", "smi.gz") and name in more:
        must = must and kind == "smiles"
    return name, must


def byte_fault(
    data: bytes, form: str, kind: str, chance: random.Random
) -> tuple[bytes, str, bool, bool]:
    """Damage a file: its bytes, the fault's name, and whether it and its line must be named."""
    plain = form.removesuffix(".gz")
    packed = gzip.compress(data, mtime=0) if form.endswith(".gz") else data
    lines = data.split(b"\n")
    place = chance.randrange(1, max(2, len(lines) - 1))

    def line(new: bytes) -> bytes:
        return b"\n".join([*lines[:place], new, *lines[place + 1 :]])

    def again(new: bytes) -> bytes:
        return gzip.compress(new, mtime=0) if form.endswith(".gz") else new

    faults: dict[str, ByteFault] = {
        "empty file": (lambda: b"", True, False),
        "cut in half": (
            lambda: packed[: len(packed) // 2],
            form.endswith(".gz") or plain in ("parquet", "jsonl"),
            plain == "jsonl" and not form.endswith(".gz"),
        ),
        "last byte lost": (lambda: packed[:-1], form.endswith(".gz") or plain == "parquet", False),
        "not what its name says": (
            lambda: b"\x89PNG\r\n\x1a\n" + bytes(chance.randrange(256) for _ in range(200)),
            True,
            False,
        ),
        "random bytes": (lambda: bytes(chance.randrange(256) for _ in range(500)), True, False),
        "bit flipped": (
            lambda: flip(packed, chance, 1),
            form.endswith(".gz"),  # Parquet has checksums of its values, not of its head
            False,
        ),
        "bits flipped": (
            lambda: flip(packed, chance, 12),
            form.endswith(".gz"),  # Parquet has checksums of its values, not of its head
            False,
        ),
    }
    if form.endswith(".gz"):
        faults |= {
            "not packed at all": (lambda: data, True, False),
            "packed twice": (lambda: gzip.compress(packed), True, False),
            "junk after it": (lambda: packed + b"junk junk", True, False),
            "two members": (lambda: packed + gzip.compress(data, mtime=0), False, False),
        }
    if plain != "parquet":
        faults |= {
            "BOM": (lambda: again(b"\xef\xbb\xbf" + data), False, False),
            "UTF-16": (lambda: again(data.decode().encode("utf-16")), True, False),
            "Latin-1": (
                lambda: again(line(lines[place] + "\u00e9\u00fc".encode("latin-1"))),
                True,
                plain == "jsonl",
            ),
            "CRLF": (lambda: again(data.replace(b"\n", b"\r\n")), False, False),
            "CR alone": (lambda: again(data.replace(b"\n", b"\r")), plain == "jsonl", False),
            "NUL line": (
                lambda: again(line(b"\0" * 20)),
                plain in ("jsonl", "csv", "smi"),
                plain in ("jsonl",),
            ),
            "no newline at the end": (lambda: again(data.rstrip(b"\n")), False, False),
            "blank lines": (lambda: again(data.replace(b"\n", b"\n\n")), False, False),
        }
    if plain == "jsonl":
        faults |= {
            "deep nesting": (lambda: again(line(b"[" * 200_000)), True, True),
            "deep nesting closed": (
                lambda: again(line(b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}")),
                True,
                True,
            ),
            "number of 6000 digits": (
                lambda: again(line(b'{"x": ' + b"9" * 6000 + b"}")),
                True,
                True,
            ),
            "duplicate keys": (
                lambda: again(line(b'{"%s": "a", %s' % (KEY[kind].encode(), lines[place][1:]))),
                False,
                True,
            ),
            "one array": (lambda: again(b"[" + b",".join(lines[:-1]) + b"]"), True, True),
            "pretty printed": (
                lambda: again(json.dumps(json.loads(lines[0]), indent=1).encode()),
                True,
                True,
            ),
            "single quotes": (lambda: again(line(lines[place].replace(b'"', b"'"))), True, True),
            "trailing comma": (lambda: again(line(lines[place][:-1] + b",}")), True, True),
            "two objects in a line": (lambda: again(line(lines[place] * 2)), True, True),
            "a comment": (lambda: again(line(b"// comment")), True, True),
            "NaN": (lambda: again(line(b'{"%s": NaN}' % KEY[kind].encode())), True, True),
            "a list": (lambda: again(line(b"[1, 2]")), True, True),
            "a word": (lambda: again(line(b'"word"')), True, True),
            "null": (lambda: again(line(b"null")), True, True),
            "bad escape": (
                lambda: again(line(b'{"%s": "\\x41"}' % KEY[kind].encode())),
                True,
                True,
            ),
        }
    if plain == "csv":
        faults |= {
            "quote never closed": (lambda: again(line(b'"' + lines[place])), True, False),
            "field too many": (lambda: again(line(lines[place] + b",more")), True, True),
            "field too few": (
                lambda: (
                    again(line(b""))
                    if len(lines[0].split(b",")) == 1
                    else again(line(lines[place].rpartition(b",")[0]))
                ),
                len(lines[0].split(b",")) > 1,
                True,
            ),
            "huge field": (lambda: again(line(b'"' + b"x" * 200_000 + b'"')), True, False),
            "no head": (lambda: again(b"\n".join(lines[1:])), True, False),
            "head twice": (
                lambda: again(b"\n".join([lines[0], *lines])),
                kind in ("smiles", "reasoning"),
                False,
            ),
            "same name twice": (
                lambda: again(
                    b"\n".join(
                        [
                            lines[0] + b"," + lines[0].split(b",")[0],
                            *[each + b",x" for each in lines[1:-1]],
                            b"",
                        ]
                    )
                ),
                True,
                False,
            ),
            "semicolons": (lambda: again(data.replace(b",", b";")), b"," in lines[0], False),
            "tabs": (lambda: again(data.replace(b",", b"\t")), b"," in lines[0], False),
        }
    if plain == "parquet":
        faults |= {
            "magic alone": (lambda: b"PAR1PAR1", True, False),
            "foot of zeros": (lambda: packed[:-60] + b"\0" * 52 + packed[-8:], True, False),
            "middle of zeros": (
                lambda: packed[: len(packed) // 3] + b"\0" * 64 + packed[len(packed) // 3 + 64 :],
                True,
                False,
            ),
        }
    name = chance.choice(sorted(faults))
    make, must, row = faults[name]
    return make(), name, must, row


def flip(data: bytes, chance: random.Random, count: int) -> bytes:
    """Flip bits."""
    changed = bytearray(data)
    for _ in range(count):
        place = chance.randrange(len(changed))
        changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)
