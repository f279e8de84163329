"""The house rules as functions: a source file in, its problems out. test_shape.py applies them."""

import ast
import fnmatch
import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from launch import REQUIREMENTS, ROOT, pins

# From the lowest to the highest; a package imports those before it, and a module by itself is one.
PACKAGES = (
    "sdlora",
    "sdlora.append_only",
    "sdlora.architectures",
    "sdlora.event_types",
    "sdlora.files",
    "sdlora.messages",
    "sdlora.cache",
    "sdlora.errors",
    "sdlora.events",
    "sdlora.disk_room",
    "sdlora.text_files",
    "sdlora.file_names",
    "sdlora.noise_schedule",
    "sdlora.terminal",
    "sdlora.folder_walk",
    "sdlora.model_files",
    "sdlora.workspace",
    "sdlora.lora",
    "sdlora.prompt",
    "sdlora.settings",
    "sdlora.device",
    "sdlora.eta",
    "sdlora.kohya",
    "sdlora.lora.format",
    "sdlora.upscalers",
    "sdlora.models",
    "sdlora.data",
    "sdlora.jobs",
    "sdlora.lora.library",
    "sdlora.assets",
    "sdlora.image_metadata",
    "sdlora.lora.tools",
    "sdlora.adapters",
    "sdlora.inference",
    "sdlora.training",
    "sdlora.starter",
    "sdlora.worker",
    "sdlora.cli",
    "webui",
    "launch",
    "benchmarks",
)
# nobody imports these
TOP = ("sdlora.__main__", "sdlora.cli.main", "sdlora.starter.make*", "launch", "benchmarks*")
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "peft", "accelerate"}
TORCH_FREE = (
    *("sdlora", "sdlora.append_only", "sdlora.architectures", "sdlora.errors", "sdlora.events"),
    *("sdlora.event_types", "sdlora.file_names", "sdlora.files", "sdlora.messages", "sdlora.eta"),
    *("sdlora.folder_walk", "sdlora.model_files", "sdlora.assets"),
    *("sdlora.assets.ch*", "sdlora.assets.cl*"),
    *("sdlora.assets.[!cm]*", "sdlora.assets.civitai", "sdlora.assets.model_file_check"),
    *("sdlora.terminal", "sdlora.text_files", "sdlora.workspace", "sdlora.settings*"),
    *("sdlora.prompt*", "sdlora.image_metadata*", "sdlora.kohya*", "sdlora.jobs*"),
    *("sdlora.data", "sdlora.data.[!c]*", "sdlora.data.caption[!i]*"),  # captioning runs a model
    *("sdlora.lora", "sdlora.lora.library*", "sdlora.training", "sdlora.training.startable"),
    *("sdlora.models", "sdlora.worker", "sdlora.worker.tasks"),
    *("sdlora.cli", "sdlora.cli.[!lm]*", "sdlora.cli.lora", "sdlora.cli.main", "webui*"),
    *("sdlora.upscalers", "sdlora.upscalers.files"),
    "sdlora.cli.models",  # lora_tools and model_tools compute
    "sdlora.starter.[!m]*",  # what draws; make*.py trains
)
WEBUI_MAY = (
    *("sdlora", "sdlora.settings*", "sdlora.events", "sdlora.errors", "sdlora.workspace"),
    *("sdlora.jobs*", "sdlora.messages", "sdlora.file_names", "sdlora.files", "sdlora.data*"),
    *("sdlora.training.startable", "sdlora.lora.library.library", "sdlora.architectures"),
    *(
        "sdlora.models.registry",
        "sdlora.assets.checkpoints",
        "sdlora.prompt*",
        "sdlora.image_metadata*",
        "webui*",
    ),
)
# benchmarks look for what others must not raise; parsers of other people's files raise anything
BROAD_EXCEPT_MAY = {"sdlora/jobs/run_folder.py", "sdlora/worker/worker.py"}
BROAD_EXCEPT_MAY |= {"sdlora/data/foreign_files.py"}
BROAD_EXCEPT_MAY |= {"benchmarks/gate.py", "benchmarks/fuzz_datasets.py"}
BROAD_EXCEPT_MAY |= {"benchmarks/fuzz_infotexts.py", "benchmarks/fuzz_kohya.py"}
BROAD_EXCEPT_MAY |= {"benchmarks/fuzz_workspace.py", "benchmarks/poisoned.py"}
FORBIDDEN = {"torch.load", "os.system", "os.popen", "eval", "exec", "pickle", "dill", "joblib"}
FORBIDDEN |= {"torchvision", "shell="}
# reads weights out of pickles, by the reader that takes weights alone
UNPICKLES = "sdlora/models/pickled_checkpoint.py"
UNPICKLES_MAY = {"torch.load", "pickle.UnpicklingError"}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
}  # imported name -> pinned name, where they differ
MAX_FUNCTION, MAX_FILE, MAX_POSITIONAL = 40, 600, 5


