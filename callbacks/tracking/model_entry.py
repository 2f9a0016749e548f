"""The exported model of a run as an entry in MLflow, and the run's description there."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.callbacks.tracking.run_record import Content, read_json

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

EXPORT = "export"


def export_fingerprint(run_dir: Path) -> str | None:
    """Hash the names and contents of ``export/``; return None if there is none."""
    folder = run_dir / EXPORT
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    marks = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _hashed(str(folder), marks)


@lru_cache(maxsize=4)
def _hashed(folder: str, marks: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in marks:
        digest.update(Path(path).relative_to(folder).as_posix().encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def send_model(
    client: "MlflowClient", run: "Run", run_dir: Path, record: Content, fingerprint: str
) -> str:
    """Create the model's entry, linked to its run, and return its id.

    The entry names the folder and its fingerprint; the files stay where they are.
    """
    from mlflow.entities import LoggedModelOutput

    folder = (run_dir / EXPORT).resolve()
    config = read_json(folder / "config.json")
    params = {"path": str(folder), "fingerprint": fingerprint}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    params["megabytes"] = f"{size / 1e6:.1f}"
    if config.get("model_type"):
        params["model_type"] = str(config["model_type"])
    model = client.create_logged_model(
        run.info.experiment_id,
        name=_model_name(record["run_name"]),
        source_run_id=run.info.run_id,
        params=params,
        tags={"data_fingerprint": record.get("tags", {}).get("data_fingerprint", "unknown")},
        model_type=(config.get("architectures") or ["triptych"])[0],
    )
    model_id = str(model.model_id)
    client.finalize_logged_model(model_id, "READY")
    outputs = [LoggedModelOutput(model_id, step=int(record.get("steps") or 0))]
    client.log_outputs(run.info.run_id, outputs)
    return model_id


def describe(run_dir: Path, folder: Path, record: Content) -> str:
    """Write the run's description in Markdown: results, where it is, and how to use it.

    Args:
        run_dir: The run's directory.
        folder: The same, as the user names it.
        record: The run's record.
    """
    summary = read_json(run_dir / "summary.json")
    lines = []
    if summary:
        state = f"{summary['status']} after {summary.get('steps', 0):,} steps"
        lines += [f"**{record['run_name']}**: {state} on {summary.get('device', '?')}.", ""]
    if results := read_json(run_dir / "results.json"):
        return "\n".join([*lines, *_study(results), "", f"Folder: `{folder}`"])
    shown = {
        name: value
        for name, value in (summary.get("metrics") or {}).items()
        if value is not None and not name.startswith(("train/", "lr/", "background/"))
    }
    if shown:
        first = sorted(shown.items(), key=lambda item: not item[0].startswith("val/"))
        lines += ["| metric | value |", "|---|---:|"]
        lines += [f"| `{name}` | {value:,.4g} |" for name, value in first[:40]]
        lines.append("")
    lines += [f"Directory of the run: `{folder}`", ""]
    if (run_dir / "config.yaml").is_file():
        lines += [
            "Run it again:",
            "",
            f"```\npython train.py fit --config {folder / 'config.yaml'}\n```",
            "",
        ]
    if (run_dir / EXPORT).is_dir():
        lines += [
            "Start another run from its model:",
            "",
            f"```\n--model.init_args.init_from {folder / EXPORT}\n```",
            "",
        ]
    if any((run_dir / EXPORT / file).is_file() for file in ("config.json", "adapter_config.json")):
        lines += [
            "Load the model:",
            "",
            "```python\nimport triptych\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{folder / EXPORT}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{folder / EXPORT}")\n```',
        ]
    return "\n".join(lines)


def _study(results: Content) -> list[str]:
    lines = [f"**{results['claim']}**: {'held' if results['held'] else 'not held'}", ""]
    lines += ["| check | value | bound | held |", "|---|---:|---:|---|"]
    for name, check in results["checks"].items():
        verdict = "yes" if check["held"] else "no"
        lines.append(f"| {name} | {check['value']:.4g} | {check['bound']:.4g} | {verdict} |")
    return lines


def _model_name(run_name: str) -> str:
    """Replace what MLflow does not allow in the names of models."""
    for character in "/:.%\"'":
        run_name = run_name.replace(character, "-")
    return run_name
