"""`--data FILE` over a configuration with data of the same class."""

import yaml

from tests.train.test_class_names import composed


def data_of(capsys, *words: str) -> dict:
    base = ["fit", "--config", "configs/remember/retrofit_qwen3.yaml"]
    return composed([*base, *words], capsys)["data"]["init_args"]


def test_a_file_of_the_same_class_replaces_what_the_configuration_says(workdir, capsys):
    assert data_of(capsys)["text"]["streaming"] is True
    data = data_of(
        capsys, "--data", "configs/data/text_local.yaml", "--data.init_args.batch_size", "4"
    )
    assert data["text"]["streaming"] is False
    assert data["rows_per_epoch"] is None
    assert data["context_length"] == 256
    assert data["batch_size"] == 4
    for source in [*data["text"]["train"], *data["text"]["validation"].values()]:
        assert source["subset"] is None
        assert source["split"] == "train"


def test_a_second_configuration_is_still_merged(workdir, capsys):
    part = {"data": {"class_path": "TextCorpus", "init_args": {"batch_size": 3}}}
    (workdir / "part.yaml").write_text(yaml.safe_dump(part))
    data = data_of(capsys, "--config", "part.yaml")
    assert data["batch_size"] == 3
    assert data["text"]["streaming"] is True
