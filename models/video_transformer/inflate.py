"""Weights of pretrained image encoders for fields with other channels, and for stacks of frames instead of one.

Arnab et al. 2021, "ViViT", section 3.4, and Carreira and Zisserman 2017 (inflation over time). Load a checkpoint with
the library that wrote it, then give its `state_dict` here, in the names of `transformers` 5.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from fieldcast.models.video_transformer.attention.vit import EncoderShape, VisionEncoder

LOG = logging.getLogger(__name__)

Inflation = Literal["central", "mean"]
APPROXIMATE: dict[str, Literal["none", "tanh"]] = {"gelu": "none", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}
BLOCK = {  # ours: theirs
    "attention_norm": "layernorm_before",
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.out": "attention.o_proj",
    "mlp_norm": "layernorm_after",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


def for_channels(kernel: Float[Tensor, "d c *any"], channels: int) -> Float[Tensor, "d {channels} *any"]:
    """Return the kernel for another number of channels: in each its mean over channels, times old by new.

    Equal values in all channels, old or new, then give equal features.
    """
    if kernel.shape[1] == channels:
        return kernel
    LOG.info("patch weights of %d channels are averaged for %d", kernel.shape[1], channels)
    mean = reduce(kernel, "d c ... -> d 1 ...", "mean") * (kernel.shape[1] / channels)
    return repeat(mean, "d 1 ... -> d c ...", c=channels)


def for_frames(kernel: Float[Tensor, "d c h w"], frames: int, how: Inflation) -> Float[Tensor, "d c {frames} h w"]:
    """Return the kernel for a stack of frames: all at the middle frame (`central`), or a share at each (`mean`).

    A stack of equal frames gives what one frame gives.
    """
    if how == "mean":
        return repeat(kernel / frames, "d c h w -> d c t h w", t=frames)
    inflated = torch.zeros(*kernel.shape[:2], frames, *kernel.shape[2:], dtype=kernel.dtype, device=kernel.device)
    inflated[:, :, frames // 2] = kernel
    return inflated


def encoder_of(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    channels: int,
    frames: int = 1,
    how: Inflation = "central",
) -> VisionEncoder:
    """Return an encoder with the weights of a pretrained ViT (or ViViT, whose `frames` are its own), in eval mode.

    `config` is the content of its `config.json`. Raises ValueError for an activation other than a GELU.
    """
    if config["hidden_act"] not in APPROXIMATE:
        raise ValueError(f"hidden_act must be one of {', '.join(APPROXIMATE)}, got {config['hidden_act']!r}")
    kernel = for_channels(state["embeddings.patch_embeddings.projection.weight"], channels)
    kernel = for_frames(kernel, frames, how) if kernel.ndim == 4 else kernel
    patch = kernel.shape[-1]
    side = config["image_size"] // patch
    table = state["embeddings.position_embeddings"][0]
    shape = EncoderShape(
        channels,
        config["hidden_size"],
        config["num_attention_heads"],
        config["num_hidden_layers"],
        config["intermediate_size"],
        patch,
        side,
        side,
        kernel.shape[2],
        (len(table) - 1) // side**2,
        config["layer_norm_eps"],
        APPROXIMATE[config["hidden_act"]],
    )
    encoder = VisionEncoder(shape)
    encoder.load_state_dict(_renamed(state, encoder, kernel, table))
    return encoder.eval()


def _renamed(
    state: Mapping[str, Tensor], encoder: VisionEncoder, kernel: Tensor, table: Float[Tensor, "n d"]
) -> dict[str, Tensor]:
    _, rows, columns, _ = encoder.positions.shape
    named = {
        "embedding.weight": kernel,
        "embedding.bias": state["embeddings.patch_embeddings.projection.bias"],
        "class_token": state["embeddings.cls_token"][0, 0],
        "class_position": table[0],
        "positions": rearrange(table[1:], "(s h w) d -> s h w d", h=rows, w=columns),
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for name in encoder.state_dict():
        if name.startswith("blocks."):  # without a key bias, which softmax cancels
            _, index, rest = name.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            named[name] = state[f"layers.{index}.{BLOCK[part]}.{kind}"]
    return named
