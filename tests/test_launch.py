"""launch.py: what it decides, and real starts of a copy of it with a stub of the program."""

import ast
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import launch

STUB = """
import sys, time
def main(argv):
    print("ran", *argv, "in", sys.prefix, flush=True)
    if argv == ["wait"]:
        time.sleep(60)
    return 7
"""
TORCH = launch.pins(launch.REQUIREMENTS)["torch"]
posix = pytest.mark.skipif(os.name == "nt", reason="Ctrl+C is sent as a POSIX signal here")


@pytest.mark.parametrize("version", [(3, 6, 8), (3, 10, 12), (2, 7, 18)])
def test_old_python_is_told_what_is_needed(version: tuple[int, ...]) -> None:
    message = launch.python_problem(version)
    assert "3.11 or newer" in message
    assert f"Python {version[0]}.{version[1]}" in message


def test_old_python_can_read_the_file_and_sees_the_message() -> None:
    path = launch.ROOT / "launch.py"
    ast.parse(path.read_text("utf-8"), feature_version=(3, 6))
    code = f"import runpy, sys; sys.version_info = (3, 6, 8); runpy.run_path({str(path)!r})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.startswith("sdlora needs Python 3.11 or newer")


def test_new_pythons_are_taken() -> None:
    assert not launch.python_problem((3, 11, 0)) and not launch.python_problem((4, 0, 0))


@pytest.mark.parametrize("platform", ["linux", "darwin", "freebsd14"])
def test_pip_installs_the_pins(platform: str) -> None:
    (command,) = launch.install_commands(platform, Path("py"), Path("a b/requirements.txt"))
    assert command[:4] == ["py", "-m", "pip", "install"]
    assert command[-2:] == ["-r", str(Path("a b/requirements.txt"))]


def test_windows_installs_with_uv_for_the_graphics_card() -> None:
    get_uv, command = launch.install_commands("win32", Path("py"), Path("requirements.txt"))
    assert get_uv[:4] == ["py", "-m", "pip", "install"]
    assert get_uv[-1].startswith("uv==")
    assert command[:5] == ["py", "-m", "uv", "pip", "install"]
    assert {"--python=py", "--torch-backend=auto"} <= set(command)


def test_the_lock_is_installed_by_hashes() -> None:
    (command,) = launch.install_commands("linux", Path("py"), launch.REQUIREMENTS, locked=True)
    assert command[-3:] == ["--require-hashes", "-r", str(launch.ROOT / "requirements.lock")]


def test_windows_takes_pytorch_for_the_graphics_card_and_the_rest_by_hashes() -> None:
    _, torch, rest = launch.install_commands("win32", Path("py"), launch.REQUIREMENTS, locked=True)
    assert "--torch-backend=auto" in torch and torch[-2:] == ["--no-deps", f"torch=={TORCH}"]
    assert rest[2] == "pip" and "--require-hashes" in rest


def test_the_lock_has_every_pin_and_hashes_for_each_system() -> None:
    text = (launch.ROOT / "requirements.lock").read_text("utf-8")
    rows = re.findall(r"^([\w.-]+)==(\S+?)( ;.*?)? \\\n((?:    --hash=.*\n)+)", text, re.MULTILINE)
    assert len(rows) == len(re.findall(r"^[^\s#]", text, re.MULTILINE))
    pinned = {name.replace("_", "-"): pin for name, pin in launch.pins(launch.REQUIREMENTS).items()}
    locked = {name: version for name, version, _, _ in rows}
    assert {name: locked.get(name) for name in pinned} == pinned
    assert "+cpu" not in text and "://" not in text and "sys_platform == 'win32'" in text
    assert text.splitlines()[1].strip("# ").startswith("uv pip compile --universal")


