"""Collections: a folder whose components are checkpoints in folders of their own.

Pipelines of diffusers (`model_index.json`), and models of sentence-transformers whose transformer is in a folder, too
(`modules.json`). One of the components may be meant alone: `only_component`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar

from ..errors import FormatError, NotACheckpoint, nearest, series
from .beside_adapter import is_litter
from .folder import Folder, PathLike, locate
from .meant import meaning
from .strict import MEND, parse_object

MODEL_INDEX = "model_index.json"
MODULES = "modules.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_COMPONENT: ContextVar[str] = ContextVar("component", default="")


def only_component(name: str) -> AbstractContextManager[None]:
    """Inside, a pipeline that is opened is its component of that name alone."""
    return meaning(_COMPONENT, name)


def component_meant() -> str:
    """The component that is meant alone; empty: all of them."""
    return _COMPONENT.get()


def meant_at(path: PathLike | Folder) -> tuple[Folder, str]:
    """What `locate` finds, or the component in it that is meant alone. Raises NotACheckpoint where there is none."""
    folder, name = locate(path)
    if not (component := _COMPONENT.get()):
        return folder, name
    known = [] if name else components_of(folder)
    if component in known:
        return locate(folder.at(component))
    close = nearest(component, known) or known
    tip = f"there are {series(close)}" if known else "leave --component away: it is no pipeline"
    raise NotACheckpoint(f"no component is called {component}", where=[folder.at(name)], help=tip)


def components_of(folder: Folder) -> list[str]:
    """The folders of the components that hold weights; none where the folder is no collection.

    Raises FormatError for a model_index.json that is none.
    """
    if folder.has(MODEL_INDEX):
        content = _parsed(folder, MODEL_INDEX, folder.read(MODEL_INDEX))
        named = [name for name, value in content.items() if isinstance(value, list) and any(value)]
    elif not _weighty(folder, ""):
        return modules_of(folder)
    else:
        return []
    return [name for name in named if "/" not in name and _weighty(folder, name)]


def modules_of(folder: Folder) -> list[str]:
    """The folders in which modules of sentence-transformers hold weights; none in any other folder, and where
    modules.json is another program's.
    """
    listed: object = None
    with suppress(FormatError):
        listed = _parsed(folder, MODULES, b'{"all": %s}' % folder.read(MODULES))["all"] if folder.has(MODULES) else None
    named = [str(one.get("path")) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return [name for name in named if name and "/" not in name and _weighty(folder, name)]


def _parsed(folder: Folder, name: str, raw: bytes) -> dict[str, object]:
    return parse_object(raw, lambda what: FormatError(what, where=[folder.at(name)], help=MEND))


def _weighty(folder: Folder, name: str) -> bool:
    """Whether weights lie in the folder's folder `name`."""
    return any(file.endswith(_WEIGHTS) and not is_litter(file) for file in folder.names(name))
