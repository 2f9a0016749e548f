"""Exported agents that were loaded to be asked: together by thoughts and by text, and alone.

system = AskedSystem(Path("runs/adapter/export"))
told = system.ask("Where is Ben?", ["Anna is in the hall.", "Ben is in the garden."])
print(told.thoughts, told.text, told.alone)
for sent in told.sent:
    print(sent)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.callbacks.exporting.export_kind import kind_of_export
from triptych.commands.asked_model import usable_device
from triptych.commands.exported_task import build_task, exported_settings, task_settings
from triptych.datamodules.commune.agent_states import check_number
from triptych.datamodules.commune.debate_task import DebateTask, Question
from triptych.lit_modules.commune.debate import Debate
from triptych.lit_modules.commune.thought_exchange import ThoughtExchange
from triptych.models.commune.agents import Agents
from triptych.models.commune.prefix_adapter import WEIGHTS_FILE as ADAPTER_FILE
from triptych.models.commune.thought_system import ThoughtSystem

# Shapes: B questions, Z latents, K agents

BYTES_PER_NUMBER = 4
_MOST_SHOWN = 3


@dataclass(frozen=True)
class Sent:
    """What one agent's thoughts gave to another.

    Attributes:
        sender: Name of the agent whose state the latents explain.
        receiver: Name of the agent that read them.
        shared: The latents sent that explain further agents' states too.
        private: The latents sent that explain the sender's state alone.
        strongest: The latents sent of the largest values, with these values.
    """

    sender: str
    receiver: str
    shared: list[int]
    private: list[int]
    strongest: list[tuple[int, float]]

    @property
    def num_bytes(self) -> int:
        """Bytes of the latents as float32; shared ones are counted for each agent they are of."""
        return BYTES_PER_NUMBER * (len(self.shared) + len(self.private))

    def __str__(self) -> str:
        values = ", ".join(f"z{z} = {value:+.2f}" for z, value in self.strongest)
        return (
            f"{self.sender} -> {self.receiver}: {len(self.shared)} shared and {len(self.private)} "
            f"private latents, {self.num_bytes} bytes" + (f"; {values}" if values else "")
        )


@dataclass(frozen=True)
class Told:
    """Replies to a question, one of each agent.

    Attributes:
        names: Names of the agents.
        alone: Replies without anything from the others.
        text: Replies after a debate by text.
        thoughts: Replies after an exchange of thoughts; empty without an adapter.
        text_bytes: Bytes of all messages of the debate.
        thought_bytes: Bytes of all latents that were sent.
        state_bytes: Bytes of the states that the encoder read.
        sent: Who sent what in the first exchange of thoughts.
    """

    names: list[str]
    alone: list[str]
    text: list[str]
    thoughts: list[str]
    text_bytes: int
    thought_bytes: int
    state_bytes: int
    sent: list[Sent]


class AskedSystem:
    """Agents of an export, with their task, and their adapter of thoughts if they have one.

    Args:
        folder: Export of agents, or of an adapter of thoughts.
        device: Name of a device; None: a GPU if there is one.
        task: The task; None: the one in the export's settings.

    Raises:
        ValueError: if the export has an autoencoder and no adapter, its task is not trusted, or it
            is for another number of agents.
    """

    def __init__(
        self, folder: Path, device: str | None = None, task: DebateTask | None = None
    ) -> None:
        with_thoughts = kind_of_export(folder) == "thoughts"
        if with_thoughts:
            require_adapter(folder)
        settings = exported_settings(folder)
        self.task = task or build_task(folder, task_settings(folder, settings))
        trained: dict[str, Any] = (settings.get("model") or {}).get("init_args") or {}
        self.rounds = int(trained.get("rounds") or 2)
        place = usable_device(device)
        self.exchange: ThoughtExchange | None = None
        if with_thoughts:
            system = ThoughtSystem.load(folder).to(place).eval()
            self.agents = system.agents
            self.debate = Debate(self.agents, self.task)
            hears = bool(trained.get("text_between_rounds", False))
            self.exchange = ThoughtExchange(system, self.debate, self.rounds, hears)
        else:
            self.agents = Agents.load(folder).to(place).eval()
            self.debate = Debate(self.agents, self.task)
        check_number(self.agents, self.task)

    @torch.no_grad()
    def answer(self, questions: Sequence[Question]) -> list[list[str]]:
        """Return every agent's last replies: by thoughts if there are any, else by text."""
        if self.exchange is not None:
            return self.exchange.answer(questions)
        alone = self.debate.replies(questions)
        return self.debate.talk(questions, alone, self.rounds - 1)[0]

    @torch.no_grad()
    def ask(self, question: str, notes: Sequence[str] = ()) -> Told:
        """Put a question to the agents, alone, in a debate by text, and with thoughts.

        Args:
            question: The question.
            notes: A note for each agent; none, if they read the question alone.

        Raises:
            ValueError: if the task takes no questions by hand, or other notes.
        """
        asked = self.task.ask(question, notes)
        if asked is None:
            raise ValueError(
                f"{type(self.task).__name__} makes its questions and takes none by hand: answer "
                "fresh ones by `predict EXPORT --samples 10 --output answers.jsonl`"
            )
        alone = self.debate.replies([asked])
        text, heard = self.debate.talk([asked], alone, self.rounds - 1)
        thoughts: list[list[str]] = []
        sent: list[Sent] = []
        state_bytes = thought_bytes = 0
        if self.exchange is not None:
            system = self.exchange.system
            states_BH = self.debate.states([asked], system.state)
            latents_BZ = system.think(states_BH)
            thoughts = self.exchange.answer([asked])
            sent = self._sent(system, latents_BZ[0])
            exchanges = self.rounds - 1
            state_bytes = exchanges * BYTES_PER_NUMBER * states_BH.shape[1]
            assert system.adapter is not None
            routed = int(system.adapter.routing.routed_KZ.sum())
            thought_bytes = exchanges * BYTES_PER_NUMBER * routed
        return Told(
            names=self.agents.names,
            alone=[of[0] for of in alone],
            text=[of[0] for of in text],
            thoughts=[of[0] for of in thoughts],
            text_bytes=sum(messages.num_bytes for messages in heard),
            thought_bytes=thought_bytes,
            state_bytes=state_bytes,
            sent=sent,
        )

    def _sent(self, system: ThoughtSystem, latents_Z: Tensor) -> list[Sent]:
        assert system.adapter is not None
        routed_KZ = system.adapter.routing.routed_KZ
        agreement_Z, names = system.relevant_KZ.sum(0), self.agents.names
        found = []
        for receiver, sender in (
            (k, j) for k in range(len(names)) for j in range(len(names)) if j != k
        ):
            given_Z = routed_KZ[receiver] & system.relevant_KZ[sender]
            places = given_Z.nonzero().flatten().tolist()
            order = sorted(places, key=lambda z: -abs(float(latents_Z[z])))[:_MOST_SHOWN]
            found.append(
                Sent(
                    names[sender],
                    names[receiver],
                    [z for z in places if agreement_Z[z] >= 2],
                    [z for z in places if agreement_Z[z] == 1],
                    [(z, round(float(latents_Z[z]), 2)) for z in order],
                )
            )
        return found


def require_adapter(folder: Path) -> None:
    """Refuse an autoencoder of thoughts without an adapter.

    Raises:
        ValueError: if there is none.
    """
    if not (folder / ADAPTER_FILE).is_file():
        raise ValueError(
            f"{folder} holds an autoencoder of thoughts, and no adapter that would hand thoughts "
            "to agents: train one (configs/commune/adapter.yaml, with --model.init_args.init_from "
            f"{folder}), and give its export"
        )
