import pytest
import torch
from torch import nn

from fieldcast.models.video_transformer.tokens import Embedding, Queries, whole_tubelets


@pytest.mark.parametrize(("tubelet", "patch"), [(1, 3), (2, 3), (3, 5)])
def test_embedding_equals_a_convolution_with_stride(tubelet, patch):
    c, d, t, h, w = 2, 7, 6, 15, 30
    embedding = Embedding(c, patch, d, tubelet=tubelet)
    convolution = nn.Conv3d(c, d, (tubelet, patch, patch), stride=(tubelet, patch, patch))
    with torch.no_grad():
        weight = embedding.linear.weight.view(d, tubelet, patch, patch, c)
        convolution.weight.copy_(weight.permute(0, 4, 1, 2, 3))
        convolution.bias.copy_(embedding.linear.bias)
    frames = torch.randn(2, t, c, h, w)
    expected = convolution(frames.transpose(1, 2)).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(embedding(frames), expected, rtol=0, atol=1e-5)


def test_history_is_extended_in_front():
    frames = torch.arange(5.0)[None, :, None, None, None]
    assert whole_tubelets(frames, 3).flatten().tolist() == [0, 0, 1, 2, 3, 4]
    assert whole_tubelets(frames, 4).flatten().tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert whole_tubelets(frames, 5).flatten().tolist() == [0, 1, 2, 3, 4]
    assert Embedding(1, 1, 3, tubelet=3)(frames).shape == (1, 2, 1, 1, 3)


def test_queries_are_one_vector_everywhere():
    queries = Queries(7)
    asked = queries(torch.zeros(2, 5, 3, 4, 7), 6)
    assert asked.shape == (2, 6, 3, 4, 7)
    assert torch.equal(asked, queries.vector.expand_as(asked))


def test_smoothing_starts_as_the_identity_and_joins_patches(small, shaken, history_with_gaps):
    model = shaken(small("factorised_smooth")).eval()
    with torch.no_grad():
        nn.init.dirac_(model.readout.smooth.weight)
    history = history_with_gaps(1, 5, 3, 17, 13)
    smoothed = model(history)
    model.readout.smooth = None
    torch.testing.assert_close(smoothed, model(history), rtol=0, atol=1e-6)
