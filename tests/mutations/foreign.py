"""Mutations of what guards the project against the files of others."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

M = Mutation
DECODER, DECLARED = "tests/sources/test_decoder.py", "tests/sources/test_declared.py"
FOREIGN = (
    M(
        "pipeline/sources/decoder.py",
        "if not self._connection.poll(seconds):",
        "if False:",
        f"{DECODER}::test_a_child_that_takes_long_is_ended",
    ),
    M(
        "pipeline/sources/decoder.py",
        "int(megabytes * 2**20)",
        "2**40",
        f"{DECODER}::test_what_goes_wrong_in_a_child",
    ),
    M(
        "pipeline/sources/decoder.py",
        "resource.setrlimit(resource.RLIMIT_AS, (hard, hard))",
        "pass",
        f"{DECODER}::test_a_bound_of_memory_ends_with_its_file",
    ),
    M(
        "pipeline/sources/decoder.py",
        "signal.alarm(ceil(seconds) + 1)",
        "signal.alarm(0)",
        f"{DECODER}::test_a_child_whose_parent_is_gone",
    ),
    M(
        "pipeline/sources/declared.py",
        'if codec.removeprefix("numcodecs.") not in CODECS',
        "if False",
        f"{DECLARED}::test_a_store_packed_by_code_is_refused",
    ),
)
