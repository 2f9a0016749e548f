"""A debate: agents answer in rounds and exchange messages or thoughts between rounds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.datamodules.commune.agent_states import read_states
from triptych.datamodules.commune.debate_task import DebateTask, Question, one_per_question
from triptych.datamodules.commune.reply_store import ReplyStore, open_store
from triptych.models.commune.agent import Agent
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents import Agents
from triptych.models.commune.prefix_place import PlaceFinder
from triptych.models.end_tokens import turn_end

# Shapes: B questions, T reply positions, M prefix tokens, D embedding width, H all agents' states

Heard = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Messages:
    """The messages between two rounds of a debate by text.

    Attributes:
        by_agent: `by_agent[k][i]` are the messages that agent k receives with question i; None:
            nobody receives any.
    """

    by_agent: Sequence[Heard] | None = None

    def to(self, agent: int) -> Heard | None:
        """Return an agent's messages, a list for each question; None if there are none.

        >>> Messages([[["1: a"]], [["0: b"]]]).to(1), SILENCE.to(1)
        ([['0: b']], None)
        """
        return None if self.by_agent is None else self.by_agent[agent]

    @property
    def num_bytes(self) -> int:
        """Bytes of all messages in UTF-8."""
        return sum(
            len(text.encode()) for heard in self.by_agent or [] for said in heard for text in said
        )


#: No messages: the first round, or an exchange of thoughts alone.
SILENCE = Messages()


class Debate:
    """Puts the questions of a task to agents.

    Replies without a prefix are made once and remembered, if the agents are frozen.

    Args:
        agents: The agents.
        task: Questions, prompts and messages.
        store: Replies that are known already; None: a new one in memory.
    """

    def __init__(self, agents: Agents, task: DebateTask, store: ReplyStore | None = None) -> None:
        self.agents = agents
        self.task = task
        self.store = store or open_store(agents, None)

    def prompts(
        self, questions: Sequence[Question], agent: int, heard: Heard | None = None
    ) -> list[list[int]]:
        """Return token ids of an agent's prompts.

        Raises:
            ValueError: if the task does not return one prompt for each question.
        """
        ids = self.task.encode(self.agents[agent].tokenizer, questions, agent, heard)
        return one_per_question(self.task, "encode", ids, questions)

    def padded_prompts(
        self, questions: Sequence[Question], agent: int, heard: Heard | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return left-padded ids (B, P) and the mask of an agent's prompts."""
        return self.agents[agent].pad(self.prompts(questions, agent, heard))

    def reply_ids(
        self,
        questions: Sequence[Question],
        agent: int,
        heard: Heard | None = None,
        prefix_BMD: Tensor | None = None,
    ) -> Tensor:
        """Return an agent's replies at its own temperature, (B, T)."""
        return self._reply(agent, self.prompts(questions, agent, heard), prefix_BMD)

    def _reply(self, agent: int, prompts: Sequence[list[int]], prefix_BMD: Tensor | None) -> Tensor:
        longest = self.task.max_new_tokens
        if prefix_BMD is None and self.store is not None:
            return self.store.replies(agent, prompts, longest, len(prompts))
        who = self.agents[agent]
        return who.reply(*who.pad(prompts), longest, prefix_BMD)

    def replies(
        self,
        questions: Sequence[Question],
        messages: Messages = SILENCE,
        prefixes: Sequence[Tensor] | None = None,
    ) -> list[list[str]]:
        """Return every agent's replies as text.

        Args:
            questions: Questions to ask.
            messages: Messages that the agents receive.
            prefixes: Each agent's prefix of thoughts; None: no thoughts.
        """
        return [
            agent.decode(
                self.reply_ids(
                    questions,
                    number,
                    messages.to(number),
                    None if prefixes is None else prefixes[number],
                )
            )
            for number, agent in enumerate(self.agents)
        ]

    def require_one_model(self) -> None:
        """Refuse agents of different models, whose KV caches do not fit each other.

        Raises:
            ValueError: if there are several models.
        """
        if len({id(agent.model) for agent in self.agents}) > 1:
            raise ValueError(
                "agents of different models cannot read each other's KV caches: set "
                "model.init_args.kv_caches to false"
            )

    def replies_with_caches(self, questions: Sequence[Question]) -> tuple[list[list[str]], int]:
        """Return every agent's replies after the KV caches of what the others have read.

        Training-free, as in LatentMAS (2511.20639), without its latent steps: each agent hands on
        the keys and values of its first prompt, up to the turn of the reply, and the receiver reads
        its own prompt after them. Attention is causal, so this is computed as one sequence.

        Args:
            questions: Questions to ask.

        Returns:
            The replies, and the bytes of all caches that were handed on.

        Raises:
            ValueError: if the agents have different models, whose caches do not fit each other.
        """
        self.require_one_model()
        prompts = [self.prompts(questions, number) for number in range(len(self.agents))]
        read = []
        for agent, own in zip(self.agents, prompts, strict=True):
            has_turns = agent.tokenizer.chat_template is not None
            finder = PlaceFinder(agent.tokenizer, "before_reply") if has_turns else None
            read.append([ids if finder is None else ids[: finder.index(ids)] for ids in own])
        replies, num_tokens = [], 0
        for number, agent in enumerate(self.agents):
            joined = []
            for row, own in enumerate(prompts[number]):
                told = [read[k][row] for k in range(len(prompts)) if k != number]
                num_tokens += sum(map(len, told))
                joined.append([token for part in (*told, own) for token in part])
            replies.append(agent.decode(self._reply(number, joined, None)))
        return replies, num_tokens * self.agents[0].cache_bytes

    def reference_replies(self, questions: Sequence[Question], agent: int) -> list[str] | None:
        """Return the task's own replies of an agent; None if it knows none of this agent.

        Raises:
            ValueError: if the task does not return one reply for each question.
        """
        texts = self.task.reference_replies(questions, agent)
        if texts is None:
            return None
        return one_per_question(self.task, "reference_replies", texts, questions)

    def heard_by(
        self,
        agent: int,
        questions: Sequence[Question],
        replies: Sequence[Sequence[str]],
        max_tokens: int | None = None,
    ) -> Heard:
        """Return the messages that one agent receives.

        Args:
            agent: Number of the agent.
            questions: Questions that were asked.
            replies: Every agent's replies to them.
            max_tokens: Longest message; None: no limit.

        Raises:
            ValueError: if the task does not return a list of messages for each question.
        """
        heard = self.task.messages(questions, replies, agent, max_tokens)
        return one_per_question(self.task, "messages", heard, questions)

    def hear(
        self,
        questions: Sequence[Question],
        replies: Sequence[Sequence[str]],
        max_tokens: int | None = None,
    ) -> Messages:
        """Return the messages that follow from every agent's replies."""
        return Messages(
            [
                self.heard_by(agent, questions, replies, max_tokens)
                for agent in range(len(self.agents))
            ]
        )

    def talk(
        self,
        questions: Sequence[Question],
        replies: Sequence[Sequence[str]],
        rounds: int,
        max_tokens: int | None = None,
    ) -> tuple[list[list[str]], list[Messages]]:
        """Debate by text: hear the others and reply again, for some rounds.

        Args:
            questions: Questions that were asked.
            replies: Every agent's replies without messages.
            rounds: Further rounds.
            max_tokens: Longest message; None: no limit.

        Returns:
            Every agent's last replies, and the messages of each round.
        """
        last, heard = [list(of_agent) for of_agent in replies], []
        for _ in range(rounds):
            heard.append(self.hear(questions, last, max_tokens))
            last = self.replies(questions, heard[-1])
        return last, heard

    @torch.no_grad()
    def states(
        self,
        questions: Sequence[Question],
        state: StateConfig,
        prefixes: Sequence[Tensor] | None = None,
        messages: Messages = SILENCE,
    ) -> Tensor:
        """Return all agents' states side by side, (B, H), after they read prompt and prefix.

        With `state.read: reply` each agent replies first, and its state has read its reply.
        """
        prompts = [
            self.prompts(questions, number, messages.to(number))
            for number in range(len(self.agents))
        ]

        def reply(agent: int, own: Sequence[list[int]]) -> Tensor:
            return self._reply(agent, own, None if prefixes is None else prefixes[agent])

        return read_states(self.agents, state, prompts, reply, prefixes)

    def correct(
        self, questions: Sequence[Question], replies: Sequence[Sequence[str]]
    ) -> tuple[int, int]:
        """Count the right replies, and all replies."""
        right = sum(
            self.task.read_answer(reply) == question.answer_of(number)
            for number, of_agent in enumerate(replies)
            for question, reply in zip(questions, of_agent, strict=True)
        )
        return right, len(questions) * len(replies)


def end_mask(ids_BT: Tensor, agent: Agent) -> Tensor:
    """Return a mask that is True up to and including the first end token of each reply."""
    is_end_BT = torch.isin(
        ids_BT, torch.tensor(agent.end_ids, device=ids_BT.device, dtype=torch.int64)
    )
    earlier_BT = is_end_BT.cumsum(1) - is_end_BT.long()
    return earlier_BT == 0


def reply_tensors(agent: Agent, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return right-padded ids of replies with their end token, (B, T), and their mask."""
    encoded = agent.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    end = turn_end(agent.tokenizer)
    rows = [[*ids, end] for ids in encoded]
    longest = max(map(len, rows))
    ids_BT = torch.full((len(rows), longest), agent.pad_id, dtype=torch.int64)
    mask_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask_BT[number, : len(row)] = True
    device = agent.embedding_weight.device
    return ids_BT.to(device), mask_BT.to(device)
