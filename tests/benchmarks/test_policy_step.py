"""The benchmark of a policy step compares like with like, and its report says everything."""

import json
from contextlib import closing

import pytest
import torch

from tests.models.tiny_chat_model import tiny_chat_folder
from triptych.benchmarks import policy_step
from triptych.benchmarks.paired import PairedTimer
from triptych.benchmarks.policy_step_chat import ChatSides
from triptych.benchmarks.policy_step_sides import (
    GENERATE,
    OURS,
    OURS_MARA,
    SAMPLING,
    TRL,
    PolicySides,
    PolicySizes,
    number_tokenizer,
)
from triptych.benchmarks.report import Report

CPU = torch.device("cpu")
TINY = PolicySizes(2, 3, 4, 5, vocab_size=40, hidden_size=16, num_layers=1)


@pytest.fixture(scope="module")
def sides():
    with closing(PolicySides(TINY, CPU)) as sides:
        yield sides


@pytest.mark.filterwarnings("ignore")  # of TRL and what it imports
def test_both_sides_start_from_the_same_and_take_a_step_of_the_same_size(sides):
    ours, theirs = dict(sides.policy.model.named_parameters()), sides.trainer.model
    theirs.eval()
    before = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    assert before.keys() == ours.keys()
    assert all(torch.equal(ours[name], p) for name, p in before.items())
    assert {p.dtype for p in before.values()} == {torch.float32}
    batch = sides._trl_batch
    assert sorted(row["prompt"] for row in batch) == sorted(
        row["prompt"] for row in sides.prompts for _ in range(3)
    )
    prompt_ids, *_ = sides.trainer._tokenize_prompts([row["prompt"] for row in sides.prompts])
    assert prompt_ids == [row["prompt_ids"] for row in sides.prompts]
    for side in (sides.our_step(True), sides.our_step(False), sides.trl_step()):
        side.run()
        side.release()
    assert any(not torch.equal(p, before[name]) for name, p in theirs.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in ours.items())


@pytest.mark.filterwarnings("ignore")
def test_a_chat_model_learns_by_the_same_adapters_on_both_sides(smollm2, tmp_path):
    end = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tiny_chat_folder(tmp_path / "base", smollm2, end, eos_token_id=[2])
    with closing(ChatSides(str(tmp_path / "base"), PolicySizes(4, 2, new_tokens=4), CPU)) as sides:
        theirs = sides.trainer.model

        def learning(model):
            return {
                n.split("layers.")[-1]: p for n, p in model.named_parameters() if p.requires_grad
            }

        ours, peers = learning(sides.policy.model), learning(theirs)
        assert {n: p.shape for n, p in ours.items()} == {n: p.shape for n, p in peers.items()}
        assert all(".lora_" in name for name in ours)
        prompt_ids, *_ = sides.trainer._tokenize_prompts([row["prompt"] for row in sides.prompts])
        assert prompt_ids == [row["prompt_ids"] for row in sides.prompts]
        assert len({len(row["prompt_ids"]) for row in sides.prompts}) > 1
        for side in (
            sides.our_step(True),
            sides.trl_step(),
            sides.our_sampling(),
            sides.generate(),
        ):
            side.run()
            side.release()
        assert all(p[name].any() for p in (ours, peers) for name in p if ".lora_B" in name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_small_report_has_everything(sides, tmp_path):
    report = Report("policy_step", {"type": "cpu"})
    sides.parts.seconds.clear()
    with PairedTimer(CPU, 2, 2, 0.0) as timer:
        policy_step.compare(report, timer, sides)
    report.write(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in stored["rows"]] == [OURS_MARA, OURS, TRL, SAMPLING, GENERATE]
    assert {row["size"] for row in stored["rows"]} == {6}
    assert stored["ratios"].keys() == {f"{name}@6" for name in (OURS, TRL, GENERATE)}
    assert len(stored["checks"]) == 4
    assert sum(stored["shares"].values()) == pytest.approx(1)
    assert stored["samples_per_second"].keys() == {OURS_MARA, OURS, TRL}
    assert stored["num_parameters"] > 40 * 16


def test_the_tokenizer_reads_numbers():
    tokenizer = number_tokenizer(20)
    assert tokenizer("3 19 5")["input_ids"] == [3, 19, 5]
    assert tokenizer.decode([3, 1, 0, 7], skip_special_tokens=True) == "3 7"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 20)
