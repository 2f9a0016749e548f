"""All settings of the study of real facts, in one place.

Sparse memory finetuning has the settings of `configs/remember/finetune_smollm2.yaml`, and its
memory those of `configs/remember/retrofit_smollm2.yaml`: what users get is what is measured. Here
are the settings of the facts, of the other methods, and of what is measured.
"""

from dataclasses import dataclass, replace

from triptych.studies.arms import Settings

#: Memory and background statistics.
RETROFIT_CONFIG = "configs/remember/retrofit_smollm2.yaml"
#: Sparse memory finetuning; its facts are replaced.
FINETUNE_CONFIG = "configs/remember/finetune_smollm2.yaml"
TOKENIZER = "smollm2"
#: The model before the memory was inserted, for full finetuning and LoRA.
PLAIN_MODEL = "smollm2"

#: How facts are taught in every arm: questions in the chat template, a statement as the reply.
FACTS: Settings = {
    "form": "chat",
    "reply": "statement",
    "loss_on": "answer",
    "validation_questions": "own_question",
}
PARAPHRASES: Settings = {"source": "templates", "wordings": "questions"}

#: Training of all weights, or of adapters. The end of a visit is that of the retention study: more
#: steps on a fact only add forgetting where all weights learn.
DENSE_STEPS_PER_VISIT = 25
DENSE_STOP_BELOW_NATS = 0.1
LORA: Settings = {"rank": 16, "targets": "all_linear"}
FULL_RATES = (1e-6, 3e-6, 1e-5, 3e-5)
LORA_RATES = (1e-5, 3e-5, 1e-4, 3e-4)
#: Seed of the facts on which the rates are chosen; it is never reported.
TUNING_SEED = 100
#: A rate is chosen among those that lose at most this much more than sparse memory finetuning.
RETAINED_TOLERANCE = 0.02

#: Batches of several facts, which need more slots and more steps than one fact.
BATCH_DATA: Settings = {"facts_per_batch": 8, "steps_per_visit": 40}
BATCH_SPARSE: Settings = {"num_slots": 4096}

#: Longest replies in tokens: names of syllables are long.
LONGEST_INVENTED, LONGEST_KEPT = 40, 24

#: The small random model of preset `smoke`, with the same tokenizer.
SMALL_BASE: Settings = {
    "family": "llama",
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "max_position_embeddings": 256,
}
SMALL_MEMORY: Settings = {"layers": [1], "num_keys": 32, "num_heads": 2, "top_k": 4}
SMALL_BACKGROUND: Settings = {"num_documents": 4}
SMALL_SPARSE: Settings = {"num_slots": 16}
SMALL_STEPS_PER_VISIT = 2


@dataclass(frozen=True)
class Sizes:
    """How much to teach and to measure.

    Args:
        num_facts: Facts of the main arm.
        num_first: Facts of the arms that are compared; the first ones of the main arm.
        num_tuning: Facts on which rates are chosen.
        num_rates: Rates of full finetuning and LoRA that are tried.
        num_choices: HellaSwag rows of the main arm.
        num_choices_compared: HellaSwag rows of the other arms.
        num_windows: Windows of 256 tokens of running text.
        num_kept: Neighbours, and general questions, that are asked; None: all.
        facts_a_day: Facts of a session.
        num_batched: Facts that are taught in batches.
        num_one_by_one: Facts that are taught one by one, to compare with batches.
    """

    num_facts: int = 60
    num_first: int = 24
    num_tuning: int = 12
    num_rates: int = 4
    num_choices: int = 500
    num_choices_compared: int = 100
    num_windows: int = 64
    num_kept: int | None = None
    facts_a_day: int = 20
    num_batched: int = 1000
    num_one_by_one: int = 200

    def with_facts(self, count: int) -> "Sizes":
        """Teach another number of facts."""
        return replace(
            self,
            num_facts=count,
            num_first=min(self.num_first, count),
            num_tuning=min(self.num_tuning, count),
            facts_a_day=min(self.facts_a_day, count),
            num_batched=min(self.num_batched, count * 5),
            num_one_by_one=min(self.num_one_by_one, count),
        )

    def quick(self) -> "Sizes":
        """Measure less."""
        fewer = min(self.num_choices, 50)
        return replace(
            self,
            num_choices=fewer,
            num_choices_compared=min(fewer, 20),
            num_windows=min(self.num_windows, 16),
        )


PRESETS = {
    "smollm2": Sizes(),
    "smoke": Sizes(
        num_facts=2,
        num_first=2,
        num_tuning=2,
        num_rates=1,
        num_choices=4,
        num_choices_compared=4,
        num_windows=2,
        num_kept=2,
        facts_a_day=1,
        num_batched=4,
        num_one_by_one=2,
    ),
}