def test_pins_skip_comments(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("# why\ntorch==2.13.0  # a note\n\nPillow==12.3.0\n", encoding="utf-8")
    assert launch.pins(file) == {"torch": "2.13.0", "Pillow": "12.3.0"}


def test_a_local_build_meets_the_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cu130")
    assert launch.is_met("torch", "2.13.0")
    assert not launch.is_met("torch", "2.13")


def test_a_missing_package_does_not_meet_the_pin() -> None:
    assert not launch.is_met("no-such-package-here", "1.0")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """launch.py's names, pointed at an empty folder with a requirements file nobody meets."""
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    monkeypatch.setattr(launch, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(launch, "REQUIREMENTS", tmp_path / "requirements.txt")
    launch.REQUIREMENTS.write_text("no-such-package-here==1.0\n", encoding="utf-8")
    return tmp_path


def put_stamp() -> None:
    """Leave what a finished install leaves."""
    launch.venv_python().parent.mkdir(parents=True)
    launch.venv_python().touch()
    path, text = launch.stamp_of(launch.REQUIREMENTS)
    path.write_text(text, encoding="utf-8")


def test_stamp_counts_until_the_requirements_change(house: Path) -> None:
    assert launch.ready_python([launch.REQUIREMENTS]) is None
    put_stamp()
    assert launch.ready_python([launch.REQUIREMENTS]) == launch.venv_python()
    launch.REQUIREMENTS.write_text("no-such-package-here==2.0\n", encoding="utf-8")
    assert launch.ready_python([launch.REQUIREMENTS]) is None


def test_stamp_counts_only_with_its_python(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_stamp()
    with monkeypatch.context() as other:
        other.setattr(sys, "version_info", (3, 99, 0))
        assert not launch.is_stamped(launch.REQUIREMENTS)
    shutil.rmtree(house / ".venv" / launch.venv_python().parent.name)
    assert launch.ready_python([launch.REQUIREMENTS]) is None


def test_each_requirements_file_has_its_own_stamp() -> None:
    runtime, tests = (
        launch.stamp_of(file)[0] for file in (launch.REQUIREMENTS, launch.TEST_REQUIREMENTS)
    )
    assert runtime != tests


def test_an_environment_that_meets_the_pins_is_used(house: Path) -> None:
    launch.REQUIREMENTS.write_text(f"pytest=={metadata.version('pytest')}\n", encoding="utf-8")
    assert launch.ready_python([launch.REQUIREMENTS]) == Path(sys.executable)
    assert not launch.VENV.exists()


def shown(lines: list[str]) -> list[str]:
    seen: set[str] = set()
    texts = [launch.progress(line, {"torch", "huggingface-hub"}, seen) for line in lines]
    return [text for text in texts if text]


def test_pip_progress_counts_the_pinned_packages() -> None:
    assert shown(
        [
            "Collecting torch==2.13.0 (from -r requirements.txt (line 2))",
            "  Downloading torch-2.13.0-cp311-linux.whl (888.1 MB)",
            "  Downloading small-1.0.whl (9.1 MB)",
            "Collecting filelock (from torch)",
            "Processing /a-b/wheels/huggingface_hub-2.4.0-py3-none-any.whl",
            "Requirement already satisfied: huggingface_hub==2.4.0 in ./x (2.4.0)",
            "Collecting torch==2.13.0",
            "Installing collected packages: a, b",
        ]
    ) == [
        "[ 1/2] torch",
        "        Downloading torch-2.13.0-cp311-linux.whl (888.1 MB)",
        "[ 2/2] huggingface-hub",
        "Putting the packages in place; this takes a minute or more ...",
    ]


def test_uv_progress_counts_them_too() -> None:
    lines = ["Downloading torch (2.4GiB)", "Prepared 9 packages in 2m", " + torch==2.13.0+cu130"]
    texts = shown(lines)
    assert texts[0].strip() == lines[0]
    assert texts[-1] == "[ 1/2] torch"


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "The disk is full"),
        ("error: No space left on device (os error 28)", "The disk is full"),
        ("ERROR: Max retries exceeded: Failed to establish a new connection", "check the network"),
        ("error: client error (Connect)", "check the network"),
        ("ERROR: No matching distribution found for torch==2.13.0", "64-bit Python 3.11"),
        ("ERROR: something new", "Run the same command again"),
    ],
)
def test_a_failed_install_says_what_to_do(line: str, advice: str) -> None:
    message = launch.explain(["Collecting torch", line, "a notice"], launch.INSTALLERS["linux"])
    assert line in message
    assert advice.lower() in message.lower()
    assert "{" not in message and str(launch.LOG) in message


def test_an_unreachable_index_is_not_called_a_missing_package() -> None:
    tail = ["connection broken by NewConnectionError", "ERROR: No matching distribution found"]
    message = launch.explain(tail, launch.INSTALLERS["win32"])
    assert "Check the network" in message and "UV_DEFAULT_INDEX" in message


def test_a_pytorch_of_ones_own_keeps_its_place(house: Path) -> None:
    packages = "Lib/site-packages" if os.name == "nt" else "lib/python3.11/site-packages"
    assert launch.why_unlocked(launch.REQUIREMENTS) == "there is no requirements.lock"
    (house / "requirements.lock").touch()
    (house / ".venv" / packages / "torch-2.13.0+cu126.dist-info").mkdir(parents=True)
    assert launch.why_unlocked(launch.REQUIREMENTS).endswith("of your own, torch-2.13.0+cu126")


