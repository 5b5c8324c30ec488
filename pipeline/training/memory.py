"""Check before a training that it fits into memory, with the options that would fit instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from fieldcast import models
from fieldcast.pipeline.errors import InputError

if TYPE_CHECKING:
    from fieldcast.pipeline.training.dry_run import Memory

GB = 1e9


def training_memory(kind: str, options: BaseModel, sizes: Mapping[str, Any], cells: tuple[int, int]) -> Memory:
    """Return the memory of training a model of this kind, by a dry run; `sizes` are those of `models.build`.

    `cells` are the rows and columns of a training sample.
    """
    from fieldcast.pipeline.training import dry_run as cost  # torch, seconds to import

    shape = (sizes["history"], sizes["channels_in"], *cells)
    return cost.training_memory(lambda: models.build(kind, options, **sizes), shape)


def training_cells(grid: tuple[int, int], crop: int | None) -> tuple[int, int]:
    """Return the rows and columns of a training sample: those of the grid, or of a crop that is smaller."""
    return (min(crop or grid[0], grid[0]), min(crop or grid[1], grid[1]))


def check_memory(
    name: str,
    kind: str,
    options: BaseModel,
    sizes: Mapping[str, Any],
    cells: tuple[int, int],
    batch_size: int,
    budget_gb: float | None,
) -> Memory:
    """Return what the training of model `name` holds; raise `InputError` where that is more than the budget.

    The budget is in GB of 10^9 bytes; None means what is free on the GPU, or without one on this machine.
    """
    need = training_memory(kind, options, sizes, cells)
    budget = free_bytes() if budget_gb is None else int(budget_gb * GB)
    if need.of_batch(batch_size) <= budget:
        return need
    fitting = ([f"train.batch_size: {need.largest_batch(budget)}"] if need.largest_batch(budget) else []) + [
        change
        for change, other in _changes(options)
        if training_memory(kind, other, sizes, cells).of_batch(batch_size) <= budget
    ]
    limit = f"{budget / GB:.3g} GB {'are free' if budget_gb is None else 'of train.memory_gb'}"
    raise InputError(
        f"params.yaml: models.{name} needs {need.of_batch(batch_size) / GB:.3g} GB to train on batches of {batch_size},"
        f" {limit}; " + (f"this would fit: {', or '.join(fitting)}" if fitting else "take smaller training crops")
    )


def free_bytes() -> int:
    """Return the memory that is free now: of the GPU where there is one, else of this machine."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def _changes(options: BaseModel) -> Iterator[tuple[str, BaseModel]]:
    """Yield changes of one option that may need less: twice the patch, every other attention."""
    stated = options.model_dump(exclude_unset=True)
    patch, attention = getattr(options, "patch", None), getattr(options, "attention", None)
    tried = [] if patch is None else [("patch", 2 * patch)]
    if attention is not None:
        kinds = get_args(type(options).model_fields["attention"].annotation)
        tried += [("attention", other) for other in kinds if other != attention]
    for key, value in tried:
        try:
            yield f"{key}: {value}", type(options).model_validate({**stated, key: value})
        except ValidationError:  # another stated option does not go with it
            continue
