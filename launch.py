"""The one command: prepare what the program runs on, then open the page or run a verb.

    python launch.py                 open the browser page
    python launch.py VERB ...        train, generate, lora, runs, ...; VERB --help says more
    python launch.py test [ARGS]     style, types and tests; ARGS go to pytest; --fast: a minute,
                                     --coverage: what the tests ran, by package

The first start installs requirements.lock into .venv beside this file, every package checked by
its hash, or requirements.txt where builds of your own are to be used, and says which. Later starts
see the stamp left there and go straight on. An environment that already meets every pin is used as
it is.
Standard library only, in syntax that an old Python can read, so that it can say what it needs.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import (  # noqa: UP035 - an old Python must get past this
    Any,
    Callable,
    NamedTuple,
    TextIO,
    Tuple,
)


def python_problem(version: Tuple[Any, ...]) -> str:  # noqa: UP006
    """Why this Python cannot be used; empty when it can."""
    if tuple(version[:2]) >= (3, 11):
        return ""
    return (
        "sdlora needs Python 3.11 or newer, and this is Python {}.{}. Install a newer one from "
        "https://www.python.org/downloads/ and start launch.py with it."
    ).format(*version)


if python_problem(sys.version_info):
    sys.exit(python_problem(sys.version_info))

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
LOG = VENV / "install.log"
REQUIREMENTS = ROOT / "requirements.txt"
TEST_REQUIREMENTS = ROOT / "tests" / "requirements.txt"
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy", "sdlora", "webui", "launch.py"),
)
# Three workers for two cores, for many tests wait for another process, a browser or a clock
PYTEST = ("pytest", "-n", "3", "--dist", "worksteal")
FAST_PYTEST = ("pytest", "-n", "2", "--dist", "worksteal")  # they only compute
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


class Installer(NamedTuple):
    """Commands that install the pinned packages; {python} stands for .venv's Python."""

    tool: str  # pip installs this first, when named; PyTorch then comes by `command`
    command: tuple[str, ...]
    mirror: str  # the environment variables that name another package index
    room_gib: int  # about 6 for a PyTorch with CUDA, 3 for one without


PIP = ("pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar=off")
UV = ("uv", "pip", "install", "--python={python}", "--torch-backend=auto")
INSTALLERS = {
    "linux": Installer("", PIP, "PIP_INDEX_URL", 6),
    "darwin": Installer("", PIP, "PIP_INDEX_URL", 3),
    # The index serves Windows a PyTorch without CUDA; uv takes the build for the graphics card.
    "win32": Installer("uv==0.13.9", UV, "PIP_INDEX_URL or UV_DEFAULT_INDEX", 6),
}
FAILURES = (  # pattern in the installer's last lines -> what to do; the first match counts
    (
        r"No space left|not enough space|os error (28|112)\b",
        "The disk is full: free some room (the packages need about {room_gib} GiB; TMPDIR names "
        "another folder for temporary files) and run the same command again; it goes on.",
    ),
    (
        r"(?i)connect|timed? ?out|name resolution|dns error|error sending request|SSLError",
        "The package index could not be reached. Check the network and run the same command "
        "again; it goes on where it stopped. The variable {mirror} may name a mirror.",
    ),
    (
        r"DO NOT MATCH THE HASHES|--require-hashes",
        "The index gave a file that is not the one named in requirements.lock. Try another network "
        "or index; if you trust the files of this one, delete requirements.lock, and",
    ),
    (
        r"No matching distribution|No solution found",
        "A pinned package does not exist for this system and Python {python}. Take a 64-bit "
        "Python 3.11 to 3.14; if {mirror} names a mirror, take one that is complete.",
    ),
    (r"", "Run the same command again; it goes on where it stopped."),
)


class LaunchError(Exception):
    """Something the user can put right; the message says how."""