def test_little_room_is_a_warning_in_gib() -> None:
    assert "2.0 GiB are free" in launch.room_warning(2 * 2**30, 6)
    assert not launch.room_warning(6 * 2**30, 6)


def test_a_python_without_ensurepip_is_told_what_to_install(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name != "ensurepip")
    assert launch.main(["train"]) == 1
    errors = capsys.readouterr().err
    assert "module ensurepip" in errors and "apt install python3-venv" in errors


def recorded(monkeypatch: pytest.MonkeyPatch, failing: str = "") -> list[list[str]]:
    """Every command that launch.py would run; the one that names `failing` returns 1."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> SimpleNamespace:
        commands.append(list(command))
        return SimpleNamespace(returncode=int(failing in command))

    monkeypatch.setattr(launch.subprocess, "run", run)
    return commands


@pytest.mark.parametrize(("failing", "code"), [("", 0), ("ruff", 1), ("mypy", 1), ("pytest", 1)])
def test_every_check_runs_and_counts(
    failing: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = recorded(monkeypatch, failing)
    monkeypatch.setattr(launch, "find_chromium", lambda: "/bin/chromium")
    assert launch.run_tests(["-k", "shape"]) == code
    assert [command[2] for command in commands] == ["ruff", "ruff", "mypy", "pytest"]
    assert commands[-1][3:] == [*launch.PYTEST[1:], "-k", "shape"]
    assert f"FAILED: {failing}" in capsys.readouterr().out or not failing


def test_the_fast_lane_is_style_and_fast_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """No types, and no Chromium is looked for."""
    commands = recorded(monkeypatch)
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("SDLORA_CHROMIUM", "/no/such/program")
    assert launch.run_tests(["--fast", "-x"]) == 0
    assert [command[2] for command in commands] == ["ruff", "ruff", "pytest"]
    assert commands[-1][3:] == [*launch.FAST_PYTEST[1:], "--fast", "-x"]


def test_coverage_is_measured_when_asked_for(tmp_path: Path) -> None:
    command = launch.pytest_command(["-x", "--coverage", "-k", "a"], tmp_path / "a.json")
    coverage = ("--cov=sdlora", "--cov=webui", f"--cov-report=json:{tmp_path / 'a.json'}")
    assert command == (*launch.PYTEST, "-x", *coverage, "-k", "a")
    assert not any("--cov" in part for part in launch.pytest_command(["-x"], tmp_path))


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_no_chromium_fails_in_ci_only(
    ci: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(monkeypatch)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("SDLORA_CHROMIUM", "/no/such/program")
    assert launch.run_tests([]) == code
    assert "SDLORA_CHROMIUM" in capsys.readouterr().out


def test_root_on_debian_gets_a_chromium(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = recorded(monkeypatch)
    monkeypatch.delenv("SDLORA_CHROMIUM", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr(launch.shutil, "which", lambda name: name == "apt-get" and name)
    assert not launch.ensure_chromium()
    assert commands == [
        ["apt-get", "-qq", "update"],
        ["apt-get", "-qq", "install", "-y", "--no-install-recommends", "chromium"],
    ]


def test_chromium_comes_from_the_variable_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDLORA_CHROMIUM", sys.executable)
    assert launch.find_chromium() == sys.executable


def _heed_interrupts() -> None:
    # a job that a shell put into the background ignores them, and so would its children
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class App:
    """A copy of launch.py in a folder with a difficult name, with a stub for the program."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "my LoRAs ü 画"
        self.wheels = folder / "wheels"
        (self.root / "sdlora").mkdir(parents=True)
        shutil.copy(launch.ROOT / "launch.py", self.root)
        (self.root / "sdlora" / "__init__.py").touch()
        (self.root / "sdlora" / "cli").mkdir()
        (self.root / "sdlora" / "cli" / "main.py").write_text(STUB, encoding="utf-8")
        self.wheels.mkdir()
        info = "launch_probe-1.0.dist-info"
        with zipfile.ZipFile(self.wheels / "launch_probe-1.0-py3-none-any.whl", "w") as wheel:
            tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            wheel.writestr(
                f"{info}/METADATA", "Metadata-Version: 2.1\nName: launch-probe\nVersion: 1.0\n"
            )
            wheel.writestr(f"{info}/WHEEL", tag)
            wheel.writestr(f"{info}/RECORD", "")

    def start(self, *argv: str, package: str = "launch-probe", **env: str) -> subprocess.Popen[str]:
        """Start it with one pinned package to have; pip sees the wheel above and no network."""
        (self.root / "requirements.txt").write_text(f"{package}==1.0\n", encoding="utf-8")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(self.wheels)}
        offline = {} if "PIP_INDEX_URL" in env else {"PIP_NO_INDEX": "1"}
        return subprocess.Popen(
            [sys.executable, "launch.py", *argv],
            cwd=self.root,
            env={**clean, **pip, **offline, **env, "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
            preexec_fn=_heed_interrupts if os.name == "posix" else None,
        )

    def run(self, *argv: str, package: str = "launch-probe", **env: str) -> tuple[int, str]:
        """Start it and wait: exit code, and all it wrote."""
        process = self.start(*argv, package=package, **env)
        output = process.communicate(timeout=120)[0]
        return process.returncode, output

    def interrupt(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Ctrl+C, as a terminal sends it: to the whole group."""
        os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=30)[0]
        return process.returncode, output


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One copy for all tests; the first start of it is checked here, since it comes only once."""
    app = App(tmp_path_factory.mktemp("launch"))
    code, usage = app.run("--help")
    assert code == 0 and "python launch.py VERB" in usage
    assert not (app.root / ".venv").exists()
    code, output = app.run("hello", "two words")
    assert code == 7, output
    assert "Preparing" in output and "[ 1/1] launch-probe" in output
    assert f"ran hello two words in {app.root / '.venv'}" in output
    yield app
    shutil.rmtree(app.root)


def test_a_later_start_goes_straight_on(app: App) -> None:
    assert app.run() == (7, f"ran in {app.root / '.venv'}\n")


def test_an_unreachable_index_is_one_paragraph(app: App) -> None:
    dead = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    code, output = app.run("train", package="launch-missing", **dead)
    assert code == 1
    assert "Check the network" in output and "PIP_INDEX_URL" in output
    assert "Traceback" not in output and "ran train" not in output
    assert "launch-missing" in (app.root / ".venv" / "install.log").read_text("utf-8")
    assert "Preparing" in app.run("train")[1]  # half an update does not count as the old state
    assert "Preparing" not in app.run("train")[1]


def test_the_lock_is_used_and_told_unless_packages_of_ones_own_are_named(tmp_path: Path) -> None:
    app = App(tmp_path)
    wheel = next(app.wheels.iterdir())
    project = tmp_path / "index" / "launch-probe"
    project.mkdir(parents=True)
    shutil.copy(wheel, project)
    (project / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>', "utf-8")
    index = {"PIP_INDEX_URL": project.parent.as_uri(), "PIP_FIND_LINKS": ""}
    for digest, code, words in (
        ("0" * 64, 1, "delete requirements.lock"),
        (hashlib.sha256(wheel.read_bytes()).hexdigest(), 7, "ran hello"),
    ):
        row = f"launch-probe==1.0 \\\n    --hash=sha256:{digest}\n"
        (app.root / "requirements.lock").write_text(row, encoding="utf-8")
        returned, output = app.run("hello", **index)
        assert returned == code and words in output, output
        assert "Installing from requirements.lock, checked by hashes." in output
    assert app.run("hello", **index)[1].startswith("ran hello")
    (app.root / ".venv" / "requirements.stamp").unlink()
    returned, output = app.run("hello")  # with the wheels beside, as PIP_FIND_LINKS says
    assert returned == 7 and "from requirements.txt, without hashes: pip's settings" in output
    assert "(find-links, no-index)" in output


@posix
def test_ctrl_c_in_a_verb_is_one_line(app: App) -> None:
    process = app.start("wait")
    assert process.stdout and process.stdout.readline().startswith("ran wait")
    assert app.interrupt(process) == (130, "\nStopped.\n")


@posix
def test_ctrl_c_in_the_install_says_that_it_goes_on(app: App) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        process = app.start("train", package="launch-missing", PIP_INDEX_URL=url)
        silent.settimeout(60)
        connection, _ = silent.accept()  # pip is asking: it is in the middle of the install
        code, output = app.interrupt(process)
        connection.close()
    assert code == 130
    assert output.endswith("Stopped. The next start goes on with the preparation.\n")
    assert "Traceback" not in output
    assert app.run("train")[0] == 7


def test_where_exec_is_missing_the_exit_code_comes_through(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (house / "launch.py").write_text("import sys; sys.exit(len(sys.argv))", encoding="utf-8")
    monkeypatch.setattr(launch, "os", SimpleNamespace(name="nt"))
    assert launch.hand_over(Path(sys.executable), ["train", "a b"]) == 3
