"""Deformable attention does what it was published for: it learns to find things in no more steps than dense attention.

Rain cells are found as a set (Carion et al. 2020, arXiv:2005.12872): each query gives a box and how likely it holds a
cell, and the assignment of queries to true boxes that costs least says what each should have given. The two detectors
differ in how queries read the scene alone: with all of its tokens, or around a reference point (Zhu et al. 2021).
"""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional

from fieldcast.models.video_transformer.attention.core import Attention
from fieldcast.models.video_transformer.attention.decoder import keys_and_values, queries
from fieldcast.models.video_transformer.attention.deformable import DeformableAttention
from fieldcast.models.video_transformer.attention.positions import sines_2d

SIDE, FRAMES, PATCH, DIM, HEADS, QUERIES = 32, 3, 4, 64, 4, 8
TOKENS = SIDE // PATCH
NO_CELL_WEIGHT, BOX_WEIGHT, OVERLAP_WEIGHT = 0.1, 5.0, 2.0
EVERY, HELD_OUT, WANTED = 25, 96, 0.5


def scenes(count, draws):
    """Films (b, t, y, x) of one to three bumps that drift, and boxes (x, y, width, height) in the last frame."""
    cells = torch.arange(SIDE) + 0.5
    films, boxes = torch.zeros(count, FRAMES, SIDE, SIDE), []
    for film in films:
        here = 1 + int(torch.randint(3, (), generator=draws))
        place, drift, width = (torch.rand(here, 2, generator=draws) for _ in range(3))
        place, drift, width = 6 + 20 * place, 4 * drift - 2, 1.5 + 1.5 * width
        for t in range(FRAMES):
            along = (cells - (place + drift * (t + 1 - FRAMES))[..., None]) / width[..., None]  # (cell, xy, cells)
            x, y = (-(along**2) / 2).exp().unbind(dim=1)
            film[t] = torch.einsum("cy,cx->cyx", y, x).amax(dim=0)
        boxes.append(torch.cat([place, 4 * width], dim=-1) / SIDE)  # two deviations to each side
    return films + 0.05 * torch.randn(films.shape, generator=draws), boxes


def corners(boxes):
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)


def overlaps(ours, theirs):
    """Intersection over union (..., n, m), and the generalised one, which falls on as boxes move further apart."""
    ours, theirs = corners(ours)[..., :, None, :], corners(theirs)[..., None, :, :]
    area, other = ((b[..., 2:] - b[..., :2]).prod(dim=-1) for b in (ours, theirs))
    common = (torch.minimum(ours, theirs)[..., 2:] - torch.maximum(ours, theirs)[..., :2]).clamp(min=0).prod(dim=-1)
    around = (torch.maximum(ours, theirs)[..., 2:] - torch.minimum(ours, theirs)[..., :2]).prod(dim=-1)
    union = area + other - common
    return common / union, common / union - (around - union) / around


class Reader(nn.Module):
    """A decoder layer: tokens that ask read each other, then the scene, then an MLP; norms are after the additions."""

    def __init__(self, deformable):
        super().__init__()
        self.among = Attention(DIM, HEADS)
        self.scene = DeformableAttention(DIM, HEADS, levels=1) if deformable else Attention(DIM, HEADS)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.ReLU(), nn.Linear(4 * DIM, DIM))
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(3))

    def forward(self, tokens, asked, memory, positions, reference):
        read = self.among.mix(queries(self.among, tokens, asked), *keys_and_values(self.among, tokens, asked))
        tokens = self.norms[0](tokens + read)
        if isinstance(self.scene, DeformableAttention):
            near = reference.expand(len(tokens), 1, -1, -1).transpose(1, 2)  # (b, queries, one level, xy)
            read = self.scene(tokens + asked, near, [memory.unflatten(1, (TOKENS, TOKENS))])
        else:
            seen = keys_and_values(self.scene, memory, positions)
            read = self.scene.mix(queries(self.scene, tokens, asked), *seen)
        tokens = self.norms[1](tokens + read)
        return self.norms[2](tokens + self.mlp(tokens))


