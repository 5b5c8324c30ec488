import torch

from fieldcast.models.video_transformer.attention.core import Attention, attend
from fieldcast.models.video_transformer.attention.masks import both, not_later, only_valid


def frames_not_later(frames, cells):
    times = torch.arange(frames).repeat_interleave(cells)
    return not_later(times, times)


def test_look_ahead_goes_by_frames_by_brute_force():
    allowed = frames_not_later(3, 5)
    assert allowed.shape == (1, 1, 15, 15)
    for one in range(15):
        for two in range(15):
            assert allowed[0, 0, one, two].item() == (two // 5 <= one // 5)


def test_later_tokens_may_look_at_more():
    assert not_later(torch.tensor([1]), torch.tensor([0, 1, 1, 2])).tolist() == [[[[True, True, True, False]]]]


def test_combined_is_the_and_of_the_two():
    torch.manual_seed(0)
    valid = torch.rand(2, 15) < 0.6
    combined = both(frames_not_later(3, 5), only_valid(valid))
    for b in range(2):
        for one in range(15):
            for two in range(15):
                assert combined[b, 0, one, two].item() == (two // 5 <= one // 5 and valid[b, two].item())
    assert torch.equal(both(None, only_valid(valid)), only_valid(valid))
    assert torch.equal(both(frames_not_later(3, 5), None), frames_not_later(3, 5))
    assert both(None, None) is None


def test_gradients_under_the_combined_mask():
    torch.manual_seed(0)
    attention, tokens = Attention(12, 3), torch.randn(1, 15, 12, requires_grad=True)
    valid = torch.ones(1, 15, dtype=torch.bool)
    valid[0, 7] = False
    out = attention(tokens, allowed=both(frames_not_later(3, 5), only_valid(valid)))
    for token in (2, 6, 13):
        (gradient,) = torch.autograd.grad(out[0, token].sum(), tokens, retain_graph=True)
        seen = gradient[0].abs().sum(dim=1) > 0
        assert seen.tolist() == [k // 5 <= token // 5 and k != 7 for k in range(15)]


def test_frames_without_anything_valid_are_zero_not_nan():
    heads = torch.randn(1, 2, 6, 4)
    valid = torch.tensor([[False, False, False, True, True, False]])
    out = attend(heads, heads, heads, allowed=both(frames_not_later(2, 3), only_valid(valid)))
    assert (out[:, :, :3] == 0).all()
    assert out.isfinite().all()
