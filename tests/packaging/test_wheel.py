"""What is installed: the packages, with the bundled checkpoints, examples and recipes inside; and all of it runs.

The commands run in an environment of their own, into which the wheel alone is installed: what it depends on is found in
the tests' environment, the checkout is not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kvcompress", "tinyvae", "kvcompress_train", "kvcompress_eval")


BUNDLED = {"reference-lm", "reference-lm-tinyvae"}
FURTHER = "another-tinyvae"


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a checkout that holds a further codec, which is in the index as all are."""
    place = tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "checkpoints", "examples"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    shutil.copytree(ROOT / "checkpoints" / "reference-lm-tinyvae", place / "checkpoints" / FURTHER)
    index = json.loads((place / "checkpoints" / "index.json").read_text())
    index |= {name.replace("reference-lm", "another"): digest for name, digest in index.items() if "tinyvae" in name}
    (place / "checkpoints" / "index.json").write_text(json.dumps(index))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(place)]
    subprocess.run(command, check=True, capture_output=True)
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_file)


def test_wheel_holds_exactly_these_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_wheel_brings_the_bundled_checkpoints(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for checkpoint in BUNDLED:
        assert f"kvcompress/checkpoints/{checkpoint}/model.safetensors" in names
        assert f"kvcompress/checkpoints/{checkpoint}/README.md" in names
    assert "kvcompress/checkpoints/index.json" in names
    assert "kvcompress/py.typed" in names
    assert "kvcompress/prune/scorers/fitted.json" in names


def test_wheel_brings_what_training_and_measuring_read(wheel: zipfile.ZipFile) -> None:
    """Every file of the two packages that is no module: recipes, templates; and the example sessions."""
    names = set(wheel.namelist())
    for package in ("kvcompress_train", "kvcompress_eval"):
        there = [path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert {path.relative_to(ROOT).as_posix() for path in there} <= names
    assert {"kvcompress_train/recipes/small.yaml", "kvcompress_eval/tasks/page.html.j2"} <= names
    assert wheel.read("kvcompress_eval/sessions.jsonl") == (ROOT / "examples" / "sessions.jsonl").read_bytes()


def test_wheel_holds_no_checkpoint_but_the_bundled_ones(wheel: zipfile.ZipFile) -> None:
    prefix = "kvcompress/checkpoints/"
    inside = [name.removeprefix(prefix) for name in wheel.namelist() if name.startswith(prefix)]
    assert {name.split("/")[0] for name in inside if "/" in name} == BUNDLED
    assert FURTHER in wheel.read(f"{prefix}index.json").decode()


def test_what_the_wheel_leaves_out_is_not_offered(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import kvcompress.hub.bundled as zoo, kvcompress.hub.places as places; "
        "print(zoo.checkpoint_root()); print(*zoo.bundled()); print(*(one.name for one in places.all_codecs()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    root, offered, codecs = done.stdout.splitlines()
    assert root == str(tmp_path / "kvcompress" / "checkpoints")
    assert {name.split("/")[0] for name in offered.split()} == BUNDLED
    assert "reference-lm-tinyvae" in codecs.split()
    assert FURTHER not in codecs


@dataclass(frozen=True)
class Installed:
    """An environment into which the wheel is installed.

    Attributes:
        bin: Directory of its programs.
        place: A directory to work in, outside the checkout.
    """

    bin: Path
    place: Path

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run `kvcompress`, as its user would; the checkout is on no path."""
        return self._program("kvcompress", *map(str, arguments))

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python code there."""
        return self._program("python", "-c", code)

    def _program(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.bin / name), *arguments]
        return subprocess.run(command, cwd=self.place, env=kept, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def installed(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("installed")
    venv.create(place / "venv", symlinks=True)
    python = place / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", str(wheel_file)], check=True, capture_output=True)
    site = next((place / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # .pth files in there are not followed
    found = Installed(place / "venv" / "bin", place)
    assert found.python("import kvcompress_eval; print(kvcompress_eval.__file__)").stdout.startswith(str(site))
    assert found.python("import eval").returncode != 0, "the checkout is on the path"
    return found


RECIPE = """
fit: {rank: 24, prior_rank: 8, prior_width: 16, fisher_sessions: 2, continuation_tokens: 16}
rate_stage: {steps: 1, learning_rate: 0.001}
divergence_stage: {steps: 1, learning_rate: 0.0001}
continuation_tokens: 16
validate_steps: 1
logger: csv
"""


def test_installed_commands_describe_themselves(installed: Installed) -> None:
    assert "Train a codec" in installed.run("--help").stdout
    for command in (["train"], ["eval"], ["eval", "run"], ["eval", "tasks"], ["eval", "devices"]):
        done = installed.run(*command, "--help")
        assert done.returncode == 0, done.stderr
        assert "Usage: kvcompress" in done.stdout
    assert "lowest_qp: 48" in installed.run("train", "--config", "smollm2", "--show-recipe").stdout


def test_every_installed_module_is_imported_and_every_page_has_its_template(installed: Installed) -> None:
    """None of them asks for a package of the checkout; the pages are those of reports that the repository keeps."""
    pytest.importorskip("lightning", reason="the train extra is not installed")
    reports = {name: str(ROOT / "eval" / "reports" / name / "report.json") for name in ("smollm2-tasks", "stories260k")}
    done = installed.python(
        "import importlib, json, pkgutil, kvcompress_eval, kvcompress_train\n"
        "for package in (kvcompress_eval, kvcompress_train):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "from kvcompress_eval.suite.report import render_html as suite\n"
        "from kvcompress_eval.tasks.html import render_html as tasks\n"
        f"print(tasks(json.load(open({reports['smollm2-tasks']!r})))[:15])\n"
        f"print(suite(json.load(open({reports['stories260k']!r})))[:15])\n"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:2] == ["<!doctype html>", "<!doctype html>"]


def test_an_installed_package_trains_a_codec_and_measures_it(installed: Installed) -> None:
    """The codec of a user, on sessions of that user, beside a baseline; nothing of the checkout is at hand."""
    pytest.importorskip("lightning", reason="the train extra is not installed")
    rows = [json.loads(line) for line in (ROOT / "examples" / "sessions.jsonl").read_text().splitlines()[:4]]
    short = [json.dumps({"id": row["id"], "messages": row["messages"][:6]}) + "\n" for row in rows]
    (installed.place / "mine.jsonl").write_text("".join(short))
    (installed.place / "recipe.yaml").write_text(RECIPE)
    made = ("--config", "recipe.yaml", "--sessions", "mine.jsonl", "-o", "codec", "--threads", 1, "--json")
    trained = installed.run("train", *made)
    assert trained.returncode == 0, trained.stderr[-2000:]
    fingerprint = json.loads(trained.stdout)["fingerprint"]
    sizes = ("--quick", "--tokens", 48, "--continuation", 64, "--count", 1, "--hops", 0, "--threads", 1)
    given = ("--codec", "codec", "--codec", "int8", "--sessions", "mine.jsonl", "-o", "out", *sizes)
    measured = installed.run("eval", "run", *given)
    assert measured.returncode == 0, measured.stderr[-2000:]
    assert {path.name for path in (installed.place / "out").iterdir()} >= {"report.md", "report.html", "report.json"}
    result = json.loads((installed.place / "out" / "report.json").read_text())
    assert result["command"].startswith("kvcompress eval run --codec codec")
    assert result["commit"] is None
    assert {one["family"] for one in result["codecs"] if one["failed"] is None} >= {"tinyvae", "int8"}
    assert json.loads((installed.place / "codec" / "config.json").read_text())["fitted"]["recipe"]["logger"] == "csv"
    assert len(fingerprint) == 64


def test_bad_input_of_installed_commands_ends_in_one_line(installed: Installed) -> None:
    (installed.place / "empty").mkdir()
    for arguments, told in (
        (["train", "--config", "nix", "--sessions", "mine.jsonl", "-o", "c"], "no such recipe"),
        (["train", "-o", "c"], "needs either --sessions or --shards"),
        (["eval", "run", "--codec", "empty"], "no codec here"),
    ):
        done = installed.run(*arguments)
        assert done.returncode == 1
        assert told in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
