"""Options of the recurrent models."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from fieldcast.models.layers.outputs import LearnedOptions

APPLIES_TO = {  # options that only some cells have
    "peephole": ("convlstm",),
    "forget_bias": ("convlstm",),
    "activation": ("convgru", "trajgru"),
    "flows": ("trajgru",),
    "memory": ("attention",),
    "heads": ("attention",),
}


class RecurrentOptions(LearnedOptions):
    """Size of the encoder-forecaster, and the cell that carries its memory through time."""

    cell: Literal["convlstm", "convgru", "trajgru", "attention"] = Field(
        default="convlstm",
        description="convlstm, convgru: gated states; trajgru: states moved along flows; attention: to the last maps",
    )
    hidden: tuple[PositiveInt, ...] = Field(
        default=(48, 48),
        min_length=1,
        max_length=10,
        description="channels of each level of the encoder; the forecaster mirrors them",
    )
    kernel: int = Field(default=3, ge=1, description="side of every convolution in a cell, odd, in patches")
    state_kernel: int | None = Field(
        default=None, ge=1, description="side of the convolutions of states (trajgru: of flows); by default kernel"
    )
    strides: tuple[PositiveInt, ...] | None = Field(
        default=None, description="one a level: convolutions before it that make the grid so many times coarser"
    )
    stem: int = Field(default=16, ge=1, description="strides only: channels of the convolution of the patches")
    norm: Literal["none", "group", "layer"] = Field(
        default="none", description="of gates: in groups of channels over the grid, or over channels in each cell"
    )
    peephole: Literal["none", "channel"] = Field(
        default="channel", description="convlstm only: gates see the cell state, by one weight a channel"
    )
    forget_bias: float = Field(
        default=1.0, ge=-100, le=100, description="convlstm only: first bias of the forget gate; 1: remember"
    )
    activation: Literal["tanh", "leaky"] = Field(
        default="tanh", description="convgru, trajgru only: of the candidate; leaky: ReLU with slope 0.2 below 0"
    )
    flows: int = Field(default=5, ge=1, description="trajgru only: how many places each cell's state comes from")
    memory: int = Field(default=24, ge=1, description="attention only: how many of the last maps are attended to")
    heads: int = Field(default=4, ge=1, description="attention only: attention heads")
    patch: int = Field(default=4, ge=1, description="side of the squares of cells that the recurrence works on")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of channels dropped on each level's input")

    @field_validator("kernel", "state_kernel")
    @classmethod
    def _kernel_is_odd(cls, kernel: int | None) -> int | None:
        if kernel is not None and kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        return kernel

    @model_validator(mode="after")
    def _options_of_this_cell(self) -> Self:
        for name, cells in APPLIES_TO.items():
            value = getattr(self, name)
            if value != RecurrentOptions.model_fields[name].default and self.cell not in cells:
                raise ValueError(f"{name} applies to cell: {' or '.join(cells)}, got {value} with {self.cell}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.strides is not None and len(self.strides) != len(self.hidden):
            raise ValueError(f"strides must be one for each level of hidden {self.hidden}, got {self.strides}")
        if self.strides is None and self.stem != RecurrentOptions.model_fields["stem"].default:
            raise ValueError(f"stem applies to models with strides, got {self.stem} without")
        if self.cell == "attention" and any(channels % self.heads for channels in self.hidden):
            raise ValueError(f"hidden must be multiples of heads ({self.heads}), got {self.hidden}")
        if self.norm == "layer" and min(self.hidden) < 2:
            raise ValueError(f"hidden must be at least 2 with norm: layer, got {self.hidden}")
        return self

    @property
    def state_side(self) -> int:
        """Return the side of the convolutions of states."""
        return self.kernel if self.state_kernel is None else self.state_kernel
