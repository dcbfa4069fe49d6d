"""No token and no password leaves the process but in the header that it is for: not in what a command says, logs or
writes, whatever way it was given, and whatever the Hub answers.
"""

from __future__ import annotations

import base64
import io
import json
import logging as python_logging
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import typer
from handmade import write_adapter
from typer.testing import CliRunner

import surgery
from hub.conftest import environment, use
from hub.faults import Drop, Kind, Reset, Status
from hub.server import Hub
from hub.store import User
from hub.wire import Answer, Request
from surgery.hub import remote
from surgery_cli.app import app

TOKEN = "hf_Marked+Token/ThatIs=Never$een"
PASSWORD = "Marked/Pass word@OfTheAddress"
ALICE = f"alice:{quote(PASSWORD, safe='')}@"
BASIC = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()

# Every command that can meet the Hub, with names on it wherever one may stand.
ROWS = {
    "inspect": "org/base --tensors .*",
    "diff": "org/base hf://org/merged",
    "browse": "org/base",
    "report": "org/merged --base org/base --adapter org/adapter -o report.html",
    "verify": "org/merged --base org/base --adapter org/adapter",
    "reshard": "org/base@main -o hf://org/out",
    "convert-files": "org/base -o out",
    "convert": "org/base -o out --as llama",
    "dequantize": "org/nf4 -o out",
    "quantize": "org/base -o out --scheme nf4",
    "rename": "org/base -o out --map model.=m.",
    "drop": "org/base -o out --pattern .*norm.*",
    "keep": "org/base -o out --pattern .*norm.*",
    "add": "org/base org/merged -o out --prefix x.",
    "cast": "org/base -o out --dtype float16",
    "tie": "org/tied -o out",
    "untie": "org/tied -o out",
    "layers": "org/base -o out --order 0,0",
    "vocabulary": "org/base -o out --tokenizer org/merged",
    "blend": "org/base org/merged -o out --weights 0.5,0.5 --base org/base",
    "reindex": "org/base",
    "split": "org/adapter -o out",
    "fuse": "org/split -o out",
    "split-qkv": "org/base -o out",
    "fuse-qkv": "org/split -o out",
    "split-gate-up": "org/base -o out",
    "fuse-gate-up": "org/split -o out",
    "split-experts": "org/base -o out",
    "fuse-experts": "org/base -o out",
    "inject": "org/base -o out --rank 2 --target-modules o_proj",
    "merge": "org/base org/adapter -o hf://org/out --reversible",
    "unmerge": "org/merged -o out",
    "combine": "org/adapter org/adapter -o out --weights 1,1",
    "resize-adapter": "org/adapter -o out --rank 1",
    "extract": "org/base org/merged -o out --rank 2",
    "convert-adapter": "org/adapter -o out --to mlx",
    "push": "model org/pushed --tag v1",
    "run": "recipe.json -o out",
}
ALONE = {"schema": "", "clean": "out", "env": "--json", "demo": "model"}  # they ask no one; nor where they refuse


def test_every_command_has_a_row() -> None:
    assert {*ROWS} | {*ALONE} == set(vars(typer.main.get_command(app))["commands"]) and not {*ROWS} & {*ALONE}