@dataclass(frozen=True)
class Source:
    """One Python file: where it stands and what it says."""

    path: PurePosixPath
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))

    @cached_property
    def module(self) -> str:
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def within(self, *places: str) -> bool:
        return self.path.parts[0] in places


@functools.cache
def sources() -> dict[str, Source]:
    """Every Python file that the rules speak about, by module name."""
    files = [ROOT / "launch.py"]
    for folder in ("sdlora", "webui", "benchmarks", "tests"):
        files += sorted((ROOT / folder).rglob("*.py"))
    texts = {PurePosixPath(file.relative_to(ROOT).as_posix()): file for file in files}
    found = [Source(path, file.read_text("utf-8")) for path, file in texts.items()]
    return {source.module: source for source in found}


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def package(module: str) -> str | None:
    """The row of PACKAGES that a module belongs to: the longest that it lies in."""
    rows = [row for row in PACKAGES if module == row or module.startswith(row + ".")]
    row = max(rows, key=len, default=None)
    return None if row == "sdlora" and module not in ("sdlora", "sdlora.__main__") else row


def statements(tree: ast.AST, module_level: bool) -> Iterator[ast.AST]:
    """Every node; at module level only those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if module_level:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
        yield node
        yield from statements(node, module_level)


def imports(source: Source, module_level: bool = False) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import; `from a import b` gives a.b."""
    package = source.path.parts[:-1]
    for node in statements(source.tree, module_level):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{stem}.{alias.name}", node.lineno) for alias in node.names)


def own_module(name: str, known: dict[str, Source]) -> str | None:
    """The module of ours that an imported name is, or is defined in."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def own_imports(source: Source, known: dict[str, Source]) -> Iterator[tuple[str, int]]:
    for name, line in imports(source):
        target = own_module(name, known)
        if target and target != source.module:
            yield target, line


def package_problems(source: Source, known: dict[str, Source]) -> list[str]:
    mine = package(source.module)
    if mine is None:
        return [f"{source.path}: is in no package; give it a row in PACKAGES of tests/shape.py"]
    if matches(source.module, TOP):
        return []
    return [
        f"{source.path}:{line}: {mine} imports {target}, which lies above it"
        for target, line in own_imports(source, known)
        if matches(target, TOP)
        or (theirs := package(target)) is None
        or PACKAGES.index(theirs) > PACKAGES.index(mine)
    ]


def webui_problems(source: Source, known: dict[str, Source]) -> list[str]:
    return [
        f"{source.path}:{line}: the page may not import {target}"
        for target, line in own_imports(source, known)
        if source.within("webui") and not matches(target, WEBUI_MAY)
    ]


def circles(known: dict[str, Source]) -> list[str]:
    """Import circles, wherever in the files the imports stand."""
    edges = {name: {to for to, _ in own_imports(source, known)} for name, source in known.items()}
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in sorted(edges[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())
    return found


def torch_problems(source: Source, known: dict[str, Source]) -> list[str]:
    """What importing a torch-free module would load of the heavy libraries, and by which way."""
    if not matches(source.module, TORCH_FREE):
        return []
    problems, seen, waiting = [], {source.module}, [(source.module,)]
    while waiting:
        trail = waiting.pop()
        for name, line in imports(known[trail[-1]], module_level=True):
            if name.split(".")[0] in HEAVY:
                problems.append(f"{' -> '.join(trail)}:{line}: loads {name.split('.')[0]}")
            parents = [name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)]
            for target in {own_module(part, known) for part in parents} - seen - {None}:
                seen.add(target)
                waiting.append((*trail, target))
    return problems


def size_problems(source: Source) -> list[str]:
    lines = len(source.text.splitlines())
    problems = [f"{source.path}: {lines} lines"] if lines > MAX_FILE else []
    for node in ast.walk(source.tree) if not source.within("tests") else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION:
                problems.append(f"{source.path}:{node.lineno}: {node.name} has {length} lines")
    return problems


def name_problems(source: Source) -> list[str]:
    problems = []
    if re.fullmatch(r"_?(utils?|helpers?)", source.path.stem):
        problems.append(f"{source.path}: name it after what it does")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and re.search("(Manager|Helper|Handler)$", node.name):
            problems.append(f"{source.path}:{node.lineno}: class {node.name}")
    return problems


# pronouns and verbs of speech, which say nothing of what a name holds (docs/architecture.md)
BANNED_NAMES = {"its", "said", "told", "one", "found", "some", "most", "kept", "what", "wanted"}
BANNED_NAMES |= {"words", "there"}
# fields that files of earlier versions have
STORED_NAMES = {("sdlora/events.py", "what")}
# a docstring begins with the thing, or with what the function does
_RIDDLE = re.compile(
    r"(What|Whether|Its|Where|Who|How|When|Which|Whose|If|That|This|These|It|There|Those)\b"
)


def bound_names(node: ast.AST) -> Iterator[str]:
    """The names that a node gives to something."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            yield name
        case ast.Attribute(attr=name, ctx=ast.Store()):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.alias(name=name, asname=as_name):
            yield as_name or name


