import pytest
import torch

from triptych.models.commune.prefix_adapter import PrefixAdapter, PrefixAdapterConfig
from triptych.models.commune.thought_routing import RoutingConfig, ThoughtRouting, routed_latents

# Latent 0 is private to agent 0, 1 is shared by 0 and 1, 2 private to 1, 3 of all, 4 private to 2,
# 5 of nobody.
RELEVANT = torch.tensor(
    [[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0]], dtype=torch.bool
)
LAYOUTS = ["masked", "concat"]


def adapter(widths=(8, 8, 8), **settings):
    torch.manual_seed(0)
    routing = RoutingConfig(**settings.pop("routing", {}))
    return PrefixAdapter(
        RELEVANT, widths, [0.5] * 3, PrefixAdapterConfig(routing, hidden=[12], **settings)
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RoutingConfig("strict"), [[0, 1, 3], [1, 2, 3], [3, 4]]),
        (RoutingConfig("all"), [[0, 1, 2, 3, 4]] * 3),
        (RoutingConfig("shared_only"), [[1, 3], [1, 3], [3]]),
        (RoutingConfig("allow_list", [[4], [0, 1], [3]]), [[4], [0, 1], [3]]),
    ],
)
def test_modes(config, expected):
    routed = routed_latents(RELEVANT, config)
    assert [row.nonzero().flatten().tolist() for row in routed] == expected


def test_layouts_hold_the_same_numbers():
    latents = torch.arange(1.0, 7.0).expand(2, 6)
    masked = ThoughtRouting(RELEVANT, RoutingConfig(weights="fixed"))
    concat = ThoughtRouting(RELEVANT, RoutingConfig(layout="concat", weights="fixed"))
    third = 1 / 3
    # alpha is 1, 2, 1, 3, 1, 0
    expected = torch.tensor([1 * third, 2 * 2 * third, 0, 4, 0, 0])
    torch.testing.assert_close(masked(latents, 0)[0], expected)
    torch.testing.assert_close(concat(latents, 0)[0], expected[[0, 1, 3]])
    # by agreement: private before shared
    torch.testing.assert_close(concat(latents, 1)[0], torch.tensor([3 * third, 4 * third, 4]))
    assert concat.sizes == [3, 3, 2]
    assert masked.sizes == [6] * 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_is_added_to_what_is_sent_and_to_nothing_else(layout):
    latents = torch.randn(4000, 6)
    plain = ThoughtRouting(RELEVANT, RoutingConfig(layout=layout))(latents, 1)
    torch.manual_seed(0)
    noisy = ThoughtRouting(RELEVANT, RoutingConfig(layout=layout, noise=0.3))(latents, 1)
    moved = (noisy - plain).std(0)
    places = moved.nonzero().flatten().tolist()
    assert places == ([1, 2, 3] if layout == "masked" else [0, 1, 2])
    # one standard error of a standard deviation of .3 is .3 / sqrt(8000)
    assert torch.allclose(moved[places], torch.tensor(0.3), atol=0.014)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("share", [False, True])
def test_private_thoughts_of_others_leave_a_strict_prefix_what_it_is_to_the_bit(layout, share):
    if share and layout == "concat":
        return
    made = adapter(routing={"mode": "strict", "layout": layout}, share=share)
    latents = torch.randn(4, 6)
    others = latents.clone()
    others[:, [2, 4, 5]] = torch.tensor([1e30, float("nan"), float("inf")])
    assert torch.equal(made(latents, 0), made(others, 0))
    assert not torch.equal(made(latents, 1)[:, :1], made(others, 1)[:, :1])
    private = latents.clone().requires_grad_()
    made(private, 0).square().sum().backward()
    assert (private.grad[:, [2, 4, 5]] == 0).all()


def test_a_prefix_has_the_scale_of_the_embeddings_times_the_gate():
    made = adapter(initial_gate=0.2, num_prefix_tokens=3)
    prefix = made(torch.randn(5, 6), 1)
    assert prefix.shape == (5, 3, 8)
    rms = prefix.square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, 0.1), rtol=1e-3, atol=1e-4)


def test_agents_of_several_widths_have_an_adapter_each():
    made = adapter(widths=(8, 12, 16))
    assert [made(torch.randn(2, 6), k).shape[2] for k in range(3)] == [8, 12, 16]
    with pytest.raises(ValueError, match="one adapter has one"):
        adapter(widths=(8, 12, 16), share=True)


def test_one_shared_adapter_knows_whom_it_writes_to():
    made = adapter(share=True, routing={"mode": "all"})
    latents = torch.randn(2, 6)
    assert len(made.parts) == 1
    assert not torch.equal(made(latents, 0), made(latents, 1))


def test_learned_weights_get_gradients():
    made = adapter()
    # one element: a whole normalised token has the same square whatever made it
    made(torch.randn(3, 6), 0)[:, 0, 0].sum().backward()
    grad = made.routing.weight_by_agreement.grad
    assert (grad[1:] != 0).all()
    assert grad[0] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_and_loaded(tmp_path, layout):
    made = adapter(widths=(8, 12, 16), routing={"layout": layout}, num_prefix_tokens=2)
    made.save(tmp_path)
    latents = torch.randn(3, 6)
    back = PrefixAdapter.load(tmp_path, (8, 12, 16))
    assert all(torch.equal(made(latents, k), back(latents, k)) for k in range(3))
    with pytest.raises(ValueError, match="made for agents with embeddings"):
        PrefixAdapter.load(tmp_path, (8, 12, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoutingConfig("some"), "routing.mode"),
        (lambda: RoutingConfig(noise=-1), "routing.noise"),
        (lambda: RoutingConfig("allow_list"), "set both or neither"),
        (lambda: RoutingConfig("strict", [[0]]), "set both or neither"),
        (lambda: PrefixAdapterConfig(num_prefix_tokens=0), "num_prefix_tokens"),
        (lambda: PrefixAdapterConfig(initial_gate=0.0), "above 0"),
        (
            lambda: PrefixAdapterConfig(RoutingConfig(layout="concat"), share=True),
            "another number of latents",
        ),
        (lambda: routed_latents(RELEVANT, RoutingConfig("allow_list", [[0], [1]])), "2 lists"),
        (lambda: routed_latents(RELEVANT, RoutingConfig("allow_list", [[5], [1], [1]])), "dead"),
        (lambda: routed_latents(torch.eye(2).bool(), RoutingConfig("shared_only")), r"\[0, 1\]"),
        (
            lambda: PrefixAdapter(RELEVANT, [8, 8], [1.0, 1.0], PrefixAdapterConfig()),
            "the structure has 3",
        ),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