def install_commands(
    platform: str, python: Path, requirements: Path, locked: bool = False
) -> list[list[str]]:
    """The commands that install one requirements file into the environment of `python`; `locked`:
    by the lock file beside it."""
    row = INSTALLERS.get(platform, INSTALLERS["linux"])
    steps = [[*PIP, row.tool]] if row.tool else []
    main_step = [part.format(python=python) for part in row.command]
    if locked:
        # The build for a graphics card has no hash in the lock; pip leaves it where it is in place
        # (uv would refuse it).
        torch = f"torch=={pins(requirements).get('torch', '')}"
        steps += [[*main_step, "--no-deps", torch]] if row.tool else []
        steps.append([*PIP, "--require-hashes", "-r", str(requirements.with_suffix(".lock"))])
    else:
        steps.append([*main_step, "-r", str(requirements)])
    return [[str(python), "-m", *step] for step in steps]


def why_unlocked(requirements: Path) -> str:
    """Why the lock file beside a requirements file cannot be used; empty when it can."""
    lock = requirements.with_suffix(".lock")
    if not lock.exists():
        return f"there is no {lock.relative_to(ROOT).as_posix()}"
    pattern = "Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages"
    for build in VENV.glob(f"{pattern}/torch-*+*.dist-info"):
        return f".venv holds a PyTorch of your own, {build.stem}"
    listed = subprocess.run(
        [str(venv_python()), "-m", "pip", "config", "list"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
    )
    own = re.findall(r"\.(find-links|extra-index-url|no-index)=(?!'')", listed.stdout)
    if own:
        return (
            f"pip's settings name packages of your own ({', '.join(sorted(set(own)))}), "
            "whose builds have other hashes"
        )
    return ""


def pins(requirements: Path) -> dict[str, str]:
    """Package name -> exact version, from lines `name==version`; comments are skipped."""
    lines = (line.split("#")[0].strip() for line in requirements.read_text("utf-8").splitlines())
    return dict(line.split("==") for line in lines if line)


def is_met(name: str, version: str) -> bool:
    """Return True if this interpreter has the pinned version; a local part (+cu130) is free."""
    from importlib import metadata

    try:
        return metadata.version(name).split("+")[0] == version
    except metadata.PackageNotFoundError:
        return False


def venv_python() -> Path:
    """Return the path of .venv's interpreter."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def in_venv() -> bool:
    """Return True if this interpreter is .venv's."""
    return VENV.exists() and os.path.samefile(sys.prefix, VENV)


def stamp_of(requirements: Path) -> tuple[Path, str]:
    """The stamp's file, and the text it has once this requirements file is installed."""
    name = "-".join(requirements.relative_to(ROOT).with_suffix(".stamp").parts)
    files = (requirements, requirements.with_suffix(".lock"))
    content = b"".join(file.read_bytes() for file in files if file.exists())
    digest = hashlib.sha256(content).hexdigest()
    return VENV / name, "{} python {}.{}\n".format(digest, *sys.version_info)


def is_stamped(requirements: Path) -> bool:
    """Return True if .venv holds what the requirements file asks for now."""
    path, text = stamp_of(requirements)
    return venv_python().exists() and path.exists() and path.read_text("utf-8") == text


def ready_python(needed: list[Path]) -> Path | None:
    """An interpreter that has what is needed: this one, or .venv's. None: install first."""
    stamped = all(is_stamped(file) for file in needed)
    if stamped and in_venv():
        return Path(sys.executable)
    if not in_venv() and all(is_met(*pin) for file in needed for pin in pins(file).items()):
        return Path(sys.executable)
    return venv_python() if stamped else None


def progress(line: str, names: set[str], seen: set[str]) -> str:
    """Return what to show for a line of the installer; `seen` gathers the pinned packages met."""
    by_name = r"(?:Collecting|Requirement already satisfied:| \+) ([\w.-]+)"
    met = re.match(by_name, line) or re.match(r"Processing .*[/\\]([\w.]+)-.*\.whl", line)
    name = met[1].lower().replace("_", "-") if met else ""
    if name in names - seen:
        seen.add(name)
        return f"[{len(seen):2}/{len(names)}] {name}"
    if re.match(r"\s*Downloading .*\((\d{2,}(\.\d+)? ?Mi?B|.* ?Gi?B)\)", line):
        return "        " + line.strip()
    if line.startswith(("Installing collected packages", "Prepared ")):
        return "Putting the packages in place; this takes a minute or more ..."
    return ""


def run_logged(command: list[str], log: TextIO, show: Callable[[str], str]) -> list[str]:
    """Run a command with every line kept in the log; its last lines if it failed, else none."""
    tail: list[str] = []
    process = subprocess.Popen(
        command,
        env={**os.environ, "PIP_USER": "0", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    try:
        for line in process.stdout or ():
            log.write(line)
            tail = [*tail[-40:], line.strip()] if line.strip() else tail
            shown = show(line)
            if shown:
                print(shown, flush=True)
        process.wait()
    finally:
        process.terminate()  # finds it alive only after Ctrl+C
        process.wait()
    return (tail or ["no output"]) if process.returncode else []


def explain(tail: list[str], row: Installer) -> str:
    """One paragraph for a failed install: the line that says why, and what to do."""
    why = next((line for line in reversed(tail) if re.match("(?i)error", line)), tail[-1])
    advice = next(text for pattern, text in FAILURES if re.search(pattern, "\n".join(tail)))
    advice = advice.format(**row._asdict(), python="{}.{}".format(*sys.version_info))
    return f"The install did not finish: {why}\n{advice} The whole log is {LOG}"


def room_warning(free_bytes: int, room_gib: int) -> str:
    """A line to print when the disk looks too small; empty when it does not."""
    if free_bytes >= room_gib * 2**30:
        return ""
    return (
        f"Warning: {free_bytes / 2**30:.1f} GiB are free on the disk of {ROOT}, and the packages "
        f"need about {room_gib} GiB. Trying all the same.\n"
    )


def make_venv() -> None:
    """Make .venv, or complete one left half made; one made by another Python is made anew."""
    missing = [name for name in ("venv", "ensurepip") if not importlib.util.find_spec(name)]
    if missing:
        raise LaunchError(
            f"This Python comes without its module {' and '.join(missing)}, so .venv cannot be "
            "made. On Debian and Ubuntu: sudo apt install python3-venv. Elsewhere, take the "
            "Python of https://www.python.org/downloads/. Then run the same command again."
        )
    config, version = VENV / "pyvenv.cfg", "version = {}.{}.".format(*sys.version_info)
    stale = config.exists() and version not in config.read_text("utf-8")
    command = [sys.executable, "-m", "venv", *(["--clear"] if stale else []), str(VENV)]
    made = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if made.returncode:
        why = (made.stdout + made.stderr).strip().splitlines()[-1:] or ["no reason given"]
        raise LaunchError(f"{VENV} could not be made: {why[0]}\nDelete it and start again.")


def source_line(requirements: Path, why_not_locked: str) -> str:
    """The line that says which file the packages are installed from, and why."""
    name = requirements.relative_to(ROOT).as_posix()
    if why_not_locked:
        return f"Installing from {name}, without hashes: {why_not_locked}."
    return f"Installing from {Path(name).with_suffix('.lock').as_posix()}, checked by hashes."


def install(needed: list[Path]) -> Path:
    """Install what .venv lacks, leave a stamp for each file done; returns .venv's Python."""
    row = INSTALLERS.get(sys.platform, INSTALLERS["linux"])
    print(f"Preparing {VENV}: the first start, or the requirements have changed.")
    print(room_warning(shutil.disk_usage(ROOT).free, row.room_gib), end="", flush=True)
    if not in_venv():
        make_venv()
    with LOG.open("a", encoding="utf-8") as log:
        for file in (file for file in needed if not is_stamped(file)):
            stamp, text = stamp_of(file)
            stamp.unlink(missing_ok=True)  # half an update is not the old state either
            names = {name.lower().replace("_", "-") for name in pins(file)}
            show = partial(progress, names=names, seen=set[str]())
            why = why_unlocked(file)
            print(source_line(file, why), flush=True)
            for command in install_commands(sys.platform, venv_python(), file, locked=not why):
                tail = run_logged(command, log, show)
                if tail:
                    raise LaunchError(explain(tail, row))
            stamp.write_text(text, encoding="utf-8")
    return venv_python()


def find_chromium() -> str:
    """The Chromium for the browser tests: $SDLORA_CHROMIUM, else one on PATH; empty without."""
    given = os.environ.get("SDLORA_CHROMIUM")
    paths = (shutil.which(name) for name in ([given] if given else CHROMIUM_NAMES))
    return next((path for path in paths if path), "")


def ensure_chromium() -> bool:
    """Look for a Chromium; root on Debian gets one installed, others are told how."""
    is_root = getattr(os, "geteuid", lambda: 1)() == 0
    apt = ["apt-get", "-qq"] if is_root and shutil.which("apt-get") else []
    if apt and not find_chromium() and not os.environ.get("SDLORA_CHROMIUM"):
        print("Installing Chromium for the browser tests ...", flush=True)
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        no = subprocess.DEVNULL
        for step in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run([*apt, *step], env=env, stdin=no, stdout=no)
    if not find_chromium():
        print(
            "The browser tests need a Chromium and none was found: install Chromium or Chrome, or "
            "name its program in SDLORA_CHROMIUM. Without it they are skipped (in CI: a failure).",
            flush=True,
        )
    return bool(find_chromium())


def run_tests(arguments: list[str]) -> int:
    """Style, types and tests, all of them even when one fails; non-zero when any failed. With
    `--fast`, style and the tests that are not slow (tests/lanes.py)."""
    is_fast = "--fast" in arguments
    failed = [] if is_fast or ensure_chromium() or not os.environ.get("CI") else ["chromium"]
    checks = [check for check in CHECKS if check[0] != "mypy" or not is_fast]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        for check in (*checks, pytest_command(arguments, report)):
            print(f"== {' '.join(check)}", flush=True)
            env = {**os.environ, "COVERAGE_FILE": str(report.with_name(".coverage"))}
            if subprocess.run([sys.executable, "-m", *check], cwd=ROOT, env=env).returncode:
                failed.append(check[0])
        if report.exists():
            subprocess.run([sys.executable, "tests/coverage_by_package.py", str(report)], cwd=ROOT)
    print(f"FAILED: {', '.join(failed)}" if failed else "All checks passed.", flush=True)
    return 1 if failed else 0


def pytest_command(arguments: list[str], report: Path) -> tuple[str, ...]:
    """Return pytest and its arguments; `--coverage` is for us, and has it write a `report`."""
    command = [*(FAST_PYTEST if "--fast" in arguments else PYTEST), *arguments]
    if "--coverage" in command:
        place = command.index("--coverage")
        command[place : place + 1] = "--cov=sdlora", "--cov=webui", f"--cov-report=json:{report}"
    return tuple(command)


def run_here(argv: list[str]) -> int:
    """Run the verb in this process, which has everything it needs."""
    if argv[:1] == ["test"]:
        return run_tests(argv[1:])
    from sdlora.cli.main import main as run_verb

    return run_verb(argv) or 0


def hand_over(python: Path, argv: list[str]) -> int:
    """Start again with another interpreter: in this process's place where the system can."""
    command = [str(python), str(ROOT / "launch.py"), *argv]
    if os.name == "posix":
        os.execv(command[0], command)
    child = subprocess.Popen(command)
    while child.poll() is None:
        try:
            child.wait()
        except KeyboardInterrupt:
            continue  # the child got it too, and says what it stops
    return child.returncode


def main(argv: list[str]) -> int:
    """Prepare, then run; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    needed = [REQUIREMENTS, TEST_REQUIREMENTS] if argv[:1] == ["test"] else [REQUIREMENTS]
    python = None
    try:
        python = ready_python(needed)
        if python is None and argv[:1] in (["-h"], ["--help"]):
            print(__doc__)
            return 0
        python = python or install(needed)
        return run_here(argv) if python == Path(sys.executable) else hand_over(python, argv)
    except KeyboardInterrupt:
        advice = "" if python else " The next start goes on with the preparation."
        print(f"\nStopped.{advice}", file=sys.stderr)
        return 130
    except (LaunchError, OSError) as problem:
        if python:
            raise
        context = "" if isinstance(problem, LaunchError) else f"{VENV} could not be prepared: "
        print(f"{context}{problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
