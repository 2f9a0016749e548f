"""Settings of the data that follow from a given model: it brings its tokenizer."""

from collections.abc import Iterator

from jsonargparse import Namespace


def pretrained_base(model: Namespace) -> str | None:
    """Return the pretrained model that a module's settings name at `base.pretrained`.

    The outermost `base` counts: a module's own, or that of a part such as its policy.

    >>> base = Namespace(pretrained="some/model")
    >>> pretrained_base(Namespace(policy=Namespace(base=base), reward=None))
    'some/model'
    """
    for settings in _settings(model):
        base = settings.get("base")
        if isinstance(base, Namespace) and base.get("pretrained") is not None:
            return str(base.pretrained)
    return None


def use_tokenizer_of(source: str, data: Namespace) -> None:
    """Name a model's tokenizer in a datamodule's settings, unless these name one.

    Two kinds of settings are open: a `TokenizerConfig` that would train a tokenizer, and a setting
    `tokenizer` that is null.

    Args:
        source: Folder or hub name of the model.
        data: The datamodule's `init_args`, at any depth; changed in place.

    >>> data = Namespace(tokenizer=Namespace(path="train"), smiles=Namespace(tokenizer=None))
    >>> use_tokenizer_of("some/model", data)
    >>> data.tokenizer.path, data.smiles.tokenizer
    ('some/model', 'some/model')
    """
    for settings in list(_settings(data)):
        if "tokenizer" not in settings:
            continue
        tokenizer = settings["tokenizer"]
        if tokenizer is None:
            settings["tokenizer"] = source
        elif isinstance(tokenizer, Namespace) and tokenizer.get("path") in (None, "train"):
            tokenizer["path"] = source


def _settings(node: Namespace) -> Iterator[Namespace]:
    """Yield a namespace and all in it, the outermost first."""
    level = [node]
    while level:
        yield from level
        level = [
            child
            for parent in level
            for child in vars(parent).values()
            if isinstance(child, Namespace)
        ]
