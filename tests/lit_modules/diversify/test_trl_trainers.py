"""TRL's trainers with MARA: on the same completions the same rewards as ours, and real steps."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests.models.tiny_chat_model import tiny_chat_folder
from triptych import ROOT
from triptych.models.adapter_folder import load_causal_lm
from triptych.models.diversify.scoring import completion_log_prob
from triptych.objectives.diversify.mara import Mara

pytest.importorskip("trl")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # TRL's and accelerate's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

BETA = 0.3
PROMPTS = ["Name a fruit.", "Pick 1 or 2 at random."]
KINDS = ["RLOO", "GRPO"]


def share_of_letters(completions, **_) -> list[float | None]:
    """Between 0 and 1; nothing for an empty completion."""
    texts = [c[0]["content"] if isinstance(c, list) else c for c in completions]
    return [sum(map(str.isalpha, t)) / len(t) if t else None for t in texts]


def length(completions, **_) -> list[float]:
    return [0.1 * len(c[0]["content"] if isinstance(c, list) else c) / 30 for c in completions]


def make(kind: str, model: str, folder: Path, mara: Mara | None = None, **settings):
    """A trainer with MARA, or TRL's own."""
    import trl

    from triptych.lit_modules.diversify import trl_trainers

    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder),
        beta=settings.pop("beta", BETA),
        **{
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 6,
            "learning_rate": 1e-3,
            "max_steps": 2,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "reward_weights": [1.0, 2.0],
            "disable_tqdm": True,
            **settings,
        },
    )
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS * 4]
    options = {
        "model": model,
        "reward_funcs": [share_of_letters, length],
        "args": config,
        "train_dataset": Dataset.from_list(rows),
    }
    if mara is None:
        return getattr(trl, f"{kind}Trainer")(**options)
    return getattr(trl_trainers, f"Mara{kind}Trainer")(mara=mara, **options)


@pytest.fixture
def model(smollm2: str, tmp_path: Path) -> str:
    return tiny_chat_folder(tmp_path / "model", smollm2)


def keep(trainer) -> list[dict]:
    """Keep what a trainer hands from completions to losses, with the rewards."""
    kept: list[dict] = []
    rewards, score = trainer._calculate_rewards, trainer._generate_and_score_completions

    def keep_rewards(*given):
        kept.append({"reward_NF": rewards(*given)})
        return kept[-1]["reward_NF"]

    def keep_scores(inputs):
        made = score(inputs)
        kept[-1] |= made
        return made

    trainer._calculate_rewards = keep_rewards
    trainer._generate_and_score_completions = keep_scores
    return kept


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_ours_on_the_same_completions(kind: str, model: str, tmp_path: Path):
    mara = Mara(percentile=40)
    trainer = make(kind, model, tmp_path / "run", mara)
    kept = keep(trainer)
    trainer.train()
    assert trainer.state.global_step == 2
    assert len(kept) == 2
    first = kept[0]
    reward_NF, ids_BT = first["reward_NF"], first["completion_ids"]
    mask_BT = first["completion_mask"].bool()
    reference = load_causal_lm(model).eval()
    with torch.no_grad():
        ours_BT = completion_log_prob(
            reference, first["prompt_ids"], first["prompt_mask"].bool(), ids_BT, mask_BT
        )
    scored_B = reward_NF[:, 0] + 2 * reward_NF[:, 1]
    group_B = torch.arange(8) // 4
    expected = mara.augment(scored_B, ours_BT.sum(1), group_B, BETA)
    assert expected.above_B.sum() > 2  # some are augmented, some are anchors
    assert expected.shift_B.max() > 0.1
    augmented_B = scored_B + reward_NF[:, 2]
    torch.testing.assert_close(augmented_B, expected.reward_B, atol=1e-6, rtol=1e-6)
    assert torch.equal(augmented_B[~expected.above_B], scored_B[~expected.above_B])
    logged = next(row for row in trainer.state.log_history if "mara/above_share" in row)
    assert logged["mara/above_share"] == pytest.approx(float(expected.above_B.float().mean()))
    if kind == "RLOO":  # the advantage is that of the augmented rewards, with TRL's own KL
        total_GN = (augmented_B - BETA * (first["old_logps"] - ours_BT.sum(1))).view(2, 4)
        others_GN = (total_GN.sum(1, keepdim=True) - total_GN) / 3
        expected_B = (total_GN - others_GN).flatten()
        torch.testing.assert_close(first["advantages"], expected_B, atol=1e-5, rtol=1e-5)


def test_a_threshold_that_nothing_reaches_changes_nothing(model: str, tmp_path: Path):
    states = []
    for mara in (None, Mara(threshold=100.0)):
        trainer = make("RLOO", model, tmp_path / "run", mara, max_steps=1)
        trainer.train()
        states.append(trainer.model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("mara", "settings", "message"),
    [
        ({}, {"beta": 0.0}, "args.beta is 0"),
        ({"algorithm": 2}, {}, "algorithm is 2"),
        ({}, {"reward_clip_range": (-1.0, 1.0)}, "would cut the augmented rewards"),
    ],
)
def test_settings_without_an_exact_augmentation_are_refused(
    mara: dict, settings: dict, message: str, model: str, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        make("RLOO", model, tmp_path, Mara(threshold=0.5, **mara), **settings)


def test_cut_completions_are_no_anchors_where_trl_masks_them(model: str, tmp_path: Path):
    trainer = make(
        "RLOO", model, tmp_path, Mara(threshold=-1.0), mask_truncated_completions=True, max_steps=1
    )
    kept = keep(trainer)
    trainer.train()
    assert (kept[0]["completion_mask"].sum(1) == 0).any()  # a random model rarely ends a turn
    is_cut = kept[0]["completion_mask"].sum(1) == 0
    assert (kept[0]["reward_NF"][is_cut, 2] == 0).all()


def test_nothing_else_imports_trl():
    """Whoever does not train with TRL does not wait for it, and need not have it."""
    own = ROOT / "lit_modules" / "diversify" / "trl_trainers.py"
    folders = ("models", "objectives", "metrics", "datamodules", "lit_modules", "callbacks")
    files = (file for name in (*folders, "triptych") for file in (ROOT / name).rglob("*.py"))
    named = re.compile(r"^\s*(from|import) trl\b|trl_trainers", re.MULTILINE)
    assert [file for file in files if named.search(file.read_text())] == [own]
