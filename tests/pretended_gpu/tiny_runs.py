"""The experiments of `configs/` with the smallest sizes, batches and numbers of samples."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.configs.test_configs import CONFIGS, embedded_data

# By the class of the module: settings of `model`, of `data`, and of the data's task.
_ANSWERS: dict[str, Any] = {"num_samples": 2, "max_new_tokens": 2}
_REPLIES: dict[str, Any] = {"num_samples": 2, "eval_samples": 2}
_STATES: dict[str, Any] = {"num_train": 8, "num_val": 4}
_OF_MODULE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "MemoryPretraining": (_ANSWERS | {"sample_prompts": ["The"]}, {}, {}),
    "ContinualFinetuning": (_ANSWERS, {"steps_per_visit": 8}, {}),
    "PolicyOptimization": (_REPLIES, {"batch_size": 2}, {}),
    "MoleculePretraining": ({"num_samples": 8, "num_final_samples": 8}, {}, {}),
    "MoleculeOptimization": ({"num_samples": 8, "max_new_tokens": 12}, {}, {}),
    "StagedMoleculeOptimization": ({"num_samples": 8, "max_new_tokens": 12}, {}, {}),
    "AgentPretraining": ({}, {}, _STATES),
    "AgentFinetuning": ({}, {}, _STATES),
    "ThoughtAutoencoder": ({}, {}, _STATES),
    "ThoughtAdapter": ({"intervention_samples": 0, "probe_samples": 0}, {}, _STATES),
}
# Files in place of those that only the hub or the user has (stand_ins.py).
_SMALLER: dict[str, dict[str, Any]] = {
    "remember/pretrain_1b": {"model.base.num_layers": 3, "model.memory.layers": [1]},
    "remember/retrofit_qwen3": {
        "model.base.pretrained": "deep_qwen3",
        "data.tokenizer": {"path": "deep_qwen3"},
    },
    "diversify/one_or_two_qwen2.5_3b": {
        "model.policy.base.pretrained": "qwen2",
        "model.policy.max_new_tokens": 6,
        "model.policy.lora.rank": 2,
    },
    "diversify/maths_qwen2.5_1.5b": {
        "model.policy.base.pretrained": "qwen2",
        "model.policy.max_new_tokens": 6,
        "model.policy.lora.rank": 2,
        "data.prompts.source": {"path": "math.jsonl"},
        "data.prompts.task": "math",
        "data.prompts.held_out_share": 0.4,
    },
    "diversify/creative_qa_qwen3": {
        "model.policy.base.pretrained": "qwen3",
        "model.policy.max_new_tokens": 6,
        "model.reward.init_args.model": "reward",
        "model.metrics": [],
        "data.prompts.source.path": "wild.jsonl",
        "data.prompts.num_prompts": 8,
        "data.prompts.held_out_share": 0.4,
    },
    "diversify/synth": {"model.reward.init_args.num_workers": 0},
    "diversify/synth_all_amide": {"model.reward.init_args.num_workers": 0},
    "commune/math_qwen3": {"data.task.init_args.source.path": "math.jsonl"},
    "commune/math_qwen3_codec": {
        "data.task.init_args.source.path": "math.jsonl",
        "model.agents.bases": [{"pretrained": "qwen3"}],
    },
}
_STOP = "tests.pretended_gpu.stop_early.StopAfterTwoSteps"
_OF_ALL: dict[str, Any] = {
    **{"max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None},
    **{"limit_val_batches": 1, "enable_progress_bar": False},
}


def start_of(name: str) -> str | None:
    """Return the experiment whose model another one starts from, or the stand-in of it.

    Args:
        name: Of a configuration, relative to `configs/` and without its ending.
    """
    start = _read(name)["model"]["init_args"].get("init_from")
    if start is None or name.startswith("diversify/synth"):
        return None
    return str(start).removeprefix("configs/").removesuffix(".yaml")


def write_tiny(name: str, folder: Path, init_from: Path | None) -> Path:
    """Write an experiment's tiny configuration.

    Args:
        name: As in `start_of`.
        folder: Of the stand-ins, where the run starts, too.
        init_from: Exported model to start from.

    Returns:
        The file.
    """
    config = _read(name)
    if isinstance(config["data"], str):
        config["data"] = yaml.safe_load(Path(embedded_data(_path(name))[1]).read_text())
    model, data = config["model"]["init_args"], config["data"].setdefault("init_args", {})
    module = config["model"]["class_path"].rpartition(".")[2]
    of_model, of_data, of_task = _OF_MODULE[module]
    model.update(of_model)
    data.update(of_data)
    for key in ("batch_size", "eval_batch_size", "state_batch_size"):
        data.update({key: min(4, data[key])} if key in data else {})
    if "task" in data:
        data["task"]["init_args"].update(of_task)
    if "max_new_tokens" in data.get("task", {}).get("init_args", {}):
        data["task"]["init_args"]["max_new_tokens"] = 4
    if init_from is not None:
        model["init_from"] = str(init_from)
    if name.startswith("diversify/synth"):
        model["init_from"] = "prior"
    for path, value in _SMALLER.get(name, {}).items():
        section, *keys, last = path.split(".")
        node = model if section == "model" else data
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = value
    _shrink(model)
    _take_little(data)
    trainer = config.setdefault("trainer", {})
    trainer.update(_OF_ALL)
    trainer.pop("precision", None)
    trainer["callbacks+"] = [*trainer.get("callbacks+", []), {"class_path": _STOP}]
    for callback in trainer["callbacks+"]:
        _shorten(callback.get("init_args", {}))
    config["tracking"] = {"uri": None}
    path = folder / f"{name.replace('/', '-')}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _path(name: str) -> Path:
    return CONFIGS / f"{name}.yaml"


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(_path(name).read_text())
    return json.loads(json.dumps(content))  # without what two keys may share


def _shrink(model: dict[str, Any]) -> None:
    """Make networks narrow; keep what they are made of."""
    bases = [model.get("base"), *model.get("agents", {}).get("bases", [])]
    for base in filter(None, bases):
        if "pretrained" not in base:
            base.update(hidden_size=16, num_heads=2)
            base.pop("intermediate_size", None)
    if model.get("memory"):
        memory = model["memory"]
        memory.update(num_keys=16, num_heads=2, top_k=min(8, memory["top_k"]))
        memory.update({"value_dim": 16} if "value_dim" in memory else {})
        memory.pop("key_dim", None)
    if "rnn" in model:
        model["rnn"].update(embedding_size=8, hidden_size=16)
    if "codec" in model:
        sizes = {"encoder_hidden": [16], "decoder_hidden": [16]}
        model["codec"].update({k: v for k, v in sizes.items() if k in model["codec"]})
    if "max_new_tokens" in model.get("policy", {}):
        model["policy"]["max_new_tokens"] = 4
    if "penalty" in model:
        model["penalty"]["num_samples"] = 2


def _take_little(data: dict[str, Any]) -> None:
    """Take few of the embedded facts, texts and molecules."""
    if "facts" in data and "skip_facts" not in data["facts"]:
        data["facts"]["num_facts"] = 40


def _shorten(node: Any) -> None:
    """Let callbacks look at few documents, rows and facts, and choose few slots."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in ("num_documents", "rows_per_document", "num_rows", "first_visits"):
            node[key] = min(2, value)
        if key == "num_slots":
            node[key] = min(32, value)
        _shorten(value)
