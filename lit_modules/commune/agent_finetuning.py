"""Finetuning of agents on their own debates, the baseline for exchanges of thoughts.

    agents -> debate by text, `rounds` rounds -> the consensus of the debate
      -> samples of each agent: prompt without messages   -> a reply that agrees with the consensus
                                prompt of the last round  -> the same
      -> each agent gets its own copy of the model and learns its samples

Source: Multiagent Finetuning (2501.05707), which ThoughtComm (2510.20733) compares with. There the
majority of the last replies is the consensus, and replies that disagree are left out. Deviations:
one model per agent learns both kinds of samples (there: a generator and a critic each); one turn of
debate and training; critics that changed their mind get no extra weight.
"""

import copy
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from triptych.datamodules.commune.agent_states import check_number
from triptych.datamodules.commune.debate_task import Question
from triptych.lit_modules.commune.debate import Debate, reply_tensors
from triptych.lit_modules.commune.debate_evaluation import DebateEvaluation, has_own_answers
from triptych.lit_modules.commune.debating_module import DebatingModule
from triptych.lit_modules.optimization import ClipsValuesApart, build_adamw, with_cosine
from triptych.lit_modules.trainer_parts import data_of
from triptych.metrics.sharded_strategies import refuse_sharded
from triptych.models.commune.agent import Agent
from triptych.models.commune.agents import Agents
from triptych.models.commune.agents_config import AgentsConfig, build_agents
from triptych.models.long_loop import with_progress
from triptych.objectives.commune.thought_loss import token_nll

# Shapes: B samples, T reply positions

Consensus = Literal["majority", "own"]


