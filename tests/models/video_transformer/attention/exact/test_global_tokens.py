"""Tokens that see all and are seen by all, beside any pattern."""

import pytest
import torch

from fieldcast.models.video_transformer.attention.approximate.linear import LinearAttention
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from fieldcast.models.video_transformer.attention.exact.global_tokens import GlobalTokens


def make_layer(tokens=3, pattern=None):
    torch.manual_seed(0)
    return GlobalTokens(12, 3, pattern or AlongAxes(12, 3, "T"), tokens=tokens)


def make_grid(*shape):
    return torch.randn(*shape, 12, generator=torch.Generator().manual_seed(0))


def reads(layer, token):
    """Which tokens a token of the grid depends on."""
    grid = make_grid(1, 2, 3, 5).requires_grad_()
    layer(grid)[0][token].sum().backward()
    return grid.grad[0].abs().amax(dim=-1) > 0


def test_all_global_is_exact_attention():
    layer, exact = make_layer(), AlongAxes(12, 3, "J")
    layer.gather.load_state_dict(exact.attention.state_dict())
    grid = make_grid(2, 3, 5, 7)
    nothing = torch.zeros(2, 3, 5, 7, dtype=torch.bool)
    _, tokens = layer.exchange(grid, grid.flatten(1, 3), valid=nothing)
    torch.testing.assert_close(tokens, exact(grid).flatten(1, 3), rtol=0, atol=1e-6)


def test_all_is_reached_through_a_pattern_that_sees_little():
    plain = AlongAxes(12, 3, "T")
    grid = make_grid(1, 2, 3, 5).requires_grad_()
    plain(grid)[0, 1, 2, 3].sum().backward()
    assert (grid.grad[0].abs().amax(dim=-1) > 0).sum() == 2
    assert reads(make_layer(pattern=plain), (1, 2, 3)).all()


def test_the_grid_is_the_patterns_and_what_it_reads_from_global_tokens():
    layer, grid, tokens = make_layer(), make_grid(2, 3, 5, 7), torch.randn(2, 2, 12)
    mixed, gathered = layer.exchange(grid, tokens)
    torch.testing.assert_close(gathered, layer.gather(tokens, torch.cat([tokens, grid.flatten(1, 3)], dim=1)))
    query = layer.spread.query(grid).unflatten(-1, (3, 4))
    key, value = (x(gathered).unflatten(-1, (3, 4)) for x in (layer.spread.key, layer.spread.value))
    weights = torch.einsum("bthwsd,bgsd->bthwsg", query, key).div(2).exp()
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1)  # + 1: exp(0), of the key of zeros
    read = torch.einsum("bthwsg,bgsd->bthwsd", weights, value).flatten(-2)
    torch.testing.assert_close(mixed, layer.mixer(grid) + layer.spread.out(read), rtol=1e-4, atol=1e-5)


def test_a_class_token_learns_and_reads_valid_tokens_only():
    layer, grid = make_layer(tokens=1), make_grid(2, 3, 5, 7)
    valid = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    _, token = layer.exchange(grid, layer.tokens.expand(2, 1, 12), valid)
    other = torch.where(valid[..., None], grid, 7.0)
    _, same = layer.exchange(other, layer.tokens.expand(2, 1, 12), valid)
    assert token.shape == (2, 1, 12)
    assert torch.equal(token, same)
    layer(grid).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_costs_are_added_to_those_of_the_pattern():
    layer, plain = make_layer(tokens=5, pattern=LinearAttention(12, 3)), LinearAttention(12, 3)
    assert layer.macs(2, 3, 5) > plain.macs(2, 3, 5)
    assert layer.held(2, 3, 5) == plain.held(2, 3, 5) + 35 * 12


def test_needs_a_token():
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        make_layer(tokens=0)
