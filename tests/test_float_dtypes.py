"""Float tensors name their dtype.

Lightning's `precision: bf16-true` makes bfloat16 the default dtype within a step. A factory without
`dtype` then gives rewards, log-probabilities or counts with three digits, or fails where it meets
float32. Parameters and buffers are exempt: their dtype is that of the precision.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych import ROOT

FOLDERS = ("models", "objectives", "metrics", "lit_modules", "callbacks")
ALWAYS_FLOAT = {"zeros", "ones", "empty", "rand", "randn", "eye", "linspace", "logspace"}
BY_CONTENT = {"full": 1, "tensor": 0, "as_tensor": 0, "scalar_tensor": 0}
FOLLOWS_PRECISION = {"Parameter", "register_buffer"}

# Call, as `ast.unparse` writes it, and why it may stay.
ALLOWED = {
    "torch.tensor(made['relevant'])": "a list of booleans from a file",
    "torch.tensor(description['relevant'])": "a list of booleans from a file",
    "torch.full((max_new_tokens, num_rows), pad_id, device=device)": "ids of tokens",
    "torch.empty(0)": "replaced before it is read",
    "torch.empty(num_heads, num_slots, query_dim)": "becomes a parameter or a buffer",
}


def calls_without_dtype(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield calls of torch's factories that may make floats of the default dtype."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            if name in FOLLOWS_PRECISION:
                continue
            if _of_torch(node) and "dtype" not in {word.arg for word in node.keywords}:
                place = BY_CONTENT.get(name)
                by_content = place is not None and not _is_integer(node.args[place])
                floats = name == "arange" and any(_has_float(argument) for argument in node.args)
                if name in ALWAYS_FLOAT or by_content or floats:
                    yield node
        yield from calls_without_dtype(node)


def _of_torch(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "torch"
    )


def _is_integer(node: ast.expr) -> bool:
    """Whether the code says that a value holds integers or booleans only."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int)
    if isinstance(node, ast.List | ast.Tuple):
        return bool(node.elts) and all(map(_is_integer, node.elts))
    if isinstance(node, ast.ListComp):
        return _is_integer(node.elt)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not) or _is_integer(node.operand)
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("len", "int", "bool")


def _has_float(node: ast.expr) -> bool:
    return any(
        isinstance(part, ast.Constant) and isinstance(part.value, float) for part in ast.walk(node)
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_float_factories_name_their_dtype(folder):
    found = [
        f"{file.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for call in calls_without_dtype(ast.parse(file.read_text()))
        if ast.unparse(call) not in ALLOWED
    ]
    assert not found, "name the dtype, or add the call to ALLOWED with a reason"


def test_every_exemption_is_used():
    text = [file.read_text() for folder in FOLDERS for file in Path(ROOT, folder).rglob("*.py")]
    calls = {ast.unparse(call) for each in text for call in calls_without_dtype(ast.parse(each))}
    assert set(ALLOWED) <= calls


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("torch.zeros(3)", True),
        ("torch.zeros(3, dtype=torch.float32)", False),
        ("torch.tensor([0.5, 1])", True),
        ("torch.tensor([len(x), 1])", False),
        ("torch.tensor(values)", True),
        ("torch.full((2,), math.nan)", True),
        ("torch.arange(3)", False),
        ("torch.arange(0, 1, 0.1)", True),
        ("nn.Parameter(torch.zeros(()))", False),
        ("self.register_buffer('a', torch.ones(2))", False),
        ("x.new_zeros(3)", False),
    ],
)
def test_what_is_found(code, is_found):
    assert bool(list(calls_without_dtype(ast.parse(code)))) == is_found
