"""One convolution applied to many states in turn."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


class Repeated:
    """A convolution with zeros beyond the edge whose kernel is laid out for the processor once, not at every call.

    Only oneDNN on a CPU has such a layout, and it is for inference mode only: gradients need the kernel as it is. With
    one sample and wide layers the layout takes longer than the convolution. For one run of steps: later changes of the
    weight are not seen.
    """

    def __init__(self, weight: Float[Tensor, "d_out d k k"]) -> None:
        self.weight = weight
        self.packed: Tensor | None = None
        self.packs = (
            torch.is_inference_mode_enabled()
            and (weight.device.type, weight.dtype) == ("cpu", torch.float32)
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
            and (_precision(weight) != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )

    def __call__(
        self, state: Float[Tensor, "b d h w"], bias: Float[Tensor, " d_out"] | None = None
    ) -> Float[Tensor, "b d_out h w"]:
        """Return the convolved state, plus the bias."""
        if not self.packs:
            return functional.conv2d(state, self.weight, bias, padding="same")
        precision = _precision(self.weight)
        state = state.to(precision)
        side = self.weight.shape[-1] // 2
        geometry = ([side, side], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups
        if self.packed is None:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            self.packed = reorder(self.weight.to(precision), geometry[0], *geometry[1:], list(state.shape))
        bias = None if bias is None else bias.to(precision)
        convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(state, self.packed, bias, *geometry, "none", [], "")
        return convolved


def _precision(weight: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