def dictionary_problems(source: Source) -> list[str]:
    """Names that say nothing, and docstrings that begin with a riddle."""
    problems = []
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(source.tree):
        for name in bound_names(node):
            if name.strip("_") in BANNED_NAMES and (str(source.path), name) not in STORED_NAMES:
                line = getattr(node, "lineno", 1)
                problems.append(f"{source.path}:{line}: {name} does not say what it holds")
        if isinstance(node, documented) and _RIDDLE.match(ast.get_docstring(node) or ""):
            line = getattr(node, "lineno", 1)
            problems.append(f"{source.path}:{line}: begin the docstring with the thing itself")
    return problems


def classes(source: Source) -> Iterator[str]:
    """The classes of a file, nested ones too."""
    return (node.name for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef))


def argument_problems(source: Source) -> list[str]:
    """Functions with more than five positional arguments, and tuples built to be starred."""
    problems = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            if count > MAX_POSITIONAL:
                problems.append(f"{source.path}:{node.lineno}: {node.name} takes {count}")
    return problems


# attributes and options of loaded networks, pipelines and schedulers: the families' business
NETWORK_WORDS = {"in_channels", "sample_size", "cross_attention_dim", "guidance_embeds"}
NETWORK_WORDS |= {"scaling_factor", "shift_factor", "vae_scale_factor", "time_ids", "vae"}
NETWORK_WORDS |= {"prepare_extra_step_kwargs", "scale_model_input", "init_noise_sigma"}
NETWORK_WORDS |= {"pipeline", "scheduler", "denoiser"}
# a setting may be called as a part of a network is: settings.vae
SETTINGS_NAMES = ("request", "settings")
# the starter model's recipe builds networks of its own
SEAM_FREE = ("sdlora.models*", "sdlora.starter*")


def seam_problems(source: Source) -> list[str]:
    """Reads of a loaded network outside the model families."""
    if matches(source.module, SEAM_FREE):
        return []
    return [
        f"{source.path}:{node.lineno}: reads .{node.attr}; ask the model family"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and node.attr in NETWORK_WORDS
        and not (isinstance(node.value, ast.Name) and node.value.id in SETTINGS_NAMES)
    ]


def danger_problems(source: Source) -> list[str]:
    """Ways to run what a file or a user says: unpickling, shells, eval."""
    uses = list(imports(source))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name):
            uses.append((node.id, node.lineno))
        elif isinstance(node, ast.Attribute):
            uses.append((ast.unparse(node), node.lineno))
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            uses.append(("shell=", node.value.lineno))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            is_safe = "weights_only=True" in map(ast.unparse, node.keywords)
            uses += [] if is_safe else [("pickle", node.lineno)]
    allowed = UNPICKLES_MAY if str(source.path) == UNPICKLES else set()
    return [
        f"{source.path}:{line}: {name}"
        for name, line in uses
        if (name in FORBIDDEN or name.split(".")[0] in FORBIDDEN) and name not in allowed
    ]


def broad_except_problems(source: Source) -> list[str]:
    if str(source.path) in BROAD_EXCEPT_MAY or source.within("tests"):
        return []
    caught: list[tuple[ast.expr | None, int]] = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            caught += [(kind, node.lineno) for kind in kinds]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            caught += [(kind, node.lineno) for kind in node.args]
    return [
        f"{source.path}:{line}: catches everything"
        for kind, line in caught
        if kind is None or ast.unparse(kind).split(".")[-1] in ("Exception", "BaseException")
    ]


def docstring_problems(source: Source) -> list[str]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [
        node
        for node in source.tree.body
        if isinstance(node, kinds) and not node.name.startswith("_")
    ]
    problems = [f"{source.path}:{n.lineno}: {n.name}" for n in public if not ast.get_docstring(n)]
    return problems if ast.get_docstring(source.tree) else [f"{source.path}: module", *problems]


def pin_problems(source: Source) -> list[str]:
    """Imported packages that requirements.txt does not pin."""
    pinned = {name.replace("-", "_").lower() for name in pins(REQUIREMENTS)}
    known = pinned | sys.stdlib_module_names | {"sdlora", "webui"}
    used = {(name.split(".")[0], line) for name, line in imports(source)}
    return [
        f"{source.path}:{line}: {name} is not pinned in requirements.txt"
        for name, line in sorted(used)
        if DISTRIBUTIONS.get(name, name) not in known
    ]


def file_map(page: str) -> set[str]:
    """The paths named in a page's file map: the fenced block that has a line `sdlora/`."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    block = next((b for b in blocks if re.search(r"^sdlora/(\s|$)", b, flags=re.MULTILINE)), "")
    paths: set[str] = set()
    folders: list[tuple[int, str]] = []  # (indentation, path) of the headings above
    for line in filter(str.strip, block.splitlines()):
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        folders = [row for row in folders if row[0] < indent]
        path = (folders[-1][1] if folders else "") + name
        paths.add(path)
        if name.endswith("/"):
            folders.append((indent, path))
    return paths
