"""The commands and snippets that the documentation shows, and which of them are run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from support.paths import ROOT

PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
    *("cluster/README.md", "cmoe/mini/base/README.md", "cmoe/small/weights/README.md"),
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")),
)
COMMENTED = ("configs/*.yaml", "cluster/**/*.yaml", "cluster/Containerfile")
PROGRAMS = (
    *("cmoe", "python", "pip", "apt", "make", "ray", "serve", "kubectl", "helm", "docker", "aws"),
    *("grep", "printf"),
)

SHORT = (
    "--data.tasks '[GQA, VizWiz]' --data.train_samples 32 --data.test_samples 4 "
    "--training.steps 2 --training.global_batch 16 --training.micro_batch 8 --probe.steps 2 "
    "--locator.steps 20 --cluster.workers 1 --wandb.mode disabled"
)
SHORT_OWN = SHORT.replace("--data.tasks '[GQA, VizWiz]' ", "")
ON_THE_MINI_BASE = "--model.name mini --model.revision null --model.dtype float32"
LEARNING = "cmoe run --config coin_mini"
KEYS = "read -rs CMOE_API_KEYS && export CMOE_API_KEYS"
SERVING = "cmoe serve --config serve_mini --store runs/coin_mini/store"
SUBMITTING = "ray job submit --working-dir \\. -- python ray_jobs/coin_stream.py .*"

RUN = {
    LEARNING: SHORT,
    f"{LEARNING} --print_config": "",
    "cmoe run --help( all)?": "",
    "cmoe plan --config coin_llava_7b --plan.gpus 8 --plan.memory 80": ON_THE_MINI_BASE,
    "cmoe run --config mine.yaml": SHORT_OWN,
    "cmoe plan --config mine.yaml": "",
    "cmoe prepare --config mine.yaml --out my_shards": "",
    "cmoe locate --config coin_mini": SHORT,
    "cmoe prepare --root data/coin --dry-run": "",
    "cmoe prepare --root data/coin --out .*": "",
    "cmoe score .*": "",
    "cmoe status runs/coin_mini": "",
    "cmoe phrasing --config coin_mini": SHORT,
    "cmoe export runs/coin_mini .*": "",
    "cmoe export runs/mine .*": "",
    "cmoe export hf://.*": "",
    "cmoe store [a-z-]+ runs[^:]*": "",
    KEYS: "",
    SERVING: "",
    SUBMITTING: "--print_config",
    SUBMITTING.replace("submit ", "submit --no-wait "): "--print_config",
    "ray job (logs --follow|stop) raysubmit_\\.\\.\\.": "",
    "ray get-auth-token --generate > /dev/null": "",
    "(chmod 600 ~/.ray/auth_token|export .*|IMAGE=.*)": "",
    "grep -rn YOUR- cluster configs": "",
    'printf %s "\\$KEY" \\| sha256sum > api_keys': "",
    'python -c "import secrets; .*" > password': "",
}
"""Patterns of commands that are run, and what is appended: few steps, a small model."""


@dataclass(frozen=True)
class Command:
    """A command, in one line and without a comment behind it.

    Attributes:
        text: As written, `YOUR-...` and `...` included.
        place: The first file and line where it stands.
    """

    text: str
    place: str


def commands() -> list[Command]:
    """Each once: those in blocks of shell, and those within text and comments."""
    found: dict[str, str] = {}
    for file, line, text in [*_of_pages(), *_of_comments()]:
        found.setdefault(text, f"{file}:{line}")
    return [Command(text, place) for text, place in found.items()]


def appended(command: str) -> str | None:
    """What is appended to a command that is run; None for one that isn't."""
    return next((more for each, more in RUN.items() if re.fullmatch(each, command)), None)


def snippets(page: str, language: str = "python") -> list[str]:
    """A page's blocks of a language."""
    return [text for _, text in _blocks(page, language)]


def _blocks(page: str, language: str) -> Iterator[tuple[int, str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, block.start(1)) + 1, block[1]


def _of_pages() -> Iterator[tuple[str, int, str]]:
    for page in PAGES:
        for line, block in _blocks(page, "sh"):
            joined = re.sub(r"\\\n\s*", "\0", block)
            for each in joined.splitlines():
                if text := _without_comment(each.replace("\0", "")):
                    yield page, line, text
                line += 1 + each.count("\0")
        text = (ROOT / page).read_text(encoding="utf-8")
        outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for span in _spans(outside):
            yield page, text[: text.index(span)].count("\n") + 1, " ".join(span.split())


def _of_comments() -> Iterator[tuple[str, int, str]]:
    for pattern in COMMENTED:
        for path in sorted(ROOT.glob(pattern)):
            lines = path.read_text(encoding="utf-8").splitlines()
            file = str(path.relative_to(ROOT))
            notes = [line.lstrip("# ") if line.startswith("#") else "" for line in lines]
            for span in _spans("\n".join(notes)):
                yield file, 1, " ".join(span.split())
            for number, line in enumerate(lines, 1):
                if re.match(rf"#   ({'|'.join(PROGRAMS)}) ", line):
                    yield file, number, re.split(r"\s{2,}\(", line.lstrip("# "))[0]


def _spans(text: str) -> list[str]:
    """Code within a text that is a command: a program and what it is given."""
    spans = re.findall(r"`([^`]+)`", text)
    return [span for span in spans if re.match(rf"({'|'.join(PROGRAMS)})\s+\S", span)]


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s+)#\s.*$", "", line).strip()
