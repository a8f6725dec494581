"""Every command and every snippet of the documents runs, or is checked as far as it can be here.

A block of commands runs as it stands in a folder that looks like a checkout. What would take long
runs with the arguments of SHORTER behind it. A block that needs weights, a cluster or hours has the
HTML comment ``<!-- only checked: REASON -->`` before it: then the script's own parser reads the
arguments and the config is merged with the options, and files have to be there. So it is with
commands in running text and with those in the heads of configs. ``make`` says what it would do.
What changes the machine is listed in OUTSIDE.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from igvg_d2.io.image import read_image

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "datasets", "dev", "docs", "projects/*", "projects/*/*")
    for path in ROOT.glob(f"{folder}/*.md")
)
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("configs", "projects")
    for path in ROOT.glob(f"{folder}/**/*.yaml")
)
MARK = re.compile(r"<!-- only checked: ((?:(?!-->).)+) -->\s*\Z", re.DOTALL)
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMAND = (
    r"(?:[A-Z_0-9]+=\S* )*(?:python|make|torchrun|pip|git|hf|source|sbatch|scancel|srun|rm|apt-get)"
)

# Arguments that make a command short; the last pattern that fits counts. Two epochs would be hours.
TRAIN = ["SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1"]
TRAIN += ["SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0", "TEST.VIS_SAMPLES", "2"]
SHORTER = {
    r"datasets/prepare_synthetic\.py": ["--scale", "0.003", "--num-workers", "1"],
    r"train_net\.py": [*TRAIN, "DATASETS.TEST", "('shapes_val',)"],
    r"projects/\w+/.*train_net\.py": [*TRAIN, "DATASETS.TEST", "()"],
    r"--eval-only": [],
    r"tools/finetune\.py": ["--opts", "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0"],
}
# What they do is not done by a test, and why.
OUTSIDE = {
    r"source .*activate": "the environment of this process serves",
    r"pip |apt-get ": "installs packages; the extras are tested in test_packaging.py",
    r"(sbatch|scancel|srun)\b": "needs SLURM",
    r"hf download |echo .* sha256sum": "run by tests/io/test_hub.py against a server of its own",
    r"mkdir .*/ref-l4/|tar ": "run there, too",
    r"hf auth ": "asks for a token",
    r"git clone": "make a clone; .ci/run works in one",
    r"rm -r ": "removes the environment",
    r"cd |export ": "of the reader's shell",
}
# Weights to be downloaded; nothing here has them.
AWAITED = {"beit3_base_patch16_224.zip", "beit3_large_patch16_224.zip"}


@dataclass(frozen=True)
class Command:
    """One command of a document; ``mark`` is the reason why it is only checked, or empty."""

    document: str
    text: str
    mark: str = ""

    @property
    def kind(self):
        """ "run", "check", "make" or "outside"."""
        words = re.sub(r"^(?:[A-Z_0-9]+=\S* )*", "", self.text)
        if words.startswith("make"):
            return "make"
        if any(re.match(pattern, words) for pattern in OUTSIDE):
            return "outside"
        return "check" if self.mark else "run"

    def __str__(self):
        return f"{self.kind}:{self.document}:{self.text}".replace(" ", "_")[:110]


def blocks(document, language):
    """Code blocks as (text without indentation, mark)."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        if block[2] == language:
            mark = MARK.search(text[: block.start()])
            content = re.sub(rf"^{block[1]}", "", block[3], flags=re.MULTILINE)
            yield content, " ".join(mark[1].split()) if mark else ""


def split(lines):
    """Commands of a piece of shell, without comments, variables of arrays or control flow."""
    lines = re.sub(r"\\\n\s*", " ", lines)
    if lines.startswith("#!"):  # a script: what it starts
        lines = "\n".join(re.findall(r"python [\w./-]+\.py [^'\n]*", lines))
        lines = re.sub(r"\"\$\w+\"", "1", lines)
    for line in lines.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line)
        yield from (part.strip() for part in line.split(" && ") if part.strip())


