"""Online learning: before each forecast a step of AdaGrad on the newest sample whose target is observed.

The online setting of Shi et al. (2017, arXiv:1706.03458), section 3.4, with a step before every forecast. The loss is
the squared error in normalised values, or of members what they were trained with; a checkpoint does not say more. The
network is in `eval` mode all the time, so that nothing is drawn at random.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fieldcast.pipeline.config import Online
from fieldcast.pipeline.datasets.frames import FrameReader, sample_steps
from fieldcast.pipeline.datasets.schema import FRAME_PRESENT
from fieldcast.pipeline.datasets.times import to_seconds
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig
from fieldcast.pipeline.forecasting.losses import OF_MEMBERS, mse
from fieldcast.pipeline.forecasting.network import Network


class Learning:
    """Changes a network in place, sample by sample, and reads nothing after the init time that it is called for."""

    def __init__(self, network: Network, config: CheckpointConfig, reader: FrameReader, options: Online) -> None:
        self.network, self.config = network, config
        self.reader, self.threshold = reader, options.threshold
        self.loss = OF_MEMBERS.get(network.output, mse)
        learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.Adagrad(learnt, lr=options.learning_rate)
        self.newest = -1  # position of the last init time

    def before(self, init_time: np.datetime64) -> float | None:
        """Return the loss of the sample whose target ends at `init_time`, of before the step; None without one.

        There is none where one of its frames is missing in the store, so never over the gap between two events, or when
        the sample was taken already. A step is made if the loss exceeds the threshold. Raise `ValueError` for an init
        time before the last one, which would be forecast by a network that has seen what comes after it.
        """
        (position,) = self.reader.positions(np.array([init_time]))
        if position < self.newest:
            raise ValueError(f"init time {init_time} comes after a later one, expected ascending ones")
        length = self.config.history + self.config.horizon
        steps = sample_steps(position, length)
        used, self.newest = position == self.newest, position
        if used or steps.start < 0 or not self.reader.observations[FRAME_PRESENT][steps].values.all():
            return None
        loss = self._loss(self.reader.sample(position, length), init_time)
        value = float(loss.detach())
        if value > self.threshold:
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
        return value

    def _loss(self, frames: np.ndarray, end: np.datetime64) -> Tensor:
        """Return the loss of the sample in `frames` (t, c, h, w), whose target ends at `end`."""
        steps, device = self.config.history, self.network.normaliser.scale.device
        fields = torch.from_numpy(frames)[None].to(device)
        target = fields[:, steps:, : self.config.targets]
        seconds = int(to_seconds(end)) - target.shape[1] * self.network.step_seconds
        where = torch.tensor([seconds], device=device), torch.zeros(1, 2, dtype=torch.int64, device=device)
        forecast = self.network(fields[:, :steps], *where)
        return self.loss(forecast, self.network.normalise_target(target, *where), torch.ones((), device=device))
