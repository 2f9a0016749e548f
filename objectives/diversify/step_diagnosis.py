"""Diagnosis of a training while it runs: what has had no effect for many steps in a row.

Each rule is told once. What follows from the settings or from the first batch is in
`triptych.objectives.diversify.collapse_diagnosis`.
"""

from triptych.objectives.diversify.collapse_diagnosis import Finding

#: Below this mean shift MARA changes nothing, in nats; texts that are equal differ by rounding.
_NO_SHIFT_NATS = 1e-3


class StepDiagnosis:
    """Counts steps in a row in which rewards, or MARA, told no completion from another.

    Args:
        has_mara: Whether rewards are augmented.
        steps_alike: Steps in a row with equal rewards in each group before that is a finding.
        steps_without_shift: Steps in a row without a shift before that is a finding.
    """

    def __init__(self, has_mara: bool, steps_alike: int = 20, steps_without_shift: int = 5) -> None:
        self.has_mara = has_mara
        self.steps_alike = steps_alike
        self.steps_without_shift = steps_without_shift
        self._alike = 0
        self._without_shift = 0
        self._told: set[str] = set()

    def after_step(
        self, equal_share: float | None, num_above: int, shift_nats: float
    ) -> list[Finding]:
        """Count a step.

        Args:
            equal_share: Share of the groups whose scored rewards are all equal; None if no group
                has two scored completions.
            num_above: Completions at or above MARA's threshold.
            shift_nats: Mean over these of the nats by which their anchor is likelier.

        Returns:
            What is to be said now, usually nothing.
        """
        alike = equal_share == 1.0 and num_above == 0
        self._alike = self._alike + 1 if alike else 0
        still = self.has_mara and num_above > 1 and abs(shift_nats) < _NO_SHIFT_NATS
        self._without_shift = self._without_shift + 1 if still else 0
        findings = []
        if self._alike >= self.steps_alike and self._is_new("alike"):
            findings.append(_rewards_alike(self._alike))
        if self._without_shift >= self.steps_without_shift and self._is_new("without shift"):
            findings.append(_without_shift(self._without_shift))
        return findings

    def state_dict(self) -> dict[str, int | list[str]]:
        """Return the counts."""
        return {
            "alike": self._alike,
            "without_shift": self._without_shift,
            "told": sorted(self._told),
        }

    def load_state_dict(self, state_dict: dict[str, int | list[str]]) -> None:
        """Restore the counts."""
        alike, without_shift, told = (
            state_dict[name] for name in ("alike", "without_shift", "told")
        )
        assert isinstance(alike, int)
        assert isinstance(without_shift, int)
        assert isinstance(told, list)
        self._alike, self._without_shift, self._told = alike, without_shift, set(told)

    def _is_new(self, rule: str) -> bool:
        known = rule in self._told
        self._told.add(rule)
        return not known


def _rewards_alike(steps: int) -> Finding:
    return Finding(
        "warning",
        f"For {steps} steps in a row all completions of each prompt have got the same reward, so "
        "that rewards told none from another: only the KL and its noise move the policy.",
        "Look at samples/. If all fail, start from a model that succeeds at times (examples in the "
        "prompt, supervised replies), raise num_samples, or give partial credit; if all succeed, "
        "take harder prompts.",
    )


def _without_shift(steps: int) -> Finding:
    return Finding(
        "warning",
        f"MARA has had nothing to do for {steps} steps in a row: all good answers of a prompt were "
        "as likely as their anchor under the reference (train/anchor_shift_nats is 0), mostly "
        "because one answer is all that is still sampled. The rarer ones are gone, and MARA cannot "
        "reward what is never sampled.",
        "Start again with a smaller learning rate, a larger beta (MARA's pull on a rare answer is "
        "beta times its shift), or more num_samples. Prompts with one right answer need no MARA.",
    )
