"""Which query may attend to which key: True where it may, as torch's fused attention has it."""

from jaxtyping import Bool, Shaped
from torch import Tensor

from fieldcast.models.video_transformer.attention.core import Allowed


def not_later(times: Shaped[Tensor, " n"], key_times: Shaped[Tensor, " m"]) -> Bool[Tensor, "1 1 n m"]:
    """Return the mask of tokens of the same and earlier times, wherever they are."""
    return (key_times[None] <= times[:, None])[None, None]


def only_valid(valid: Bool[Tensor, "b m"]) -> Bool[Tensor, "b 1 1 m"]:
    """Return the mask of valid tokens, for all queries."""
    return valid[:, None, None]


def both(one: Allowed | None, two: Allowed | None) -> Allowed | None:
    """Return the mask of all that two masks allow; None allows everything."""
    if one is None or two is None:
        return two if one is None else one
    return one & two
