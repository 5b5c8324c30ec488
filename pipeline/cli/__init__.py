"""The `fieldcast` command.

In: arguments. Out: calls of the other packages, text, exit codes.
May import: everything; nothing imports it.
"""
