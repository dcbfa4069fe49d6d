"""The fixture `hub`: a Hub on 127.0.0.1, to which huggingface_hub and transformers of this process talk."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub.server import TOKEN, Hub
from surgery.hub import remote

os.environ.setdefault("HF_XET_XORB_COMPRESSION_POLICY", "none")  # the server reads no LZ4
os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "2")  # else a failing Xet takes minutes
os.environ.setdefault("HF_XET_CLIENT_RETRY_BASE_DELAY", "20ms")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that the client of this process uses, with a token that may write; its pauses between tries are skipped."""
    with Hub() as made:
        home = tmp_path / "hf_home"
        use(made, monkeypatch, home)
        yield made


@pytest.fixture(params=["lfs", "xet"])
def mode(request: pytest.FixtureRequest, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """How large files go up and come down; a test that takes it runs in both ways."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return str(request.param)


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Point the client of this process to the Hub: what it read from the environment, once, is set anew."""
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http, _xet

    from surgery.hub import client

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_XET_CACHE", str(home / "xet"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)  # made when it was imported
    if loaded := sys.modules.get("transformers.utils.hub"):
        monkeypatch.setattr(loaded, "_hf_api", None)
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
    hurry = SimpleNamespace(sleep=hub.slept.append, time=time.time)
    monkeypatch.setattr(_http, "time", hurry)
    monkeypatch.setattr(file_download, "time", hurry)
    monkeypatch.setattr(client, "time", hurry)
    _http.close_session()
    remote.forget()  # another Hub's commits have the same names


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that shall use the Hub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_OFFLINE"))}
    return kept | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home),
        "HF_XET_XORB_COMPRESSION_POLICY": "none",
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "20ms",
        **more,
    }
