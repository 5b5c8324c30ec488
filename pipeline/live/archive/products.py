"""Products of a forecast with members: the members themselves, probabilities and quantiles, on the grid.

They lie in a store of their own inside the published one, which holds the mean: `products/` has, as `live.products`
asks, `<variable> (init_time, lead_time, member, y, x)`, `<variable>_at_least (init_time, lead_time,
<variable>_threshold, y, x)`, the probability from 0 to 1 of that value or more, and `<variable>_quantile (init_time,
lead_time, quantile, y, x)`. A forecast of single values, such as a fallback, has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from fieldcast.pipeline.config import Products
from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, MEMBER, X, Y, field_names
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig
from fieldcast.pipeline.verification.probabilistic import exceedance, quantile

PRODUCTS = "products"  # folder inside the store of a published forecast
QUANTILE = "quantile"


def check_products(products: Products, config: CheckpointConfig) -> None:
    """Raise `InputError` unless the model can give what `live.products` asks for."""
    if not products.asked:
        return
    if config.members is None:
        raise InputError(
            f"params.yaml: live.products asks for members or probabilities, but live.model {config.model} forecasts"
            " single values: choose a model with output: quantiles or ensemble, or leave live.products out"
        )
    for name in products.exceed:
        if name not in config.target_names:
            raise InputError(
                f"params.yaml: live.products.exceed has {name}, which {config.model} does not forecast, expected names"
                f" among {', '.join(config.target_names)}"
            )


def products_of(forecast: xr.Dataset, members: np.ndarray, options: Products) -> xr.Dataset | None:
    """Return the products of members (m, lead, c, y, x) float32; None where none is asked for, or with one member.

    `forecast` holds their mean, `(1, lead, y, x)` by variable in the order of c; units and grid are its own.
    """
    if not options.asked or len(members) < 2:
        return None
    names = field_names(forecast)
    products = forecast.drop_vars(names)
    for i, name in enumerate(names):
        fields = np.moveaxis(members[:, :, i], 0, 1)[None]  # (1, lead, member, y, x)
        parts = [
            *([_members(forecast[name], fields)] if options.members else []),
            *([_exceedance(forecast[name], fields, options.exceed[name])] if name in options.exceed else []),
            *([_quantiles(forecast[name], fields, options.quantiles)] if options.quantiles else []),
        ]
        products = products.assign({str(part.name): part for part in parts})
    return products


def has_products(path: Path) -> bool:
    """Return whether the published forecast at `path` has any."""
    return (path / PRODUCTS).is_dir()


def _members(mean: xr.DataArray, fields: np.ndarray) -> xr.DataArray:
    numbers = xr.Variable(MEMBER, np.arange(1, fields.shape[2] + 1, dtype=np.int32), {"standard_name": "realization"})
    return _array(mean, str(mean.name), fields, MEMBER, numbers, dict(mean.attrs))


def _exceedance(mean: xr.DataArray, fields: np.ndarray, thresholds: Sequence[float]) -> xr.DataArray:
    units = mean.attrs["units"]
    dim = f"{mean.name}_threshold"
    levels = xr.Variable(dim, np.asarray(thresholds, float), {"long_name": f"Value of {mean.name}", "units": units})
    what = mean.attrs.get("long_name", mean.name)
    attributes: dict[str, object] = {
        "long_name": f"Probability of at least the threshold: {what}",
        "units": "1",
        "valid_min": 0.0,
        "valid_max": 1.0,
    }
    return _array(mean, f"{mean.name}_at_least", exceedance(fields, thresholds), dim, levels, attributes)


def _quantiles(mean: xr.DataArray, fields: np.ndarray, levels: Sequence[float]) -> xr.DataArray:
    ordered = np.moveaxis(np.sort(fields, axis=2), 2, 0)  # NaN sorts last, and where a member is missing all are
    values = np.stack([quantile(ordered, level) for level in levels], axis=2)
    level = xr.Variable(QUANTILE, np.asarray(levels, float), {"standard_name": "quantile", "units": "1"})
    return _array(mean, f"{mean.name}_quantile", values, QUANTILE, level, dict(mean.attrs))


def _array(
    mean: xr.DataArray, name: str, values: np.ndarray, dim: str, coordinate: xr.Variable, attributes: dict[str, object]
) -> xr.DataArray:
    coords = {**mean.coords, dim: coordinate}
    dims = (INIT_TIME, LEAD_TIME, dim, Y, X)
    return xr.DataArray(values.astype(np.float32), coords, dims, name, attributes)
