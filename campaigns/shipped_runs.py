"""Every shipped fit configuration that needs nothing from outside, at a few small steps."""

from dataclasses import dataclass
from pathlib import Path

from triptych import ROOT

CONFIGS = ROOT / "configs"
COMMON = (
    *("--config", CONFIGS / "hardware" / "cpu.yaml", "--tracking.uri", "null"),
    *("--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", 1),
)
#: Need weights from the hub, large data or a docking program; their classes are in other runs.
#: The statistics of the background train nothing.
NEEDS_MORE = {
    *("remember/pretrain_1b", "remember/retrofit_qwen3", "remember/retrofit_smollm2"),
    *("remember/finetune_smollm2", "remember/teach", "remember/teach_memory"),
    *("diversify/creative_qa_qwen3", "diversify/creative_smollm2", "diversify/one_or_two_smollm2"),
    *("diversify/maths_qwen2.5_1.5b", "diversify/one_or_two_qwen2.5_3b"),
    *("diversify/synth", "diversify/synth_all_amide", "diversify/zinc_prior"),
    "remember/background_statistics",
    *("commune/math_qwen3", "commune/math_qwen3_codec", "commune/agent_finetuning"),
}


@dataclass(frozen=True)
class ShippedRun:
    """A configuration, and the options that make it small.

    Attributes:
        config: Name below `configs/`, without suffix.
        words: Options.
        start: The run whose export it starts from; None for none.
    """

    config: str
    words: tuple[object, ...]
    start: str | None = None

    def command(self, run_dir: Path, exports: Path) -> list[object]:
        """Return the words of the command line.

        Args:
            run_dir: The run's directory.
            exports: Folder with the runs of `STAGES`.
        """
        config = CONFIGS / f"{self.config}.yaml"
        words = ["fit", "--config", config, *COMMON, *self.words, "--run_dir", run_dir]
        if self.start is not None:
            words += ["--model.init_args.init_from", exports / self.start / "export"]
        return words


def _steps(number: int, validate: int, save: int) -> tuple[object, ...]:
    return (
        *("--trainer.max_steps", number, "--trainer.val_check_interval", validate),
        *("--checkpoint.every_n_train_steps", save, "--trainer.limit_val_batches", 3),
    )


_FACTS = (
    *("--data.init_args.facts.num_facts", 60, "--data.init_args.tokenizer.vocab_size", 512),
    *("--data.init_args.text.max_validation_rows", 8, "--model.init_args.base.hidden_size", 32),
)
_TEXT = ("--data", CONFIGS / "data" / "text_embedded.yaml")
_STREAM = ("--data", CONFIGS / "data" / "fact_stream_embedded.yaml")
_VISITS = (
    *("--trainer.max_steps", 16, "--checkpoint.every_n_train_steps", 3),
    *("--data.init_args.steps_per_visit", 4),
)
_SAMPLES = ("--model.init_args.eval_samples", 8, "--model.init_args.num_samples", 4)
_TASK = "--data.init_args.task.init_args"
_DEBATE = (f"{_TASK}.num_train", 128, f"{_TASK}.num_val", 24, "--data.init_args.batch_size", 16)
_SEARCH = (
    *("--trainer.max_steps", 10, "--checkpoint.every_n_train_steps", 2),
    *("--model.init_args.num_samples", 16, "--model.init_args.reward.init_args.budget", 5000),
)
_STAGED = (
    *("--trainer.max_steps", 12, "--checkpoint.every_n_train_steps", 2),
    *("--model.init_args.num_samples", 16),
)
_PROBES = ("--model.init_args.probe_samples", 16, "--model.init_args.intervention_samples", 4)
_PRIOR = ("--model.init_args.num_samples", 20)

