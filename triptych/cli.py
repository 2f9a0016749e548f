"""Run an experiment: ``python train.py fit --config configs/quickstart.yaml``.

Every run starts from ``configs/base.yaml``; the files after ``--config`` are merged over it in
order, and options on the command line come last. ``fit --help`` lists the options,
``fit --config ... --print_config`` shows the composed configuration.

Options of our own, beside the Trainer's, the model's and the data's:

- ``--run_dir``, ``--run_name``, ``--experiment``: where the run is kept and what it is called;
- ``--tracking.uri``: the MLflow store or server, ``null`` for local metrics only;
- ``--checkpoint.*``: when checkpoints are written and which one counts as the best;
- ``model.init_args.init_from``: an exported folder, or another configuration to be run first.

A model that is given (``init_from``, ``base.pretrained``, ``policy.base.pretrained``) brings its
own tokenizer, unless the data name one.

``python train.py ledger --help`` is about what runs have taught: which fact changed which slots,
and how to take it back.
"""

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, _InstantiatorFn
from lightning.pytorch.loggers import Logger
from typing_extensions import override

from triptych import ROOT
from triptych.callbacks.command_line.error_report import (
    ConstructorErrors,
    construct,
    one_message_per_error,
    readable_checkpoint_errors,
    refuse_missing_checkpoint,
)
from triptych.callbacks.command_line.init_from import Stage
from triptych.callbacks.command_line.parser_errors import short_parser_errors
from triptych.callbacks.remember.ledger.ledger_command import run_ledger_command
from triptych.callbacks.run.checkpoint import Checkpoint
from triptych.callbacks.run.process_state import restored_process_state
from triptych.callbacks.run.run_directory import RunDirectory, experiment_name
from triptych.callbacks.run.run_summary import recorded_run
from triptych.callbacks.run.save_config import SaveConfig
from triptych.callbacks.tracking.local_metrics import LocalMetrics
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking
from triptych.short_names import short_names_allowed

DESCRIPTION = (
    "Run an experiment: python train.py fit --config configs/quickstart.yaml. Later files and "
    "options are merged over earlier ones; fit --help lists the options. python train.py ledger "
    "--help is about what runs have taught, and how to take it back."
)
# Lightning would head these options with the name of its base class.
OPTION_TITLES = {
    "model": (
        "What is trained",
        "--model.help CLASS lists a model's options, with --model.memory.help or --model.base.help "
        "after it those of a part. CLASS is, below lit_modules, one of "
        "memory_pretraining.MemoryPretraining, continual_finetuning.ContinualFinetuning; "
        "policy_optimization.PolicyOptimization, molecule_optimization.MoleculeOptimization, "
        "causal_lm.CausalLM; agent_pretraining.AgentPretraining, agent_finetuning.AgentFinetuning, "
        "thought_autoencoder.ThoughtAutoencoder, thought_adapter.ThoughtAdapter, or your own.",
    ),
    "data": (
        "What it is trained on",
        "--data.help CLASS lists the options of the data. CLASS is, below datamodules, one of "
        "text_and_facts.TextAndFacts, text_corpus.TextCorpus, facts.Facts, "
        "fact_stream.FactStream, document_stream.DocumentStream; chat_prompts.ChatPrompts, "
        "supervised_replies.SupervisedReplies, smiles.Smiles, unprompted.Unprompted; "
        "pooled_evidence.PooledEvidence, reasoning.Reasoning, debate_questions.DebateQuestions, "
        "agent_states.AgentStates, or your own.",
    ),
}


