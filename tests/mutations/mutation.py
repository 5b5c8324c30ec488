"""A mutation of the code, and the test that notices it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A guard taken away."""

    file: str
    old: str  # stands in the file exactly once
    new: str
    test: str  # fails with the new text
