import os
import subprocess
import sys
from pathlib import Path

import pytest

from fieldcast.pipeline.config.yaml_file import MAX_BYTES, read_yaml
from fieldcast.pipeline.errors import InputError
from tests.conftest import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def fault(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    return str(caught.value).replace(f"{path}: ", "")


def test_plain_values(path: Path) -> None:
    path.write_text("a: 1\nb: [1e-3, 2.5, .inf]\nc: {d: 2024-06-01T00:00:00, e: 2024-06-01}\nf: &f {g: no}\nh: *f\n")
    content = read_yaml(path)
    assert content == {
        "a": 1,
        "b": [1e-3, 2.5, float("inf")],
        "c": {"d": "2024-06-01T00:00:00", "e": "2024-06-01"},
        "f": {"g": False},
        "h": {"g": False},
    }
    path.write_text("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}\n")
    assert read_yaml(path)["d"] == {"b": 1, "c": 3}


def test_a_key_that_stands_twice_is_named_with_both_lines(path: Path) -> None:
    text = "train:\n  epochs: 3\n  seed: 1\n  epochs: 30\nsource: {}\ntrain: {}\n"
    assert fault(path, text).splitlines() == [
        "train.epochs stands in lines 2 and 4; remove one",
        "train stands in lines 1 and 6; remove one",
    ]


def test_keys_are_text(path: Path) -> None:
    assert fault(path, "a: 1\n1: 2\n") == "the file has '1' as a key in line 2, expected text: put it in quotes"
    assert "a has 'yes' as a key" in fault(path, "a: {yes: 2}\n")
    assert "a list or mapping" in fault(path, "? [1, 2]\n: 3\n")


LAUGHS = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{key}: &{key} [{', '.join([f'*{before}'] * 9)}]\n" for before, key in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: " + "[" * 5000, "line 1 is nested deeper than 20 levels"),
        ("a: " + "{b: " * 30 + "1" + "}" * 30, "line 1 is nested deeper than 20 levels"),
        (LAUGHS, "more than 20000 keys and values"),
        ("a: &a [*a]", "more than 20000 keys and values"),
        ("a: &a {b: *a}", "more than 20000 keys and values"),
        ("#" * (MAX_BYTES + 1), "larger than 200 kB"),
        ("a: !!python/object/apply:os.system ['touch marker']", "not valid YAML"),
        ("a: !!timestamp 2024-13-45", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!bool perhaps", "not valid YAML"),
        ("a: 1\n--- \nb: 2", "not valid YAML"),
        ("a: *nothing", "not valid YAML"),
        ("a: '\x01'", "not valid YAML"),
        ("a: [1", "not valid YAML"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_in_one_line(path: Path, text: str, expected: str) -> None:
    message = fault(path, text)
    assert expected in message
    assert "\n" not in message


def test_files_that_are_no_text(path: Path) -> None:
    path.write_bytes("a: °".encode("latin-1"))
    with pytest.raises(InputError, match="line 1 is no UTF-8"):
        read_yaml(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(path.parent)
    with pytest.raises(InputError, match="no such file"):
        read_yaml(path.parent / "none.yaml")
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path) == {"a": 1}


def test_the_encoding_does_not_depend_on_the_locale(path: Path) -> None:
    path.write_text("# °C, Zürich\na: mm²\n", encoding="utf-8")
    code = "from pathlib import Path; from fieldcast.pipeline.config.yaml_file import read_yaml; "
    code += f"read_yaml(Path({str(path)!r}))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
