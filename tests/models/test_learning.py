"""Every learned model learns: after a short training its forecast is better than persistence, at every lead."""

import pytest
import torch

from fieldcast import models
from fieldcast.models.video_transformer.attention.patterns import ATTENTIONS
from tests.campaign import cases

HISTORY, HORIZON, SIDE = 4, 3, 16
VELOCITY = (0.7, -1.6)  # cells a step, rows and columns
TRANSFORMER = {"dim": 32, "heads": 2, "layers": 1, "patch": 4, "positions": "sincos3d"}
RECURRENT = {"hidden": [16], "patch": 2}
OPTIONS = {  # what a pattern needs in films of 4 x 4 tokens: a window as large as the blobs' way, fewer landmarks
    "window": {"window": [7, 4, 4]},
    "performer": {"features": 32},
    "linformer": {"keys": 64},
    "nystrom": {"landmarks": 16},
    "deformable": {"points": 2},
    "reformer": {"chunk": 64, "rounds": 1},
}
IN_THE_SUITE = ("convlstm", "divided")  # the others in campaigns
STEPS, BATCH = 200, 8
AS_NEEDED = {  # steps, batch
    "deformable": (120, 8),  # slow steps, of which it needs few
    # these forecast the mean of all fields for longer before they see the motion
    "joint": (300, 8),
    "factorised": (300, 8),
    "pooled": (300, 8),
    "clustered": (300, 8),
    "window": (300, 8),
    "autoregressive": (300, 8),
    "performer": (350, 8),
    "linear": (400, 8),
    "reformer": (400, 8),
    "linformer": (500, 16),
}
CASES = {
    **{name: ("video_transformer", TRANSFORMER | {"attention": name} | OPTIONS.get(name, {})) for name in ATTENTIONS},
    "encoder_decoder": ("video_transformer", TRANSFORMER | {"arch": "encoder_decoder"}),
    "autoregressive": ("video_transformer", TRANSFORMER | {"arch": "encoder_decoder", "decode": "autoregressive"}),
    **{cell: ("recurrent", RECURRENT | {"cell": cell}) for cell in ("convlstm", "convgru", "trajgru")},
    "attention_in_time": ("recurrent", RECURRENT | {"cell": "attention", "heads": 2}),
    "simvp": ("simvp", {"channels": 8, "levels": 1, "hidden": 24, "blocks": 1}),
}


def blobs(count, draws):
    """Films (b, t, 1, y, x) of a bump anywhere that moves with `VELOCITY` and comes back at the other edge."""
    times, cells = torch.arange(HISTORY + HORIZON), torch.arange(SIDE)
    along = []
    for speed in VELOCITY:
        centres = torch.rand(count, 1, generator=draws) * SIDE + speed * times
        offsets = (cells - centres[..., None] + SIDE / 2) % SIDE - SIDE / 2  # (b, t, cells)
        along.append(torch.exp(-(offsets**2) / 8))
    return torch.einsum("bty,btx->btyx", *along)[:, :, None]


def error(forecast, films):
    """Mean squared error at each lead."""
    return (forecast - films[:, HISTORY:]).square().mean(dim=(0, 2, 3, 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", cases(CASES, IN_THE_SUITE))
def test_beats_persistence_at_every_lead(name):
    kind, options = CASES[name]
    draws = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = models.build(
        kind, models.OPTIONS[kind].model_validate(options), channels_in=1, channels_out=1,
        history=HISTORY, horizon=HORIZON, step_minutes=5,
    )  # fmt: skip
    steps, batch = AS_NEEDED.get(name, (STEPS, BATCH))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.2)
    for _ in range(steps):
        films = blobs(batch, draws)
        optimiser.zero_grad()
        error(model(films[:, :HISTORY]), films).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    films = blobs(32, torch.Generator().manual_seed(1))
    with torch.no_grad():
        learned = error(model.eval()(films[:, :HISTORY]), films)
    persistence, mean = error(films[:, HISTORY - 1 : HISTORY], films), error(films.mean(), films)
    assert (learned < 0.5 * torch.minimum(persistence, mean)).all()
