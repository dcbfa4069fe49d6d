"""A round: a chain of commands on a checkpoint that is drawn, each undisturbed and disturbed, then all as a recipe."""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calls import Ended, Watch, run
from calls.jobs import Job, reset
from calls.matrix import FAULTS, Case, Undisturbed, after, again, cases, tree, undisturbed
from disks import nearly_full

from surgery.recipes.table import STEPS

from . import drawing
from .acts import Act, Chain
from .laws import Law, exactly

ENOUGH = 1 << 30  # bytes of addresses beyond what a process has, with which every command works
TIGHT = 12 << 20, 80 << 20  # with which some do not; with less, not even the tests' own can be run
# How glibc, C++ and Python itself end without memory, or, of a thread that dies before it begins, wait for ever: what
# is said then is not ours.
UNSAID = (
    r"Fatal glibc error.*out of memory|terminate called .*bad_alloc|SystemError: error return without exception set"
    r"|Exception ignored in thread started by[^\n]*\nMemoryError"
)
LAYOUTS: Sequence[dict[str, Any]] = (
    {}, {}, {"max-shard-size": "60KB"}, {"max-shard-size": "60KB", "balanced": True}, {"align": "auto"},
)  # fmt: skip
MEMORIES = ("20MB", "40MB", "96MB")  # the least that any sum needs, and more
OWN = (".safetensors", ".bin", ".index.json")


@dataclass(frozen=True)
class Place:
    """Where rounds happen: `root` on the small disk, `scratch` not; `models` are the real ones, `small` whether the
    disk is.
    """

    root: Path
    scratch: Path
    models: Path
    small: bool


@dataclass
class Told:
    """What rounds came to."""

    commands: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)  # how disturbed runs ended


@dataclass(frozen=True)
class Made:
    """What a command of a round was, and made: for the process that does it again."""

    act: Act
    layout: dict[str, Any]
    workers: int
    memory: str
    path: str  # of its output, in the root
    calls: int

    def told(self) -> dict[str, Any]:
        """As data."""
        said = {"step": self.act.step, "sources": self.act.sources, "said": self.act.said, "layout": self.layout}
        return {**said, "workers": self.workers, "memory": self.memory, "path": self.path, "calls": self.calls}


