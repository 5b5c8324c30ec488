"""The files in deploy/ and the page about scheduled forecasts: what they call exists, and exit codes mean the same."""

import configparser
import re
import shlex
import shutil
import signal
import subprocess
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from apscheduler.triggers.cron import CronTrigger

from fieldcast.pipeline import config
from fieldcast.pipeline.cli import main as cli
from fieldcast.pipeline.live.outcomes import ExitCode
from fieldcast.pipeline.live.scheduler import GRACE_SECONDS
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
PAGE = ROOT / "docs/scheduled.md"
FOLDER = "/srv/fieldcast"
SERVICES = ["fieldcast.service", "fieldcast-serve.service"]
ANALYZE = shutil.which("systemd-analyze")


def unit(name: str) -> dict[str, dict[str, str]]:
    """Return the sections of a systemd unit; a key that is there twice is an error here."""
    parser = configparser.RawConfigParser(delimiters="=", comment_prefixes="#", inline_comment_prefixes=None)
    parser.optionxform = str
    parser.read_string((DEPLOY / name).read_text())
    return {section: dict(parser[section]) for section in parser.sections()}


def cron_job() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the volume claim and the specification of the Kubernetes job."""
    claim, job = yaml.safe_load_all((DEPLOY / "cronjob.yaml").read_text())
    return claim, job["spec"]


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """Return a command of `fieldcast` and its values, as the command line takes them; raise where it does not."""
    program, name, *arguments = shlex.split(line)
    assert Path(program).name == "fieldcast"
    command = typer.main.get_command(cli.app).commands[name]
    with command.make_context(name, arguments) as context:
        return name, context.params


def waking(cron: str) -> list[datetime]:
    """Return the first three times of a cron expression in an hour."""
    trigger, moments = CronTrigger.from_crontab(cron, UTC), [datetime(2024, 6, 1, 6, 2, tzinfo=UTC)]
    for _ in range(3):
        moments.append(trigger.get_next_fire_time(moments[-1], moments[-1] + timedelta(seconds=1)))
    return moments[1:]


def test_a_command_that_is_not_there_is_found_out() -> None:
    with pytest.raises(KeyError):
        parsed("fieldcast circle")
    with pytest.raises(Exception, match="--weight"):
        parsed("fieldcast cycle --weight")


@pytest.mark.parametrize("name", SERVICES)
def test_services_call_what_is_there_and_know_its_exit_codes(name: str) -> None:
    service = unit(name)["Service"]
    command, values = parsed(service["ExecStart"])
    assert service["ExecStart"].startswith(f"{service['WorkingDirectory']}/.venv/bin/")
    assert service["WorkingDirectory"] == service["ReadWritePaths"] == FOLDER
    assert float(service["TimeoutStopSec"]) > GRACE_SECONDS + 2
    if command == "serve":
        assert service["SuccessExitStatus"] == str(128 + signal.SIGTERM)
        assert service["RestartPreventExitStatus"] == str(int(ExitCode.BAD_INPUT))
        assert service["KillSignal"] == "SIGTERM"
    else:
        assert values["wait"]
        assert service["SuccessExitStatus"].split() == [str(int(ExitCode.TRY_AGAIN)), "SIGTERM"]
        patience = timedelta(minutes=config.read(ROOT / "params.yaml").live.late_data.deadline_minutes)
        assert timedelta(minutes=int(service["TimeoutStartSec"].removesuffix("min"))) > patience


def test_both_services_are_shut_in_alike() -> None:
    first, second = (unit(name)["Service"] for name in SERVICES)
    own = {"Type", "ExecStart", "SuccessExitStatus"}
    assert {key: value for key, value in first.items() if key in second and key not in own}.items() <= second.items()
    assert {"ProtectSystem", "NoNewPrivileges", "CapabilityBoundingSet"} <= first.keys()


def test_the_timer_catches_up() -> None:
    timer = unit("fieldcast.timer")
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Timer"]["OnCalendar"] == "*:0/5"
    assert timer["Install"]["WantedBy"] == "timers.target"


@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze on this machine")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    project, units = tmp_path / "project", tmp_path / "units"
    program = project / ".venv/bin/fieldcast"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units.mkdir()
    for name in (*SERVICES, "fieldcast.timer"):
        (units / name).write_text((DEPLOY / name).read_text().replace(FOLDER, str(project)))
    command = [str(ANALYZE), "verify", "--man=no", *map(str, sorted(units.iterdir()))]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "fieldcast" not in result.stderr


def test_the_line_for_cron() -> None:
    (line,) = [it for it in (DEPLOY / "crontab").read_text().splitlines() if it and not it.startswith("#")]
    *fields, shell = line.split(maxsplit=5)
    assert waking(" ".join(fields)) == [datetime(2024, 6, 1, 6, minute, tzinfo=UTC) for minute in (3, 4, 5)]
    change, rest = shell.split(" && ")
    assert change == f"cd {FOLDER}"
    assert parsed(rest.split(" 2>&1")[0])[0] == "cycle"
    assert "%" not in shell  # cron takes it for the end of the line


def test_the_job_ends_on_what_a_repetition_does_not_mend() -> None:
    _, job = cron_job()
    assert waking(job["schedule"]) == [datetime(2024, 6, 1, 6, minute, tzinfo=UTC) for minute in (5, 10, 15)]
    assert job["concurrencyPolicy"] == "Forbid"
    assert job["startingDeadlineSeconds"] < 300
    inner = job["jobTemplate"]["spec"]
    (container,) = inner["template"]["spec"]["containers"]
    rules = [it for it in inner["podFailurePolicy"]["rules"] if "onExitCodes" in it]
    codes = {it["action"]: it["onExitCodes"]["values"] for it in rules}
    assert codes == {
        "FailJob": [ExitCode.BAD_INPUT, ExitCode.CANNOT_WRITE, ExitCode.DAMAGED],
        "Count": [ExitCode.TRY_AGAIN],
    }
    assert {it["onExitCodes"]["containerName"] for it in rules} == {container["name"]}
    assert inner["template"]["spec"]["restartPolicy"] == "Never"
    patience = timedelta(minutes=config.read(ROOT / "params.yaml").live.late_data.deadline_minutes)
    assert timedelta(seconds=inner["activeDeadlineSeconds"]) > patience
    assert timedelta(seconds=sum(10 * 2**i for i in range(inner["backoffLimit"]))) >= patience


def test_the_job_keeps_the_live_folder_on_its_volume() -> None:
    claim, job = cron_job()
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    _, values = parsed(shlex.join(container["command"]))
    mounts = {it["name"]: it["mountPath"] for it in container["volumeMounts"]}
    assert mounts["live"] == f"{container['workingDir']}/{values['folder']}"
    volumes = {it["name"]: it for it in pod["volumes"]}
    assert volumes.keys() == mounts.keys()
    assert volumes["live"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert {it["name"]: it["value"] for it in container["env"]}["HOME"] == mounts["tmp"]


@pytest.mark.parametrize("path", [PAGE, DEPLOY / "README.md", ROOT / "README.md"], ids=lambda it: it.parent.name)
def test_commands_of_the_pages_are_accepted(path: Path) -> None:
    text = path.read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
    lines = [line.removeprefix("$ ").partition(" # ")[0] for block in blocks for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("fieldcast ")] + re.findall(r"`(fieldcast [a-z][^`]*)`", text)
    assert commands
    for command in commands:
        parsed(command.replace("<init time>", "2026-03-01T12:05"))


def test_the_page_explains_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.M)
    codes = [int(code) for code, _, _ in rows]
    assert codes == sorted(codes)
    assert set(codes) - {130, 143} == set(ExitCode)


def instructions() -> list[tuple[str, list[str]]]:
    """Return the instructions of the Dockerfile with their words."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], shlex.split(line)[1:]) for line in lines]


