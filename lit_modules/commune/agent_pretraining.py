"""Pretraining of agents on a debate task, so that exchanges can be studied on any machine."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.datamodules.commune.agent_states import check_number
from triptych.datamodules.commune.debate_task import DebateTask, Question
from triptych.lit_modules.commune.debate import Debate, reply_tensors
from triptych.lit_modules.commune.step_draws import DrawsByStep
from triptych.lit_modules.optimization import ClipsValuesApart, build_adamw, with_cosine
from triptych.lit_modules.trainer_parts import data_of
from triptych.metrics.sharded_strategies import refuse_sharded
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents_config import AgentsConfig, build_agents
from triptych.models.end_tokens import use_special_tokens
from triptych.objectives.commune.thought_loss import token_nll

# Shapes: B questions, T reply positions


class AgentPretraining(ClipsValuesApart, DrawsByStep):
    """Teaches agents to answer, with and without messages from the others.

    Each step draws how much the agents hear: nothing, some words of each other agent, or all of it.
    Messages in training follow from the task's reference replies, in validation from the agents'
    own. A linear readout of the state (at the layer that thoughts are read from) predicts what the
    agent sees. Without it the state may omit evidence that attention finds elsewhere, and nothing
    that reads states could pass it on. The readouts are discarded after training.

    An agent without reference replies is not taught; its model must then be shared with one that
    has some.

    Args:
        vocab_size: Tokens of the tokenizer; linked from the data.
        agents: The agents to train. Agents that share a model are taught as one.
        state: The hidden state that will be read.
        message_budgets: Longest messages to choose from, in words; 0: no message; null: no limit.
        report_weight: Weight of the readouts' cross-entropy.
        learning_rate: Peak of AdamW.
        weight_decay: Decay of matrices.
        warmup_steps: Steps of linear warm-up.

    Raises:
        ValueError: if the data's task has no tokenizer to train agents with; when training starts,
            if it has no reference replies for a model.
    """

    headline_metrics = ("val/*/accuracy",)

    def __init__(
        self,
        vocab_size: int | None = None,
        agents: AgentsConfig | None = None,
        state: StateConfig = StateConfig(),  # noqa: B008 (frozen)
        message_budgets: list[int | None] = [0, 1, 2, None],  # noqa: B006 (never changed)
        report_weight: NonNegativeFloat = 1.0,
        learning_rate: PositiveFloat = 2e-3,
        weight_decay: NonNegativeFloat = 0.01,
        warmup_steps: NonNegativeInt = 50,
    ) -> None:
        super().__init__()
        if vocab_size is None:
            raise ValueError(
                "the task of these data has no tokenizer to train agents with: use pretrained "
                "agents (configs/commune/math_qwen3.yaml), or the task "
                "triptych.datamodules.commune.pooled_evidence.PooledEvidence"
            )
        if not message_budgets:
            raise ValueError("model.init_args.message_budgets is empty: [0, null] is the least")
        self.model = build_agents(agents or AgentsConfig(num_agents=3), vocab_size, frozen=False)
        self.state = state
        self.message_budgets = list(message_budgets)
        self.report_weight = report_weight
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.readouts = nn.ModuleDict()
        self._taught: list[int] = []

    @property
    def task(self) -> DebateTask:
        """The debate task of the datamodule."""
        task: DebateTask = data_of(self).task
        return task

    def setup(self, stage: str) -> None:
        """Give the agents the task's tokenizer, and make readouts of what the task shows.

        Raises:
            ValueError: if the strategy shards the agents.
        """
        refuse_sharded(self.trainer, "AgentPretraining lets whole agents write replies")
        check_number(self.model, self.task)
        tokenizer = data_of(self).tokenizer
        self.model.give_tokenizer(tokenizer)
        for agent in self.model:
            use_special_tokens(agent.model, tokenizer)
        self.debate = Debate(self.model, self.task)
        if not len(self.readouts):
            num_classes = sum(self.task.report_classes)
            # Agents of one model share a readout, under the number of the first of them.
            for first, *_ in self._by_model() if num_classes else []:
                size = self.model[first].state_size
                self.readouts[str(first)] = nn.Linear(size, num_classes)

    def on_fit_start(self) -> None:
        """Find the agents that the task has replies for.

        Raises:
            ValueError: if a model has no such agent.
        """
        some = data_of(self).train_questions[:1]
        self._taught = [
            agent
            for agent in range(len(self.model))
            if self.debate.reference_replies(some, agent) is not None
        ]
        for agents in self._by_model():
            if not set(agents) & set(self._taught):
                raise ValueError(
                    f"{type(self.task).__name__}.reference_replies returns None for agents "
                    f"{agents}, so their model has nothing to learn from: return a reply for each "
                    "question, or use pretrained agents (configs/commune/math_qwen3.yaml)"
                )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of a batch; each question is put to one agent."""
        asked = data_of(self).train_questions
        questions = [asked[row] for row in batch["rows"].tolist()]
        budget = random.choice(self.message_budgets)
        num_taught = len(self._taught)
        shares = {k: questions[place::num_taught] for place, k in enumerate(self._taught)}
        losses = [self._model_loss(shares, agents, budget) for agents in self._by_model()]
        loss = torch.stack(losses).sum() / len(questions)
        self.log("train/loss_nats", loss.detach(), prog_bar=True)
        return loss

    def _readout_of(self, agent: int) -> int:
        """Return the number of the agent that holds this agent's readout."""
        return next(group[0] for group in self._by_model() if agent in group)

    def _by_model(self) -> list[list[int]]:
        """Return the agents of each model; they are asked in one batch."""
        groups: dict[int, list[int]] = {}
        for number, agent in enumerate(self.model):
            groups.setdefault(id(agent.model), []).append(number)
        return list(groups.values())

    def _model_loss(
        self, shares: dict[int, list[Question]], agents: Sequence[int], budget: int | None
    ) -> Tensor:
        """Sum the loss over the questions that are put to agents of one model."""
        who, debate = self.model[agents[0]], self.debate
        prompts: list[list[int]] = []
        replies: list[str] = []
        seen: list[list[int]] = []
        for agent in agents:
            own = shares.get(agent, [])
            if not own:
                continue
            known = debate.reference_replies(own, agent)
            if known is None:
                raise ValueError(
                    f"{type(self.task).__name__}.reference_replies knows replies of agent {agent} "
                    "to some questions and returns None for others: leave those out of `questions`"
                )
            heard = None
            if budget != 0:
                heard = debate.heard_by(agent, own, self._earlier_replies(own), budget)
            prompts += debate.prompts(own, agent, heard)
            replies += known
            seen += [self.task.report(question, agent) for question in own]
        if not prompts:
            return torch.zeros((), device=self.device, dtype=torch.float32)
        reply_BT, reply_mask_BT = reply_tensors(who, replies)
        logits_BTV, states = who.reply_logits_and_states(*who.pad(prompts), reply_BT, self.state)
        nll_BT = token_nll(logits_BTV, reply_BT) * reply_mask_BT
        loss = (nll_BT.sum(1) / reply_mask_BT.sum(1)).sum()
        if len(self.readouts):
            report = self._report_loss(states, seen, agents[0])[0]
            loss = loss + self.report_weight * len(prompts) * report
        return loss

    def _earlier_replies(self, questions: Sequence[Question]) -> list[list[str]]:
        """Return every agent's replies of the round before: the task's, or else its own."""
        replies = []
        for number, agent in enumerate(self.model):
            known = self.debate.reference_replies(questions, number)
            replies.append(
                agent.decode(self.debate.reply_ids(questions, number)) if known is None else known
            )
        return replies

    def _report_loss(
        self, states: Tensor, seen: Sequence[Sequence[int]], agent: int
    ) -> tuple[Tensor, Tensor]:
        """Return mean cross-entropy and accuracy of the readout's prediction."""
        classes = list(self.task.report_classes)
        if wrong := {len(row) for row in seen} - {len(classes)}:
            raise ValueError(
                f"{type(self.task).__name__}.report returned {wrong.pop()} classes and "
                f"report_classes has {len(classes)} entries: return one class for each"
            )
        labels = torch.tensor(seen, device=states.device, dtype=torch.int64)
        logits = self.readouts[str(agent)](states).split(classes, 1)
        losses = [F.cross_entropy(part, labels[:, i]) for i, part in enumerate(logits)]
        right = [(part.argmax(1) == labels[:, i]).float() for i, part in enumerate(logits)]
        return torch.stack(losses).mean(), torch.stack(right).mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Measure accuracy alone and with messages of each length, and the readouts' accuracy."""
        asked = data_of(self).val_questions
        questions = [asked[row] for row in batch["rows"].tolist()]
        alone = self.debate.replies(questions)
        for budget in self.message_budgets:
            replies = alone
            if budget != 0:
                messages = self.debate.hear(questions, alone, budget)
                replies = self.debate.replies(questions, messages)
            right, total = self.debate.correct(questions, replies)
            name = {0: "single", None: "text_full"}.get(budget, f"text_{budget}")
            self._log(f"val/{name}/accuracy", right / total, len(questions))
        if len(self.readouts):
            shares = []
            for agent, who in enumerate(self.model):
                ids, mask = self.debate.padded_prompts(questions, agent)
                states = who.states(ids, mask, self.state)
                seen = [self.task.report(question, agent) for question in questions]
                shares.append(self._report_loss(states, seen, self._readout_of(agent))[1])
            self._log("val/state/evidence_share", torch.stack(shares).mean(), len(questions))

    def _log(self, name: str, value: Any, batch_size: int) -> None:
        self.log(name, value, on_epoch=True, sync_dist=True, batch_size=batch_size)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with warm-up and cosine."""
        optimizer = build_adamw(
            self, self.learning_rate, self.learning_rate, self.weight_decay, 0.0, (0.9, 0.99)
        )
        total_steps = self.trainer.estimated_stepping_batches
        return with_cosine(optimizer, self.warmup_steps, total_steps, 0.05)