def commands_of(document):
    """All commands of a Markdown document."""
    for content, mark in blocks(document, "bash"):
        mark = mark or ("a script for SLURM" if content.startswith("#!") else "")
        for command in split(content):
            yield Command(document, command, mark)
    prose = BLOCK.sub("", (ROOT / document).read_text(encoding="utf-8"))
    for span in re.findall(r"`([^`]+)`", prose):
        span = " ".join(span.split())
        script = re.match(r"([\w./-]+\.py) -", span)
        if script and (ROOT / document).parent.joinpath(script[1]).is_file():
            folder = (ROOT / document).parent.relative_to(ROOT)
            span = f"python {folder / span}" if span[0] != "." else span
        if re.match(rf"{COMMAND}(?: |$)", span) and span not in ("pip install", "torchrun"):
            for command in split(span):
                if command not in ("source", "srun torchrun", "git", "rm", "python", "hf"):
                    yield Command(document, command, "in running text")


def head_of(config):
    """Commands in the comment at the top of a config."""
    lines = (ROOT / config).read_text(encoding="utf-8").splitlines()
    head = "\n".join(line[1:].strip() for line in lines if line.startswith("#"))
    for command in re.findall(r"(python [\w./-]+\.py (?:[^\n]*\\\n)*[^\n]*)", head):
        yield from (Command(config, c, "head of a config") for c in split(command))


ALL = [command for document in DOCUMENTS for command in commands_of(document)]
ALL += [command for config in CONFIGS for command in head_of(config)]
ALL = list(dict.fromkeys(ALL))


def argv_of(text):
    """Environment, and arguments after "python"; words that stand for something are filled in."""
    text = re.sub(r"\[(--[^][]*)\]", r"\1", text)
    text = re.sub(r"( [^-\s]\S*) \.\.\.$", r"\1", text)
    text = re.sub(r"(?<=--num-machines )\S+|(?<=--machine-rank )\S+", "0", text)
    text = re.sub(r"(?<= )(KIND \.\.\.|KIND)(?= |$)", "images", text)
    text = re.sub(r"(?<= )[NMS](?= |$)", "1", text)
    words = shlex.split(os.path.expandvars(text))
    env = {}
    while re.match(r"[A-Z_0-9]+=", words[0]):
        name, _, env[name] = words.pop(0).partition("=")
    while words[0] == "torchrun" or not (words[0] == "-m" or words[0].endswith(".py")):
        words.pop(0)
    return env, words


def shortened(text, words):
    """Arguments of a command as the test runs it."""
    extra = [[], *(value for key, value in SHORTER.items() if re.search(key, text))][-1]
    if "--num-gpus" in words and extra:
        at = words.index("--num-gpus")
        words = words[:at] + words[at + 2 :]
    return words + extra