class AgentFinetuning(ClipsValuesApart, DebatingModule):
    """Finetunes agents on the consensus of their debates.

    Args:
        init_from: Exported folder of agents, or the experiment that trains them.
        agents: Pretrained agents, in place of `init_from`.
        rounds: Rounds of the debate, at least 2.
        consensus: `majority`, as in the source: the most frequent answer of the last round; replies
            with another answer are left out. `own`: each agent's last reply, which it also learns
            to give without messages; for tasks in which agents have different right answers.
        learning_rate: Peak of AdamW.
        weight_decay: Decay of matrices.
        warmup_steps: Steps of linear warm-up.
        text_budgets: Message lengths to compare in validation, in words, beside whole messages.

    Raises:
        ValueError: if not exactly one of `init_from` and `agents` is given, or there are fewer than
            two rounds.
    """

    def __init__(
        self,
        init_from: str | None = None,
        agents: AgentsConfig | None = None,
        rounds: int = 2,
        consensus: Consensus = "majority",
        learning_rate: PositiveFloat = 1e-5,
        weight_decay: NonNegativeFloat = 0.01,
        warmup_steps: NonNegativeInt = 20,
        text_budgets: list[int] = [1, 2],  # noqa: B006 (never changed)
    ) -> None:
        super().__init__()
        if rounds < 2:
            raise ValueError(f"model.init_args.rounds is {rounds}: a debate has at least 2")
        if init_from is not None and agents is None:
            start = Agents.load(init_from)
        elif agents is not None and init_from is None:
            start = build_agents(agents)
        else:
            raise ValueError(
                "model.init_args.init_from names trained agents and model.init_args.agents "
                "pretrained ones: give one of them"
            )
        self.model = own_copies(start)
        self.rounds = rounds
        self.consensus: Consensus = consensus
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps = warmup_steps
        self.text_budgets = list(text_budgets)
        self.samples: list[list[tuple[list[int], str]]] = []
        self._num_differing = 0

    def setup(self, stage: str) -> None:
        """Create the debate for the datamodule's task.

        Raises:
            ValueError: if the strategy shards the agents.
        """
        refuse_sharded(self.trainer, "AgentFinetuning lets whole agents write replies")
        check_number(self.model, self.task)
        self.debate = Debate(self.model, self.task)
        self.evaluation = DebateEvaluation(self.debate, self.rounds, self.text_budgets)

    def on_fit_start(self) -> None:
        """Hold the debates to learn from, once.

        Raises:
            ValueError: if no reply of an agent agrees with the consensus of any debate, or agents
                with answers of their own should learn those of a majority.
        """
        if self.samples:  # of the checkpoint: the agents have learned since then
            return
        questions = data_of(self).train_questions
        if self.consensus == "majority" and any(map(has_own_answers, questions)):
            raise ValueError(
                "model.init_args.consensus is majority, but the agents of this task have different "
                "right answers, so they vote on nothing: set it to own"
            )
        size = data_of(self).eval_batch_size
        self.samples = [[] for _ in range(len(self.model))]
        self.eval()
        starts = range(0, len(questions), size)
        shown = self.trainer.is_global_zero
        # Replies have the trainer's precision, as in `validation_step`; Lightning calls this hook
        # outside autocast.
        with self.trainer.precision_plugin.forward_context():
            for start in with_progress(starts, "batches of debates", len(starts), shown, False):
                self._hold_debates(questions[start : start + size])
        self.train()
        if self.consensus == "majority" and not self._num_differing:
            rank_zero_warn(
                "ALARM: all agents gave the same replies to all questions: their majority is one "
                "greedy reply, counted several times, and each learns from itself. Give them "
                "different roles, system prompts or sampled replies (model.init_args.agents.roles, "
                "system_prompts, temperatures)"
            )
        if empty := [number for number, own in enumerate(self.samples) if not own]:
            raise ValueError(
                f"no reply of agents {empty} agrees with the consensus of its debate, so there is "
                "nothing to learn: raise data.init_args.task.init_args.num_train, or set "
                "model.init_args.consensus: own"
            )

    def _hold_debates(self, questions: Sequence[Question]) -> None:
        """Debate some questions and add the samples to learn from."""
        debate, read = self.debate, self.task.read_answer
        first = debate.replies(questions)
        self._num_differing += sum(len(set(said)) > 1 for said in zip(*first, strict=True))
        replies, heard = debate.talk(questions, first, self.rounds - 1)
        messages = heard[-1]
        agreed = debate_answers(debate, replies)
        for number in range(len(self.model)):
            alone = debate.prompts(questions, number)
            told = debate.prompts(questions, number, messages.to(number))
            for place, last in enumerate(replies[number]):
                if self.consensus == "own":
                    if read(last) is not None:
                        self.samples[number] += [(alone[place], last), (told[place], last)]
                    continue
                for prompt, reply in ((alone, first[number][place]), (told, last)):
                    if agreed[place] is not None and read(reply) == agreed[place]:
                        self.samples[number].append((prompt[place], reply))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the samples, which agents that have learned would not give again."""
        checkpoint["samples"] = self.samples

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the samples; older checkpoints have none."""
        self.samples = [
            [(list(prompt), reply) for prompt, reply in own]
            for own in checkpoint.get("samples", [])
        ]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss on a random batch of each agent's samples."""
        losses = []
        for agent, own in zip(self.model, self.samples, strict=True):
            drawn = random.sample(own, min(len(batch["rows"]), len(own)))
            prompts, replies = zip(*drawn, strict=True)
            ids_BT, mask_BT = reply_tensors(agent, replies)
            nll_BT = token_nll(agent.reply_logits(*agent.pad(prompts), ids_BT), ids_BT)
            losses.append((nll_BT * mask_BT).sum() / mask_BT.sum())
        loss = torch.stack(losses).mean()
        self.log("train/nll_nats_per_token", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Put held-out questions to the agents, alone and in debates."""
        asked = data_of(self).val_questions
        self.evaluation.debate_by_text([asked[row] for row in batch["rows"].tolist()])

    def on_validation_epoch_end(self) -> None:
        """Log accuracies, consensus and bytes."""
        values = self.debated_values()
        self.report(values, self.evaluation.table(values))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with warm-up and cosine."""
        optimizer = build_adamw(
            self, self.learning_rate, self.learning_rate, self.weight_decay, 0.0, (0.9, 0.99)
        )
        total_steps = self.trainer.estimated_stepping_batches
        return with_cosine(optimizer, self.warmup_steps, total_steps, 0.05)


def own_copies(agents: Agents) -> Agents:
    """Copy the agents: none is frozen, none shares a model with another.

    Weights are float32, whatever the files hold: in bfloat16 the small steps of finetuning round to
    nothing. The trainer's precision sets that of the products.
    """
    copies = []
    for agent in agents:
        model = copy.deepcopy(agent.model).float().requires_grad_(True)
        copies.append(
            Agent(
                model,
                agent.own_tokenizer,
                frozen=False,
                chat_form=agent.chat_form,
                temperature=agent.temperature,
                seed=agent.seed,
            )
        )
    return Agents(copies, agents.names)


def debate_answers(debate: Debate, replies: Sequence[Sequence[str]]) -> list[str | None]:
    """Return the most frequent answer to each question; None without answers or in a tie."""
    read = debate.task.read_answer
    answers = []
    for of_question in zip(*replies, strict=True):
        given = [answer for answer in map(read, of_question) if answer is not None]
        counts = Counter(given).most_common(2)
        is_tie = len(counts) > 1 and counts[0][1] == counts[1][1]
        answers.append(None if is_tie or not counts else counts[0][0])
    return answers
