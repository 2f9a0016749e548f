"""Reads of a value table that later learning shall leave as they are.

A memory's output is linear in its values: a position that reads slots with the weights w gets
sum_k w[k] V[slot[k]]. The reads of a position therefore say in full how a change of some rows
changes its output, without a forward pass.

    reads = ProtectedReads(num_slots)
    reads.add(ids_PK, weights_PK)  # the positions at which a fact was learned
    change_UD = reads.constrained(rows_U, change_UD, strength=10.0)
"""

# Shapes: P protected positions, K slots read at a position (all heads), U rows that change,
# H positions that read one of them, D value width

import torch
from torch import Tensor

#: Positions whose reads of the changing rows are laid out at once.
_CHUNK = 4096


class ProtectedReads:
    """Shrinks a change of rows where it would change the output at protected positions.

    Among all changes C, it returns the minimum of |C - C0|^2 + strength |W C|^2, which is
    (I + strength W'W)^-1 C0. C0 is the change asked for, (U, D), and W holds the weights with which
    the protected positions read the rows, (P, U). Strength 0 returns C0. A large one returns
    nearly the projection of C0 on the changes that no protected position sees.

    The cost is O(H U^2 + U^3) for new rows. It is spent once for the steps of a visit, which
    change the same rows.

    Args:
        num_slots: Rows of the table.

    Source: orthogonal weights modification (1810.01256) and the null-space projection of AlphaEdit
    (2410.02355), which constrain a dense layer by its inputs. Deviations: the inputs are a memory's
    sparse weights, and the constraint is soft.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._ids_PK: list[Tensor] = []
        self._weights_PK: list[Tensor] = []
        self._last: tuple[Tensor, float, Tensor | None] | None = None

    def __len__(self) -> int:
        return sum(len(ids_PK) for ids_PK in self._ids_PK)

    def add(self, ids_PK: Tensor, weights_PK: Tensor) -> None:
        """Protect further positions.

        Args:
            ids_PK: Slots that they read, integers in [0, num_slots).
            weights_PK: Weights of these reads, float.

        Raises:
            ValueError: if the shapes differ from each other or from those of earlier reads.
        """
        widths = {ids_PK.shape[-1], *(known.shape[-1] for known in self._ids_PK)}
        if ids_PK.ndim != 2 or ids_PK.shape != weights_PK.shape or len(widths) != 1:
            raise ValueError(
                f"protected reads of shape {tuple(ids_PK.shape)} with weights of shape "
                f"{tuple(weights_PK.shape)} do not fit together or to earlier ones of width "
                f"{sorted(widths)}"
            )
        if len(ids_PK):
            self._ids_PK.append(ids_PK.detach().to(torch.int32))
            self._weights_PK.append(weights_PK.detach().float())
            self._last = None

    def constrained(self, rows_U: Tensor, change_UD: Tensor, strength: float) -> Tensor:
        """Return the change that is left of one asked for.

        Args:
            rows_U: int64, distinct; the rows that change.
            change_UD: The change asked for, float32 or float64.
            strength: Weight of the protected outputs; at least 0.
        """
        factor_UU = self._factor(rows_U, strength)
        if factor_UU is None:
            return change_UD
        return torch.cholesky_solve(change_UD, factor_UU.to(change_UD.dtype))

    def tensors(self) -> dict[str, Tensor]:
        """Return all reads: `ids`, int32 (P, K), and `weights`, float32 (P, K)."""
        if not self._ids_PK:
            return {
                "ids": torch.empty(0, 0, dtype=torch.int32),
                "weights": torch.empty(0, 0, dtype=torch.float32),
            }
        return {"ids": torch.cat(self._ids_PK), "weights": torch.cat(self._weights_PK)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Replace all reads by those that `tensors` returned."""
        self._ids_PK, self._weights_PK, self._last = [], [], None
        if len(tensors["ids"]):
            self.add(tensors["ids"], tensors["weights"])

    def _factor(self, rows_U: Tensor, strength: float) -> Tensor | None:
        """Return the Cholesky factor of I + strength W'W, (U, U); None if W is zero."""
        if strength == 0 or not self._ids_PK or len(rows_U) == 0:
            return None
        if self._last is not None:
            rows, known, factor_UU = self._last
            if known == strength and torch.equal(rows, rows_U):
                return factor_UU
        gram_UU = self._gram(rows_U)
        factor_UU = None
        if gram_UU is not None:
            system_UU = gram_UU.mul_(strength)
            system_UU.diagonal().add_(1.0)
            factor_UU = torch.linalg.cholesky(system_UU)
        self._last = rows_U.clone(), strength, factor_UU
        return factor_UU

    def _gram(self, rows_U: Tensor) -> Tensor | None:
        """Return W'W, (U, U), float32; None if no protected position reads a row that changes."""
        device, num_rows = rows_U.device, len(rows_U)
        place_S = torch.full((self.num_slots,), num_rows, dtype=torch.int64, device=device)
        place_S[rows_U] = torch.arange(num_rows, device=device)
        self._move_to(device)
        places, weights = [], []
        for ids_PK, weights_PK in zip(self._ids_PK, self._weights_PK, strict=True):
            places_PK = place_S[ids_PK.long()]
            reads_one_P = (places_PK < num_rows).any(-1)
            places.append(places_PK[reads_one_P])
            weights.append(weights_PK[reads_one_P])
        places_HK, weights_HK = torch.cat(places), torch.cat(weights)
        if len(places_HK) == 0:
            return None
        gram_UU = torch.zeros(num_rows, num_rows, dtype=torch.float32, device=device)
        for place_CK, weight_CK in zip(
            places_HK.split(_CHUNK), weights_HK.split(_CHUNK), strict=True
        ):
            # One column more takes the reads of rows that do not change.
            w_CU = torch.zeros(len(place_CK), num_rows + 1, dtype=torch.float32, device=device)
            w_CU = w_CU.scatter_add_(1, place_CK, weight_CK)[:, :num_rows]
            gram_UU.addmm_(w_CU.T, w_CU)
        return gram_UU

    def _move_to(self, device: torch.device) -> None:
        self._ids_PK = [ids_PK.to(device) for ids_PK in self._ids_PK]
        self._weights_PK = [weights_PK.to(device) for weights_PK in self._weights_PK]
