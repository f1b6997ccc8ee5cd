"""What the pages say is there is there, and each command in them is run by a test that this page names."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

# A page's fenced commands → the test that runs them. CONTRIBUTING's are how the tests themselves are run.
RUN_BY = {
    "README.md": "tests/e2e/test_deploy.py",
    "CONTRIBUTING.md": "tests/unit/test_docs.py",
    "deploy/README.md": "tests/e2e/test_metrics.py",
    "registry/README.md": "tests/integration/test_registry_page.py",
    "deploy/howto/other-machines.md": "tests/e2e/test_other_machines.py",
    "deploy/howto/behind-a-proxy.md": "tests/e2e/test_front.py",
    "deploy/howto/backup-and-restore.md": "tests/e2e/test_backup.py",
    "deploy/howto/upgrade.md": "tests/e2e/test_backup.py",
    "deploy/howto/secrets.md": "tests/e2e/test_secrets.py",
    "deploy/howto/notifications.md": "tests/e2e/test_notifications.py",
    "deploy/howto/why-was-my-function-killed.md": "tests/e2e/test_howto_killed.py",
    "deploy/howto/users-and-audit.md": "tests/unit/test_cli_users.py",
    "deploy/howto/offline.md": "tests/e2e/test_offline.py",
    "deploy/howto/private-packages.md": "tests/e2e/test_private_packages.py",
    "deploy/howto/from-aws-lambda.md": "tests/e2e/test_howto_migrations.py",
    "deploy/howto/from-openfaas.md": "tests/e2e/test_howto_migrations.py",
}
FOLDERS = "faas|registry|gateway|worker|deploy|tests"


def pages(root: Path) -> list[Path]:
    found = (page.relative_to(root) for page in root.rglob("*.md"))
    return [
        root / page
        for page in sorted(found)
        if page.parts[0] != "build" and not any(p.startswith(".") for p in page.parts)
    ]


def commands(page: Path) -> str:
    """The fenced blocks that hold commands: no drawing, no file's content."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)  # in pairs, whatever they hold
    blocks = [block for language, block in fenced if language in ("", "sh")]
    return "".join(block for block in blocks if not re.search(r"──|─▶", block) and block.isascii())


def test_every_path_that_a_page_names_is_there(project_root: Path) -> None:
    missing = []
    for page in pages(project_root):
        text = page.read_text()
        named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text))
        missing += [(page.name, path) for path in named if not (project_root / path).exists()]
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            if not (page.parent / target).exists():
                missing.append((page.name, target))
    assert missing == []


@pytest.mark.parametrize("package", ["registry", "gateway", "worker", "worker/drivers/oci", "deploy"])
def test_a_file_that_a_packages_page_names_is_in_that_package(project_root: Path, package: str) -> None:
    page = project_root / package / "README.md"
    folder = project_root / package.split("/")[0]
    named = set(re.findall(r"`([\w./-]+\.(?:py|js|sh|yml|service))`", page.read_text()))
    named -= {name for name in named if (project_root / name).exists()}
    assert named
    assert [name for name in named if not list(folder.rglob(name))] == []


@pytest.mark.parametrize(
    "package", ["gateway", "gateway/control", "worker", "worker/memory", "worker/launcher", "worker/drivers/oci"]
)
def test_a_packages_page_names_each_of_its_files(project_root: Path, package: str) -> None:
    folder = project_root / package
    page = folder / "README.md" if (folder / "README.md").exists() else folder.parent / "README.md"
    named = {Path(name).name for name in re.findall(r"[\w./-]+\.py\b", page.read_text())}  # in drawings too
    there = {path.name for path in folder.glob("*.py") if path.name != "__init__.py"}
    assert sorted(there - named) == []


def test_the_registrys_page_has_a_row_for_each_of_its_files_and_folders(project_root: Path) -> None:
    package = project_root / "registry"
    there = {p.name for p in package.iterdir() if p.suffix == ".py" and p.name != "__init__.py"}
    there |= {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    rows = re.findall(r"^\| (`[^|]*) \|", (package / "README.md").read_text(), re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+(?:\.py|/))`", row)}
    assert named == there


def test_every_page_with_commands_has_a_test_that_runs_them(project_root: Path) -> None:
    with_commands = {str(p.relative_to(project_root)) for p in pages(project_root) if commands(p).strip()}
    assert with_commands == RUN_BY.keys()
    for page, test in RUN_BY.items():
        source = (project_root / test).read_text()
        assert Path(page).name in source or "tests.support.prometheus" in source, (page, test)


def test_every_how_to_is_in_both_indexes_and_has_a_test_of_its_own(project_root: Path) -> None:
    there = {page.name for page in (project_root / "deploy" / "howto").glob("*.md")}
    for index in ("README.md", "deploy/README.md"):
        text = (project_root / index).read_text()
        assert there == {Path(target).name for target in re.findall(r"\]\(([\w./-]*howto/[\w.-]+\.md)\)", text)}, index
    assert there == {Path(page).name for page in RUN_BY if "howto/" in page}


def test_every_link_leads_to_a_heading_that_is_there(project_root: Path) -> None:
    wrong = []
    for page in pages(project_root):
        for target, heading in re.findall(r"\]\(([^)#:\s]*)#([^)]+)\)", page.read_text()):
            there = headings(page.parent / target if target else page)
            if heading not in there:
                wrong.append((str(page.relative_to(project_root)), f"{target}#{heading}"))
    assert wrong == []


def headings(page: Path) -> set[str]:
    """As they are linked to: lower case, hyphens for spaces, no other signs."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_contributings_commands_are_modes_of_the_scripts(project_root: Path) -> None:
    script = (project_root / "tests" / "run").read_text()
    for line in commands(project_root / "CONTRIBUTING.md").splitlines():
        program, *words = line.partition("#")[0].split()
        assert (project_root / program).stat().st_mode & 0o111, program
        if words and words[0] != "--":
            assert re.search(rf"^\s+{words[0]}\b|\| {words[0]} ?[|)]", script, re.M), line


@pytest.mark.parametrize("mode", ["nonsense", "--nonsense"])
def test_the_test_script_refuses_what_it_does_not_know(project_root: Path, mode: str) -> None:
    done = subprocess.run([project_root / "tests" / "run", mode], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"unknown argument {mode}" in done.stderr
