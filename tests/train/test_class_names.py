"""Classes by name: what is found, and what a wrong one is told, in YAML as on the command line."""

from pathlib import Path

import pytest
import yaml

from tests.train.test_bad_input import check, message_of
from triptych.callbacks.run.nan_guard import NanGuard
from triptych.class_paths import MARK, class_names_resolved, resolve
from triptych.cli import main
from triptych.datamodules.remember.text.text_and_facts import TextAndFacts
from triptych.lit_modules.remember.memory_pretraining import MemoryPretraining
from triptych.objectives.rewards.base import Reward
from triptych.objectives.rewards.python_function import PythonFunction
from triptych.short_names import component_classes

REWARDS = """\
from triptych.objectives.rewards.base import TextReward

class Short(TextReward):
    def score_one(self, text, prompt, record):
        return -float(len(text))

class Unfinished(TextReward):
    pass

class Other:
    pass
"""
FILES = {
    "my_rewards.py": REWARDS,
    "my_import.py": "import os\nimport nothing_of_that_name\n",
    "my_syntax.py": "\ndef score(:\n",
    "my_key.py": "raise RuntimeError('set MY_KEY first')\n",
}
PATH_OF = {
    kind.__name__: f"{kind.__module__}.{kind.__name__}"
    for kind in (MemoryPretraining, TextAndFacts, NanGuard, PythonFunction)
}
REWARD = "--model.init_args.reward"


