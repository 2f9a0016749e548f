"""Our RLOO and GRPO against TRL's own trainers: same rollout, same loss, same gradient."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from triptych.objectives.diversify.kl import KlPenalty
from triptych.objectives.diversify.policy_loss import Grpo, PolicySamples, Rloo
from triptych.objectives.diversify.rivals.entropy_bonus import EntropyBonus, EntropyControl

PAD, EOS = 0, 1
# Two prompts of different length, four completions each, of different length; two were cut.
PROMPTS = [[5, 6, 7], [8, 9]]
COMPLETIONS = [
    [10, 11, EOS],
    [12, EOS],
    [10, 13, 14, 15],
    [11, 11, 16, EOS],
    [17, EOS],
    [18, 19, 5, EOS],
    [EOS],
    [6, 7, 8, 9],
]
REWARDS = [1.0, 0.0, 0.25, 0.75, 1.0, 1.0, 0.0, 0.5]
BETA = 0.07
WORDS = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i for i in range(2, 20)}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a tiny Qwen2, which is the reference."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.5,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("qwen")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def moved(base, scale):
    """The base after a step in a fixed random direction."""
    model = Qwen2ForCausalLM.from_pretrained(base, attn_implementation="eager")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def build_trainer(kind, base, out, **settings):
    """TRL's trainer, whose generation gives the fixed completions; everything else is its own."""
    import trl
    from datasets import Dataset

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(), pad_token="<pad>", eos_token="<eos>"
    )
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(out),
        per_device_train_batch_size=len(COMPLETIONS),
        num_generations=4,
        beta=BETA,
        max_completion_length=8,
        use_cpu=True,
        report_to=[],
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        **settings,
    )
    prompts = [" ".join(f"w{i}" for i in ids) for ids in PROMPTS]
    trainer = getattr(trl, f"{kind}Trainer")(
        model=moved(base, 0.05),
        reward_funcs=lambda completions, **_: list(REWARDS),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.model.train()
    completions = [list(ids) for ids in COMPLETIONS]
    trainer._generate_single_turn = lambda *_: (
        completions if kind == "RLOO" else (completions, None)
    )
    trainer.current_gradient_accumulation_steps = 1
    inputs = [{"prompt": prompts[row // 4]} for row in range(len(COMPLETIONS))]
    return trainer, inputs


def _tokenizer():
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def token_log_prob(model):
    """Log-probability of each token of each completion, one row at a time, unpadded: (B, T)."""
    rows = []
    for row, completion in enumerate(COMPLETIONS):
        prompt = PROMPTS[row // 4]
        logits = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        where = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
        rows.append(logits[where, torch.tensor(completion)])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def token_entropy(model):
    """Entropy of the distribution of each token of each completion: (B, T)."""
    rows = []
    for row, completion in enumerate(COMPLETIONS):
        prompt = PROMPTS[row // 4]
        logits = model(torch.tensor([prompt + completion])).logits[0]
        where = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
        rows.append(torch.distributions.Categorical(logits=logits[where]).entropy())
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def our_samples(base, trainer, kl, old_scale=None):
    log_prob = token_log_prob(trainer.model)
    mask = torch.tensor([[t < len(c) for t in range(log_prob.shape[1])] for c in COMPLETIONS])
    with torch.no_grad():
        reference = token_log_prob(moved(base, 0.0))
        old = None if old_scale is None else token_log_prob(moved(base, old_scale))
    # TRL's trainers score with the policy as it is when they sample.
    reward = torch.tensor(REWARDS) - BETA * kl.in_reward(log_prob, reference, mask)
    penalty = kl.in_loss(log_prob, reference, mask, old_log_prob_BT=old)
    return PolicySamples(
        log_prob,
        mask,
        reward,
        torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        old_log_prob_BT=old,
        penalty=None if penalty is None else BETA * penalty,
    )


def assert_equal(trainer, theirs, samples, loss, more=0.0):
    trainer.model.zero_grad()
    expected = torch.autograd.grad(theirs, list(trainer.model.parameters()))
    ours = loss(samples).mean() + more
    got = torch.autograd.grad(ours, list(trainer.model.parameters()))
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)
    assert max(float(g.abs().max()) for g in expected) > 1e-2  # something to compare
    for name_and_parameter, a, b in zip(
        trainer.model.named_parameters(), got, expected, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=name_and_parameter[0])


pytestmark = pytest.mark.filterwarnings("ignore")


SCALES = pytest.mark.parametrize("old_scale", [None, 0.1], ids=["on-policy", "clipped"])
UNWEIGHTED = {"use_bias_correction_kl": False}


@SCALES
def test_rloo(base, tmp_path, old_scale):
    trainer, inputs = build_trainer("RLOO", base, tmp_path)
    batch = trainer._generate_and_score_completions(inputs)
    samples = our_samples(base, trainer, KlPenalty("k1", "reward"), old_scale)
    if old_scale is not None:
        batch["old_logps"] = (samples.old_log_prob_BT * samples.token_mask_BT).sum(-1)
    assert_equal(trainer, trainer.compute_loss(trainer.model, batch), samples, Rloo())


@SCALES
@pytest.mark.parametrize(
    ("theirs", "ours", "weighted"),
    [
        ({"loss_type": "grpo"}, {}, True),
        ({"loss_type": "grpo", **UNWEIGHTED}, {}, False),
        ({"loss_type": "grpo", "scale_rewards": "none"}, {"divide_by_group_std": False}, True),
        ({"loss_type": "bnpo"}, {"token_weighting": "token_mean"}, True),
        ({"loss_type": "dr_grpo"}, {"token_weighting": "constant_length", "max_tokens": 8}, True),
        (
            {"loss_type": "grpo", "importance_sampling_level": "sequence", **UNWEIGHTED},
            {"ratio": "sequence_mean"},
            False,
        ),
    ],
    ids=["grpo", "k3 unweighted", "no std", "bnpo", "dr_grpo", "gspo"],
)
def test_grpo(base, tmp_path, theirs, ours, weighted, old_scale):
    trainer, inputs = build_trainer("GRPO", base, tmp_path, **theirs)
    batch = trainer._generate_and_score_completions(inputs)
    kl = KlPenalty("k3", "loss", "token", importance_weighted=weighted)
    samples = our_samples(base, trainer, kl, old_scale)
    loss = Grpo(**ours)
    if old_scale is not None:
        batch["old_per_token_logps"] = samples.old_log_prob_BT
        assert float(loss(samples).numbers["clipped_share"]) > 0  # the clip is compared too
    assert_equal(trainer, trainer.compute_loss(trainer.model, batch), samples, loss)


@pytest.mark.parametrize(
    ("theirs", "bonus"),
    [
        ({"entropy_coef": 0.3}, EntropyBonus(0.3)),
        # The entropy of this model is between the two targets.
        (
            {
                "entropy_coef": 0.2,
                "use_adaptive_entropy": True,
                "entropy_target": 4.0,
                "entropy_coef_delta": 0.03,
                "entropy_coef_max": 0.24,
            },
            EntropyBonus(0.2, True, 4.0, most_coefficient=0.24, coefficient_step=0.03),
        ),
        (
            {
                "entropy_coef": 0.02,
                "use_adaptive_entropy": True,
                "entropy_target": 0.5,
                "entropy_coef_delta": 0.015,
            },
            EntropyBonus(0.02, True, 0.5, coefficient_step=0.015),
        ),
    ],
    ids=["static", "rises", "falls"],
)
def test_entropy_bonus(base, tmp_path, theirs, bonus):
    """Loss and gradient of three optimizer steps, and the coefficient after each."""
    trainer, inputs = build_trainer("GRPO", base, tmp_path, loss_type="grpo", **theirs)
    batch = trainer._generate_and_score_completions(inputs)
    kl = KlPenalty("k3", "loss", "token", importance_weighted=True)
    control = EntropyControl(bonus)
    for _ in range(3):
        samples = our_samples(base, trainer, kl)
        term = control.term(token_entropy(trainer.model), samples.token_mask_BT)
        applied = control.applied
        loss = trainer.compute_loss(trainer.model, batch)
        assert_equal(trainer, loss, samples, Grpo(), term.mean())
        mean = token_entropy(trainer.model).masked_fill(~samples.token_mask_BT, 0.0).sum()
        control.end_step(float(mean / samples.token_mask_BT.sum()))
        assert control.coefficient == pytest.approx(trainer.entropy_coef, abs=1e-9)
    assert applied == (0.0 if bonus.target_nats == 0.5 else pytest.approx(control.coefficient))