class Server:
    """Folder that looks like a checkout, and the process that runs commands in it."""

    def __init__(self, folder):
        self.folder, self.done = folder, {}
        for path in ROOT.iterdir():
            if path.name not in ("datasets", "output", "build") and path.name[0] != ".":
                (folder / path.name).symlink_to(path)
        (folder / "datasets").mkdir()
        for path in (ROOT / "datasets").glob("*.*"):
            (folder / "datasets" / path.name).symlink_to(path)
        env = {key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        env["PYTHONWARNINGS"] = "ignore"
        self.env = env
        command = [sys.executable, str(ROOT / "tests/command_server.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=folder, env=env, **pipes)

    def ask(self, kind, argv, env=None):
        """Facts; the test fails with the output of a command that fails."""
        log = self.folder / "log.txt"
        request = {"kind": kind, "argv": list(argv), "env": env or {}, "log": str(log)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        output = log.read_text(encoding="utf-8", errors="replace")
        assert answer["status"] == 0, f"exit status {answer['status']} of {argv}:\n{output[-6000:]}"
        return {**answer["facts"], "output": output}

    def shell(self, text):
        """Run a pipe or a redirection, which takes a shell and processes of their own."""
        env = {**self.env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        command = ["bash", "-euo", "pipefail", "-c", text]
        run = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)
        assert run.returncode == 0, f"exit status {run.returncode} of {text}:\n{run.stderr[-6000:]}"
        return {"output": run.stdout}

    def run(self, text):
        """Run a command once, however often the documents name it."""
        if text not in self.done and re.search(r" [|<>] ", text):
            self.done[text] = self.shell(text)
        elif text not in self.done:
            env, words = argv_of(text)
            self.done[text] = self.ask("run", shortened(text, words), env)
        return self.done[text]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose folder has Shapes and a trained model, by the documents' own commands."""
    server = Server(tmp_path_factory.mktemp("checkout"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", "datasets")
        scripts = ("datasets/prepare_synthetic.py", "train_net.py", "tools/export_dataset.py")
        for script in scripts:
            pattern = rf"python {script} .*shapes"
            server.run(next(c.text for c in ALL if c.kind == "run" and re.match(pattern, c.text)))
        config = next(content for content, _ in blocks("datasets/README.md", "yaml"))
        (server.folder / "my.yaml").write_text(config)
        yield server
    server.process.stdin.close()
    server.process.wait()


@pytest.mark.parametrize("command", [c for c in ALL if c.kind == "run"], ids=str)
def test_commands_run(command, server):
    assert command.text.startswith("python ") or re.match("[A-Z]", command.text), (
        f"{command.document}: '{command.text}' is no command of Python; mark its block by "
        "<!-- only checked: REASON --> or add it to OUTSIDE"
    )
    server.run(command.text)


def test_the_readme_shows_what_its_command_draws(server):
    (text,) = [c.text for c in ALL if c.document == "README.md" and "--save panels" in c.text]
    server.run(text)
    drawn = read_image(str(server.folder / "output/demo/scene_panels.png"), "RGB")
    shown = read_image(str(ROOT / "docs/images/all_triangles.jpg"), "RGB")
    assert drawn.shape == shown.shape
    # JPEG, and another machine may round a score or a border differently.
    assert np.abs(drawn.astype(int) - shown).mean() < 4


@pytest.mark.parametrize("command", [c for c in ALL if c.kind == "check"], ids=str)
def test_commands_have_valid_options_and_files(command, server):
    env, words = argv_of(command.text)
    facts = server.ask("check", words, env)
    for key in ("weights", "tokenizer"):
        file = facts.get(key, "")
        is_made = file in AWAITED or file.startswith(("output/", "hf://"))
        assert is_made or not re.search("[./]", file) or (ROOT / file).is_file(), file


@pytest.mark.parametrize("command", [c for c in ALL if c.kind == "make"], ids=str)
def test_make_knows_what_to_do(command):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    text = re.sub(r"^(?:[A-Z_0-9]+=(?:<.*?>|\S*) )*", "", re.sub(r"<[^>]*>", "X", command.text))
    inherited = ("MAKEFLAGS", "MAKELEVEL", "TESTS", "OUTPUT", "CONFIG", "OPTS", "VENV")
    env = {key: value for key, value in os.environ.items() if key not in inherited}
    words = [*shlex.split(text), "-n"]
    run = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_of_shell_are_shell(document):
    for content, _ in blocks(document, "bash"):
        content = re.sub(r"\[(--[^]]*)\]|<[^>]*>", r"\1", content)
        run = subprocess.run(["bash", "-n"], input=content, capture_output=True, text=True)
        assert run.returncode == 0, content + run.stderr


@pytest.mark.parametrize(
    "document", [document for document in DOCUMENTS if any(blocks(document, "python"))]
)
def test_python_runs(document, server):
    """All of a document from top to bottom, as a reader types it."""
    code = "\n\n".join(content for content, _ in blocks(document, "python"))
    folder = str((ROOT / document).parent)
    assert server.ask("code", [code, folder])["names"]


def test_the_example_of_ones_own_data_is_read(server, tmp_path):
    ((content, _),) = blocks("datasets/README.md", "json")
    (tmp_path / "my.json").write_text(content)
    code = f"""
from detectron2.data import DatasetCatalog
from igvg_d2.data.datasets import register_expressions
register_expressions("example", r"{tmp_path}/my.json", "my/images")
assert [len(sample["annotations"]) for sample in DatasetCatalog.get("example")] == [1, 0]
"""
    server.ask("code", [code, "."])


def test_blocks_are_in_a_language_that_is_tested():
    """Plain blocks show folders; everything else is run, checked, or read by a parser."""
    known = {"bash", "python", "json", "yaml", "", "toctree"}
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        assert {block[2] for block in BLOCK.finditer(text)} <= known, document
        for content, _ in blocks(document, "json"):
            json.loads(content)
        for content, _ in blocks(document, "yaml"):
            yaml.safe_load(content)


def test_pip_is_told_extras_that_exist():
    extras = (ROOT / "setup.py").read_text(encoding="utf-8").partition("extras_require=")[2]
    for command in ALL:
        named = re.findall(r"pip install .*\[([\w,-]+)\]", command.text)
        assert all(
            f'"{extra}":' in extras for extra in ",".join(named).split(",") if extra
        ), command


def test_nothing_is_outside_without_a_reason():
    assert all(command.mark or command.kind != "check" for command in ALL)
    listed = [c for c in ALL if c.kind == "outside"]
    assert listed and len(listed) < len(ALL) / 5
