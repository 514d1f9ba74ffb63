"""README, CONTRIBUTING and docs/: commands are parsed, and what pages name is there.

`tests/e2e/test_docs.py` runs the commands.
"""

import ast
import dataclasses
import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serve_app.options import Options
from serve_app.watch import telemetry
from tests.pages import PAGES, ROOT, blocks, commands, lines, read, three_ways
from tests.unit.serve_app.application import local_api
from tests.unit.serve_app.test_api import Mean
from tlray import cli
from tlray.bundle.spec import BundleSpec
from tlray.config import commands as commands_of
from tlray.config import export, helptext, prediction
from tlray.config.recipes import RECIPES
from tlray.config.training import TrainConfig
from tlray.errors import ImageErrorCode

README = read("README.md")
DOCS = [page for page in PAGES if page.parent.name == "docs"]
SHELL = [(page, block) for page in PAGES for block in blocks(page.read_text(), "bash")]
COMMANDS = [(page, command) for page, block in SHELL for command in commands(block)]
CONFIGS = (
    TrainConfig,
    *(
        each
        for module in (commands_of, export, prediction)
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == module.__name__
    ),
)
OTHERS_OPTIONS = {"--head", "--help"}
"""Options in the text that are no settings of tlray."""


def _id(value: Any) -> str:
    return value.stem if isinstance(value, Path) else " ".join(value)


@pytest.fixture
def parsed(monkeypatch) -> list[Any]:
    """Ends each command after its arguments were parsed; gives the configs that came of them."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"))
    found: list[Any] = []
    parse = helptext.parse

    def stop(*args: Any, **kwargs: Any) -> Any:
        found.append(parse(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(helptext, "parse", stop)
    return found


# Commands


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=_id)
def test_a_command_is_parsed(page, command, parsed):  # noqa: ARG001 (the page is in the test's name)
    name, *arguments = command
    assert (ROOT / "jobs" / f"{name}.py").is_file() or name in {"engines", "phantoms", "serve"}
    assert cli.execute(name, arguments) == cli.EXIT_INTERRUPTED
    assert len(parsed) == 1


def test_a_wrong_option_would_be_noticed(parsed):
    with pytest.raises(SystemExit) as exit_info:
        cli.execute("score", ["--bundle", "b", "--input", "i", "--out", "o", "--refer-below", "0.5"])
    assert exit_info.value.code == 2
    assert parsed == []


def test_the_commands_are_found():
    of_page = {page.stem: [command[0] for each, command in COMMANDS if each == page] for page in PAGES}
    assert of_page["README"] == ["train", "score", "serve"]
    assert of_page["scoring"] == ["score", "evaluate", "score"]
    assert of_page["cluster"] == ["train", "score"]
    assert of_page["results"] == ["train", "train", "train", "features"]
    assert of_page["public_set"] == ["audit", "train", "verify"]


def test_the_three_ways_are_parsed_and_the_same_in_both_places(parsed):
    ways = three_ways(README)
    assert ways == three_ways(read("docs/training.md"))
    for name, *options in ways:
        assert cli.execute(name, [*options, "--data", "d", "--out", "o"]) == cli.EXIT_INTERRUPTED
    assert [config.backbone for config in parsed] == ["EfficientNetB0", "own.keras", "InceptionV3"]
    assert (parsed[1].cut, parsed[2].weights) == ("LAYER", "runs/standard/bundle")


def test_the_jobs_of_the_cluster(parsed, capsys):
    """There is no bucket here to run them on."""
    shown = re.findall(r"ray job submit .* -- python jobs/(\w+)\.py (.*)", read("docs/cluster.md"))
    assert [name for name, _ in shown] == ["train", "score"]
    for name, arguments in shown:
        assert (ROOT / "jobs" / f"{name}.py").is_file()
        assert cli.execute(name, shlex.split(arguments)) == cli.EXIT_INTERRUPTED
    assert parsed[0].num_workers == 4
    assert parsed[0].use_gpu
    assert "interrupted" in capsys.readouterr().err


def test_the_endpoint_is_started_as_shown(parsed):
    """`test_start.py` runs it; here its options are understood, and its application is where it is said to be."""
    shown = [command for page, command in COMMANDS if page.stem == "README" and command[0] == "serve"]
    ((_, *arguments),) = shown
    assert cli.execute("serve", arguments) == cli.EXIT_INTERRUPTED
    assert (parsed[0].bundle, parsed[0].port) == ("runs/probe/bundle", 8000)
    (application, variables) = re.findall(r"`serve run (\S+) (\S+)`", read("docs/serving.md"))[0]
    module, name = application.split(":")
    options = Options.model_validate(dict([variables.split("=")]))
    assert getattr(importlib.import_module(module), name)(options)._bound_deployment.name == "Ingress"


@pytest.mark.parametrize(("page", "block"), SHELL, ids=lambda value: value.stem if isinstance(value, Path) else "")
def test_every_block_is_shell(page, block):  # noqa: ARG001
    """Commands of AWS and of Ray's launcher are checked by this alone: there is no account to run them in."""
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)


BENCHMARKS = [line for _, block in SHELL for line in lines(block) if line.startswith("python benchmarks/")]