class TriptychCLI(LightningCLI):
    """LightningCLI with one run directory, one tracker, and the configuration as the last word.

    Args:
        args: Command line as a list of words, or a mapping of options; by default ``sys.argv``.
    """

    def __init__(self, args: ArgsType = None) -> None:
        self._errors = ConstructorErrors()
        defaults = {"default_config_files": [str(ROOT / "configs" / "base.yaml")]}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # `instantiate_classes` sees to it
            save_config_callback=SaveConfig,
            seed_everything_default=42,
            parser_kwargs={"exit_on_error": False, "description": DESCRIPTION}
            | {name: {"exit_on_error": False, **defaults} for name in self.subcommands()},
            args=args,
        )

    @override
    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Lightning also takes a bool here, and reads `true` as the seed 0.
        parser.add_argument(
            "--seed_everything", type=int, default=42, help="Seed of everything, on every process."
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, (title, description) in OPTION_TITLES.items():
            parser.groups[name].title, parser.groups[name].description = title, description
        parser.add_argument(
            "--experiment",
            type=str | None,
            default=None,
            help="Name under which runs are grouped; by default the name of the first --config.",
        )
        parser.add_argument(
            "--run_name",
            type=str | None,
            default=None,
            help="Name of this run; by default made of experiment, seed and time.",
        )
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of this run; by default runs/<experiment>/<time>-seed<seed>.",
        )
        parser.add_class_arguments(
            MLflowTracking, "tracking", skip=MLflowTracking.GIVEN_BY_RUN, instantiate=False
        )
        parser.add_class_arguments(Checkpoint, "checkpoint")
        # The size is known once the tokenizer is, so the link follows construction. The whole
        # object is the source: a model without a vocabulary goes with data without one.
        parser.link_arguments(
            "data",
            "model.init_args.vocab_size",
            compute_fn=self._errors.watch(_vocab_size),
            apply_on="instantiate",
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # Without Lightning's warning when `args` and `sys.argv` are both there: so it is whenever
        # a study or a test calls `main`.
        as_words = args is None or isinstance(args, list)
        with short_parser_errors(args if as_words else [], self._subcommand_parsers):
            self.config = parser.parse_args(args) if as_words else parser.parse_object(args)

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone.

        Lightning would put the checkpoint's hyperparameters over those of the command line.
        """

    @override
    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        refuse_missing_checkpoint(options.get("ckpt_path"))
        if options.experiment is None:
            options.experiment = experiment_name([str(path) for path in options.config or []])
        self.run = RunDirectory.claim(
            options.experiment,
            options.seed_everything,
            options.run_dir,
            options.run_name,
            resumed_from=options.get("ckpt_path") if self.subcommand == "fit" else None,
        )
        self.save_config_kwargs = {"composed": self._composed_yaml(options)}

    @override
    def instantiate_classes(self) -> None:
        """Build data, model and trainer; what their constructors say is what the user sees."""
        try:
            self._resolve_init_from(self.config[self.subcommand])
            with self._errors.shown():
                self.config_init = self.parser.instantiate(
                    self.config,
                    instantiators=[
                        (self._errors.watch(_InstantiatorFn(self, "model")), LightningModule, True),
                        (
                            self._errors.watch(_InstantiatorFn(self, "data")),
                            LightningDataModule,
                            True,
                        ),
                        (self._errors.watch(construct), object, True),
                    ],
                )
                self.datamodule = self._get(self.config_init, "data")
                self.model = self._get(self.config_init, "model")
                self.trainer = self.instantiate_trainer()
        except BaseException:
            self.run.release_if_empty()
            raise

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a Trainer that keeps everything in the run's directory."""
        options = self.config_init[self.subcommand]
        callbacks = list(options.trainer.callbacks or [])
        if options.trainer.enable_progress_bar is False:
            callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
        if options.trainer.enable_checkpointing is not False:
            callbacks.append(options.checkpoint)
        kwargs |= {"default_root_dir": str(self.run.path), "callbacks": callbacks}
        if options.trainer.logger in (None, True):
            kwargs["logger"] = self._loggers()
        return super().instantiate_trainer(**kwargs)

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        options = self.config[subcommand]
        with (
            recorded_run(self.run, self.trainer, seed=options.seed_everything),
            readable_checkpoint_errors(options.get("ckpt_path")),
        ):
            super()._run_subcommand(subcommand)

    def _loggers(self) -> list[Logger]:
        tracking = self.config[self.subcommand].tracking
        loggers: list[Logger] = [LocalMetrics(self.run.path)]
        if tracking.uri is not None:
            names = {"experiment": self.run.experiment, "run_name": self.run.name}
            loggers.append(MLflowTracking(**tracking, **names, run_dir=self.run.path))
        return loggers

    def _composed_yaml(self, options: Namespace) -> str:
        """What the user asked for, without what belongs to this one run: it can be run again."""
        kept = options.clone()
        kept.run_dir = kept.run_name = None
        return self._parser(self.subcommand).dump(kept, skip_unset=False)

    def _resolve_init_from(self, options: Namespace) -> None:
        """Replace another configuration by what it exports; a given model brings its tokenizer."""
        model, data = options.model.get("init_args", {}), (options.data or {}).get("init_args", {})
        tokenizer = data.get("tokenizer")
        unset = tokenizer is not None and tokenizer.path in (None, "train")
        start = model.get("init_from")
        if start is None:
            holder = model.get("policy") or model  # a policy's own settings hold its base
            pretrained = (holder.get("base") or {}).get("pretrained")
            if unset and pretrained is not None:
                tokenizer.path = pretrained
            return
        if Path(start).suffix in (".yaml", ".yml"):
            start = model["init_from"] = str(self._stage(start, options).export())
        elif not Path(start).is_dir():
            raise FileNotFoundError(
                f"model.init_args.init_from: there is no folder {start}; give the folder "
                "`export` of a finished run, or an experiment's .yaml, which is then run first"
            )
        has_tokenizer = (Path(start) / "tokenizer.json").is_file()
        if unset and has_tokenizer:
            tokenizer.path = start
        smiles = data.get("smiles")  # molecules name theirs among their own settings
        if smiles is not None and smiles.get("tokenizer") is None and has_tokenizer:
            smiles.tokenizer = start

    def _stage(self, config: str, options: Namespace) -> Stage:
        path = next((p for p in (Path(config), ROOT / config) if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"model.init_args.init_from: there is no file {config}")
        words = ["--config", str(path), "--tracking.uri", options.tracking.uri or "null"]
        if options.trainer.fast_dev_run:
            words += ["--trainer.fast_dev_run", str(options.trainer.fast_dev_run)]
        parser = self._parser("fit")
        with short_parser_errors(words, self._subcommand_parsers):
            composed = parser.dump(parser.parse_args(words))
        return Stage(path, yaml.safe_load(composed), tuple(words[2:]))


def _vocab_size(data: LightningDataModule) -> int | None:
    return getattr(data, "vocab_size", None)


def main(args: ArgsType = None) -> Path:
    """Run an experiment, in the terminal's place or from Python.

    Args:
        args: Words of a command line, such as ``["fit", "--config", "configs/quickstart.yaml"]``,
            or the options as a mapping; by default those of the process.

    Returns:
        The run's directory, with ``summary.json`` in it; of the ledger's commands, what they wrote.

    Raises:
        Exception: whatever stopped the run, as it was raised; ``argparse.ArgumentError`` for an
            option or a key that does not exist.
    """
    words = sys.argv[1:] if args is None else args
    with restored_process_state(), short_names_allowed():
        if not isinstance(words, list):
            return TriptychCLI(words).run.path
        if words[:1] == ["ledger"]:
            return run_ledger_command(words[1:])
        return TriptychCLI([_shipped(word) for word in words]).run.path


def _shipped(word: str) -> str:
    """Locate `configs/...yaml` in this package where the working directory has no such file."""
    option, equals, path = word.rpartition("=")
    is_shipped = path.startswith("configs/") and (ROOT / path).is_file()
    return f"{option}{equals}{ROOT / path}" if is_shipped and not Path(path).exists() else word


def run() -> None:
    """Run the process's command line, and report an error in one message."""
    sys.path.insert(0, os.getcwd())  # files of one's own are found where the command is given
    with one_message_per_error():
        main()
