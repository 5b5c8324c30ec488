from tests.real.conftest import archive  # noqa: F401
