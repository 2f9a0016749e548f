"""Every format gives the same rows; every malformed row is named by file, line and field."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from triptych.datamodules.sources.records import (
    RecordSource,
    read_records,
    source_fingerprint,
    stream_records,
)
from triptych.models.disk_cache import default_cache_dir

ROWS = [
    {"question": "Capital of France?", "answers": ["Paris"], "year": 1},
    {"question": 'Two\nlines, "quoted"?', "answers": ["a", "b|c"], "year": 2},
]
FIELDS = {"question": str, "answers": list[str]}
TEXT = {"text": str}


def write(path, rows=ROWS):
    """Write rows in the format of the path's name."""
    opener = gzip.open if path.suffix == ".gz" else open
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with opener(path, "wt", encoding="utf-8", newline="") as stream:
            if name.endswith(".jsonl"):
                stream.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                writer = csv.DictWriter(stream, rows[0])
                writer.writeheader()
                writer.writerows(row | {"answers": json.dumps(row["answers"])} for row in rows)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.parquet"])
def test_formats_give_the_same_rows(tmp_path, name):
    source = RecordSource(write(tmp_path / name))
    expected = [row | {"note": None} for row in ROWS]
    rows = read_records(source, FIELDS | {"year": int}, {"note": str})
    assert rows.to_list() == expected
    assert list(stream_records(source, FIELDS | {"year": int}, {"note": str})) == expected


def test_the_embedded_default():
    rows = read_records(RecordSource(), TEXT, embedded=lambda: [{"text": "a", "more": 1}])
    assert rows.to_list() == [{"text": "a"}]
    with pytest.raises(ValueError, match="no embedded default"):
        read_records(RecordSource(), TEXT)


def test_a_text_file_is_one_text_cut_at_line_ends(tmp_path):
    lines = [f"line {number}\n" for number in range(30_000)] + ["last\n", "without end"]
    (tmp_path / "a.txt").write_text("".join(lines), newline="\r\n")
    rows = read_records(RecordSource(str(tmp_path / "a.txt")), TEXT)["text"]
    assert len(rows) > 2
    assert "".join(rows) == "".join(lines)
    assert all(row.endswith("\n") for row in rows[:-1])


def test_smiles_with_and_without_names(tmp_path):
    (tmp_path / "a.smi").write_text("CCO ethanol\n\nc1ccccc1\tbenzene ring\nC\n")
    rows = read_records(RecordSource(str(tmp_path / "a.smi")), {"smiles": str}, {"name": str})
    assert rows.to_list() == [
        {"smiles": "CCO", "name": "ethanol"},
        {"smiles": "c1ccccc1", "name": "benzene ring"},
        {"smiles": "C", "name": ""},
    ]


def test_patterns_lists_limits_and_renamed_columns(tmp_path, write_jsonl):
    for number in (2, 1, 3):
        write_jsonl(f"part{number}.jsonl", [{"body": {"raw": str(number)}}] * 2)
    pattern = str(tmp_path / "part*.jsonl")
    columns = {"text": "body.raw"}

    def read(path, **options):
        return read_records(RecordSource(path, columns=columns, **options), TEXT)["text"][:]

    assert read(pattern) == ["1", "1", "2", "2", "3", "3"]
    assert read([str(tmp_path / "part3.jsonl"), str(tmp_path / "part1.jsonl")]) == list("3311")
    assert read(pattern, limit=3) == ["1", "1", "2"]


def test_numbers_are_read_where_nothing_is_lost(write_jsonl):
    rows = [{"n": 3, "x": 1}, {"n": "4", "x": "2.5"}, {"n": 5.0, "x": 0.5}]
    read = read_records(RecordSource(write_jsonl("a.jsonl", rows)), {"n": int, "x": float})
    assert read.to_list() == [{"n": 3, "x": 1.0}, {"n": 4, "x": 2.5}, {"n": 5, "x": 0.5}]


MALFORMED = [
    ('{"text": "b"', r"line 2: not valid JSON.*one object"),
    ('["b"]', r"line 2: expected a JSON object with named fields, got list"),
    ('{"txt": "b"}', r"line 2: field 'text' is missing; the row has txt"),
    ('{"text": null}', r"line 2: field 'text' is missing"),
    ('{"text": 7}', r"line 2: field 'text' must be str, got int 7"),
    ('{"text": ["b"]}', r"line 2: field 'text' must be str, got list \['b'\]"),
]


@pytest.mark.parametrize(("line", "message"), MALFORMED)
def test_a_malformed_row_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a"}}\n{line}\n{{"text": "c"}}\n')
    with pytest.raises(ValueError, match=f"{path}, {message}"):
        read_records(RecordSource(str(path)), TEXT)


@pytest.mark.parametrize(("line", "message"), MALFORMED)
def test_a_malformed_row_is_skipped_on_request_and_counted(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a"}}\n{line}\n{{"text": "c"}}\n')
    source = RecordSource(str(path), on_bad_row="skip")
    with pytest.warns(UserWarning, match=f"skipped 1 malformed of 3 rows in .*{message}"):
        rows = read_records(source, TEXT)
    assert rows["text"][:] == ["a", "c"]


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (True, int, "must be int, got bool True"),
        (1.5, int, "must be int, got float 1.5"),
        ("x", float, "must be float, got str 'x'"),
        ([1], list[str], r"must be list\[str\], got list \[1\]"),
        ({"a": "b"}, list[str], r"must be list\[str\], got dict"),
        ("y" * 99, int, r"must be int, got str 'yyy+\.\.\."),
    ],
)
def test_a_value_of_the_wrong_type_is_named(write_jsonl, value, kind, message):
    path = write_jsonl("a.jsonl", [{"field": value}])
    with pytest.raises(ValueError, match=f"a.jsonl, line 1: field 'field' {message}"):
        read_records(RecordSource(path), {"field": kind})


