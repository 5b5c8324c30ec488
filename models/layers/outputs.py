"""Output of a learned model for each cell: one value, quantiles, or the members of an ensemble."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from fieldcast.models.layers.motion_options import MotionOptions
from fieldcast.models.layers.options import Options

MEMBERS = 10
Base = Literal[
    "history",
    "auto",
    "persistence",
    "climatology",
    "damped_persistence",
    "linear",
    "advection",
    "lagrangian_regression",
]
BASES: tuple[str, ...] = get_args(Base)[2:]  # the references among them


class OutputOptions(Options):
    """One value a cell, or members; `members` is None where there is one value."""

    output: Literal["point", "quantiles", "ensemble"] = Field(
        default="point",
        description="point: one value; quantiles: of each cell by itself; ensemble: fields drawn with noise",
    )
    members: int | None = Field(
        default=None,
        ge=2,
        le=1000,
        description="quantiles or ensemble only: how many; by default 10, levels (i - 1/2) / members",
    )

    @model_validator(mode="after")
    def _members_of_something(self) -> Self:
        if self.output != "point" and self.members is None:
            object.__setattr__(self, "members", MEMBERS)  # the only change of a frozen value, before anyone sees it
        if self.output == "point" and self.members is not None:
            raise ValueError(f"members applies to output: quantiles or ensemble, got {self.members} with point")
        return self

    @property
    def values(self) -> int:
        """Return the number of values the readout gives a cell and channel: quantiles, or 1 for each member."""
        return self.members or 1 if self.output == "quantiles" else 1


class ReferenceOutput(OutputOptions):
    """Output of a reference: one value, or quantiles of its residuals on the validation period, by intensity."""

    output: Literal["point", "quantiles"] = Field(
        default="point", description="point: one value; quantiles: with those of the residuals added"
    )
    members: int | None = Field(
        default=None, ge=2, description="quantiles only: how many; by default 10, levels (i - 1/2) / members"
    )


class LearnedOptions(OutputOptions):
    """Options of all networks: their output, the frame they work in, and the forecast that they change."""

    frame: Literal["fixed", "moving"] = Field(
        default="fixed", description="moving: the history is brought along the flow, and what is said of a lead moved"
    )
    base: Base = Field(
        default="history",
        description="forecast that the output is added to: history: a learned mixture of its frames; a reference; or "
        "auto: at each lead the reference that errs least in the validation period",
    )
    motion: MotionOptions = Field(
        default=MotionOptions(), description="estimate of the flow, for the moving frame and the base"
    )
    correct_flow: bool = Field(
        default=False,
        description="frame: moving only: the flow is corrected by a small network that is trained with the other",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**32,
        description="of first weights and samples; by default train.seed. Models alike but for it are trainings of one",
    )
    coupling: Literal["none", "noise"] = Field(
        default="none",
        description="quantiles only: noise: each member is a field, its values dealt out in each cell by moving noise",
    )

    @model_validator(mode="after")
    def _a_flow_is_there_to_correct(self) -> Self:
        if self.correct_flow and self.frame != "moving":
            raise ValueError(f"correct_flow applies to frame: moving, got frame: {self.frame}")
        return self

    @model_validator(mode="after")
    def _quantiles_are_coupled(self) -> Self:
        if self.coupling != "none" and self.output != "quantiles":
            raise ValueError(f"coupling applies to output: quantiles, got {self.coupling} with {self.output}")
        return self
