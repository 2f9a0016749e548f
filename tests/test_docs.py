"""What README and docs name exists; `tests/documentation` runs what they print."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

from triptych import ROOT
from triptych.cli import main

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [p for p in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in p.parts]
FOLDERS = (
    *("models", "objectives", "metrics", "datamodules", "callbacks", "lit_modules"),
    *("studies", "benchmarks", "configs", "tests", "docs", "triptych"),
)


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def missing_paths(text: str) -> set[str]:
    """Files and folders of the repository that a text names and that do not exist.

    A name with `*` stands for at least one file.
    """
    named = re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./*-]*[\w/*]", text)
    return {
        name
        for name in named
        if not (list(ROOT.glob(name)) if "*" in name else (ROOT / name).exists())
    }


def missing_modules(text: str) -> set[str]:
    """Modules, and names in them, that a text gives as `triptych.` and that cannot be imported."""
    missing = set()
    for name in re.findall(r"(?<![\w./-])triptych(?:\.\w+)+", text):
        if name.endswith((".py", ".yaml")):
            continue
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:count]))
            except ModuleNotFoundError:
                continue
            for attribute in parts[count:]:
                found = getattr(found, attribute, None)
            if found is None:
                missing.add(name)
            break
    return missing


def former_names(text: str) -> list[str]:
    """Class paths without package and room, such as `policy_optimization.PolicyOptimization`."""
    short = re.findall(r"(?<![\w.])[a-z_]+\.[A-Z]\w+", text)
    own = {path.stem for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    return [name for name in short if name.split(".")[0] in own]


def test_what_is_missing_is_seen():
    text = (
        "`models/lora.py`, `models/nothing.py`, `configs/*/adapter.yaml`, `docs/*.rst`, ../docs/x"
    )
    assert missing_paths(text) == {"models/nothing.py", "docs/*.rst"}
    text = "triptych.cli.main, triptych.cli.nothing, triptych.models.nothing.Nothing, train.py"
    assert missing_modules(text) == {"triptych.cli.nothing", "triptych.models.nothing.Nothing"}
    text = (
        "memory_pretraining.MemoryPretraining, triptych.models.base_lm.BaseLMConfig, torch.Tensor"
    )
    assert former_names(text) == ["memory_pretraining.MemoryPretraining"]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_and_modules_exist(page):
    text = page.read_text()
    assert not missing_paths(text)
    assert not missing_modules(text)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        to = page if not path else page.parent / path
        if not to.exists() or (heading and heading not in anchors(to)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    """Names by which headings are linked, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_former_names_are_gone(page):
    if page.name != "CHANGELOG.md":  # it says what was renamed
        assert not former_names(page.read_text())


def commands() -> list[str]:
    """Every `python train.py fit` of the pages, but those that need a file of the user's."""
    found = set()
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text())
        for line in re.findall(r"(?<!/)train\.py (fit [^\n`|#]+)", text):
            line = re.sub(r"\b(?:DIR|FOLDER)\b", "data", line)
            if not re.search(r"my_\w+|mine|retrofit\.yaml|runs/|help|\.\.\.", line):
                found.add(" ".join(line.split()).rstrip(".,:;"))
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_commands_are_accepted(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--print_config"])
    assert end.value.code == 0


def test_modules_of_commands_exist():
    for page in PAGES:
        for name in re.findall(
            r"python -m ((?:studies|benchmarks|tests)\.[\w.]+)", page.read_text()
        ):
            path = ROOT / name.rstrip(".").replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name


def test_extras_and_targets_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    page = (ROOT / "docs" / "install.md").read_text()
    _, _, table = page.partition("| extra | what it adds |")
    names = re.findall(r"^\| (`[^|]+`) \|", table.partition("\n\n")[0], re.M)
    assert {name.strip("`") for cell in names for name in cell.split(", ")} == set(extras)
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"extra `([\w-]+)`", text)) <= set(extras), page
        for target in re.findall(r"`make ([a-z-]+)`", text):
            assert re.search(rf"^{target}:", makefile, re.M), f"{page}: make {target}"


def test_readme_names_both_test_commands():
    text = (ROOT / "README.md").read_text()
    assert "`make test` " in text
    assert "`make test-all`" in text
