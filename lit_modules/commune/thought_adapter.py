"""Training of an adapter that turns thoughts into prefixes; agents and codec are frozen."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from triptych.datamodules.commune.debate_task import Question
from triptych.datamodules.commune.state_cache import StateCache
from triptych.lit_modules.commune.debate import SILENCE, Debate, Heard, Messages, end_mask
from triptych.lit_modules.commune.debating_module import DebatingModule
from triptych.lit_modules.commune.prefix_leverage import leverage_rows, prefix_leverage
from triptych.lit_modules.commune.thought_evaluation import ThoughtEvaluation
from triptych.lit_modules.commune.thought_interventions import Interventions, intervene
from triptych.lit_modules.optimization import with_cosine
from triptych.lit_modules.trainer_parts import data_of, is_dry_run
from triptych.metrics.sharded_strategies import refuse_sharded
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents import Agents
from triptych.models.commune.prefix_adapter import PrefixAdapter, PrefixAdapterConfig
from triptych.models.commune.soft_replies import sample_soft_reply
from triptych.models.commune.thought_system import ThoughtSystem
from triptych.models.end_tokens import turn_end
from triptych.models.long_loop import with_progress
from triptych.objectives.commune.thought_loss import (
    ThoughtLossConfig,
    ThoughtTerms,
    mean_embedding,
    reinforce_terms,
    straight_through_terms,
    straight_through_tokens,
    teacher_forced_terms,
)

# Shapes: B questions, T reply positions, M prefix tokens, D embedding width, H states, Z latents

# Questions, and tokens of their replies, on which the places of a prefix are compared.
LEVERAGE_QUESTIONS, LEVERAGE_TOKENS = 4, 32

Reference = Literal["text_debate", "no_prefix", "task"]


class ThoughtAdapter(DebatingModule):
    """Trains the adapter.

        states of round 1 (cached) -> codec -> thoughts -> adapter -> prefix of each agent
        round 2: the agent answers with its prefix at its place in the prompt (`adapter.place`)
        later rounds: the state is read again, with the prefix, and gives the next thoughts

    Args:
        init_from: Exported folder of a codec with its agents, or the experiment that trains it.
        adapter: Routing and sizes.
        loss: Weights, and the gradient estimator.
        reference: y_ref, the reply to imitate: the agent's own after hearing the others in full
            (`text_debate`), or without a prefix (`no_prefix`, which rewards ignoring the prefix);
            or the task's reference reply (`task`).
        rounds: Number of rounds, at least 2; the first is without thoughts.
        train_on: The loss is that of the `last` round, or the mean over `all` with thoughts.
        text_between_rounds: Agents also receive messages of the others, as in the paper, in
            training and in every condition with thoughts.
        learning_rate: Peak of Adam.
        warmup_steps: Steps of linear warm-up, then a cosine.
        max_reference_tokens: Length of y_ref, a brief continuation.
        text_budgets: Message lengths of the debates by text to compare with, in words, beside whole
            messages.
        probe_samples: Training questions to fit the leakage probes on; 0: no probe.
        intervention_samples: Held-out questions on which every latent is set to a low and to a high
            value, to see which agents it affects (`interventions.json`); 0: none.
        kv_caches: Compare with agents that read each other's KV caches, without any training; they
            need one model.

    Raises:
        ValueError: if there are fewer than two rounds, or the structure leaves an agent without
            thoughts.

    Source: 2510.20733. Deviations: see `prefix_adapter` and `thought_loss`.
    """

    evaluation: ThoughtEvaluation

    def __init__(
        self,
        init_from: str,
        adapter: PrefixAdapterConfig = PrefixAdapterConfig(),  # noqa: B008 (frozen)
        loss: ThoughtLossConfig = ThoughtLossConfig(),  # noqa: B008 (frozen)
        reference: Reference = "text_debate",
        rounds: int = 2,
        train_on: Literal["last", "all"] = "last",
        text_between_rounds: bool = False,
        learning_rate: PositiveFloat = 2e-3,
        warmup_steps: NonNegativeInt = 20,
        max_reference_tokens: PositiveInt = 64,
        text_budgets: list[int] = [1, 2],  # noqa: B006 (never changed)
        probe_samples: NonNegativeInt = 2048,
        intervention_samples: NonNegativeInt = 0,
        kv_caches: bool = False,
    ) -> None:
        super().__init__()
        if rounds < 2:
            raise ValueError(f"model.init_args.rounds is {rounds}: an exchange has at least 2")
        self.model = ThoughtSystem.load(init_from)
        self.model.codec.requires_grad_(False)
        scales = [agent.embedding_rms for agent in self.agents]
        self.model.use_adapter(
            PrefixAdapter(self.model.relevant_KZ, self.agents.widths, scales, adapter)
        )
        self.loss = loss
        self.reference: Reference = reference
        self.rounds = rounds
        self.train_on = train_on
        self.text_between_rounds = text_between_rounds
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.max_reference_tokens = max_reference_tokens
        self.text_budgets = list(text_budgets)
        self.probe_samples = probe_samples
        self.intervention_samples = intervention_samples
        self.kv_caches = kv_caches
        self.strict_loading = False  # frozen agents are in no checkpoint
        self.sample_rows: list[dict[str, Any]] = []
        self._references: list[list[Tensor]] = []

    @property
    def agents(self) -> Agents:
        """The agents that exchange thoughts."""
        return self.model.agents

    @property
    def state(self) -> StateConfig:
        """The hidden state that is read from each agent."""
        return self.model.state

    def setup(self, stage: str) -> None:
        """Create the debate for the datamodule's task.

        Raises:
            ValueError: if the strategy shards agents or codec.
        """
        refuse_sharded(self.trainer, "ThoughtAdapter lets whole agents write replies")
        self.debate = Debate(self.agents, self.task, getattr(data_of(self), "store", None))
        self.evaluation = ThoughtEvaluation(
            self.model, self.debate, self.rounds, self.text_between_rounds, self.text_budgets
        )
        self.evaluation.with_caches = self.kv_caches
        if self.kv_caches:
            self.debate.require_one_model()

    # -- references -------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Compute the reference replies, once for all steps."""
        self.train()  # agents and codec return to eval mode whenever they are used
        questions = data_of(self).train_questions
        if is_dry_run(self):
            self._references = []
            return
        # Replies have the trainer's precision, as in training and validation; Lightning calls this
        # hook outside autocast.
        with self.trainer.precision_plugin.forward_context():
            self._references = self._reply_references(questions)
        self.train()

    def _reply_references(self, questions: Sequence[Question]) -> list[list[Tensor]]:
        references: list[list[Tensor]] = [[] for _ in range(len(self.agents))]
        size = data_of(self).eval_batch_size
        starts = range(0, len(questions), size)
        shown = self.trainer.is_global_zero
        for start in with_progress(starts, "batches of references", len(starts), shown, False):
            for agent, ids in enumerate(self._some_references(questions[start : start + size])):
                references[agent] += ids
        return references

    def _some_references(self, questions: Sequence[Question]) -> list[list[Tensor]]:
        """Return the reference ids of each agent, cut after the end token."""
        messages = SILENCE
        if self.reference == "text_debate":
            messages = self.debate.hear(questions, self.debate.replies(questions))
        rows = []
        for number, agent in enumerate(self.agents):
            if self.reference == "task":
                texts = self.debate.reference_replies(questions, number)
                if texts is None:
                    raise ValueError(
                        "model.init_args.reference is task, but this task knows no replies of "
                        f"agent {number}: choose text_debate or no_prefix"
                    )
                encoded = agent.tokenizer(texts, add_special_tokens=False)["input_ids"]
                end = turn_end(agent.tokenizer)
                ids = [torch.tensor([*row, end], dtype=torch.int64) for row in encoded]
            else:
                ids_BT = self.debate.reply_ids(questions, number, messages.to(number))
                mask_BT = end_mask(ids_BT, agent)
                ids = [row[keep].cpu() for row, keep in zip(ids_BT, mask_BT, strict=True)]
            rows.append([row[: self.max_reference_tokens] for row in ids])
        return rows

    # -- training ---------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of a batch: thoughts, prefixes, and the agents' replies with them."""
        rows = batch["rows"].tolist()
        questions = [data_of(self).train_questions[row] for row in rows]
        if self._references:
            references = [[of_agent[row] for row in rows] for of_agent in self._references]
        else:
            references = self._some_references(questions)
        states_BH, messages = batch["states"], SILENCE
        if self.text_between_rounds:
            messages = self.debate.hear(questions, self.debate.replies(questions))
        losses: list[Tensor] = []
        for number in range(1, self.rounds):
            prefixes = self.model.prefixes(self.model.think(states_BH))
            is_last = number == self.rounds - 1
            if is_last or self.train_on == "all":
                losses.append(self._round_loss(questions, references, prefixes, messages))
            if not is_last:
                detached = [prefix.detach() for prefix in prefixes]
                states_BH = self.debate.states(questions, self.state, detached, messages)
                if self.text_between_rounds:
                    said = self.debate.replies(questions, messages, detached)
                    messages = self.debate.hear(questions, said)
        loss = torch.stack(losses).mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def _round_loss(
        self,
        questions: Sequence[Question],
        references: Sequence[Sequence[Tensor]],
        prefixes: Sequence[Tensor],
        messages: Messages,
    ) -> Tensor:
        terms = [
            self._terms(questions, references[agent], agent, prefix_BMD, messages.to(agent))
            for agent, prefix_BMD in enumerate(prefixes)
        ]
        self.log("train/semantic_distance", torch.stack([t.semantic for t in terms]).mean())
        self.log("train/nll_nats_per_token", torch.stack([t.fluency for t in terms]).mean())
        return torch.stack([t.loss for t in terms]).mean()

    def _terms(
        self,
        questions: Sequence[Question],
        references: Sequence[Tensor],
        agent: int,
        prefix_BMD: Tensor,
        heard: Heard | None,
    ) -> ThoughtTerms:
        who, config = self.agents[agent], self.loss
        ids, mask = self.debate.padded_prompts(questions, agent, heard)
        lengths_B1 = torch.tensor([[len(row)] for row in references])
        ids_BT = pad_sequence(list(references), True, who.pad_id).to(self.device)
        mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B1).to(self.device)
        embedding_VD = who.embedding_weight
        if config.gradient == "teacher_forced":
            logits_BTV = who.reply_logits(ids, mask, ids_BT, prefix_BMD)
            return teacher_forced_terms(logits_BTV, ids_BT, mask_BT, embedding_VD, config)
        meant_BD = mean_embedding(who.embed(ids_BT), mask_BT)
        num_tokens = ids_BT.shape[1]
        if config.gradient == "straight_through":
            tokens_BTV, logits_BTV = sample_soft_reply(
                who,
                ids,
                mask,
                prefix_BMD,
                num_tokens,
                lambda logits_BV: straight_through_tokens(logits_BV, config.temperature),
            )
            said_mask_BT = end_mask(tokens_BTV.argmax(-1), who)
            return straight_through_terms(
                tokens_BTV, logits_BTV, said_mask_BT, meant_BD, embedding_VD, config
            )
        sampled_BT = who.generate(ids, mask, num_tokens, prefix_BMD.detach(), temperature=1.0)
        logits_BTV = who.reply_logits(ids, mask, sampled_BT, prefix_BMD)
        return reinforce_terms(
            logits_BTV, sampled_BT, end_mask(sampled_BT, who), meant_BD, embedding_VD, config
        )

    # -- validation -------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Put held-out questions to the agents under every condition."""
        asked = data_of(self).val_questions
        questions = [asked[row] for row in batch["rows"].tolist()]
        self.evaluation.add(questions, batch["states"])

    def on_validation_epoch_end(self) -> None:
        """Log accuracies, bytes, consensus, leakage and effects of interventions."""
        values = self.debated_values()
        if self.probe_samples and self.task.num_private_classes and not is_dry_run(self):
            data = data_of(self)
            cache: StateCache = data.caches["train"]
            rows = range(min(self.probe_samples, len(cache)))
            fit = self.model.think(cache.rows(rows).to(self.device))
            held_out_cache: StateCache = data.caches["val"]
            held_out = self.model.think(
                held_out_cache.rows(range(len(held_out_cache))).to(self.device)
            )
            private = [question.private for question in data.train_questions[: len(rows)]]
            values |= self.evaluation.probe(
                fit, private, held_out, [q.private for q in data.val_questions]
            )
        table = self.evaluation.table(values)
        if self.intervention_samples and not is_dry_run(self):
            found = self._intervene()
            values |= found.values()
            table += found.table()
        self.report(values, table + self._leverage())
        self.sample_rows = self.evaluation.samples

    def _leverage(self) -> list[tuple[str, str]]:
        """Compare the places of a prefix on some held-out questions to the first agent."""
        agent = self.agents[0]
        if agent.tokenizer.chat_template is None or is_dry_run(self):
            return []
        questions = data_of(self).val_questions[:LEVERAGE_QUESTIONS]
        replies_BT = self.debate.reply_ids(questions, 0)[:, :LEVERAGE_TOKENS]
        prompts = self.debate.prompts(questions, 0)
        return leverage_rows(prefix_leverage(agent, prompts, replies_BT), agent.place)

    def _intervene(self) -> Interventions:
        """Intervene on every latent and write `interventions.json`."""
        data = data_of(self)
        cache: StateCache = data.caches["val"]
        rows = range(min(self.intervention_samples, len(cache)))
        found = intervene(
            self.model,
            self.debate,
            data.val_questions[: len(rows)],
            cache.rows(rows).to(self.device),
        )
        if self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir) / "interventions.json"
            path.write_text(json.dumps(found.report()) + "\n")
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen agents out of the checkpoint."""
        for name in [n for n in checkpoint["state_dict"] if n.startswith("model.agents.")]:
            del checkpoint["state_dict"][name]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam over the adapter, with warm-up and cosine."""
        assert self.model.adapter is not None
        parameters = [p for p in self.model.adapter.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(
            [{"params": parameters, "name": "adapter"}], self.learning_rate
        )
        total_steps = self.trainer.estimated_stepping_batches
        return with_cosine(optimizer, self.warmup_steps, total_steps, 0.05)
