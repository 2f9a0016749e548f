"""The command line: ``python train.py fit --config configs/quickstart.yaml``.

Every run starts from ``configs/base.yaml``. The files after ``--config`` are merged over it in
order, and options on the command line come last. ``fit --help`` lists the options,
``fit --config ... --print_config`` shows the composed configuration.

Options beside those of the Trainer, the model and the data:

- ``--run_dir``, ``--run_name``, ``--experiment``: folder, name and group of the run;
- ``--tracking.uri``: the MLflow store or server, ``null`` for local metrics only;
- ``--checkpoint.*``: when checkpoints are written, and which one is the best;
- ``--callback.CLASS.OPTION``: an option of one of the callbacks;
- ``--export.push_to_hub``, ``--export.private``: upload of the exported model to the hub;
- ``model.init_args.init_from``: an exported folder, or another configuration, which is run first.

A given model (``init_from``, or a ``base.pretrained`` in its settings) brings its tokenizer, unless
the data name one.

Further commands work on what runs leave behind: ``ask``, ``chat`` and ``predict`` use an exported
model, ``ledger`` shows which fact changed which slots and removes facts, and ``report`` writes the
page of a run. `triptych.commands` has
them; ``python train.py ask --help`` lists the options of one.
"""

import os

# Rows of large tables are read at random, and with pages of 4 KiB almost every read also misses
# the processor's cache of page addresses. torch reads this variable at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import json
import sys
from collections.abc import Callable
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
from triptych.callbacks.atomic_file import recover_folder
from triptych.callbacks.command_line.callback_options import (
    CALLBACK_HELP,
    as_plain,
    set_callback_options,
    without_callback_options,
)
from triptych.callbacks.command_line.config_paths import (
    built_in_data_offered,
    importable_beside_configs,
    locate_starts,
)
from triptych.callbacks.command_line.error_report import (
    ConstructorErrors,
    construct,
    one_message_per_error,
    readable_checkpoint_errors,
    refuse_missing_checkpoint,
)
from triptych.callbacks.command_line.init_from import Stage, inherited
from triptych.callbacks.command_line.missing_inputs import refuse_missing_inputs
from triptych.callbacks.command_line.packaged_configs import packaged_configs_found, shipped
from triptych.callbacks.command_line.parser_errors import short_parser_errors
from triptych.callbacks.command_line.plain_numbers import with_plain_numbers
from triptych.callbacks.command_line.processes import refuse_processes
from triptych.callbacks.command_line.replaced_data import data_files_replace
from triptych.callbacks.report.run_report import reported_run
from triptych.callbacks.run.checkpoint import Checkpoint
from triptych.callbacks.run.export_model import ExportModel
from triptych.callbacks.run.interruption import (
    Interrupted,
    Interruption,
    farewell,
    interruptible,
)
from triptych.callbacks.run.process_state import restored_process_state
from triptych.callbacks.run.run_directory import RunDirectory, experiment_name
from triptych.callbacks.run.run_header import RunHeader, print_place
from triptych.callbacks.run.run_summary import recorded_run
from triptych.callbacks.run.save_config import SaveConfig
from triptych.callbacks.run.summary_table import SummaryTable
from triptych.callbacks.run.training_loops import use_exact_loops
from triptych.callbacks.tracking.local_metrics import LocalMetrics
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking
from triptych.callbacks.tracking.run_artifacts import closed_loggers
from triptych.class_lists import listed
from triptych.class_paths import class_names_resolved
from triptych.commands import COMMANDS
from triptych.given_model import pretrained_base, use_tokenizer_of
from triptych.models.host.secrets import settings_without_secrets
from triptych.protocols import HasVocabulary
from triptych.short_names import short_names_allowed

DESCRIPTION = (
    "Run an experiment: python train.py fit --config configs/quickstart.yaml. Later files and "
    "options are merged over earlier ones; fit --help lists the options. ask, chat and predict use "
    'the model that a run has exported: python train.py ask runs/.../export "question".'
)