@contextmanager
def within(more: int) -> Iterator[None]:
    """So many bytes of addresses beyond what this process has, for it and for those that it starts: ulimit -v."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Round:
    """One round: what it draws follows from `seed` and its number alone."""

    def __init__(self, number: int, seed: int, place: Place, told: Told) -> None:
        self.draw = random.Random(f"{seed}:{number}")
        self.place, self.told, self.number = place, told, number
        self.made: list[Made] = []
        self.wrong: list[str] = []

    def play(self) -> Sequence[Made]:
        """All of it; what broke a law is in `wrong`. The commands whose output is there to be compared."""
        root = self.place.root
        for one in root.iterdir():
            shutil.rmtree(one)
        for name in ("in", "w", "tmp"):
            (root / name).mkdir()
        family = self.draw.choice(sorted(one.name for one in self.place.models.iterdir()))
        drawing.model(self.draw, self.place.models / family, root / "in/0")
        chain = Chain(self.draw, root, family)
        steps = [one for one in (chain.first(),) if one and self._done(one, chain)]
        count = self.draw.randint(1, 3)
        while (len(steps) < count or chain.coded) and not self.wrong:
            act = chain.next(last=len(steps) == count - 1)
            steps += [act] if self._done(act, chain) else []
        if len(steps) > 1 and not self.wrong:
            self._as_recipe(steps, chain)
        for i, act in enumerate(chain.beside() if self.draw.random() < 0.6 and not self.wrong else ()):
            if not self._command(act, f"in/side{i or ''}"):
                break
        return self.made

    def _done(self, act: Act, chain: Chain) -> bool:
        """Whether a step of the chain is done, so that it goes on from its output."""
        path = f"in/{len(self.made) + 1}"
        if not self._command(act, path):
            return False
        chain.at = path
        return True

    def _command(self, act: Act, path: str) -> bool:
        """Run a command, and put its output at `path`, in the place of what is there."""
        layout = self.draw.choice(LAYOUTS if act.files or act.step == "convert-files" else LAYOUTS[:1])
        workers, memory = self.draw.randint(1, 4), self.draw.choice(MEMORIES)
        words = [*act.words, *_options(layout), f"--workers={workers}", f"--memory={memory}"]
        whole = self._tried(words, act.step, act.law, act.sources[0] if act.files else "")
        if whole is None:
            return False
        shutil.rmtree(self.place.root / path, ignore_errors=True)
        shutil.move(self.place.root / "w/out", self.place.root / path)
        if act.step in STEPS:
            self.made = [one for one in self.made if one.path != path]
            self.made.append(Made(act, dict(layout), workers, memory, path, len(whole.calls)))
        return True

    def _as_recipe(self, steps: Sequence[Act], chain: Chain) -> None:
        """All steps in one pass make what they make one after another."""
        root = self.place.root
        said = {
            "source": list(chain.begun) if len(chain.begun) > 1 else chain.begun[0],
            "steps": [{one.step: dict(one.said)} for one in steps],
        }
        (root / "in/recipe.json").write_text(json.dumps(said))
        config = (root / chain.at / "config.json").read_bytes()

        def law(out: Path) -> Iterator[str]:
            yield from exactly(drawing.read(root / chain.at))(out)
            if (out / "config.json").read_bytes() != config:
                yield "config.json is another"

        words = ["run", "in/recipe.json", f"--workers={self.draw.randint(1, 4)}"]
        self._tried(words, "run", law, chain.at)

    def _tried(self, words: Sequence[str], step: str, law: Law, beside: str) -> Undisturbed | None:
        """A command undisturbed, and disturbed some times; its output is there then. None: it is broken."""
        root, scratch = self.place.root, self.place.scratch
        old = self._old(step) if self.draw.random() < 0.25 else ""
        line = " ".join([*words, "-o", "w/out", *(["--overwrite"] if old else [])])
        job, before = Job(line, over=old), tree(root / "in")
        self.told.commands[step] += 1
        try:
            with within(ENOUGH):
                whole = undisturbed(job, root, scratch)
        except AssertionError as refused:
            self._break(line, [f"it is refused: {refused}"])
            return None
        self.told.runs += 2
        wrong = [*law(root / "w/out"), *_beside(root / beside, root / "w/out")] if beside else [*law(root / "w/out")]
        if whole.inputs != before:
            wrong.append("an input is changed")
        for _ in range(self.draw.choice((0, 1, 1, 2))):
            wrong += self._disturbed(job, whole)
        self._break(line, wrong)
        if tree(root / "w/out") != whole.new:
            undisturbed(job, root, scratch)
        return None if wrong else whole

    def _old(self, step: str) -> str:
        """An output that is there already, to be overwritten."""
        path = self.place.root / "in/old"
        if not path.exists() and step != "convert-files":
            ended = run(["rename", "in/0", "--map=^=old.", "-o", "in/old"], self.place.root, self.place.scratch)
            assert ended.status == 0, ended.stderr
        return "old" if path.exists() else ""

    def _disturbed(self, job: Job, whole: Undisturbed) -> Iterator[str]:
        """One or two faults, one after another, and then the command again."""
        root, scratch = self.place.root, self.place.scratch
        reset(root, job)
        for _ in range(self.draw.choice((1, 1, 2))):
            case, ended = self._fault(job, whole)
            self.told.runs += 1
            self.told.faults[case.fault] += 1
            self.told.ended["killed" if ended.killed else "full" if "disk is full" in ended.stderr else
                            "no memory" if "memory" in ended.stderr else str(ended.status)] += 1  # fmt: skip
            yield from (f"{case.call} #{case.k} {case.fault}: {one}" for one in after(ended, case, job, whole, root))
        self.told.runs += 1
        with within(ENOUGH):
            yield from again(job, whole, root, scratch)

    def _fault(self, job: Job, whole: Undisturbed) -> tuple[Case, Ended]:
        root, scratch, words = self.place.root, self.place.scratch, job.words.split()
        kind = self.draw.choices(("call", "full", "tight"), (6, 2 if self.place.small else 0, 1))[0]
        if kind == "full":
            size = sum(one.stat().st_size for one in (root / "in").rglob("*") if one.is_file())
            left = self.draw.randrange(size)
            with within(ENOUGH), nearly_full(root.parent, left):
                return Case(left, "disk", kind), run(words, root, scratch)
        if kind == "tight":
            more = self.draw.randrange(*TIGHT)
            with within(more):
                ended = run(words, root, scratch)
            if re.search(UNSAID, ended.stderr):
                return Case(more, "memory", "kill"), replace(ended, status=-signal.SIGKILL)
            return Case(more, "memory", kind), ended
        drawn = list(cases(whole.calls, each=1, looks=40, seed=self.draw.randrange(1000)))
        case, names = self.draw.choice(drawn), scratch / "names"
        with within(ENOUGH):
            ended = run(words, root, scratch, Watch(k=case.k, what=FAULTS[case.fault], names=names))
        met = names.read_text().splitlines()[case.k - 1 : case.k]
        return replace(case, call=met[0].split("\t")[0] if met else "none"), ended

    def _break(self, line: str, wrong: Sequence[str]) -> None:
        self.wrong += [f"round {self.number}: {line}: {one}" for one in wrong]


def _options(said: dict[str, Any]) -> list[str]:
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in said.items()]


def _beside(source: Path, out: Path) -> Iterator[str]:
    """What lies beside the weights is there as it was."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_dir() or name.startswith(".surgery/") or name.endswith(OWN) or name == "config.json":
            continue
        if not (out / name).is_file() or (out / name).read_bytes() != path.read_bytes():
            yield f"{name} is not there as it was"