@pytest.fixture
def users(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with files of a user, who may import them."""
    for name, text in FILES.items():
        (workdir / name).write_text(text)
    monkeypatch.syspath_prepend(str(workdir))
    return workdir


def composed(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    """The configuration that a command line means."""
    with pytest.raises(SystemExit) as end:
        main([*words, "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_every_component_has_a_short_name(workdir, capsys):
    """Rewards, callbacks, data and models, in a file; full paths stand in the composed one."""
    config = {
        "data": "TextAndFacts",
        "model": {
            "class_path": "MemoryPretraining",
            "init_args": {"memory": {"layers": [0], "index": "ProductKeyIndex"}},
        },
        "trainer": {"callbacks": ["NanGuard"]},
    }
    (workdir / "short.yaml").write_text(yaml.safe_dump(config))
    full = composed(["fit", "--config", "short.yaml"], capsys)
    assert full["data"]["class_path"] == PATH_OF["TextAndFacts"]
    assert full["model"]["class_path"] == PATH_OF["MemoryPretraining"]
    assert full["trainer"]["callbacks"][0]["class_path"] == PATH_OF["NanGuard"]


def test_short_names_on_the_command_line(workdir, capsys):
    words = ["fit", "--config", "configs/diversify/one_or_two.yaml", REWARD, "PythonFunction"]
    words += [f"{REWARD}.function", "math:sqrt", "--trainer.callbacks+", "run.nan_guard.NanGuard"]
    full = composed(words, capsys)
    assert full["model"]["init_args"]["reward"]["class_path"] == PATH_OF["PythonFunction"]
    assert full["trainer"]["callbacks"][-1]["class_path"] == PATH_OF["NanGuard"]


@pytest.mark.parametrize(
    "name", ["MemoryPretraining", "memory_pretraining.MemoryPretraining", "as listed"]
)
def test_help_accepts_the_names_that_it_lists(workdir, capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "5000")  # no name is broken into two lines
    if name == "as listed":
        with pytest.raises(SystemExit):
            main(["fit", "--help"])
        words = [word.strip(",;") for word in capsys.readouterr().out.split()]
        name = "remember.memory_pretraining.MemoryPretraining"
        assert name in words
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", name])
    assert "--model.value_learning_rate" in capsys.readouterr().out


def test_help_of_a_class_that_does_not_exist(workdir, capsys):
    message = message_of(["fit", "--model.help", "MemoryPretrainin"], capsys, code=2)
    check(message, "--model.help: there is no class", "did you mean MemoryPretraining?")


WRONG = pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("my_rewards.Shor", ["there is no my_rewards.Shor; did you mean my_rewards.Short?"]),
        ("my_reward.Short", ["there is no module my_reward; did you mean my_rewards?"]),
        ("far_away.Short", ["there is no module far_away; a file of yours", "working directory"]),
        ("PythonFunctio", ["there is no class PythonFunctio; did you mean PythonFunction?"]),
        ("rewards.python_functio.PythonFunction", [f"did you mean {PATH_OF['PythonFunction']}?"]),
        (f"{PATH_OF['PythonFunction']}s", [f"did you mean {PATH_OF['PythonFunction']}?"]),
        ("my_rewards.Unfinished", ["Unfinished is abstract: it does not define score_one"]),
        ("my_rewards.Other", ["my_rewards.Other is not a Reward"]),
        ("NanGuard", ["NanGuard is not a Reward"]),
        ("my_import.R", ["my_import.py, line 2: ModuleNotFoundError", "nothing_of_that_name"]),
        ("my_syntax.R", ["my_syntax cannot be imported: my_syntax.py, line 2: invalid syntax"]),
        ("my_key.R", ["my_key.py, line 1: RuntimeError: set MY_KEY first"]),
        ("nowhere.yaml", ["there is no file nowhere.yaml", "start at its folder"]),
    ],
)


@WRONG
def test_wrong_class_on_the_command_line(users, capsys, name, fragments):
    words = ["fit", "--config", "configs/diversify/one_or_two.yaml", REWARD, name]
    check(message_of(words, capsys, code=2), "model.init_args.reward: ", *fragments)


@WRONG
def test_wrong_class_in_a_file(users, capsys, name, fragments):
    config = {"model": {"init_args": {"reward": {"class_path": name}}}}
    (users / "mine.yaml").write_text(yaml.safe_dump(config))
    words = ["fit", "--config", "configs/diversify/one_or_two.yaml", "--config", "mine.yaml"]
    is_class = not name.endswith("yaml")
    place = (
        "reward.class_path (mine.yaml, line 4): " if is_class else "reward (mine.yaml, line 3): "
    )
    check(message_of(words, capsys, code=2), f"model.init_args.{place}", *fragments)


def test_place_of_a_wrong_class_is_its_own_element_of_a_list(workdir, capsys):
    callbacks = [{"class_path": "NanGuard"}, {"class_path": "NanGard"}]
    (workdir / "mine.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    message = message_of(["fit", "--config", "mine.yaml"], capsys, code=2)
    check(message, "trainer.callbacks.class_path (mine.yaml, line 4)", "did you mean NanGuard?")


def test_name_of_several_classes_is_refused_with_all_of_them(users):
    (users / "mine.py").write_text("from my_rewards import Short as S\nclass Short(S): pass\n")
    import mine
    import my_rewards

    assert issubclass(mine.Short, my_rewards.Short)
    with pytest.raises(
        ImportError, match=rf"{MARK}.* called Short: .*mine\.Short, my_rewards\.Short"
    ):
        resolve(Reward, "Short")
    assert len(component_classes()["MultipleChoice"]) == 2  # two kinds: the place decides


def test_the_parser_is_left_as_it_was():
    from jsonargparse import _typehints

    before = _typehints.resolve_class_path_by_name
    with class_names_resolved():
        assert _typehints.resolve_class_path_by_name is resolve
    assert _typehints.resolve_class_path_by_name is before


UNKNOWN: list[tuple[list[str], str, list[str]]] = [
    (["--modell.init_args.base.family", "llama"], "modell", ["did you mean model?"]),
    (["--trainer.max_step", "10"], "trainer.max_step", ["did you mean max_steps?"]),
    (["--trainer.max_step=10"], "trainer.max_step", ["did you mean max_steps?"]),
    (["--run_nam", "x"], "run_nam", ["did you mean run_name?"]),
]


@pytest.mark.parametrize(("words", "option", "fragments"), UNKNOWN, ids=str)
def test_options_are_not_abbreviated(tiny, capsys, words, option, fragments):
    message = message_of(tiny(*words), capsys, code=2)
    check(message, f"{option}: there is no such option", *fragments)


def test_unknown_section_of_a_file_gets_a_suggestion(tiny, capsys):
    message = message_of(tiny(modell={"init_args": {"beta": 1}}), capsys, code=2)
    check(message, "modell (", "tiny.yaml, line", "no such option; did you mean model?")


def test_local_data_that_are_not_there_name_the_embedded_ones(workdir, capsys):
    message = message_of(["fit", "--config", "configs/remember/pretrain.yaml"], capsys, code=1)
    check(message, "no file at 'data/pretrain", "--data configs/data/text_and_facts.yaml")


def test_a_class_in_a_file(users, capsys):
    """By the file's path, in YAML and on the command line; composed, it is importable."""
    words = ["fit", "--config", "configs/diversify/one_or_two.yaml"]
    (users / "own").mkdir()
    (users / "top_rewards.py").write_text(REWARDS)
    (users / "own" / "their_rewards.py").write_text(REWARDS)
    reward = {"class_path": "own/their_rewards.py:Short"}
    (users / "own.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"reward": reward}}}))
    in_yaml = composed([*words, "--config", "own.yaml"], capsys)["model"]["init_args"]["reward"]
    assert in_yaml["class_path"] == "own.their_rewards.Short"
    on_line = composed([*words, REWARD, "top_rewards.py:Short"], capsys)
    assert on_line["model"]["init_args"]["reward"]["class_path"] == "top_rewards.Short"
    for path, said in (
        ("nowhere.py:Short", "there is no file nowhere.py, neither in the working directory"),
        ("top_rewards.py:Shrt", "did you mean top_rewards.Short?"),
        ("my_syntax.py:Short", "my_syntax cannot be imported: my_syntax.py, line 2"),
    ):
        assert said in message_of([*words, REWARD, path], capsys, code=2)