@pytest.mark.parametrize("line", BENCHMARKS)
def test_a_benchmark_has_the_options(line):
    _, script, *arguments = shlex.split(line, comments=True)
    (settings,) = (
        node
        for node in ast.parse((ROOT / script).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    names = {ast.unparse(node.target) for node in settings.body if isinstance(node, ast.AnnAssign)}
    assert {each[2:].replace("-", "_") for each in arguments if each.startswith("--")} <= names


def test_paths_that_pytest_is_given_are_there():
    shown = [line for _, block in SHELL for line in lines(block) if " -m pytest " in line]
    assert len(shown) == 4
    for line in shown:
        path = shlex.split(line, comments=True)[3]
        assert (ROOT / path).exists(), path


def test_every_make_target_is_there():
    text = "".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"(?:`|^ *|`\w+=\w+ )make (\w+)", text, re.MULTILINE))
    assert targets >= {"demo", "test", "check", "serve", "bench", "soak", "lock", "setup"}
    done = subprocess.run(["make", "-n", *sorted(targets)], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_options_in_the_text_are_there():
    fields = [field for config in CONFIGS for field in dataclasses.fields(config)]
    known = {f"--{field.name.replace('_', '-')}" for field in fields}
    known |= {f"--no-{field.name.replace('_', '-')}" for field in fields if field.default is True}
    for page in PAGES:
        spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
        named = {option for span in spans for option in re.findall(r"(?<!\S)--[a-z0-9-]+", span)}
        assert named - known - OTHERS_OPTIONS == set(), page.name


# What pages link to and name


def headings(text: str) -> set[str]:
    """Returns the anchors that GitHub makes of a page's headings."""
    shown = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in shown}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md"], ids=_id)
def test_links_lead_to_files_and_headings(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert target.is_relative_to(ROOT)
        assert not anchor or anchor in headings(target.read_text()), link


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_paths_of_the_project_in_the_text_are_there(page):
    spans = re.findall(r"`([^`\s]+)`", page.read_text())
    tops = ("benchmarks/", "docs/", "jobs/", "serve_app/", "tests/", "tlray/")
    assert [span for span in spans if span.startswith(tops) and not (ROOT / span).exists()] == []


def test_every_page_is_linked_from_the_readme_and_says_what_it_is_for():
    for page in DOCS:
        assert f"(docs/{page.name})" in README, page.name
        title, purpose, *_ = page.read_text().split("\n\n")
        assert title.startswith("# ")
        assert purpose.startswith("This page "), page.name
    assert "(CONTRIBUTING.md)" in README


def test_the_readme_is_short():
    shown = README.splitlines()
    assert len(shown) <= 140
    assert [line for line in shown if len(line) > 120] == []
    assert [line for line in shown if len(line) > 100 and not line.startswith(("|", "    "))] == []


def test_the_drawing_names_packages_that_are_there():
    (drawing,) = blocks(README, "mermaid")
    names = re.findall(r"\b(?:tlray\.\w+|serve_app)\b", drawing)
    assert len(names) == len(set(names)) == 10
    assert [name for name in names if not (ROOT / name.replace(".", "/") / "__init__.py").is_file()] == []


def test_the_tree_names_every_package_and_what_passes_through_it():
    (tree,) = blocks(read("docs/architecture.md"), "text")
    packages = [path.parent for name in ("tlray", "serve_app") for path in (ROOT / name).glob("*/__init__.py")]
    assert {path.name for path in packages if not re.search(rf"^  {path.name}/ ", tree, re.MULTILINE)} == set()
    assert len(packages) == len(re.findall(r"^  \w+/", tree, re.MULTILINE))
    assert {
        path.name for path in packages if not ast.get_docstring(ast.parse((path / "__init__.py").read_text()))
    } == set()


# What pages list


def first_cells(text: str, heading: str) -> list[str]:
    """Returns the code in the first column of the table below a heading."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.partition(" | ")[0] for line in section.splitlines() if line.startswith("| ")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_every_recipe_is_explained():
    assert first_cells(read("docs/training.md"), "Recipes") == list(RECIPES)


def test_every_field_of_a_bundle_is_explained():
    fields = {field.name for field in dataclasses.fields(BundleSpec)}
    assert set(first_cells(read("docs/bundle.md"), "bundle.json")) == fields


def test_every_error_code_of_scoring_is_named():
    (sentence,) = re.findall(r"The error codes are (.*?)\.\n", read("docs/scoring.md"), re.DOTALL)
    # Only the extraction of features looks at an image a second time.
    assert re.findall(r"`(\w+)`", sentence) == [code for code in ImageErrorCode if code != ImageErrorCode.CHANGED]


def test_every_metric_of_the_endpoint_is_explained():
    names = re.findall(r'"(tlray_\w+)"', Path(telemetry.__file__).read_text())
    shown = first_cells(read("docs/serving.md"), "Metrics, logs, drift")
    assert {name.removeprefix("ray_").removesuffix("_total") for name in shown} == set(names)


def test_addresses_of_the_endpoint_are_there():
    api = local_api(Mean())
    known = {(method.upper(), path) for path, methods in api.openapi()["paths"].items() for method in methods}
    known |= {("GET", route.path) for route in api.routes if getattr(route, "path", "") in {"/", "/docs"}}
    shown = re.findall(r"`(GET|POST|DELETE) (/\S*)`", read("docs/serving.md"))
    assert len(shown) > 15
    missing = {
        (method, path)
        for method, path in shown
        if (method, path.replace("NAME", "{name}").replace("/ID", "/{batch_id}")) not in known
    }
    assert missing == set()


def test_the_launcher_has_the_ray_of_the_lock():
    (locked,) = re.findall(r"^ray==(\S+)", read("requirements.lock"), re.MULTILINE)
    assert re.findall(r"'ray\[default\]==(.*?)'", read("docs/cluster.md")) == [locked]