def test_malformed_csv_rows_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,n\n"two\nlines",1\nb\nc,3,4\n')
    for line in (4, 5):
        with pytest.raises(ValueError, match=f"line {line}: the number of fields.*2.*text, n"):
            read_records(RecordSource(str(path)), TEXT)
        path.write_text(path.read_text().replace("\nb\n", "\nb,2\n"))


def test_an_unreadable_csv_line_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * (csv.field_size_limit() + 1) + "\n")
    with pytest.raises(ValueError, match=r"line 2: not valid CSV.*\.jsonl"):
        read_records(RecordSource(str(path)), TEXT)


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    for path in (tmp_path / "nowhere.jsonl", tmp_path / "part*.jsonl"):
        with pytest.raises(FileNotFoundError, match=r"no file at '.*(nowhere|part).*give a file"):
            read_records(RecordSource(str(path)), TEXT)


def test_a_limit_of_no_rows_is_refused():
    with pytest.raises(ValueError, match=r"limit is 0 for 'a\.csv': set it to at least 1"):
        RecordSource("a.csv", limit=0)


def test_an_unknown_format_is_named(tmp_path):
    (tmp_path / "a.docx").write_text("a")
    with pytest.raises(ValueError, match=r"a\.docx.*must end in one of \.jsonl"):
        read_records(RecordSource(str(tmp_path / "a.docx")), TEXT)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.jsonl.gz"])
def test_an_empty_file_is_refused(tmp_path, name):
    data = gzip.compress(b"") if name.endswith(".gz") else b""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"no rows in .*{name}.*at least one row"):
        read_records(RecordSource(str(tmp_path / name)), TEXT)


def test_a_broken_archive_and_a_foreign_encoding_are_named(tmp_path):
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    (tmp_path / "half.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.jsonl\.gz is not a whole gzip file"):
        read_records(RecordSource(str(tmp_path / "half.jsonl.gz")), TEXT)
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and so on")
    with pytest.raises(ValueError, match=r"half\.parquet is not a parquet file"):
        read_records(RecordSource(str(tmp_path / "half.parquet")), TEXT)
    (tmp_path / "latin.txt").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        read_records(RecordSource(str(tmp_path / "latin.txt")), TEXT)
    (tmp_path / "latin.jsonl").write_bytes('{"text": "Zürich"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.jsonl, line 1: not valid JSON"):
        read_records(RecordSource(str(tmp_path / "latin.jsonl")), TEXT)


def test_hub_names_are_told_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "plain").write_text("")
    names = {
        "allenai/WildChat-1M": "allenai/WildChat-1M",
        "hub:imdb": "imdb",
        "embedded": None,
        "data/books.jsonl.gz": None,
        "data/*.csv": None,
        "here/plain": None,
        str(tmp_path / "x"): None,
    }
    assert {path: RecordSource(path).hub_name for path in names} == names


def test_a_hub_data_set_that_cannot_be_had_is_named(monkeypatch):
    def refuse(name, *_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr("triptych.datamodules.sources.records.datasets.load_dataset", refuse)
    with pytest.raises(ValueError, match=r"cannot load 'a/b'.*offline.*local file"):
        read_records(RecordSource("a/b"), TEXT)


def test_the_fingerprint_follows_contents_and_settings_but_not_places(tmp_path, write_jsonl):
    first = write_jsonl("a.jsonl", [{"text": "a"}])
    moved = write_jsonl("elsewhere/b.jsonl", [{"text": "a"}])
    other = write_jsonl("c.jsonl", [{"text": "b"}])
    assert source_fingerprint(RecordSource(first)) == source_fingerprint(RecordSource(moved))
    prints = [
        source_fingerprint(RecordSource(first)),
        source_fingerprint(RecordSource(other)),
        source_fingerprint(RecordSource(first, limit=1)),
        source_fingerprint(RecordSource(first, columns={"text": "body"})),
        source_fingerprint(RecordSource([first, other])),
        source_fingerprint(RecordSource(), lambda: [{"text": "a"}]),
        source_fingerprint(RecordSource(), lambda: [{"text": "b"}]),
        source_fingerprint(RecordSource("a/b", revision="1")),
        source_fingerprint(RecordSource("a/b", revision="2")),
    ]
    assert len(set(prints)) == len(prints)


def test_caches_lie_in_the_home_if_there_is_one(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv("TRIPTYCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "triptych"
    monkeypatch.setenv("HOME", "")
    assert default_cache_dir().parent == tmp_path / "temporary"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # tests may run as root
    assert default_cache_dir().parent == tmp_path / "temporary"
    monkeypatch.setenv("TRIPTYCH_CACHE", "chosen")
    assert str(default_cache_dir()) == "chosen"