def copied() -> list[str]:
    """Return the sources that the image copies out of the project."""
    words = [words for name, words in instructions() if name == "COPY"]
    return [source for each in words if not each[0].startswith("--from") for source in each[:-1]]


def test_the_image_copies_what_is_there_and_not_left_out() -> None:
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert allowed[1:3] == ["*", "!pyproject.toml"]  # nothing but what is named
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, source


def test_the_image_has_all_that_the_package_is_made_of() -> None:
    targets = {path.readlink().name for path in (ROOT / "fieldcast").iterdir() if path.is_symlink()}
    assert targets <= set(copied())
    installed = next(
        words[-1] for name, words in instructions() if name == "RUN" and "install" in words and "--editable" in words
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = installed.partition("[")[2].rstrip("]").split(",")
    assert set(extras) == set(project["optional-dependencies"]) - {"dev"}


def test_the_image_is_that_of_the_job() -> None:
    found = instructions()
    stages = {words[words.index("AS") + 1] for name, words in found if name == "FROM" and "AS" in words}
    assert {words[0] for name, words in found if name == "COPY" and words[0].startswith("--from")} == {
        f"--from={stage}" for stage in stages
    }
    bases = {words[0] for name, words in found if name == "FROM"}
    assert len(bases) == 1  # the environment runs under the Python that made it
    _, job = cron_job()
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    folders = {words[0] for name, words in found if name == "WORKDIR"}
    assert folders == {pod["containers"][0]["workingDir"]} == {FOLDER}
    users = [words for name, words in found if name == "RUN" and words[0] == "useradd"]
    assert [int(words[words.index("--uid") + 1]) for words in users] == [pod["securityContext"]["runAsUser"]]
    (entry,), (default,) = ([words for name, words in found if name == kind] for kind in ("ENTRYPOINT", "CMD"))
    parsed(" ".join(word.strip('[],"') for word in entry + default))


def test_a_citation_names_the_package_and_its_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
