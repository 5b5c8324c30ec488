"""Some frames of an archive, spread evenly over its times: what a look at its values costs, whatever its size."""

from __future__ import annotations

import numpy as np

from fieldcast.pipeline.config.sources import IngestOptions, SourceOptions
from fieldcast.pipeline.sources import open_source, time_axis_of
from fieldcast.pipeline.sources.target import read_frames, target_of


def some_frames(options: SourceOptions, rules: IngestOptions, most: int) -> list[dict[str, np.ndarray]]:
    """Return at most so many frames (y, x) by variable, after crop and coarsening, NaN where missing.

    Raise `InputError` for whatever is wrong with the source.
    """
    source = open_source(options)
    entries = time_axis_of(source, options, rules).entries
    segments, target = source.segments(), target_of(source.grid(), options, f"the source ({options.kind})")
    places = np.unique(np.linspace(0, entries.time.size - 1, most).round().astype(int))
    read = [read_frames(segments[entries.segment[i]], entries.frame[[i]], target) for i in places]
    return [{name: values[0] for name, values in frame.values.items()} for frame in read]
