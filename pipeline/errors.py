"""Errors that a user can meet. `InputError` ends a command with exit code 2 and one line on standard error."""


class SchemaError(ValueError):
    """An artefact that breaks its contract; the message names what, where and what was expected."""


class InputError(ValueError):
    """Input that a user can correct: the message names file, field, value, what was expected and the fix."""