def forms(secret: str) -> Iterator[bytes]:
    """What a secret may look like where somebody wrote it."""
    raw = secret.encode()
    yield from (raw, quote(secret, safe="").encode(), quote_plus(secret).encode(), json.dumps(secret)[1:-1].encode())
    yield from (raw.hex().encode(), repr(raw)[2:-1].encode())
    for before in range(3):  # in the middle of more that is encoded with it
        whole = base64.b64encode(bytes(before) + raw)
        middle = whole[-(-before * 4 // 3) : len(whole) - 4]
        yield from (middle, middle.translate(bytes.maketrans(b"+/", b"-_")))


HIDDEN = {form for secret in (TOKEN, PASSWORD) for form in forms(secret)}
assert any(form in BASIC.encode() for form in HIDDEN)


@dataclass
class Place:
    """A Hub, a folder in which commands are run, and all that is logged."""

    hub: Hub
    folder: Path
    logged: io.StringIO
    patch: pytest.MonkeyPatch
    strangers: list[str]  # what the second origin was sent in headers
    password: bool = False  # whether one is in use

    @property
    def home(self) -> Path:
        return self.folder / "hf_home"

    def run(self, command: str, words: str, *more: str) -> Any:
        return CliRunner().invoke(app, [command, *shlex.split(words), *more])

    def check(self, *said: str) -> None:
        """Nothing of it is in what was said, in what was logged, in any file but the user's own, or on the Hub."""
        held = {"what was said": "\n".join(said).encode(), "the log": self.logged.getvalue().encode()}
        held |= {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        held |= {str(path): str(path).encode() for path in self.folder.rglob("*")}
        for repo in self.hub.repos.values():
            for sha, commit in repo.commits.items():
                held[f"{repo.name}@{sha}"] = f"{commit.title} {commit.description}".encode()
                held |= {f"{repo.name}@{sha}/{path}": blob.read() for path, blob in commit.files.items()}
        own = {str(self.home / "token")}
        held |= {f"sent elsewhere: {text}": text.encode() for text in self.strangers}
        found = [(where, form) for where, text in held.items() if where not in own for form in HIDDEN if form in text]
        assert not found, "\n".join(said)


def told(result: Any) -> str:
    """All that a command said, and, where it raised, the traceback with those that led to it."""
    error = result.exception
    return result.output + ("" if error is None else "".join(traceback.format_exception(error)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, saved: Callable[..., Path]) -> Path:
    """What lies on the Hub, one folder for each repository of `org`."""
    folder = tmp_path_factory.mktemp("models")
    base = shutil.copytree(saved("phi3"), folder / "base")
    adapter = write_adapter(folder / "adapter", {"model.layers.0.self_attn.o_proj": (48, 48)})
    config = json.loads((adapter / "adapter_config.json").read_text())
    named = json.dumps(config | {"base_model_name_or_path": "org/base"})
    (adapter / "adapter_config.json").write_text(named)
    opened = surgery.open_checkpoint(base)
    merged = surgery.merge(opened, surgery.open_adapter(adapter))
    surgery.write(surgery.reversible(merged, opened), folder / "merged")
    surgery.write(surgery.split_gate_up(surgery.split_qkv(opened)), folder / "split")
    surgery.write(surgery.quantize(opened, "nf4"), folder / "nf4")
    surgery.write(opened, folder / "tied")
    return folder


@pytest.fixture
def place(hub: Hub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for folder in models.iterdir():
        hub.put_folder(f"org/{folder.name}", folder)
        hub.put(f"org/{folder.name}", {".gitattributes": None})
        hub.repos[f"org/{folder.name}"].private = True  # nobody reads it without the token
    hub.redirect = True
    hub.users = {}
    strangers, served = list[str](), hub.cdn.dispatch

    def dispatch(request: Request) -> Answer:
        strangers.extend(text for name, text in request.headers.items() if name.lower() != "proxy-authorization")
        return served(request)

    hub.cdn.dispatch = dispatch
    monkeypatch.setattr(remote, "_wait", lambda seconds, stop: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    recipe = {"source": "org/base", "steps": [{"merge": {"adapters": ["org/adapter"]}}]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "model").symlink_to(models / "base")
    with logs() as logged:
        yield Place(hub, tmp_path, logged, monkeypatch, strangers)


@contextmanager
def logs() -> Iterator[io.StringIO]:
    """What the client logs, which a user can make as talkative as this by HF_DEBUG."""
    from huggingface_hub import constants, logging

    (handler,) = (one for one in python_logging.getLogger("huggingface_hub").handlers if hasattr(one, "setStream"))
    before, level, debug = handler.stream, logging.get_verbosity(), constants.HF_DEBUG
    handler.setStream(text := io.StringIO())
    constants.HF_DEBUG = True
    logging.set_verbosity_debug()
    yield text
    handler.setStream(before)
    constants.HF_DEBUG = debug
    logging.set_verbosity(level)


# How a user gives a token, or a password.


def by_variable(place: Place) -> None:
    place.hub.token(TOKEN, "someone", "org")
    place.patch.setenv("HF_TOKEN", TOKEN)


def by_old_variable(place: Place) -> None:
    place.hub.token(TOKEN, "someone", "org")
    place.patch.delenv("HF_TOKEN")
    place.patch.setenv("HUGGING_FACE_HUB_TOKEN", TOKEN)


def by_file(place: Place) -> None:
    place.hub.token(TOKEN, "someone", "org")
    place.patch.delenv("HF_TOKEN")
    place.home.mkdir(exist_ok=True)
    (place.home / "token").write_text(TOKEN)


def by_address(place: Place) -> None:
    """A name and a password in HF_ENDPOINT, which the client sends in place of the token."""
    place.password = True
    place.hub.users["Basic " + BASIC] = User("someone", ("org",))
    place.hub.endpoint = place.hub.endpoint.replace("http://", f"http://{ALICE}")
    use(place.hub, place.patch, place.home)
    place.patch.setenv("HF_TOKEN", TOKEN)


def by_proxy(place: Place) -> None:
    """A proxy that wants a password: the server itself, which is asked for an address that is not its own."""
    place.hub.token(TOKEN, "someone", "org")
    place.password = True
    there = place.hub.endpoint.replace("http://", f"http://{ALICE}")
    place.hub.endpoint, served, other = "http://hub.example", place.hub._wire.dispatch, place.hub.cdn

    def through(request: Request) -> Answer:
        return (other.dispatch if request.headers["Host"] in other.url else served)(request)

    place.hub._wire.dispatch = through
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        place.patch.setenv(name, there)
    use(place.hub, place.patch, place.home)
    place.patch.setenv("HF_TOKEN", TOKEN)


WAYS = (by_variable, by_old_variable, by_file, by_address, by_proxy)


def echo(place: Place) -> dict[str, Any]:
    """An answer that quotes what was sent to the Hub, in headers and in its body."""
    sent = {f"Bearer {TOKEN}", repr(TOKEN), quote(TOKEN, safe=""), f"http://{ALICE}hub.example/x"}
    said = ", ".join(sorted(sent | ({f"Basic {BASIC}", PASSWORD} if place.password else set())))
    return {"headers": {"X-Error-Message": said, "X-Request-Id": said}, "body": said.encode()}


def answers(place: Place) -> Iterator[Kind]:
    """What the Hub may say in place of the right thing."""
    said = echo(place)
    for code in (401, 403, 404, 429, 500):
        yield Status(code, **said)
    as_json = json.dumps({"error": said["body"].decode()}).encode()
    yield Status(400, {"Content-Type": "application/json"}, as_json)
    yield Status(200, **said)
    yield Status(302, {"Location": f"{place.hub.cdn.url}/elsewhere"})
    yield Status(307, {"Location": f"{place.hub.cdn.url}/elsewhere"})
    yield Drop()
    yield Reset(3)


@pytest.fixture
def place_of(place: Place, request: pytest.FixtureRequest) -> Place:
    """The place, to which the user has given a secret in one of the ways."""
    request.param(place)
    return place


async def left(pilot: Any) -> None:
    """Who looks at the first screen, and leaves."""
    await pilot.pause()
    pilot.app.exit()


@pytest.fixture(autouse=True)
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """`browse` needs no terminal."""
    from surgery_cli.browser import Browser

    real = Browser.run
    monkeypatch.setattr(Browser, "run", lambda self: real(self, headless=True, auto_pilot=left))


@pytest.mark.parametrize("command", ROWS)
def test_of_every_command(place: Place, command: str) -> None:
    """Done, and refused in the middle by who quotes what was sent."""
    by_variable(place)
    done = place.run(command, ROWS[command])
    assert any(seen.authorized for seen in place.hub.log)
    place.check(told(done))
    asked = len(place.hub.log)
    undo(place)
    fault = place.hub.fault(Status(400, **echo(place)), "", times=10**6, skip=asked // 2)
    refused = place.run(command, ROWS[command], "--debug")
    assert fault.fired and isinstance(refused.exception, surgery.SurgeryError), refused.output
    place.check(told(refused))


def undo(place: Place) -> None:
    """Nothing that a command made is left, nor what is kept of the Hub."""
    for name in ("out", "report.html", "hf_home/surgery", "hf_home/xet"):
        path = place.folder / name
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
    for name in ("org/out", "org/pushed"):
        place.hub.repos.pop(name, None)
    remote.forget()


GIVEN = [
    *(("inspect", way) for way in WAYS),
    *((command, way) for command in ("reshard", "push") for way in (by_variable, by_address)),
]


@pytest.mark.parametrize(("command", "place_of"), GIVEN, indirect=["place_of"])
def test_whatever_way_it_is_given(place_of: Place, command: str) -> None:
    """And whatever is answered: as JSON, and with a traceback."""
    done = place_of.run(command, ROWS[command])
    assert done.exit_code == 0, told(done)
    place_of.check(told(done))
    for number, kind in enumerate(answers(place_of)):
        undo(place_of)
        fault = place_of.hub.fault(kind, "", times=10**6, origin="hub")
        refused = place_of.run(command, ROWS[command], "--json" if number % 3 == 0 else "--debug")
        fault.times = fault.fired
        assert fault.fired and refused.exit_code
        place_of.check(told(refused))


@pytest.mark.parametrize("place_of", WAYS, indirect=True)
def test_where_nobody_answers(place_of: Place) -> None:
    place_of.hub.stop()
    for more in ("--debug", "--json"):
        refused = place_of.run("inspect", ROWS["inspect"], more)
        assert refused.exit_code
        place_of.check(told(refused))


NAMES = (
    f"https://{ALICE}huggingface.co/org/base",
    f"https://{quote(TOKEN, safe='')}@huggingface.co/org/base",
    f"https://huggingface.co/org/base?token={quote(TOKEN, safe='')}",
    f"hf://{ALICE}org/base",
)


@pytest.mark.parametrize("name", NAMES)
def test_where_it_stands_in_the_name_of_a_model(place: Place, name: str) -> None:
    """On the command line, in a recipe, and as what is pushed, or where to."""
    by_variable(place)
    (place.folder / "recipe.json").write_text(json.dumps({"source": name, "output": {"output": "out"}}))
    rows = [("inspect", [name]), ("merge", ["org/base", name, "-o", "out"]), ("diff", ["org/base", name])]
    rows += [("push", [name, "org/pushed"]), ("push", ["model", name]), ("run", ["recipe.json"])]
    rows += [("reshard", ["org/base", "-o", name])]
    said = []
    for number, (command, words) in enumerate(rows):
        done = CliRunner().invoke(app, [command, *words, "--json" if number % 2 else "--debug"])
        assert done.exit_code, (command, words)
        said.append(told(done))
    (place.folder / "recipe.json").unlink()
    place.check(*said)


@pytest.mark.parametrize("command", ALONE)
def test_who_asks_no_one(place: Place, command: str) -> None:
    by_variable(place)
    place.check(told(place.run(command, ALONE[command])))
    assert not place.hub.log


def test_on_a_cluster(place: Place) -> None:
    """Nor in what Ray logs of its workers, who ask the Hub as well, and are refused with what was sent."""
    pytest.importorskip("ray")
    by_variable(place)
    words = ["merge", "org/base", "org/adapter", "-o", "out", "--executor", "ray", "--address", "local", "--debug"]
    place.hub.fault(Status(403, **echo(place)), "GET .*/model.safetensors", times=10**6, skip=3)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:  # its sockets need a short path
        env = environment(place.hub, place.home, HF_TOKEN=TOKEN, RAY_TMPDIR=short, HF_DEBUG="1")
        command = [sys.executable, "-m", "surgery_cli", *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 1 and "Bearer <secret>" in done.stderr, done.stderr
        logs = [path for path in Path(short).rglob("*") if path.is_file()]
        assert any(path.name.startswith("worker-") for path in logs)
        place.check(done.stdout, done.stderr, *(path.read_text(errors="replace") for path in logs))
