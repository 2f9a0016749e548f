"""A recurrent network as an unconditional policy of SMILES strings."""

# Shapes: B completions, T completion positions

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig, build_policy
from triptych.models.diversify.molecules.smiles_rnn import SmilesRNN, is_smiles_rnn, load_smiles_rnn
from triptych.models.diversify.molecules.smiles_sampling import sample_smiles
from triptych.models.diversify.policy import Policy
from triptych.models.diversify.policy_with_reference import PolicyWithReference
from triptych.models.diversify.rollout import Rollout


class SmilesPolicy(PolicyWithReference[SmilesRNN]):
    """Samples molecules with a recurrent network, and scores them.

    The reference is a frozen copy of the network.

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
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}: set it to at least 1")
        super().__init__(model, copy.deepcopy(model).requires_grad_(False).eval())
        self.max_new_tokens = max_new_tokens
        self.use_tokenizer(tokenizer)

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Set a tokenizer with the network's vocabulary.

        Raises:
            ValueError: if it has another vocabulary; the message gives the difference.
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
        """Sample `num_samples` molecules for each prompt; only the number of prompts counts.

        Args:
            prompts: One row per group.
            num_samples: Completions per group.
            generator: Source of randomness; None: torch's CPU generator.
            temperature: Use values other than 1 only in evaluation: `log_prob_B` is then that of
                the tempered distribution, but `token_log_prob` is not.

        Raises:
            ValueError: if a number is out of range.
            FloatingPointError: if the network's probabilities are not finite.
        """
        if num_samples < 1 or not prompts or not temperature > 0:
            raise ValueError(
                f"asked for {num_samples} samples of {len(prompts)} prompts at temperature "
                f"{temperature}: all three have to be above 0"
            )
        return self._sample(self.model, prompts, num_samples, generator, temperature)

    def reference_sample(
        self,
        prompts: Sequence[Mapping[str, Any]],
        num_samples: int,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Sample molecules from the reference; arguments as `sample`."""
        return self._sample(self._reference[0], prompts, num_samples, generator, 1.0)

    def _sample(
        self,
        model: SmilesRNN,
        prompts: Sequence[Mapping[str, Any]],
        num_samples: int,
        generator: torch.Generator | None,
        temperature: float,
    ) -> Rollout:
        num_rows = len(prompts) * num_samples
        rollout = sample_smiles(
            model, self.tokenizer, num_rows, self.max_new_tokens, generator, temperature
        )
        groups = torch.arange(len(prompts), device=rollout.group_B.device)
        return replace(
            rollout,
            group_B=groups.repeat_interleave(num_samples),
            records=[row for row in prompts for _ in range(num_samples)],
        )

    # -- scoring ----------------------------------------------------------------------------------

    def token_log_prob(self, rollout: Rollout) -> Tensor:
        """Compute the log-probability of every sampled token, (B, T) in nats, differentiable."""
        return self._score(self.model, rollout)

    @torch.no_grad()
    def reference_token_log_prob(self, rollout: Rollout) -> Tensor:
        """Compute `token_log_prob` under the reference policy, without gradient."""
        return self._score(self._reference[0], rollout)

    def token_log_prob_and_entropy(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Compute `token_log_prob` and the entropy over the vocabulary at every sampled token."""
        log_prob_BTV, order_B = self._read(self.model, rollout)
        entropy_BT = -(log_prob_BTV.exp() * log_prob_BTV).sum(-1)[order_B.argsort()]
        found_BT = self._pick(log_prob_BTV, order_B, rollout)
        return found_BT, entropy_BT.masked_fill(~rollout.token_mask_BT, 0.0)

    def _score(self, model: SmilesRNN, rollout: Rollout) -> Tensor:
        return self._pick(*self._read(model, rollout), rollout)

    @staticmethod
    def _read(model: SmilesRNN, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return all log-probabilities, long completions first, and that order."""
        read_BT = torch.cat([rollout.prompt_ids_BP[:, -1:], rollout.token_ids_BT[:, :-1]], 1)
        lengths_B, order_B = rollout.num_tokens.sort(descending=True, stable=True)
        log_prob_BTV: Tensor = model(read_BT[order_B], lengths_B).float().log_softmax(-1)
        return log_prob_BTV, order_B

    @staticmethod
    def _pick(log_prob_BTV: Tensor, order_B: Tensor, rollout: Rollout) -> Tensor:
        tokens_BT1 = rollout.token_ids_BT[order_B][..., None]
        found_BT = log_prob_BTV.gather(2, tokens_BT1)[..., 0][order_B.argsort()]
        return found_BT.masked_fill(~rollout.token_mask_BT, 0.0)

    # -- export -----------------------------------------------------------------------------------

    def export_state_dict(self) -> dict[str, Tensor]:
        """Return the weights that `load_smiles_rnn` reads."""
        state: dict[str, Tensor] = self.model.state_dict()
        return state


def load_molecule_policy(folder: str | Path, max_new_tokens: int = 100) -> Policy:
    """Load a policy from an exported prior: a recurrent network or a transformers decoder.

    Args:
        folder: Folder exported by `MoleculePretraining`, with model and tokenizer.
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
    tokenizer = AutoTokenizer.from_pretrained(
        str(path), local_files_only=True, trust_remote_code=False
    )
    if is_smiles_rnn(path):
        return SmilesPolicy(load_smiles_rnn(path), tokenizer, max_new_tokens)
    config = CausalLMPolicyConfig(init_from=str(path), max_new_tokens=max_new_tokens)
    return build_policy(config, len(tokenizer), tokenizer)
