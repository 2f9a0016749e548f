"""A recurrent network as a policy: it writes SMILES strings, asked for nothing in particular."""

# Shapes: B completions, T completion positions

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig, build_policy
from triptych.models.diversify.frozen_reference import copied_fingerprint
from triptych.models.diversify.molecules.smiles_rnn import SmilesRNN, is_smiles_rnn, load_smiles_rnn
from triptych.models.diversify.molecules.smiles_sampling import sample_smiles
from triptych.models.diversify.policy import Policy
from triptych.models.diversify.rollout import Rollout


class SmilesPolicy(Policy):
    """Samples molecules with a recurrent network, and scores them.

    The network runs in eval mode always, in training too: dropout would make what is scored another
    distribution than what was sampled from. The reference is a frozen copy of the network as it was
    given. It is in no checkpoint: a resumed run makes it again, and its hash in the checkpoint says
    whether it came out the same.

    Args:
        model: The network.
        tokenizer: Its tokenizer, with a start, an end and a padding token.
        max_new_tokens: Longest completion, end token included.

    Raises:
        ValueError: if the tokenizer's vocabulary is another than the network's, or a number is out
            of range.
    """

    def __init__(
        self, model: SmilesRNN, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int = 100
    ) -> None:
        super().__init__()
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}: set it to at least 1")
        self.model = model.eval()
        self.max_new_tokens = max_new_tokens
        self.use_tokenizer(tokenizer)
        # In a tuple: its parameters are not this module's.
        self._reference = (copy.deepcopy(model).requires_grad_(False).eval(),)
        self._fingerprint = copied_fingerprint(model, *self._reference)

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take a tokenizer of the network's own vocabulary.

        Raises:
            ValueError: if it has another one; the difference is named.
        """
        self.model.use_vocabulary(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
        self.tokenizer = tokenizer

    # -- sampling ---------------------------------------------------------------------------------

    def sample(
        self,
        prompts: Sequence[Mapping[str, Any]],
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Rollout:
        """Sample molecules: `num_samples` for each of the prompts, whose number alone counts.

        Args:
            prompts: As many rows as there are to be groups.
            num_samples: Completions of each group.
            generator: Source of randomness; None takes torch's, of the CPU.
            temperature: Other than 1 for evaluation alone: `log_prob_B` is then that of the
                tempered distribution, and `token_log_prob` is not.

        Raises:
            ValueError: if a number is out of range.
            FloatingPointError: if the network's probabilities are not finite.
        """
        if num_samples < 1 or not prompts or not temperature > 0:
            raise ValueError(
                f"asked for {num_samples} samples of {len(prompts)} prompts at temperature "
                f"{temperature}: all three have to be above 0"
            )
        num_rows = len(prompts) * num_samples
        rollout = sample_smiles(
            self.model, self.tokenizer, num_rows, self.max_new_tokens, generator, temperature
        )
        groups = torch.arange(len(prompts), device=rollout.group_B.device)
        return replace(
            rollout,
            group_B=groups.repeat_interleave(num_samples),
            records=[row for row in prompts for _ in range(num_samples)],
        )

    # -- scoring ----------------------------------------------------------------------------------

    def token_log_prob(self, rollout: Rollout) -> Tensor:
        """Log-probability of every sampled token, (B, T) in nats, differentiable."""
        return self._score(self.model, rollout)

    @torch.no_grad()
    def reference_token_log_prob(self, rollout: Rollout) -> Tensor:
        """The same under the reference policy, without gradient."""
        return self._score(self._reference[0], rollout)

    @staticmethod
    def _score(model: SmilesRNN, rollout: Rollout) -> Tensor:
        read_BT = torch.cat([rollout.prompt_ids_BP[:, -1:], rollout.token_ids_BT[:, :-1]], 1)
        lengths_B, order_B = rollout.num_tokens.sort(descending=True, stable=True)
        log_prob_BTV = model(read_BT[order_B], lengths_B).float().log_softmax(-1)
        tokens_BT1 = rollout.token_ids_BT[order_B][..., None]
        found_BT = log_prob_BTV.gather(2, tokens_BT1)[..., 0][order_B.argsort()]
        return found_BT.masked_fill(~rollout.token_mask_BT, 0.0)

    # -- the module -------------------------------------------------------------------------------

    def export_state_dict(self) -> dict[str, Tensor]:
        """The weights as `load_smiles_rnn` reads them."""
        state: dict[str, Tensor] = self.model.state_dict()
        return state

    def train(self, mode: bool = True) -> "SmilesPolicy":
        """Set the flag; the network stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SmilesPolicy":
        """Move the reference along (`to`, `cuda`)."""
        for reference in self._reference:
            reference._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    def get_extra_state(self) -> str:
        """Which reference this policy has; torch keeps it in the `state_dict`."""
        return self._fingerprint

    def set_extra_state(self, state: str) -> None:
        """Make sure that a checkpoint's reference is this one.

        Raises:
            ValueError: if it is another.
        """
        if state != self._fingerprint:
            raise ValueError(
                "the checkpoint's run had another prior than this one: give the model the "
                "init_from in the checkpoint's config.yaml"
            )


def load_molecule_policy(folder: str | Path, max_new_tokens: int = 100) -> Policy:
    """Make a policy of an exported prior: the recurrent network, or a transformers decoder.

    Args:
        folder: What `MoleculePretraining` exported: model and tokenizer.
        max_new_tokens: Longest completion, end token included.

    Raises:
        FileNotFoundError: if there is no tokenizer.
        ValueError: if the tokenizer does not fit the model.
    """
    path = Path(folder)
    if not (path / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{path} has no tokenizer.json: give the folder export of a prior that "
            "triptych.lit_modules.diversify.molecules.molecule_pretraining.MoleculePretraining "
            "trained"
        )
    tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    if is_smiles_rnn(path):
        return SmilesPolicy(load_smiles_rnn(path), tokenizer, max_new_tokens)
    config = CausalLMPolicyConfig(init_from=str(path), max_new_tokens=max_new_tokens)
    return build_policy(config, len(tokenizer), tokenizer)
