"""Ray itself: how a cluster is found or started, what it has, and how a task is sent to it.

All of Ray that is used is here. A machine of the cluster may have another surgery, or none: what is sent to it is a
function by its code, which compares versions before it imports anything of ours.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..errors import SurgeryError
from .node import name_of

TIP = "pip install 'checkpoint-surgery[ray]'"
CONNECT = 10.0  # seconds in which an address must answer
STORE = 80 << 20  # bytes of Ray's store of objects, where we start it: nothing of size goes through it
SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"  # what a gRPC client says first


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster, and what it has."""

    id: str
    host: str
    cpus: float
    memory: float

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return name_of(self.id, self.host)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`; without one to that of RAY_ADDRESS, to one that runs here, or to one
    that is started here and ends along. Raises SurgeryError where there is none, after less than a minute.
    """
    ray = _imported()
    if ray.is_initialized():
        _check_same(ray.get_runtime_context().gcs_address, address)
        yield ray
        return
    with _signals_as_they_were():
        _connect(ray, address or os.environ.get("RAY_ADDRESS") or "auto")
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _signals_as_they_were() -> Iterator[None]:
    """SIGTERM does what it did before, where that was said: Ray takes it for itself. Without it, Ray's own way of
    ending at once leaves none of its processes.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before not in (None, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _imported() -> Any:
    try:
        import ray
    except ImportError as error:
        raise SurgeryError(f"Ray cannot be imported: {error}", help=TIP) from error
    return ray


def _check_same(here: str, address: str) -> None:
    if address not in ("", "auto", here):
        raise SurgeryError(
            "this process is connected to another Ray cluster", where=[here, address], help="leave --address away"
        )


def _connect(ray: Any, address: str) -> None:
    """Connect to a cluster, or start one. Ray's own words go to nobody: what fails is raised."""
    import logging

    logging.getLogger("ray").setLevel(logging.ERROR)
    if address not in ("auto", "local"):
        check_answers(address)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    started = {"address": "local", "include_dashboard": False, "object_store_memory": STORE}
    # One try, of half a minute, where Ray makes many; and none is told that we are here.
    with _environment(RAY_gcs_server_port_wait_time_s="1", RAY_USAGE_STATS_ENABLED="0"):
        try:
            if address != "local":
                ray.init(address=address, **quiet)
                return
        except Exception as error:  # Ray has many, and raises some of gRPC
            if address != "auto" or "Could not find any running" not in str(error):
                raise unreachable(address, str(error)) from error
        try:
            ray.init(**started, **quiet)
        except Exception as error:
            raise SurgeryError(f"Ray cannot be started here: {_first_line(str(error))}", help=_HELP) from error


_HELP = "pass the host:port that Ray says when the head of a cluster is started, as --address"


def unreachable(address: str, why: str) -> SurgeryError:
    """The error where no cluster answers."""
    return SurgeryError("no Ray cluster can be reached", where=[f"{address}: {_first_line(why)}"], help=_HELP)


def _first_line(text: str) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines()[:6])


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]


def check_answers(address: str) -> None:
    """Something that speaks gRPC answers at host:port; Ray itself waits for minutes. Raises SurgeryError."""
    host, mark, port = address.removeprefix("ray://").rpartition(":")
    if not mark or not port.isdigit():
        raise unreachable(address, "an address is host:port, such as 10.0.0.1:6379")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT) as line:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
                line.settimeout(CONNECT)
                line.sendall(SETTINGS)
                if (answer := line.recv(9))[3:4] != b"\4":
                    raise unreachable(address, f"what answers there is not Ray: {answer!r}")
    except TimeoutError as error:
        raise unreachable(address, f"no answer in {CONNECT:.0f} seconds") from error
    except (OSError, OverflowError) as error:
        raise unreachable(address, str(error)) from error


def nodes_of(ray: Any) -> list[Node]:
    """The machines of the cluster that live and have cores to work with."""
    living = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return [
        Node(n["NodeID"], n["NodeManagerHostname"], n["Resources"]["CPU"], n["Resources"].get("memory", 0))
        for n in living
    ]


def _versions() -> Callable[[], dict[str, str]]:
    """A function that has no module, so that it is sent as its code."""

    def versions() -> dict[str, str]:
        import hashlib
        import importlib.util
        import pathlib
        import platform
        from importlib import metadata

        found = {"Python": platform.python_version()}
        for name in ("torch", "numpy", "zstandard"):
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = "none"
        spec = importlib.util.find_spec("surgery")
        digest = hashlib.sha256()
        for place in spec.submodule_search_locations or () if spec else ():
            for path in sorted(pathlib.Path(place).rglob("*.py")):
                digest.update(path.relative_to(place).as_posix().encode() + b"\0" + path.read_bytes())
        try:
            from surgery.version import __version__

            found["surgery"] = f"{__version__} of code {digest.hexdigest()[:8]}"
        except ImportError:
            found["surgery"] = "none"
        return found

    return versions


def tasks(ray: Any) -> tuple[Any, dict[str, str]]:
    """What is sent to a node, and the versions that are here.

    `there(task, asked, expected)` returns what differs there from the versions `expected`, and the result of the
    function `task` of `node.py`, which is not called where something differs.
    """
    versions = _versions()

    def there(task: str, asked: bytes, expected: dict[str, str]) -> tuple[list[str], Any]:
        import ray

        here = versions()
        differ = [f"{n} is {here[n]} there, and {expected[n]} here" for n in expected if here[n] != expected[n]]
        if differ:
            return differ, None
        from surgery.execution import node

        return [], getattr(node, task)(asked, ray.get_runtime_context().get_node_id())

    return ray.remote(there), versions()


def at_node(ray: Any, node: Node) -> dict[str, Any]:
    """The options of a task that runs on this node at once, or not at all."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False)}


def failed(ray: Any, error: Exception, shards: Sequence[str], retries: int) -> SurgeryError:
    """What a task ended with, as an error of ours."""
    cause = getattr(error, "cause", None)
    if isinstance(error, ray.exceptions.RayTaskError):
        return SurgeryError(f"a worker failed: {type(cause).__name__}: {_first_line(str(cause))}", where=shards)
    return SurgeryError(
        f"the workers that made these shards died, {retries + 1} times",
        where=[*shards, _first_line(str(error))],
        help="what is finished is kept, and a rerun resumes it; where memory was short, pass a smaller --memory, or "
        "fewer --workers",
    )


def pickled(ray: Any, value: object, functions: Iterable[Any]) -> bytes:
    """The value for another machine, with the code of these functions of the user's, and of their modules, whatever is
    installed there under their names. Raises SurgeryError.
    """
    modules = {getattr(function, "__module__", None) for function in functions} - {None, "__main__"}
    try:
        with _by_value(ray.cloudpickle, [sys.modules[name] for name in modules if name in sys.modules]):
            return ray.cloudpickle.dumps(value)
    except Exception as error:  # whatever a value's own way of being pickled raises
        raise SurgeryError(
            f"the plan cannot be sent to other machines: {type(error).__name__}: {_first_line(str(error))}",
            help="without --executor it is carried out here; functions in it may close over what can be pickled alone",
        ) from error


@contextmanager
def _by_value(cloudpickle: Any, modules: Sequence[ModuleType]) -> Iterator[None]:
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
