import pickle

import pytest

from fieldcast.pipeline.config.sources import GriddedOptions
from fieldcast.pipeline.errors import CannotWriteError, InputError, public, redacted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("POST http://anna:geheim@tracker:5000/api failed", "POST http://tracker:5000/api failed"),
        ("s3://key:geheim@bucket/a.zarr: gone", "s3://bucket/a.zarr: gone"),
        ("'https://a.org/f.nc?sig=geheim&x=1': no file", "'https://a.org/f.nc?***': no file"),
        ("http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART",) * 2,
        ("a@b.org and x: 1?",) * 2,
    ],
)
def test_addresses_lose_their_passwords(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_secrets_of_options_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "key": "AKIA77",
        "client_kwargs": {"aws_secret": "geheim/77", "endpoint_url": "http://h:1"},
        "anon": False,
    }
    source = {"kind": "gridded", "path": "s3://b/a.nc", "variables": ["t"], "storage_options": options}
    GriddedOptions.model_validate(source)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token-77")
    text = "AKIA77 may not read with geheim/77 at http://h:1 by token-77"
    assert redacted(text) == "*** may not read with *** at http://h:1 by ***"
    shown = public({"source": source, "live": [{"path": "https://u:p@h/a?b=c"}]})
    assert shown["source"]["storage_options"] == {"key": "***", "client_kwargs": "***", "anon": "***"}
    assert shown["live"] == [{"path": "https://h/a?***"}]


def test_errors_are_redacted_when_they_are_made_also_in_other_processes() -> None:
    error = InputError("https://anna:geheim@h/a.nc: no such file")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "https://h/a.nc: no such file"
    assert str(CannotWriteError("https://anna:geheim@h/a")) == "https://h/a"


def test_errors_hold_nothing_that_a_terminal_would_obey() -> None:
    assert str(InputError("units '\x1b[2J°C'\nand more")) == "units '\\x1b[2J°C'\nand more"
