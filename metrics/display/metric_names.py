"""Names and units of log keys, for figures, tables and reports.

A log key has the form `place/set/quantity`, such as `val/facts/exact_match`. `metric_label` turns
it into words: "facts answered exactly (share)". A key that nobody has named is still readable: a
known suffix becomes the unit, and underscores become spaces.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """The name of a measured quantity.

    Args:
        text: Words without the unit.
        unit: Unit, possibly empty.
    """

    text: str
    unit: str = ""

    @property
    def label(self) -> str:
        """Words and unit, as in "exact answers (share)"."""
        return f"{self.text} ({self.unit})" if self.unit else self.text


def _named(unit: str, **texts: str) -> dict[str, Quantity]:
    return {name: Quantity(text, unit) for name, text in texts.items()}


SHARE, NATS, PER_TOKEN, COUNT, FRACTION = "share", "nats", "nats per token", "count", "0 to 1"

#: Last part of a log key -> its name. The order is the order of importance in figures.
QUANTITIES: dict[str, Quantity] = {
    # what an experiment promises
    **_named(SHARE, exact_match="answered exactly", answer_in_reply="replies with the answer"),
    **_named(
        SHARE,
        reliability="taught facts answered",
        generalization="taught facts answered in other words",
        locality="neighbours with the same reply",
        portability="conclusions from taught facts answered",
        retained_share="right replies that are kept",
        strict_exact_match="answered exactly, in the given form",
        unchanged_share="replies to the letter as before",
    ),
    **_named("bits", mode_entropy_bits="entropy of the known answers"),
    **_named("per prompt", distinct_right_answers="different right answers"),
    **_named("molecules", **{"yield": "different hits (Yield)"}),
    **_named(SHARE, explained_share="explained variance of the hidden states"),
    **_named(
        SHARE, accuracy="answers right", length_normalized_accuracy="answers right, by length"
    ),
    **_named("mean", reward="reward"),
    **_named(SHARE, right_share="right answers", mode_coverage="known answers that were given"),
    **_named(SHARE, no_mode_share="answers other than the known ones"),
    **_named(FRACTION, f1="words shared with the answer (F1)"),
    **_named("bits per byte", bits_per_byte="loss"),
    **_named(
        PER_TOKEN, nll_nats_per_token="loss (NLL)", answer_nll_nats_per_token="loss of the answer"
    ),
    **_named(PER_TOKEN, right_nll_nats_per_token="loss of the right choice"),
    **_named(
        "",
        perplexity="perplexity",
        word_perplexity="perplexity of words",
        byte_perplexity="perplexity of bytes",
    ),
    **_named(
        SHARE, validity="valid molecules", uniqueness="different molecules", novelty="new molecules"
    ),
    **_named(FRACTION, int_div1="internal diversity (MOSES)"),
    **_named("", fcd="distance from the reference (FCD)"),
    **_named(
        FRACTION,
        fcd_score="closeness to the reference (exp(-0.2 FCD))",
        kl_score="properties distributed as in the reference (KL score)",
        fragment_similarity="fragments as frequent as in the reference (Frag)",
    ),
    **_named(SHARE, filter_share="molecules that pass the filters"),
    **_named("molecules", circles="molecules that differ from each other (Circles)"),
    **_named("molecules", circles_std="spread of Circles over orders"),
    **_named(SHARE, ranking="agents ranked right by effect"),
    **_named(NATS, loss_nats="loss"),
    **_named("", loss="loss"),
    **_named("", squared_error="squared error of the reconstruction"),
    # diversity of replies
    **_named("per prompt", distinct_answers="different answers"),
    **_named(SHARE, distinct_1="different words", distinct_2="different word pairs"),
    **_named(SHARE, distinct_share="different completions"),
    **_named(SHARE, equal_reward_share="prompts whose completions all have one reward"),
    **_named("", ead="different n-grams against expectation (EAD)"),
    **_named(SHARE, ngram_diversity="different n-grams"),
    **_named(FRACTION, cosine_distance="distance of replies to each other (embeddings)"),
    **_named(FRACTION, remote_clique="distance of replies to each other (remote clique)"),
    **_named("per prompt", distinct="replies of different meaning (NoveltyBench)"),
    **_named("", utility="utility of different replies (NoveltyBench)"),
    **_named(FRACTION, self_bleu="similarity of replies to each other (self-BLEU)"),
    **_named("replies", vendi_score="effective number of replies (Vendi score)"),
    # a policy
    **_named(NATS, kl_nats="KL to the start", entropy_nats="entropy of a completion"),
    **_named(
        "mean", augmented_reward="reward after MARA", before_filter="reward before the filter"
    ),
    **_named("tokens", tokens_per_completion="length of a completion"),
    **_named(
        SHARE, finished_share="completions that ended", scored_share="completions with a score"
    ),
    **_named(SHARE, clipped_share="clipped ratios"),
    **_named(PER_TOKEN, sampling_gap_nats_per_token="scored against sampled log-probability"),
    **_named(NATS, largest_sampling_gap_nats="scored against sampled, worst token of a completion"),
    **_named(SHARE, importance_weighted_share="completions with an importance weight"),
    **_named("", advantage_std="spread of the advantages"),
    **_named("", threshold="threshold of good answers"),
    **_named(SHARE, above_threshold_share="completions above the threshold"),
    **_named(SHARE, anchor_share="completions that are anchors"),
    **_named("reward", anchor_reward_difference="reward of anchors above other good answers"),
    **_named(NATS, anchor_shift_nats="shift by MARA", target_nats_mean="target of the likelihood"),
    **_named("per second", samples_per_second="samples", tokens_per_second="tokens"),
    **_named("completions", failed_samples="completions whose reward failed"),
    **_named("s", generation_seconds="time of sampling", reward_seconds="time of the reward"),
    **_named("s", scoring_seconds="time of scoring", update_seconds="time of the update"),
    **_named(NATS, token_entropy_nats="entropy of the next token"),
    **_named("", entropy_coefficient="coefficient of the entropy bonus"),
    **_named(PER_TOKEN, rehearsal_nats_per_token="divergence of rehearsed completions"),
    **_named(SHARE, rehearsed_prompts_share="prompts that are rehearsed"),
    **_named(SHARE, dropped_share="completions of groups with equal rewards"),
    **_named(SHARE, resampled_prompts_share="prompts that were sampled again"),
    **_named(SHARE, left_out_share="completions without weight in the loss"),
    **_named("mean", length_penalty="penalty for length"),
    # a molecule search
    **_named("calls", oracle_calls="oracle calls", calls="oracle calls", oracle_call="oracle call"),
    **_named("", stage="stage of the search"),
    **_named("molecules", generated_samples="sampled molecules"),
    **_named(SHARE, valid_share="valid molecules", remembered="molecules known to the oracle"),
    **_named("scaffolds", full_buckets="full buckets of the diversity filter"),
    **_named(FRACTION, hits_int_div1="internal diversity of the hits (MOSES)"),
    **_named("molecules", hits_circles="hits that differ from each other (Circles)"),
    **_named("scaffolds", hits_scaffolds="different scaffolds of the hits"),
    **_named("mean", mean_score_last_100="score of the last 100 calls"),
    # a memory
    **_named(
        SHARE, slots_read_share="slots that were read", most_read_share="reads of the busiest slot"
    ),
    **_named(SHARE, slots_always_read_share="slots that every document reads"),
    **_named(SHARE, ffn_share="what the memory adds, of its FFN's output"),
    **_named(NATS, usage_entropy_nats="entropy of the reads"),
    **_named(SHARE, usage_perplexity_share="evenly read slots (perplexity of the reads)"),
    **_named("slots", slots_read="slots read in a step"),
    **_named(
        "rows", rows_per_step="table rows moved in a step", rows_written="table rows moved so far"
    ),
    **_named("", gradient_norm="gradient norm of the moved rows"),
    **_named("documents", num_documents="background documents"),
    **_named("tokens", num_tokens="background tokens"),
    **_named("rows", rows_per_entry="table rows of a ledger entry"),
    **_named(SHARE, overlap_share="rows that an earlier fact had moved"),
    **_named("steps", steps_taken="optimizer steps on the facts"),
    # learning and forgetting
    **_named(SHARE, forgetting="best recall minus recall now"),
    **_named(SHARE, backward_transfer="recall now minus recall when taught"),
    **_named(SHARE, forward_transfer="recall before teaching"),
    **_named(PER_TOKEN, replay_nll_nats_per_token="loss of replayed text"),
    **_named(PER_TOKEN, kl_to_base_nats_per_token="KL to the base model"),
    **_named(NATS, ewc_penalty_nats="EWC penalty"),
    # agents and their thoughts
    **_named(SHARE, consensus="questions on which all agents agree"),
    **_named("bytes", bytes_per_question="exchanged per question"),
    **_named("bytes", latent_bytes_per_question="exchanged per question, latents alone"),
    **_named(
        "milliseconds",
        milliseconds_per_question="wall time per question",
        state_milliseconds_per_question="wall time to read the states of a question",
    ),
    **_named(SHARE, evidence_share="evidence that a linear map reads"),
    **_named(SHARE, linear_probe_accuracy="private evidence that a linear probe reads"),
    **_named(SHARE, nonlinear_probe_accuracy="private evidence that a network reads"),
    **_named(SHARE, lda_probe_accuracy="private evidence that a discriminant analysis reads"),
    **_named(SHARE, planted_means_accuracy="planted linear leak, read by an oracle"),
    **_named(SHARE, found_means_accuracy="planted linear leak, read by the best probe"),
    **_named(SHARE, planted_product_accuracy="planted nonlinear leak, read by an oracle"),
    **_named(SHARE, found_product_accuracy="planted nonlinear leak, read by the best probe"),
    **_named(SHARE, expected_effect="answers changed where expected"),
    **_named(SHARE, largest_unexpected_effect="answers changed elsewhere, at most"),
    **_named("ratio", gap="widest gap of the magnitudes"),
    **_named(COUNT, alarms="findings that question the structure"),
    **_named("", decorrelation="correlation of the latents (squared)"),
    **_named("", jacobian_penalty="Jacobian penalty"),
    **_named(
        "", adversary_error="error of the adversaries", outsider_error="error of the outsiders"
    ),
    **_named("", semantic_distance="distance of the prefix to word embeddings"),
    # learning rates by parameter group
    **_named("rate", decay="learning rate", no_decay="learning rate, without decay"),
    **_named("rate", values="learning rate, memory values", dense="learning rate, dense part"),
    **_named("rate", adapter="learning rate, adapter", codec="learning rate, codec"),
    **_named("rate", adversary="learning rate, adversaries", outsider="learning rate, outsiders"),
    **_named("rate", anchor="learning rate, anchors"),
    **_named("rate", codec="learning rate, codec", adapter="learning rate, adapter"),
    **_named("rate", adversary="learning rate, adversary of the shared thoughts"),
    **_named("rate", outsider="learning rate, adversary of the other agents"),
}

#: Quantities whose name holds a number.
PATTERNS: tuple[tuple[str, Quantity], ...] = (
    (r"latents_of_(\d+)_agents", Quantity(r"latents that matter to \1 agents", COUNT)),
    (r"auc_top_(\d+)", Quantity(r"best \1 scores over the budget (AUC top-\1)", "mean")),
    (r"top_(\d+)", Quantity(r"best \1 scores", "mean")),
    (r"kl_nats_(\w+)", Quantity(r"divergence of \1 from the reference", NATS)),
    (r"oracle_burden_(\d+)", Quantity(r"oracle calls until hit \1", "calls")),
    (
        r"first_(\d+)_visits_answer_in_reply",
        Quantity(r"first \1 facts named in replies", SHARE),
    ),
    (
        r"visits_(\d+)_to_(\d+)_answer_in_reply",
        Quantity(r"facts \1 to \2 named in replies", SHARE),
    ),
    (r"first_(\d+)_visits_exact_match", Quantity(r"first \1 facts answered exactly", SHARE)),
    (r"visits_(\d+)_to_(\d+)_exact_match", Quantity(r"facts \1 to \2 answered exactly", SHARE)),
    (r"pass_at_(\d+)", Quantity(r"a right one of \1 samples (pass@\1)", SHARE)),
    (r"maj_at_(\d+)", Quantity(r"most frequent of \1 answers right (maj@\1)", SHARE)),
    (r"distinct_right_answers_at_(\d+)", Quantity(r"different right answers in \1", "per prompt")),
    (
        r"distinct_right_solutions_at_(\d+)",
        Quantity(r"different right solutions in \1", "per prompt"),
    ),
    (r"mean_score_last_(\d+)", Quantity(r"score of the last \1 calls", "mean")),
    (r"ead_(\d+)", Quantity(r"different \1-grams against expectation (EAD)")),
    (r"distinct_(\d+)", Quantity(r"different \1-grams", SHARE)),
)

#: Data sets, probes and conditions, as they stand in front of a quantity.
SETS = {
    "facts": "facts",
    "text": "text",
    "statements": "statements of facts",
    "held_out_phrasings": "held-out phrasings",
    "held_out_categories": "held-out categories",
    "states": "hidden states",
    "structure": "structure",
    "leakage": "leakage",
    "text_1": "one word of the others",
    "text_2": "two words of the others",
    "text_full": "all words of the others",
    "kv": "the others' KV caches",
    "thought": "thoughts",
    "zero": "thoughts set to zero",
    "constant": "constant thoughts",
    "shuffled": "thoughts of another question",
    "no_prefix": "no thoughts",
    "single": "one agent alone",
    "majority": "majority vote",
    "do": "intervention on the",
    "new": "new facts",
    "old": "old facts",
    "new_question": "new facts, asked",
    "new_statement": "new facts, stated",
}

#: Whole keys for which "set: quantity" would read badly.
WHOLE = {
    "reward/drug_likeness": Quantity("score of drug-likeness (QED)", FRACTION),
    "val/facts/exact_match": Quantity("facts answered exactly", SHARE),
    "val/statements/exact_match": Quantity("statements of facts completed exactly", SHARE),
    "val/loss_nats": Quantity("loss", NATS),
    "reward/before_filter": Quantity("reward before the filter", "mean"),
}

#: Places that say where a number comes from, in front of the set. `val` needs no word.
PLACES = {
    "train": "training",
    "memory": "memory",
    "forgetting": "",
    "sparse_memory": "sparse finetuning",
    "ledger": "ledger",
    "background": "background statistics",
    "reward": "",
    "search": "",
    "lr": "",
    "val": "",
    "test": "test",
}

_UNITS = (
    ("_nats_per_token", PER_TOKEN),
    ("_bits_per_byte", "bits per byte"),
    ("_per_second", "per second"),
    ("_nats", NATS),
    ("_bits", "bits"),
    ("_share", SHARE),
    ("_accuracy", SHARE),
    ("_seconds", "s"),
    ("_bytes", "bytes"),
)
_CHANGE, _OVERALL, _COMPONENT = "_change", "overall_", "reward/"
_ANSWER = "answer_share/"  # in front of a known answer


def quantity_of(key: str) -> Quantity:
    """Return name and unit of the last part of a log key; a readable fallback if it has no name.

    >>> quantity_of("val/old/exact_match").label
    'answered exactly (share)'
    >>> quantity_of("val/mine/queue_wait_seconds").label
    'queue wait (s)'
    """
    if key in WHOLE:
        return WHOLE[key]
    name = _last_part(key)
    known = _known(name)
    if known is not None:
        return known
    if key.startswith(_COMPONENT):
        return Quantity(f"score of {name.replace('_', ' ')}", "mean")
    for suffix, unit in _UNITS:
        if name.endswith(suffix) and name != suffix:
            return Quantity(name.removesuffix(suffix).replace("_", " ").strip(), unit)
    return Quantity(name.replace("_", " "))


def set_name(key: str) -> str:
    """Return the words for what stands between place and quantity; empty if nothing does.

    >>> set_name("val/held_out_phrasings/reward")
    'held-out phrasings'
    >>> set_name("memory/layer_0/slots_read_share")
    'layer 0'
    """
    parts = key.removesuffix(_last_part(key)).split("/")[1:-1]
    return " ".join(SETS.get(part, part.replace("_", " ")) for part in parts)


def metric_label(key: str) -> str:
    """Return the words and the unit of a log key.

    >>> metric_label("val/facts/exact_match")
    'facts answered exactly (share)'
    >>> metric_label("train/kl_nats")
    'training: KL to the start (nats)'
    >>> metric_label("val/my_set/my_number")
    'my set: my number'
    >>> metric_label("val/held_out_phrasings/answer_share/1")
    'held-out phrasings: replies that answer "1" (share)'
    """
    if key in WHOLE:
        return WHOLE[key].label
    place = key.partition("/")[0] if "/" in key else ""
    words = (PLACES.get(place, place.replace("_", " ")), set_name(key))
    front = ", ".join(word for word in words if word)
    label = quantity_of(key).label
    return f"{front}: {label}" if front else label


def has_name(key: str) -> bool:
    """Return whether a log key has a name, not only the fallback.

    The components of a reward are named after their classes, which is a name.
    """
    return key in WHOLE or key.startswith(_COMPONENT) or _known(_last_part(key)) is not None


def importance(key: str) -> int:
    """Return the rank of a key's quantity in figures: 0 is the most important."""
    name = _last_part(key)
    if name.startswith(_ANSWER):  # what an experiment with a few known answers promises
        return 0
    names = list(QUANTITIES)
    return names.index(name) if name in QUANTITIES else len(names)


def _last_part(key: str) -> str:
    """Return the quantity's part of a key, in which an answer may hold anything."""
    _, place, answer = key.partition(f"/{_ANSWER}")
    return f"{_ANSWER}{answer}" if place else key.rpartition("/")[2]


def _known(name: str) -> Quantity | None:
    if name in QUANTITIES:
        return QUANTITIES[name]
    if name.startswith(_ANSWER):
        return Quantity(f'replies that answer "{name.removeprefix(_ANSWER)}"', SHARE)
    for pattern, quantity in PATTERNS:
        if found := re.fullmatch(pattern, name):
            return Quantity(found.expand(quantity.text), quantity.unit)
    if name.startswith(_OVERALL) and (alone := _known(name.removeprefix(_OVERALL))):
        return Quantity(f"{alone.text}, over all prompts", alone.unit)
    if name.endswith(_CHANGE) and (before := _known(name.removesuffix(_CHANGE))):
        return Quantity(f"change of: {before.text}", before.unit)
    return None
