"""A language model that reads completions token by token, with a cache."""

# Shapes: G prompts, L completions that are still written, P prompt positions, T completion
# positions, C = P + T, V vocabulary, D hidden width

import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from triptych.models.diversify.decoding_cache import (
    ReservedLayer,
    attends_to_everything,
    decoding_cache,
)
from triptych.models.linear_nll import (
    at_least_float32,
    float32_logits,
    float32_output_layer,
    logits_factor,
    output_weight,
)

#: Passes before a capture, in which libraries set themselves up.
_WARM_UPS = 2


class Decoder:
    """Reads prompts, then one token of every completion at a time.

    The logits are float32 whatever the model's precision (`float32_logits`).

    Args:
        model: The model.
        prompt_mask_GP: True for tokens of the prompts.
        max_new_tokens: Largest number of further tokens.
    """

    def __init__(self, model: PreTrainedModel, prompt_mask_GP: Tensor, max_new_tokens: int) -> None:
        config = model.config
        self.model = model
        weight_VD = output_weight(model)
        self.weight_VD = None if weight_VD is None else logits_factor(weight_VD)
        # If the mask format is known, masks are built here once, not by the model at every token.
        self.makes_masks = config._attn_implementation == "sdpa" and attends_to_everything(config)
        self.cache = decoding_cache(config, prompt_mask_GP.shape[1] + max_new_tokens)
        room_GT = prompt_mask_GP.new_ones(len(prompt_mask_GP), max_new_tokens)
        self.seen_LC = torch.cat([prompt_mask_GP, room_GT], 1)
        self.position_L1 = prompt_mask_GP.sum(1, keepdim=True)
        self.num_read = prompt_mask_GP.shape[1]

    def read_prompts(self, ids_GP: Tensor, num_samples: int) -> Tensor:
        """Read the prompts once; returns the first logits of all completions."""
        mask_GP = self.seen_LC[:, : self.num_read]
        mask = mask_GP
        if self.makes_masks:
            causal_PP = mask_GP.new_ones(self.num_read, self.num_read).tril()
            own_PP = torch.eye(self.num_read, dtype=torch.bool, device=mask_GP.device)
            # A padded position attends to itself, so that no row of the softmax is empty.
            mask = ((mask_GP[:, None, :] & causal_PP) | own_PP)[:, None]
        position_GP = (mask_GP.cumsum(1) - 1).clamp(min=0)
        logits_GV = self._logits(ids_GP, mask, position_GP)
        if num_samples == 1:
            return logits_GV
        self.cache.batch_repeat_interleave(num_samples)
        self.seen_LC = self.seen_LC.repeat_interleave(num_samples, 0)
        self.position_L1 = self.position_L1.repeat_interleave(num_samples, 0)
        return logits_GV.repeat_interleave(num_samples, 0)

    def read_token(self, ids_L: Tensor) -> Tensor:
        """Read the next token of every row; returns the logits of the following one."""
        self.num_read += 1
        mask = self.seen_LC[:, : self.num_read]
        if self.makes_masks:
            mask = mask[:, None, None]
        logits_LV = self._logits(ids_L[:, None], mask, self.position_L1)
        self.position_L1 = self.position_L1 + 1
        return logits_LV

    def rows_to_keep(self, num_open: int) -> int:
        """Return the number of rows a smaller batch should have, at least `num_open`."""
        return num_open

    def keep(self, rows: Tensor) -> None:
        """Keep only the given rows."""
        self.cache.batch_select_indices(rows)
        self.seen_LC = self.seen_LC[rows]
        self.position_L1 = self.position_L1[rows]

    def _logits(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self.weight_VD is None:
            with float32_output_layer(self.model):
                return at_least_float32(self.model(**inputs, logits_to_keep=1).logits[:, -1])
        last_LD = self.model.base_model(**inputs).last_hidden_state[:, -1]
        return float32_logits(last_LD, self.weight_VD)


class StaticDecoder(Decoder):
    """A decoder whose step always has the same shapes and addresses, for CUDA graphs.

    Attention reads the whole cache, with a mask over what is not written yet. On CUDA a step is
    captured once for a batch size and then replayed, so the host launches one graph for a token
    instead of well over a thousand kernels. Where a capture fails, steps run as they are, with a
    warning. Batches shrink by halves only, so that there are few captures.

    **The capture has never run on hardware.** The step itself is tested on CPUs, where it runs
    without a capture. It equals `Decoder` up to the order of float additions: attention adds zeros
    for what is not written yet, which moves the borders of its partial sums.

    Args:
        model: A model of `supports`.
        prompt_mask_GP: See `Decoder`.
        max_new_tokens: See `Decoder`.
    """

    def __init__(self, model: PreTrainedModel, prompt_mask_GP: Tensor, max_new_tokens: int) -> None:
        super().__init__(model, prompt_mask_GP, max_new_tokens)
        is_cuda = prompt_mask_GP.device.type == "cuda"
        self._captures = is_cuda and torch.backends.cuda.is_built()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._ids_L1 = self._logits_LV = torch.empty(0)
        self._first_free_1 = torch.full(
            (1,), self.num_read - 1, device=prompt_mask_GP.device, dtype=torch.int64
        )
        self._num_rows_at_first = 0

    @staticmethod
    def supports(model: PreTrainedModel) -> bool:
        """Return whether the model's step can have fixed shapes.

        Attention must take our masks. Memory layers look slots up with intermediate results of
        varying shapes.
        """
        config = model.config
        is_known = config._attn_implementation == "sdpa" and attends_to_everything(config)
        return is_known and getattr(config, "memory", None) is None

    def read_prompts(self, ids_GP: Tensor, num_samples: int) -> Tensor:
        """Read the prompts once; returns the first logits of all completions."""
        logits_LV = super().read_prompts(ids_GP, num_samples)
        self.seen_LC = self.seen_LC.clone()
        self.seen_LC[:, self.num_read :] = False
        self._num_rows_at_first = len(logits_LV)
        self.position_L1 = self.position_L1 - 1  # `read_token` adds 1 before it reads
        self._fix()
        return logits_LV

    def read_token(self, ids_L: Tensor) -> Tensor:
        """Read the next token of every row; returns the logits of the following one."""
        self._ids_L1.copy_(ids_L[:, None])
        self._first_free_1 += 1
        self.position_L1 += 1
        self.seen_LC.index_fill_(1, self._first_free_1, True)
        if self._captures and self._graph is None:
            self._capture()
        if self._graph is None:
            return self._step()
        self._graph.replay()
        return self._logits_LV

    def rows_to_keep(self, num_open: int) -> int:
        """Return the number of rows a smaller batch should have: a half, a quarter, ..."""
        rows = self._num_rows_at_first
        while rows // 2 >= num_open:
            rows //= 2
        return rows

    def keep(self, rows: Tensor) -> None:
        """Keep only the given rows."""
        self._graph = None  # it reads and writes the memory of the larger batch
        super().keep(rows)
        self._fix()

    def _fix(self) -> None:
        """Point the caches at the position of the next token, and make room for its ids."""
        layers: list[Any] = self.cache.layers
        for layer in layers:
            assert isinstance(layer, ReservedLayer)
            layer.write_at(self._first_free_1)
        self._ids_L1 = self.seen_LC.new_zeros(len(self.seen_LC), 1, dtype=torch.int64)

    def _step(self) -> Tensor:
        return self._logits(self._ids_L1, self.seen_LC[:, None, None], self.position_L1)

    def _capture(self) -> None:
        # A step writes its keys and values to the same place each time, so it can be repeated.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._logits_LV = self._step()
        except RuntimeError as error:
            self._captures = False
            warnings.warn(
                f"the decoding step of {type(self.model).__name__} could not be captured as a CUDA "
                f"graph, so sampling launches its kernels one by one ({error})",
                stacklevel=2,
            )
            return
        self._graph = graph
