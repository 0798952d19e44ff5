"""What the doctor says of packages and FAISS builds, on invented installations."""

from __future__ import annotations

import pytest

from tga.cli.checks import Finding
from tga.cli.environment import MALICIOUS, disk, faiss_build, gpus, installed, packages


def problems(findings: list[Finding]) -> list[str]:
    return [str(finding.problem) for finding in findings if finding.problem is not None]


def test_this_installation_is_complete() -> None:
    versions = installed()
    findings = list(packages(versions))
    assert problems(findings) == []
    found = {finding.name: finding.found for finding in findings}
    assert found["torch"] == versions["torch"] and found["transformers"] == versions["transformers"]


def test_missing_and_wrong_versions_are_all_named() -> None:
    versions = {**installed(), "hydra-core": "1.2.0"}
    del versions["pyarrow"]
    found = problems(list(packages(versions)))
    assert len(found) == 2
    assert any("pyarrow is not installed" in text and "pip install 'pyarrow>=" in text for text in found)
    assert any("hydra-core is of a version" in text and "Given: 1.2.0" in text for text in found)


@pytest.mark.parametrize("version", MALICIOUS["lightning"])
def test_a_malicious_upload_is_named_as_such(version: str) -> None:
    [found] = problems(list(packages({**installed(), "lightning": version})))
    assert "malicious" in found and version in found


def test_two_builds_of_faiss_are_a_problem_with_the_command() -> None:
    [finding] = faiss_build({"faiss-cpu": "1.15.1", "faiss-gpu": "1.14.3"})
    assert finding.problem is not None
    assert "faiss-cpu 1.15.1, faiss-gpu 1.14.3" in str(finding.problem)
    assert "pip uninstall -y faiss-cpu faiss-gpu && pip install faiss-gpu" in str(finding.problem)


def test_one_build_is_none() -> None:
    [finding] = faiss_build({"faiss-cpu": "1.15.1"})
    assert finding.problem is None and finding.found.startswith("faiss-cpu 1.15.1")


def test_the_gpu_build_stands_for_the_other() -> None:
    versions = {**installed(), "faiss-gpu": "1.14.3"}
    versions.pop("faiss-cpu", None)
    assert problems(list(packages(versions))) == []


def test_devices_and_disks_are_described() -> None:
    assert [finding.name for finding in gpus()][0].startswith("GPU")
    names = [finding.name for finding in disk()]
    assert "disk of the working directory" in names and "disk of the hub cache" in names