class Detector(nn.Module):
    def __init__(self, deformable):
        super().__init__()
        self.patches = nn.Conv2d(FRAMES, DIM, PATCH, stride=PATCH)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(DIM, HEADS, 4 * DIM, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.asked = nn.Parameter(torch.randn(QUERIES, DIM))
        self.reference = nn.Linear(DIM, 2) if deformable else None
        self.readers = nn.ModuleList(Reader(deformable) for _ in range(3))
        self.cell = nn.Linear(DIM, 1)
        self.box = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, 4))
        nn.init.constant_(self.cell.bias, -1.0)
        places = torch.arange(float(TOKENS))
        self.register_buffer("positions", sines_2d(places, places, DIM).flatten(0, 1)[None])

    def forward(self, films):
        """Logits (b, queries) that there is a cell and its box (b, queries, 4), after each of the readers."""
        memory = self.patches(films).flatten(2).transpose(1, 2) + self.positions
        for layer in self.encoder:
            memory = layer(memory)
        tokens, out = torch.zeros(len(films), QUERIES, DIM), []
        start = None if self.reference is None else self.reference(self.asked)  # before the sigmoid
        reference = None if start is None else start.sigmoid()
        for reader in self.readers:
            tokens = reader(tokens, self.asked[None], memory, self.positions, reference)
            box = self.box(tokens)
            if start is not None:
                box = torch.cat([box[..., :2] + start, box[..., 2:]], dim=-1)
            out.append((self.cell(tokens)[..., 0], box.sigmoid()))
        return out


def loss(out, boxes):
    """Of one set against the true boxes: the assignment that costs least, then cross-entropy, distance and overlap."""
    total, truths = torch.zeros(()), sum(map(len, boxes))
    together = nn.utils.rnn.pad_sequence(boxes, batch_first=True, padding_value=0.5)
    for logits, found in out:
        distance, overlap = torch.cdist(found, together, p=1), overlaps(found, together)[1]
        each = BOX_WEIGHT * distance - OVERLAP_WEIGHT * overlap
        cost = (each - logits.sigmoid()[..., None]).detach().numpy()
        wanted = torch.zeros_like(logits)
        for i, true in enumerate(boxes):
            ours, theirs = linear_sum_assignment(cost[i, :, : len(true)])
            wanted[i, ours] = 1.0
            total = total + (each[i, ours, theirs] + OVERLAP_WEIGHT).sum() / truths
        weights = torch.where(wanted > 0, 1.0, NO_CELL_WEIGHT)
        entropy = functional.binary_cross_entropy_with_logits(logits, wanted, weights, reduction="sum")
        total = total + entropy / weights.sum()
    return total


def average_precision(model, films, boxes):
    """Area below precision over recall; a box is right that overlaps a cell not found before by a half or more."""
    with torch.no_grad():
        logits, found = model(films)[-1]
    left, hits = [torch.ones(len(true), dtype=torch.bool) for true in boxes], []
    for index in logits.flatten().argsort(descending=True).tolist():
        scene, query = divmod(index, QUERIES)
        overlap = overlaps(found[scene, query][None], boxes[scene])[0][0]
        best = int(overlap.argmax())
        hits.append(bool(overlap[best] >= 0.5 and left[scene][best]))
        left[scene][best] &= not hits[-1]
    right = np.cumsum(hits)
    precision = np.maximum.accumulate((right / np.arange(1, len(hits) + 1))[::-1])[::-1]  # never less at more recall
    return float((precision * hits).sum() / sum(map(len, boxes)))


def steps_until_found(*, deformable, seed, most):
    """Training steps until average precision on held-out scenes is `WANTED`; None if it is not by `most` steps."""
    torch.manual_seed(seed)
    model, draws = Detector(deformable), torch.Generator().manual_seed(seed)
    held_out = scenes(HELD_OUT, torch.Generator().manual_seed(100))
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for step in range(1, most + 1):
        films, boxes = scenes(32, draws)
        optimiser.zero_grad()
        loss(model(films), boxes).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()
        if step % EVERY == 0 and average_precision(model, *held_out) >= WANTED:
            return step
    return None


def test_average_precision_by_hand():
    """Two scenes of one cell each: a right box, then a wrong one, then the other cell: (1 + 2/3) / 2."""
    here, there = torch.tensor([0.25, 0.25, 0.2, 0.2]), torch.tensor([0.75, 0.75, 0.2, 0.2])
    found = torch.stack([here, there]).expand(2, -1, -1).repeat(1, QUERIES // 2, 1)
    logits = torch.full((2, QUERIES), -9.0)
    logits[0, 0], logits[0, 1], logits[1, 1] = 3.0, 2.0, 1.0
    boxes = [here[None], there[None]]
    assert average_precision(lambda films: [(logits, found)], None, boxes) == pytest.approx((1 + 2 / 3) / 2)
    overlap, generalised = overlaps(here[None], torch.stack([here, there]))
    assert overlap[0].tolist() == pytest.approx([1, 0])
    assert generalised[0].tolist() == pytest.approx([1, -(0.7**2 - 2 * 0.2**2) / 0.7**2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_finds_cells_in_no_more_steps_than_dense_attention(seed):
    found = steps_until_found(deformable=True, seed=seed, most=600)
    assert found is not None
    assert steps_until_found(deformable=False, seed=seed, most=found - EVERY) is None