class TriptychCLI(LightningCLI):
    """LightningCLI with one run directory and one tracker; a checkpoint never changes settings.

    Args:
        args: Command line as a list of words, or a mapping of options; by default ``sys.argv``.
    """

    def __init__(self, args: ArgsType = None) -> None:
        self._errors = ConstructorErrors()
        self._words = words = sys.argv[1:] if args is None else args
        self._callback_options: list[tuple[str, Any]] = []
        if isinstance(words, list):
            args, self._callback_options = without_callback_options(words)
        self._first_word = words[0] if isinstance(words, list) and words else None
        defaults = {"default_config_files": [str(ROOT / "configs" / "base.yaml")]}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # see `_parse_ckpt_path`
            save_config_callback=SaveConfig,
            seed_everything_default=42,
            # `--trainer.max_step` is a mistake, not short for `--trainer.max_steps`.
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False}
            | {"description": DESCRIPTION}
            | {name: {"exit_on_error": False, **defaults} for name in self.subcommands()},
            args=args,
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # static in Lightning
        """Return the given command alone: parsers of the others would double the time to build.

        No module of ours has a `test_step` or a `predict_step`. `validate` measures, and the
        command `predict` answers files.
        """
        known = {n: used for n, used in super().subcommands().items() if n in ("fit", "validate")}
        word = self._first_word
        return {word: known[word]} if word in known else known

    @override
    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        assert parser._subcommands_action is not None
        for name, command in COMMANDS.items():  # `main` runs them; here they are listed
            placeholder = type(parser)(exit_on_error=False)
            parser._subcommands_action.add_subcommand(name, placeholder, help=command.help)

    @override
    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):  # `SummaryTable` prints what Lightning would
            parser.set_defaults({"verbose": False})
        return parser

    @override
    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Lightning also accepts a bool here, and reads `true` as the seed 0.
        parser.add_argument(
            "--seed_everything", type=int, default=42, help="Seed of everything, on every process."
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        assert parser.groups is not None
        for name, (title, description) in option_titles().items():
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
            help="Name of this run; by default experiment, seed and time.",
        )
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of this run; by default runs/<experiment>/<time>-seed<seed>.",
        )
        parser.add_argument(
            "--callback", type=dict[str, Any] | None, default=None, help=CALLBACK_HELP
        )
        parser.add_class_arguments(
            MLflowTracking, "tracking", skip=MLflowTracking.GIVEN_BY_RUN, instantiate=False
        )
        parser.add_class_arguments(Checkpoint, "checkpoint")
        parser.add_class_arguments(SummaryTable, "table")
        parser.add_class_arguments(ExportModel, "export")
        # The size is known only after the data have built their tokenizer. The source is the whole
        # object, since data and model may both have no vocabulary.
        parser.link_arguments(
            "data",
            "model.init_args.vocab_size",
            compute_fn=self._errors.watch(_vocab_size),
            apply_on="instantiate",
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # Lightning would warn when `args` and `sys.argv` are both given, as in every call of `main`
        # by a study or a test.
        if args is None or isinstance(args, list):
            with short_parser_errors(args, self._subcommand_parsers):
                args = self._shown_callbacks(parser, args)
                self.config = parser.parse_args(args)
        else:
            with short_parser_errors([], self._subcommand_parsers):
                self.config = parser.parse_object(args)
        if self.config.get("subcommand"):
            set_callback_options(self.config[self.config.subcommand], self._callback_options)

    def _shown_callbacks(
        self, parser: LightningArgumentParser, args: list[str] | None
    ) -> list[str] | None:
        """Let ``--print_config``, which ends the parsing, show the callbacks with their options."""
        asked = [word for word in args or [] if word.startswith("--print_config")]
        if not asked or not self._callback_options or args is None:
            return args
        others = [word for word in args if word not in asked]
        config = parser.parse_args(others)
        options = config[config.subcommand]
        set_callback_options(options, self._callback_options)
        listed = json.dumps(as_plain(options.trainer.callbacks))
        return [*others, "--trainer.callbacks", listed, *asked]

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the configuration unchanged.

        Lightning would replace settings of the command line by the checkpoint's hyperparameters.
        """

    @override
    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        refuse_missing_checkpoint(options.get("ckpt_path"))
        locate_starts(options, _config_files(options))
        refuse_processes(options)
        if options.experiment is None:
            options.experiment = experiment_name([str(path) for path in options.config or []])
        self.run = RunDirectory.claim(
            options.experiment,
            options.seed_everything,
            options.run_dir,
            options.run_name,
            resumed_from=options.get("ckpt_path") if self.subcommand == "fit" else None,
        )
        files = " ".join(str(path) for path in options.config or [])
        print_place(self.run.path, files, options.seed_everything, options.tracking.uri)
        self.save_config_kwargs = {
            "composed": self._composed_yaml(options),
            "experiment": self.run.experiment,
        }

    @override
    def instantiate_classes(self) -> None:
        """Build data, model and trainer; errors of their constructors reach the user unchanged."""
        try:
            options = self.config[self.subcommand]
            self._resolve_init_from(options)
            with built_in_data_offered(options), self._errors.shown():
                made_by: list[tuple[Callable[..., Any], type]] = [
                    (_InstantiatorFn(self, "model"), LightningModule),
                    (_InstantiatorFn(self, "data"), LightningDataModule),
                    (construct, object),
                ]
                self.config_init = self.parser.instantiate(
                    self.config,
                    instantiators=[
                        (self._errors.watch(with_plain_numbers(make)), kind, True)
                        for make, kind in made_by
                    ],
                )
                self.datamodule = self._get(self.config_init, "data")
                self.model = self._get(self.config_init, "model")
                self.trainer = self.instantiate_trainer()
        except BaseException as error:
            self.run.release_if_empty()
            if isinstance(error, Interrupted):
                print("\ninterrupted before training: there is nothing to keep", file=sys.stderr)
            raise

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build a Trainer that keeps everything in the run's directory."""
        options = self.config_init[self.subcommand]
        callbacks = list(options.trainer.callbacks or [])
        callbacks.append(RunHeader())
        if any(isinstance(c, SummaryTable) for c in callbacks):  # after all that it reports on
            callbacks = [c for c in callbacks if not isinstance(c, SummaryTable)]
            callbacks.append(options.table)
        if options.trainer.enable_progress_bar is False:
            callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
        # A list of callbacks says whether and when the model is exported, `--export.*` says how.
        callbacks = [options.export if isinstance(c, ExportModel) else c for c in callbacks]
        if options.export.push_to_hub is not None and options.export not in callbacks:
            callbacks.append(options.export)
        if options.trainer.enable_checkpointing is not False:
            callbacks.append(options.checkpoint)
        kwargs |= {"default_root_dir": str(self.run.path), "callbacks": callbacks}
        if options.trainer.logger is not False:
            kwargs["logger"] = [*_given_loggers(options.trainer.logger), *self._loggers()]
        trainer = super().instantiate_trainer(**kwargs)
        use_exact_loops(trainer)
        return trainer

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        options = self.config[subcommand]
        checkpoint = self.trainer.checkpoint_callback
        interruption = Interruption()
        if isinstance(checkpoint, Checkpoint):
            checkpoint.interruption = interruption
        try:
            with (
                interruptible(interruption),
                closed_loggers(self.trainer),
                reported_run(self.trainer, self.run.path),
                recorded_run(self.run, self.trainer, seed=options.seed_everything),
                built_in_data_offered(options),
                readable_checkpoint_errors(options.get("ckpt_path")),
            ):
                super()._run_subcommand(subcommand)
        except Interrupted as interrupted:
            if subcommand == "fit" and self.trainer.is_global_zero:
                self._say_farewell(interrupted, options.get("ckpt_path"))
            raise
        finally:
            self.run.release()

    def _say_farewell(self, interrupted: Interrupted, resumed_from: str | None) -> None:
        """Print the run's directory, and the command that goes on."""
        checkpoint, known = self.trainer.checkpoint_callback, [resumed_from]
        step = self.trainer.global_step
        if isinstance(checkpoint, Checkpoint):
            own = checkpoint.last_model_path or self.run.path / "checkpoints" / "last.ckpt"
            known, step = [os.path.relpath(own), resumed_from], checkpoint.last_step or step
        path = next((Path(p) for p in known if p is not None and Path(p).exists()), None)
        words = self._words if isinstance(self._words, list) else [str(self.subcommand)]
        print(farewell(interrupted, words, self.run.path, path, step), file=sys.stderr)

    def _loggers(self) -> list[Logger]:
        tracking = self.config[self.subcommand].tracking
        if tracking.uri is None:
            return [LocalMetrics(self.run.path)]
        names: dict[str, Any] = {"experiment": self.run.experiment, "run_name": self.run.name}
        return [MLflowTracking(**tracking, **names, run_dir=self.run.path)]  # local metrics, too

    def _composed_yaml(self, options: Namespace) -> str:
        """Return the composed configuration to rerun: without this run's names, and no secrets."""
        kept = options.clone()
        kept.run_dir = kept.run_name = None
        composed: str = self._parser(self.subcommand).dump(kept, skip_unset=False)
        settings = yaml.safe_load(composed)
        hidden = settings_without_secrets(settings)
        return composed if hidden == settings else yaml.safe_dump(hidden, sort_keys=False)

    def _resolve_init_from(self, options: Namespace) -> None:
        """Run a configuration in `init_from`, and let a given model name the data's tokenizer."""
        model = options.model.get("init_args")
        data = options.data.get("init_args") if options.data else None
        if model is None:
            return
        refuse_missing_inputs(model)
        given = pretrained_base(model)
        if model.get("init_from") is not None:
            given = model["init_from"] = self._exported(model["init_from"], options)
            if not (Path(given) / "tokenizer.json").is_file():
                return
        if given is not None and data is not None:
            use_tokenizer_of(given, data)

    def _exported(self, start: str, options: Namespace) -> str:
        """Return the folder in `init_from`, or the export of the experiment in it."""
        if Path(start).suffix in (".yaml", ".yml"):
            start = str(self._stage(start, options).export())
        recover_folder(Path(start))
        if not Path(start).is_dir():
            raise FileNotFoundError(
                f"model.init_args.init_from: there is no folder {start}; give the folder "
                "`export` of a finished run, or an experiment's .yaml, which is then run first"
            )
        return start

    def _stage(self, config: str, options: Namespace) -> Stage:
        path = next((p for p in (Path(config), ROOT / config) if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"model.init_args.init_from: there is no file {config}")
        words = ["--config", str(path), "--tracking.uri", options.tracking.uri or "null"]
        if options.trainer.fast_dev_run:
            words += ["--trainer.fast_dev_run", str(options.trainer.fast_dev_run)]
        words += inherited(options.trainer)
        parser = self._parser("fit")
        with short_parser_errors(words, self._subcommand_parsers):
            parsed = parser.parse_args(words)
        locate_starts(parsed, [path])
        composed = parser.dump(parsed)
        return Stage(path, yaml.safe_load(composed), tuple(words[2:]))


def option_titles() -> dict[str, tuple[str, str]]:
    """Return title and description of the options that Lightning heads with its base class."""
    modules = listed("lit_modules", "LightningModule", "configure_optimizers")
    datamodules = listed("datamodules", "LightningDataModule", "train_dataloader")
    tasks = listed("datamodules", "DebateTask", "encode")
    return {
        "model": (
            "Model",
            "--model.help CLASS lists a model's options, with --model.memory.help or "
            f"--model.base.help after it those of a part. CLASS is one of {modules}, of which the "
            "last part is enough; or a class of your own.",
        ),
        "data": (
            "Data",
            f"--data.help CLASS lists the options of the data. CLASS is one of {datamodules}, of "
            "which the last part is enough; or a class of your own. A `task` is likewise one of "
            f"{tasks}.",
        ),
    }


def _config_files(options: Namespace) -> list[Path]:
    return [Path(str(path)) for path in options.config or []]


def _given_loggers(option: Any) -> list[Logger]:
    """Return the loggers of `trainer.logger`; null and `true` name none."""
    if option in (None, True):
        return []
    return list(option) if isinstance(option, list | tuple) else [option]


def _vocab_size(data: LightningDataModule) -> int | None:
    return data.vocab_size if isinstance(data, HasVocabulary) else None


def main(args: ArgsType = None) -> Path:
    """Run an experiment from Python, as the command line does.

    Args:
        args: Words of a command line, such as ``["fit", "--config", "configs/quickstart.yaml"]``,
            or the options as a mapping; by default those of the process.

    Returns:
        The run's directory, with ``summary.json`` in it; for the other commands, the path that they
        wrote or read.

    Raises:
        Exception: the error that stopped the run, unchanged; ``argparse.ArgumentError`` for an
            option or a key that does not exist.
    """
    words = sys.argv[1:] if args is None else args
    with (
        restored_process_state(),
        short_names_allowed(),
        class_names_resolved(),
        packaged_configs_found(),
        data_files_replace(),
    ):
        if not isinstance(words, list):
            return TriptychCLI(words).run.path
        if words and words[0] in COMMANDS:
            return COMMANDS[words[0]](words[1:])
        words = [shipped(word) for word in words]
        with importable_beside_configs(words):
            return TriptychCLI(words).run.path


def run() -> None:
    """Run the command line of this process, and report an error in one message."""
    sys.path.insert(0, os.getcwd())  # users' files are found in the working directory
    with one_message_per_error(), interruptible(Interruption()):
        main()
