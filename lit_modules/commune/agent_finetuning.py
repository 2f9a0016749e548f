"""Agents finetuned on their own debates: the baseline that exchanges of thoughts are held against.

    agents as they are -> debate by text, `rounds` rounds -> what the debate came to
      -> samples of each agent: its prompt alone    -> a reply that the debate upholds
                                what it heard last  -> the same
      -> each agent, a copy of its own, is taught its samples

Source: Multiagent Finetuning (2501.05707), which ThoughtComm (2510.20733) compares with. There the
majority of the last replies decides what is upheld, and replies of others are left out. Deviations:
one model an agent learns both kinds of samples (there: a generator and a critic each); one turn of
debate and training; the weight of critics that changed their mind is left out.
"""

import copy
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from triptych.datamodules.commune.agent_states import check_number
from triptych.datamodules.commune.debate_task import Question
from triptych.lit_modules.commune.debate import Debate, reply_tensors
from triptych.lit_modules.commune.debate_evaluation import DebateEvaluation, Messages
from triptych.lit_modules.commune.debating_module import DebatingModule
from triptych.lit_modules.optimization import build_adamw, with_cosine
from triptych.lit_modules.trainer_parts import data_of
from triptych.models.commune.agent import Agent
from triptych.models.commune.agents import Agents
from triptych.models.commune.agents_config import AgentsConfig, build_agents
from triptych.objectives.commune.thought_loss import token_nll

# Shapes: B samples, T reply positions

Consensus = Literal["majority", "own"]


class AgentFinetuning(DebatingModule):
    """Finetunes agents on the answers that their debate came to.

    Args:
        init_from: Exported folder of agents, or the experiment that trains them.
        agents: Pretrained agents, in place of `init_from`.
        rounds: Of the debate, 2 or more.
        consensus: What a debate came to. `majority`, the source's: the answer of most last replies;
            replies with another are left out. `own`: of each agent its own last reply, which it
            learns to give to its prompt alone as well; for tasks on which every agent has a right
            answer of its own.
        learning_rate: Peak of AdamW.
        weight_decay: Of matrices.
        warmup_steps: Steps of linear warm-up.
        text_budgets: Words of each message in the debates to be compared, beside whole ones.

    Raises:
        ValueError: if not exactly one of `init_from` and `agents` is given, or a number is out of
            range.
    """

    def __init__(
        self,
        init_from: str | None = None,
        agents: AgentsConfig | None = None,
        rounds: int = 2,
        consensus: Consensus = "majority",
        learning_rate: float = 1e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
        text_budgets: list[int] = [1, 2],  # noqa: B006 (never changed)
    ) -> None:
        super().__init__()
        if rounds < 2:
            raise ValueError(f"model.init_args.rounds is {rounds}: a debate has at least 2")
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"model.init_args.learning_rate is {learning_rate}: set it above 0")
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

    def setup(self, stage: str) -> None:
        """Meet the task."""
        check_number(self.model, self.task)
        self.debate = Debate(self.model, self.task)
        self.evaluation = DebateEvaluation(self.debate, self.rounds, self.text_budgets)

    def on_fit_start(self) -> None:
        """Hold the debates that are learned from, once.

        Raises:
            ValueError: if no reply of an agent is upheld by any debate.
        """
        questions = data_of(self).train_questions
        size = data_of(self).eval_batch_size
        self.samples = [[] for _ in range(len(self.model))]
        self.eval()
        for start in range(0, len(questions), size):
            self._hold_debates(questions[start : start + size])
        self.train()
        if empty := [number for number, own in enumerate(self.samples) if not own]:
            raise ValueError(
                f"no reply of agents {empty} agrees with what its debate came to, so there is "
                "nothing to learn: raise data.init_args.task.init_args.num_train, or set "
                "model.init_args.consensus: own"
            )

    def _hold_debates(self, questions: Sequence[Question]) -> None:
        """Add the samples of some questions."""
        debate, read = self.debate, self.task.read_answer
        first = replies = debate.replies(questions)
        heard: Messages = []
        for _ in range(self.rounds - 1):
            heard = debate.hear(questions, replies)
            replies = debate.replies(questions, heard)
        upheld = debate_answers(debate, replies)
        for number, agent in enumerate(self.model):
            alone = self.task.encode(agent.tokenizer, questions, number)
            told = self.task.encode(agent.tokenizer, questions, number, heard[number])
            for place, last in enumerate(replies[number]):
                if self.consensus == "own":
                    if read(last) is not None:
                        self.samples[number] += [(alone[place], last), (told[place], last)]
                    continue
                for prompt, reply in ((alone, first[number][place]), (told, last)):
                    if upheld[place] is not None and read(reply) == upheld[place]:
                        self.samples[number].append((prompt[place], reply))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One batch of its own samples for each agent."""
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
        """Alone and in debates on held-out questions."""
        asked = data_of(self).val_questions
        self.evaluation.debate_by_text([asked[row] for row in batch["rows"].tolist()])

    def on_validation_epoch_end(self) -> None:
        """Accuracies, consensus, bytes."""
        values = self.debated_values()
        self.report(values, self.evaluation.table(values))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, warm-up and cosine."""
        optimizer = build_adamw(
            self, self.learning_rate, self.learning_rate, self.weight_decay, 0.0, (0.9, 0.99)
        )
        total_steps = self.trainer.estimated_stepping_batches
        return with_cosine(optimizer, self.warmup_steps, total_steps, 0.05)


def own_copies(agents: Agents) -> Agents:
    """The same agents, none frozen and none sharing a model with another."""
    copies = []
    for agent in agents:
        model = copy.deepcopy(agent.model).requires_grad_(True)
        copies.append(Agent(model, agent.own_tokenizer, frozen=False))
    return Agents(copies, agents.names)


def debate_answers(debate: Debate, replies: Sequence[Sequence[str]]) -> list[str | None]:
    """The answer of most replies to each question; None: nobody gave any, or none had the most."""
    read = debate.task.read_answer
    answers = []
    for of_question in zip(*replies, strict=True):
        given = [answer for answer in map(read, of_question) if answer is not None]
        counts = Counter(given).most_common(2)
        is_tie = len(counts) > 1 and counts[0][1] == counts[1][1]
        answers.append(None if is_tie or not counts else counts[0][0])
    return answers
