"""Checks of types and tensor shapes in every call, for the modules that `tests` names."""

from collections.abc import Callable
from typing import Any, Self, get_type_hints

from beartype import BeartypeConf, beartype

CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with checks.

    Not for methods that return Self, which beartype refuses, nor for types that a module imports for mypy alone, since
    torch loads slowly.
    """
    try:
        hints = get_type_hints(function)
    except NameError:
        return function
    return function if hints.get("return") is Self else beartype(function, conf=CONF)
