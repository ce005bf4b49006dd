"""Chart, images and package are released together, under one version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_chart_installs_the_images_of_this_version():
    chart = yaml.safe_load((ROOT / "charts" / "rollbook" / "Chart.yaml").read_text())
    assert chart["appVersion"] == PROJECT["project"]["version"]


def test_the_images_are_labelled_with_this_version():
    assert re.findall(r"^ARG VERSION=(.+)$", DOCKERFILE, re.MULTILINE) == [PROJECT["project"]["version"]]


@pytest.mark.parametrize("part", ["registry", "sidecar", "operator"])
def test_an_image_has_only_its_own_part(part):
    stage = re.search(rf"^FROM tools AS {part}-build$(.+?)^FROM ", DOCKERFILE, re.MULTILINE | re.DOTALL)[1]
    sources = set(re.findall(r"^COPY (\w+) \./", stage, re.MULTILINE))
    assert sources == {"client", part}
    assert f"requirements/{part}.txt" in stage


@pytest.mark.parametrize("part", ["registry", "sidecar", "operator"])
def test_an_image_does_not_run_as_root(part):
    stage = re.search(rf"^FROM base AS {part}$(.+?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)[1]
    assert re.findall(r"^USER (.+)$", stage, re.MULTILINE) == ["65532:65532"]
    assert f'ENTRYPOINT ["rollbook-{part}"]' in stage


def test_what_the_images_install_is_pinned_by_hash():
    installs = re.findall(
        r"pip (?:--python \S+ )?install (.*?)(?:&&|$)", DOCKERFILE.replace("\\\n", " "), re.MULTILINE
    )
    assert len(installs) == 1 + 2 * 3
    assert [
        line for line in installs if "--require-hashes" not in line and "--no-deps dist/" not in line
    ] == []