#: Runs whose exports others start from; each is trained once.
STAGES = {
    "memory_base": ShippedRun("remember/finetune_base", _steps(20, 20, 20)),
    "says_base": ShippedRun("diversify/one_or_two_base", _steps(40, 40, 40)),
    "prior": ShippedRun("diversify/molecules_prior", (*_steps(200, 200, 200), *_PRIOR)),
    "agents": ShippedRun("commune/agents", (*_steps(10, 10, 10), *_DEBATE)),
    "codec": ShippedRun("commune/autoencoder", (*_steps(10, 10, 10), *_DEBATE), "agents"),
    "masked_codec": ShippedRun(
        "commune/masked_autoencoder", (*_steps(10, 10, 10), *_DEBATE), "agents"
    ),
    "creative_base": ShippedRun("diversify/creative_qa_base", _steps(10, 10, 10)),
    "sum_agents": ShippedRun("commune/sum_modulo_agents", (*_steps(6, 6, 6), *_DEBATE)),
    "sum_codec": ShippedRun(
        "commune/sum_modulo_autoencoder", (*_steps(6, 6, 6), *_DEBATE), "sum_agents"
    ),
    "says_memory": ShippedRun("diversify/one_or_two_memory_base", _steps(20, 20, 20)),
}

RUNS = {
    "quickstart": ShippedRun("quickstart", (*_steps(24, 9, 4), *_FACTS)),
    "pretrain": ShippedRun("remember/pretrain", (*_TEXT, *_steps(8, 4, 3))),
    "retrofit": ShippedRun("remember/retrofit", _steps(8, 4, 3)),
    "finetune_base": ShippedRun("remember/finetune_base", _steps(12, 6, 4)),
    "plain_base": ShippedRun("remember/plain_base", _steps(12, 6, 4)),
    "finetune_full": ShippedRun("remember/finetune_full", _VISITS, "memory_base"),
    "finetune_lora": ShippedRun("remember/finetune_lora", _VISITS, "memory_base"),
    "finetune_sparse": ShippedRun("remember/finetune_sparse", _VISITS, "memory_base"),
    "one_or_two_base": ShippedRun("diversify/one_or_two_base", _steps(16, 8, 3)),
    "one_or_two": ShippedRun("diversify/one_or_two", (*_steps(12, 6, 3), *_SAMPLES), "says_base"),
    "one_or_two_memory_base": ShippedRun("diversify/one_or_two_memory_base", _steps(12, 6, 3)),
    "one_or_two_memory": ShippedRun(
        "diversify/one_or_two_memory", (*_steps(8, 4, 3), *_SAMPLES), "says_memory"
    ),
    "creative_qa_base": ShippedRun("diversify/creative_qa_base", _steps(8, 4, 3)),
    "creative_qa": ShippedRun(
        "diversify/creative_qa", (*_steps(6, 3, 2), *_SAMPLES), "creative_base"
    ),
    "molecules_prior": ShippedRun("diversify/molecules_prior", (*_steps(24, 12, 4), *_PRIOR)),
    "molecules": ShippedRun("diversify/molecules", _SEARCH, "prior"),
    "molecules_worker": ShippedRun(
        "diversify/molecules",
        (*_SEARCH, "--model.init_args.reward.init_args.num_workers", 1),
        "prior",
    ),
    "molecules_staged": ShippedRun("diversify/molecules_staged", _STAGED, "prior"),
    "agents": ShippedRun("commune/agents", (*_steps(12, 6, 3), *_DEBATE)),
    "autoencoder": ShippedRun("commune/autoencoder", (*_steps(12, 6, 3), *_DEBATE), "agents"),
    "masked_autoencoder": ShippedRun(
        "commune/masked_autoencoder", (*_steps(12, 6, 3), *_DEBATE), "agents"
    ),
    "adapter": ShippedRun("commune/adapter", (*_steps(6, 3, 2), *_DEBATE, *_PROBES), "codec"),
    "masked_adapter": ShippedRun(
        "commune/masked_adapter", (*_steps(6, 3, 2), *_DEBATE, *_PROBES), "masked_codec"
    ),
    "sum_modulo_agents": ShippedRun("commune/sum_modulo_agents", (*_steps(6, 3, 2), *_DEBATE)),
    "sum_modulo_autoencoder": ShippedRun(
        "commune/sum_modulo_autoencoder", (*_steps(6, 3, 2), *_DEBATE), "sum_agents"
    ),
    "sum_modulo_adapter": ShippedRun(
        "commune/sum_modulo_adapter", (*_steps(4, 2, 1), *_DEBATE, *_PROBES), "sum_codec"
    ),
}
