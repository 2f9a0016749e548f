"""A debate: agents that are asked, in rounds, with what they hear from each other in between."""

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.datamodules.commune.debate_task import DebateTask, Question
from triptych.models.commune.agent import Agent
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents import Agents

# Shapes: B questions, T reply positions, M prefix tokens, D embedding width, H all agents' states


class Debate:
    """Asks agents the questions of a task.

    Args:
        agents: The agents.
        task: What they are asked.
    """

    def __init__(self, agents: Agents, task: DebateTask) -> None:
        self.agents = agents
        self.task = task

    def prompt(
        self,
        questions: Sequence[Question],
        agent: int,
        messages: Sequence[Sequence[str]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Padded ids and mask of an agent's prompts."""
        who = self.agents[agent]
        return who.pad(self.task.encode(who.tokenizer, questions, agent, messages))

    def reply_ids(
        self,
        questions: Sequence[Question],
        agent: int,
        messages: Sequence[Sequence[str]] | None = None,
        prefix_BMD: Tensor | None = None,
    ) -> Tensor:
        """Greedy replies of an agent, (B, T)."""
        ids, mask = self.prompt(questions, agent, messages)
        return self.agents[agent].generate(ids, mask, self.task.max_new_tokens, prefix_BMD)

    def replies(
        self,
        questions: Sequence[Question],
        messages: Sequence[Sequence[Sequence[str]]] | None = None,
        prefixes: Sequence[Tensor] | None = None,
    ) -> list[list[str]]:
        """Every agent's replies.

        Args:
            questions: What to ask.
            messages: What each agent hears.
            prefixes: What each agent thinks.
        """
        return [
            agent.decode(
                self.reply_ids(
                    questions,
                    number,
                    None if messages is None else messages[number],
                    None if prefixes is None else prefixes[number],
                )
            )
            for number, agent in enumerate(self.agents)
        ]

    def hear(
        self,
        questions: Sequence[Question],
        replies: Sequence[Sequence[str]],
        max_tokens: int | None = None,
    ) -> list[list[list[str]]]:
        """What each agent hears of the others."""
        return [
            self.task.messages(questions, replies, agent, max_tokens)
            for agent in range(len(self.agents))
        ]

    @torch.no_grad()
    def states(
        self,
        questions: Sequence[Question],
        state: StateConfig,
        prefixes: Sequence[Tensor] | None = None,
        messages: Sequence[Sequence[Sequence[str]]] | None = None,
    ) -> Tensor:
        """All agents' states side by side, (B, H), on what they have read."""
        parts = []
        for number, agent in enumerate(self.agents):
            heard = None if messages is None else messages[number]
            prefix = None if prefixes is None else prefixes[number]
            parts.append(agent.states(*self.prompt(questions, number, heard), state, prefix))
        return torch.cat(parts, 1)

    def correct(
        self, questions: Sequence[Question], replies: Sequence[Sequence[str]]
    ) -> tuple[int, int]:
        """How many replies are right, and of how many."""
        right = sum(
            self.task.read_answer(reply) == question.answers[number]
            for number, of_agent in enumerate(replies)
            for question, reply in zip(questions, of_agent, strict=True)
        )
        return right, len(questions) * len(replies)


def end_mask(ids_BT: Tensor, agent: Agent) -> Tensor:
    """True up to and with the first end token of each reply."""
    is_end_BT = ids_BT == agent.tokenizer.eos_token_id
    return is_end_BT.cumsum(1) - is_end_BT.long() == 0


def reply_tensors(agent: Agent, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Right-padded ids of replies with their end token, (B, T), and the mask of them."""
    encoded = agent.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    rows = [[*ids, agent.tokenizer.eos_token_id] for ids in encoded]
    longest = max(map(len, rows))
    ids_BT = torch.full((len(rows), longest), agent.pad_id)
    mask_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row)] = torch.tensor(row)
        mask_BT[number, : len(row)] = True
    device = agent.embedding_weight.device
    return ids_BT.to(device), mask_BT.to(device)
