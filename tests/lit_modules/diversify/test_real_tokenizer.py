"""Runs on a real chat tokenizer: adapters, ends, a system prompt; resumed, accumulated."""

import json
from pathlib import Path

import peft
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import run_in
from tests.distributed.test_policy_optimization import joined
from tests.lit_modules.diversify.test_policy_optimization import columns, language_run
from tests.lit_modules.diversify.tiny_prompts import trainer
from tests.models.tiny_chat_model import TEXT_END, TURN_END, tiny_chat_folder
from triptych.commands.asked_model import AskedModel
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.diversify.chat_prompts import ChatPrompts, PromptsConfig
from triptych.datamodules.sources.records import RecordSource
from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization
from triptych.models.adapter_folder import load_causal_lm
from triptych.models.base_lm import BaseLMConfig
from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.rewards.length_window import LengthWindow

SYSTEM = "Answer with one word."
QUESTIONS = ["Name a fruit.", "Name a colour, please.", "Say 1 or 2.", "Wie heißt die Hauptstadt?"]
STEPS = [
    *("--trainer.log_every_n_steps", "1", "--trainer.max_steps", "4"),
    *("--trainer.limit_val_batches", "0"),
]
COPY = "--trainer.callbacks+=tests.callbacks.remember.finetuning_runs.CopyCheckpoint"


def sections(base: str, prompts: str, **policy) -> dict[str, dict]:
    """LoRA of a pretrained chat model on prompts of one's own."""
    lora = {"trainable": "lora", "lora": {"rank": 2}}
    made = language_run(
        policy={"base": {"pretrained": base}, "max_new_tokens": 6} | lora | policy,
        evaluate_first=False,
    )
    made["data"]["init_args"] |= {
        "prompts": {"source": {"path": prompts}, "held_out_share": 0.3},
        "tokenizer": {"system_prompt": SYSTEM},
    }
    return made


