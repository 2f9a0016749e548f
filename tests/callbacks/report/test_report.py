"""The page of a run or a study: what it holds, what it escapes, and how a browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from triptych.callbacks.report.run_page import write_run_report
from triptych.cli import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
METRICS = """epoch,step,train/loss_nats,val/facts/exact_match
0,9,3.0,0.25
0,19,1.0,0.75
"""
ATTACK = "<script>document.title='owned'</script><img src=http://127.0.0.1:1/x onerror=alert(1)>"
MOLECULE = "CC(=O)Oc1ccccc1C(=O)O"


class Page(HTMLParser):
    """Tags with their attributes, and the headlines, of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headlines: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self._in_headline = False
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_headline = tag in ("h1", "h2", "summary")

    def handle_data(self, data):
        if self._in_headline:
            self.headlines.append(data)
            self._in_headline = False

    def images(self) -> list[str]:
        return [attrs["src"] for tag, attrs in self.tags if tag == "img"]


@pytest.fixture(scope="module")
def picture():
    with BytesIO() as file:
        Figure(figsize=(4, 3)).savefig(file, format="png")
        return file.getvalue()


@pytest.fixture
def run(tmp_path, picture):
    folder = tmp_path / "runs" / "mine" / "20261130-091500-seed3"
    (folder / "samples").mkdir(parents=True)
    (folder / "figures").mkdir()
    (folder / "export").mkdir()
    (folder / "export" / "tokenizer.json").write_text("{}")
    summary = {"status": "finished", "run_name": "mine-seed3", "experiment": "mine", "seed": 3}
    summary |= {"steps": 20, "device": "cpu", "wall_seconds": 75.0, "code_version": "3f2a9c1d0b7e"}
    summary |= {"metrics": {"val/facts/exact_match": 0.75, "train/loss_nats": 1.0}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.csv").write_text(METRICS)
    model = "triptych.lit_modules.remember.memory_pretraining.MemoryPretraining"
    (folder / "config.yaml").write_text(f"model:\n  class_path: {model} # {ATTACK}\n")
    (folder / "hits.csv").write_text(f"smiles,score,oracle_call\n{MOLECULE},0.91,7\n")
    rows = [
        {"set": "facts", "prompt": ATTACK, "output": "NO", "exact_match": True, "empty": None},
        {"set": "search", "smiles": MOLECULE, "score": 0.912},
        {"set": "search", "smiles": "c1cc", "score": 0.0},
    ]
    (folder / "samples" / "step_5.json").write_text("[]")
    (folder / "samples" / "step_20.json").write_text(json.dumps(rows))
    for name in ("learning_curves", "mode_coverage"):
        (folder / "figures" / f"{name}.png").write_bytes(picture)
    return folder


def test_the_page_holds_the_run_and_loads_nothing(run):
    page = Page(write_run_report(run))
    assert page.headlines == [
        "mine-seed3",
        *("Results", "Learning curves", "Best molecules", "Figures", "Samples"),
        *("Go on from here", "Configuration"),
    ]
    for words in ("finished", "1 min 15 s", "cpu", "3f2a9c1d0b7e", "+0.5", "score 0.910, call 7"):
        assert words in page.text
    assert "facts answered exactly (share)" in page.text
    assert "loss (nats)" in page.text
    assert all(source.startswith("data:image/") for source in page.images())
    # two figures, a hit and a sample; "NO" and what is no molecule stay text
    assert len([s for s in page.images() if s.startswith("data:image/svg")]) == 2
    assert len(page.images()) == 4
    loading = {"script", "iframe", "object", "embed", "video", "audio", "form", "base"}
    assert not loading & {tag for tag, _ in page.tags}
    links = [a["href"] for _, a in page.tags if "href" in a]
    assert links == ["data:,"]
    assert "triptych.models.remember.memory_lm import load_memory_lm" in page.text
    assert len(page.text) < 2_000_000


def test_samples_and_settings_are_escaped(run):
    page = Page(write_run_report(run))
    assert "<script" not in page.text
    assert page.text.count("&lt;script&gt;") == 2
    assert not any("onerror" in attrs for _, attrs in page.tags)


def test_columns_without_a_value_are_left_out(run):
    assert "<th>empty</th>" not in write_run_report(run).read_text()


def test_missing_parts_leave_no_headlines(run):
    for name in ("samples", "figures", "export"):
        shutil.rmtree(run / name)
    for name in ("hits.csv", "metrics.csv", "config.yaml"):
        (run / name).unlink()
    assert Page(write_run_report(run)).headlines == ["mine-seed3", "Results"]


def test_an_old_run_without_the_figure_gets_its_curves_drawn(run):
    (run / "figures" / "learning_curves.png").unlink()
    page = Page(write_run_report(run))
    assert "Learning curves" in page.headlines
    assert sum(source.startswith("data:image/png") for source in page.images()) == 2


def test_the_command_names_a_folder_that_holds_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        main(["report", str(tmp_path)])


@pytest.mark.learning_curves
def test_a_run_of_the_command_line_leaves_its_report(tiny, capfd):
    run = main(tiny())
    page = Page(run / "report.html")
    assert page.headlines[0] == json.loads((run / "summary.json").read_text())["run_name"]
    assert ">finished<" in page.text


@pytest.mark.learning_curves
def test_a_report_that_fails_does_not_fail_the_run(tiny, monkeypatch):
    def broken(run_dir):
        raise OSError("no space left on device")

    monkeypatch.setattr("triptych.callbacks.report.run_report.write_run_report", broken)
    with pytest.warns(UserWarning, match="no space left on device"):
        run = main(tiny())
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


@pytest.fixture
def study(tmp_path):
    entry = {"per_seed": [0.5, 0.7], "mean": 0.6, "interval": [0.2, 1.0]}
    results = {
        **{"claim": "a memory helps", "preset": "cpu", "device": "cpu", "seeds": [1, 2]},
        "arms": {"memory": {"recall": entry}, "dense <b>twin</b>": {"recall": entry}},
        "tests": [{"name": "recall, memory - dense", "statistic": None, "p": None}],
        "checks": {"recall": {"value": 0.6, "bound": 0.7, "held": False}},
        **{"held": False, "settings": {"steps": 9}},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_the_page_of_a_study(study):
    assert main(["report", str(study)]) == study / "report.html"
    page = Page(study / "report.html")
    assert page.headlines == ["a memory helps", "Checks", "Arms", "Tests", "More numbers"]
    for words in ("not every check held", "0.2 to 1", "not defined", "dense &lt;b&gt;twin"):
        assert words in page.text


@pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium binary on the path")
def test_a_browser_shows_the_page(run, tmp_path):
    path = write_run_report(run)
    # A copy with a script, which the page itself forbids: it writes down what the browser made.
    probe = """<script>addEventListener("load", () => {
      const all = selector => [...document.querySelectorAll(selector)];
      const seen = {
        images: all("img").map(image => image.naturalWidth * image.naturalHeight),
        rows: all("section:first-of-type tbody tr").length,
        sideways: document.documentElement.scrollWidth - innerWidth,
        loaded: performance.getEntriesByType("resource").map(entry => entry.name)
          .filter(name => !name.startsWith("data:")),
      };
      document.body.setAttribute("data-seen", JSON.stringify(seen));
    });</script></body>"""
    text = re.sub(r"<meta http-equiv=[^>]*>", "", path.read_text())
    copy = tmp_path / "probe.html"
    copy.write_text(text.replace("</body>", probe))
    shown = chromium("--dump-dom", copy, tmp_path)
    assert "<title>mine-seed3 - Triptych</title>" in shown
    seen = json.loads(re.search(r'data-seen="([^"]*)"', shown)[1].replace("&quot;", '"'))
    assert len(seen["images"]) == 4
    assert min(seen["images"]) > 100 * 100
    assert seen["rows"] == 4, "two groups with a row each"
    assert seen["loaded"] == []
    assert seen["sideways"] <= 0, "the page scrolls sideways"
    # The page as it is: its own policy stops what markup of a sample would load or run.
    assert "<title>mine-seed3 - Triptych</title>" in chromium("--dump-dom", path, tmp_path)


def chromium(option: str, page: Path, profile: Path) -> str:
    words = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile / 'chromium'}", "--window-size=500,900", option),
    )
    command = [CHROMIUM, *words, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
