"""The base of all metrics: what torchmetrics expects of a metric that is used beside others.

`MetricCollection` updates only one of two metrics whose states are equal after the first batch. It
compares states, neither classes nor settings. Two metrics with other thresholds, or two classes
with states of one name, would share one state from then on. Class and settings are therefore a
state of every metric here.
"""

import functools
import inspect
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torchmetrics import Metric

from triptych.metrics.list_arguments import check_lists
from triptych.metrics.setting_digest import setting_digest

# Options of torchmetrics.Metric: they change where and when a value is computed, not the value.
_OPTIONS = {
    *("compute_on_cpu", "dist_sync_on_step", "process_group", "dist_sync_fn"),
    *("distributed_available_fn", "sync_on_compute", "compute_with_cache"),
}


def _records_settings(init: Callable[..., None]) -> Callable[..., None]:
    """Let a constructor record its arguments, and the outermost one add them as a state."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recording(self: "ComposableMetric", *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            init(self, *args, **kwargs)  # which says what is missing
            raise
        bound.apply_defaults()
        _, *names = bound.arguments
        given = {name: bound.arguments[name] for name in names}
        check_lists(init, given, type(self).__name__)
        own = self.__dict__  # the constructor of torch.nn.Module has not run yet
        is_outermost = not own.get("_is_constructing", False)
        if is_outermost:
            own["_is_constructing"], own["_settings"] = True, {}
        for parameter in list(signature.parameters.values())[1:]:
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name)
        for name in given.keys() - _OPTIONS:
            key = f"{init.__qualname__.removesuffix('.__init__')}.{name}"
            own["_settings"][key] = (setting_digest(given[name]), _shown(given[name]))
        try:
            init(self, *args, **kwargs)
        finally:
            if is_outermost:
                own["_is_constructing"] = False
        if is_outermost:
            self._add_settings()

    return recording


class ComposableMetric(Metric):
    """A metric that equals itself alone in any `MetricCollection`.

    - Class and settings (all constructor arguments, of base classes too, without the options of
      `torchmetrics.Metric`) are a state, `settings_hash`. Metrics of equal settings still share
      their updates in a collection.
    - `merge_state` and `load_state_dict` refuse the state of another class or of other settings.
    - A string is refused where the type hint of `update` or of the constructor asks for a list.
    - States keep their dtype in `.to`, `.half` and the like, as part of a module too. `set_dtype`
      converts states of floating point alone; counts, ids and fingerprints stay integers.
    - `plot` shows the value, or several of them, like torchmetrics' own scalars.
    """

    settings_hash: Tensor
    _settings: dict[str, tuple[bytes, str]]  # digest and text for messages, by class and name

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            type.__setattr__(cls, "__init__", _records_settings(vars(cls)["__init__"]))

    @_records_settings
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the state of another metric of this class and these settings.

        Args:
            incoming_state: The metric, or its `metric_state`.

        Raises:
            ValueError: If its class or its settings differ.
        """
        if isinstance(incoming_state, Metric) and type(incoming_state) is not type(self):
            raise ValueError(
                f"{type(self).__name__} cannot take in the state of a "
                f"{type(incoming_state).__name__}: merge metrics of one class."
            )
        if isinstance(incoming_state, ComposableMetric):
            theirs: Any = incoming_state.settings_hash
        elif isinstance(incoming_state, dict):
            theirs = incoming_state.get("settings_hash")
        else:
            theirs = self.settings_hash  # torchmetrics says what is wrong with it
        if not self._has_settings(theirs):
            raise ValueError(
                f"{type(self).__name__} cannot take in this state: "
                f"{self._difference(incoming_state)}. Merge metrics of equal settings."
            )
        super().merge_state(incoming_state)

    def set_dtype(self, dst_type: str | torch.dtype) -> Self:
        """Convert the states of floating point; counts, ids and fingerprints stay integers.

        Args:
            dst_type: A dtype of floating point.

        Raises:
            ValueError: If it is another dtype.
        """
        if not torch.zeros(0, dtype=torch.float32).type(dst_type).is_floating_point():
            raise ValueError(
                f"set_dtype got {dst_type}: give a dtype of floating point, such as torch.float32. "
                "Integer states never change theirs."
            )
        super().set_dtype(dst_type)
        return self

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, or several in their order.

        Args:
            val: What `compute` or `forward` returned, or a list of these; None: what `compute`
                returns now.
            ax: matplotlib axes to draw on; None: a new figure.

        Returns:
            The figure (None where `ax` was given) and its axes.
        """
        return self._plot(val, ax)

    def _add_settings(self) -> None:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        digests = sorted((key, digest) for key, (digest, _) in self._settings.items())
        # One number per byte: torchmetrics compares with a relative tolerance.
        octets = torch.tensor(list(setting_digest([name, digests])), dtype=torch.int64)
        self.add_state("settings_hash", octets.to(self.device), dist_reduce_fx=_first)

    def _has_settings(self, settings_hash: Tensor | None) -> bool:
        return settings_hash is not None and torch.equal(
            settings_hash.cpu(), self.settings_hash.cpu()
        )

    def _difference(self, other: Any) -> str:
        if not isinstance(other, ComposableMetric):
            if "settings_hash" not in other:
                return "it has no settings_hash, so it is not the metric_state of such a metric"
            return "it is of another class or of other settings"
        keys = sorted(self._settings.keys() | other._settings.keys())
        nothing = (b"", "not set")
        for key in keys:
            mine, theirs = self._settings.get(key, nothing), other._settings.get(key, nothing)
            if mine[0] != theirs[0]:
                return f"{key.rpartition('.')[2]} is {mine[1]} here and {theirs[1]} there"
        return "it is of another class of this name"

    def _wrap_update(self, update: Callable[..., None]) -> Callable[..., None]:
        wrapped, signature = super()._wrap_update(update), inspect.signature(update)
        function = getattr(update, "__func__", update)

        @functools.wraps(update)
        def checked(*args: Any, **kwargs: Any) -> None:
            try:
                arguments = signature.bind(*args, **kwargs).arguments
            except TypeError:
                arguments = {}  # the call below says what is missing
            check_lists(function, arguments, f"{type(self).__name__}.update")
            wrapped(*args, **kwargs)

        return checked

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        """Move states; change the dtype of floating point in `set_dtype` alone."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            both = tensor.is_floating_point() and changed.is_floating_point()
            if changed.dtype == tensor.dtype or (self._dtype_convert and both):
                return changed
            return tensor.to(changed.device)

        super()._apply(keep_dtype, exclude_state)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = state_dict.get(f"{prefix}settings_hash")
        if saved is not None and not self._has_settings(saved):
            error_messages: list[str] = args[-1] if args else kwargs["error_msgs"]
            error_messages.append(
                f"{prefix.rstrip('.') or type(self).__name__}: the saved state is of another class "
                "or of other settings. Construct the metric as it was when it was saved."
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _first(settings_R: Tensor) -> Tensor:
    """Keep the settings where torchmetrics reduces those of several ranks or batches."""
    return settings_R[0]


def _shown(value: Any) -> str:
    """Show a setting in a message: plain values as they are, objects by their class."""
    if value is None or isinstance(value, bool | int | float | str | list | tuple | dict):
        return reprlib.repr(value)
    return f"a {getattr(value, '__qualname__', type(value).__qualname__)}"