@pytest.fixture(scope="module")
def folder(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model whose own settings would change samples, and prompts."""
    made = tmp_path_factory.mktemp("real_tokenizer")
    tiny_chat_folder(
        made / "base",
        smollm2,
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        eos_token_id=[TEXT_END, 5],
        do_sample=True,
        repetition_penalty=2.0,
        top_k=3,
    )
    rows = [{"prompt": question} for question in QUESTIONS]
    (made / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return made


@pytest.fixture(scope="module")
def settings(folder: Path) -> dict[str, dict]:
    return sections(str(folder / "base"), str(folder / "prompts.jsonl"))


@pytest.fixture(scope="module")
def whole(folder: Path, settings: dict[str, dict]) -> Path:
    return run_in(folder, "--run_dir", "whole", *STEPS, COPY, **settings)


def adapters(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: tensor for name, tensor in state.items() if ".lora_" in name}


def test_checkpoint_and_export_hold_the_adapters_alone(folder: Path, whole: Path):
    checkpoint = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    held = checkpoint["state_dict"]
    assert {name for name in held if ".lora_" not in name} == {"policy._extra_state"}
    assert len(adapters(whole)) == 2 * 7 * 2
    assert any(tensor.any() for name, tensor in held.items() if "lora_B" in name)
    export = whole / "export"
    assert not (export / "model.safetensors").exists()
    assert (export / "adapter_model.safetensors").stat().st_size < 50_000
    tokenizer = AutoTokenizer.from_pretrained(export)
    messages = [{"role": "user", "content": "Name a fruit."}]
    system = [{"role": "system", "content": SYSTEM}]
    own = AutoTokenizer.from_pretrained(folder / "base")
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    expected = own.apply_chat_template(system + messages, add_generation_prompt=True)
    assert encoded["input_ids"] == expected["input_ids"]
    assert isinstance(tokenizer.chat_template, str)  # no second form under another name
    written = json.loads((export / "generation_config.json").read_text())
    assert written["eos_token_id"] == [TEXT_END, 5, TURN_END]
    assert written["max_new_tokens"] == 6
    ids = torch.tensor([encoded["input_ids"]])
    found = load_memory_lm(export).eval()(ids).logits
    asked = AskedModel(export, "cpu")
    assert len(asked.replies([encoded["input_ids"]], 2)[0]) == 1
    assert asked.model.generation_config.max_new_tokens == 6
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    assert not torch.allclose(base(ids).logits, found, atol=1e-4)  # it has learned
    with pytest.warns(FutureWarning):  # peft 0.21 asks transformers 5.23 by an old name
        theirs = peft.PeftModel.from_pretrained(base, export)
    torch.testing.assert_close(theirs.eval()(ids).logits, found, atol=1e-5, rtol=1e-5)


def test_a_resumed_run_goes_on_bit_for_bit(folder: Path, settings: dict, whole: Path):
    half = whole / "checkpoints" / "copy.ckpt"
    resumed = run_in(folder, "--run_dir", "resumed", *STEPS, "--ckpt_path", half, **settings)
    ours, theirs = adapters(resumed), adapters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    tails = [[row for row in columns(run) if int(row["step"]) >= 4] for run in (resumed, whole)]
    assert tails[0] == tails[1] != []


@pytest.mark.slow
def test_a_checkpoint_with_all_weights_goes_on_too(folder: Path, settings: dict, whole: Path):
    """As versions before 0.2 wrote them."""
    checkpoint = torch.load(whole / "checkpoints" / "copy.ckpt", weights_only=True)
    del checkpoint["frozen_base"]
    base = load_causal_lm(str(folder / "base")).state_dict()
    held = {name.replace(".base_layer.", "."): name for name in checkpoint["state_dict"]}
    linear = ("_proj.weight",)
    for name, tensor in base.items():
        inside = name.replace(".weight", ".base_layer.weight") if name.endswith(linear) else name
        assert f"policy.model.{inside}" not in held
        checkpoint["state_dict"][f"policy.model.{inside}"] = tensor
    torch.save(checkpoint, folder / "old.ckpt")
    resumed = run_in(
        folder, "--run_dir", "old", *STEPS, "--ckpt_path", folder / "old.ckpt", **settings
    )
    ours, theirs = adapters(resumed), adapters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_adapters_are_merged_on_request_and_a_stage_starts_from_either(
    folder: Path, settings: dict, whole: Path
):
    words = ["--export.merge_adapters", "true"]
    merged = run_in(folder, "--run_dir", "merged", *STEPS, *words, **settings)
    assert not (merged / "export" / "adapter_config.json").exists()
    ids = torch.tensor([[1, 700, 701]])
    models = [load_memory_lm(run / "export").eval() for run in (merged, whole)]
    torch.testing.assert_close(models[0](ids).logits, models[1](ids).logits, atol=1e-5, rtol=1e-5)
    # A run that starts from adapters learns on top of them. Its export has no base to name.
    next_settings = sections("unused", str(folder / "prompts.jsonl"))
    next_settings["model"]["init_args"]["policy"].pop("base")
    next_settings["model"]["init_args"]["init_from"] = str(whole / "export")
    next_settings["data"]["init_args"].pop("tokenizer")
    following = run_in(
        folder, "--run_dir", "next", *STEPS, "--trainer.max_steps", "1", **next_settings
    )
    assert (following / "export" / "model.safetensors").is_file()
    row = next(row for row in columns(following) if "train/kl_nats" in row)
    assert float(row["train/kl_nats"]) == pytest.approx(0, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(following / "export")
    assert SYSTEM in tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False
    )


def test_prompts_that_cannot_fit_are_found_before_the_first_step(folder: Path, settings: dict):
    long = [{"prompt": "Name a fruit."}, {"prompt": "fruit " * 110}]
    (folder / "long.jsonl").write_text("\n".join(map(json.dumps, long)))
    wrong = sections(str(folder / "base"), str(folder / "long.jsonl"), max_new_tokens=12)
    wrong["data"]["init_args"]["prompts"]["held_out_share"] = 0.0
    message = (
        r"1 of 2 prompts do not fit: the model has 128 positions, policy.max_new_tokens is 12, and "
        r"the longest prompt has 1\d\d tokens .*set data.init_args.max_prompt_tokens to 116"
    )
    with pytest.raises(ValueError, match=message):
        run_in(folder, "--run_dir", "long", *STEPS, **wrong)
    assert not (folder / "long" / "metrics.csv").exists()


class Gradients(Callback):
    """The gradient of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = [p for p in pl_module.policy.parameters() if p.requires_grad]
        self.steps.append(torch.cat([p.grad.flatten() for p in parameters]))


class SamplesInParts(PolicyOptimization):
    """Draws for each pair of prompts what an accumulating run draws for a batch of two."""

    def sample(self, prompts, step):
        parts = len(prompts) // 2
        rollouts = [
            super(SamplesInParts, self).sample(prompts[2 * i : 2 * i + 2], step * parts + i)
            for i in range(parts)
        ]
        return rollouts[0] if parts == 1 else joined(*rollouts)


def test_accumulation_is_one_batch(folder: Path):
    gradients = []
    for batch_size, accumulated in ((4, 1), (2, 2)):
        kept = Gradients()
        data = ChatPrompts(
            PromptsConfig(RecordSource(str(folder / "prompts.jsonl")), held_out_share=0.0),
            tokenizer=TokenizerConfig(str(folder / "base"), system_prompt=SYSTEM),
            batch_size=batch_size,
        )
        policy = CausalLMPolicyConfig(
            base=BaseLMConfig(pretrained=str(folder / "base")), trainable="lora", max_new_tokens=6
        )
        seed_everything(3, verbose=False)
        module = SamplesInParts(
            49_152, LengthWindow(1, 30, 60), policy=policy, mara=Mara(threshold=0.5), num_samples=4
        )
        options = {"accumulate_grad_batches": accumulated, "max_steps": 1}
        trainer(folder, kept, **options).fit(module, data)
        gradients.append(kept.steps[0])
    one, two = gradients
    assert one.norm() > 1e-3
    assert (one - two).norm() <= 1e-6 * one.norm()
