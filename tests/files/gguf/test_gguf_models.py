"""Models in GGUF under their names on the Hub: transformers, which loads the file itself, is the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from gguf_files import SCALES, write
from gguf_models import MODELS, as_gguf, tiny

import surgery

SURE: dict[str, dict[str, Any]] = {"gemma2": {"tie_word_embeddings": True}, "gemma3": {"tie_word_embeddings": True}}
PAD = {"tokenizer.ggml.padding_token_id": 0}


def as_transformers_loads(path: Path, arch: str) -> torch.nn.Module:
    """The file as transformers loads it, in float32."""
    loader = getattr(transformers, MODELS[arch].loader)
    return loader.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def as_written(path: Path, arch: str) -> torch.nn.Module:
    """What was written, as its class loads it, in float32: every tensor, and no other."""
    loader = getattr(transformers, MODELS[arch].loader)
    model, info = loader.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("arch", MODELS)
def test_a_model_is_what_transformers_loads_and_what_it_was(tmp_path: Path, arch: str) -> None:
    """Tensor by tensor, and in what it computes."""
    model = tiny(arch, **SURE.get(arch, {}))
    path = as_gguf(model, arch, tmp_path / "in" / "m.gguf", said=PAD)
    surgery.write(surgery.open_checkpoint(path), tmp_path / "out")
    ours, theirs = as_written(tmp_path / "out", arch), as_transformers_loads(path, arch)
    wanted, original = theirs.state_dict(), model.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
        assert torch.allclose(tensor, original[name], atol=1e-6), name
    ids = torch.arange(20)[None]
    with torch.no_grad():
        made = ours(ids).logits
        assert torch.equal(made, theirs(ids).logits)
        if arch not in ("gemma2", "gemma3"):  # of which GGUF does not say by what queries are scaled
            assert torch.allclose(made, model(ids).logits, atol=1e-4)


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_blocks_are_decoded_as_the_reference_does(tmp_path: Path, arch: str, kind: str) -> None:
    """Bit for bit in float32, and rounded once to others; rows of q and k are moved, matrices of GPT-2 transposed."""
    wide = {"n_embd": 256, "n_inner": 512} if arch == "gpt2" else {"hidden_size": 256, "intermediate_size": 512}
    model = tiny(arch, **wide)
    path = as_gguf(model, arch, tmp_path / "m.gguf", kind, embedding_length=256, feed_forward_length=512)
    judge = {one.name: gguf.dequantize(one.data, one.tensor_type) for one in gguf.GGUFReader(path).tensors}
    plain = write(tmp_path / "plain.gguf", arch, said_of(path), judge)
    wanted = surgery.open_checkpoint(plain)
    checkpoint = surgery.open_checkpoint(path)
    exact = surgery.dequantize(checkpoint, dtype="float32")
    assert exact.config["dtype"] == "float32"
    for name in wanted.tensors:
        value = wanted.load(name)
        assert torch.equal(exact.load(name).view(torch.int32), value.view(torch.int32)), name
        rounded = checkpoint.load(name)
        assert torch.equal(rounded, value.to(rounded.dtype))
    surgery.write(exact, tmp_path / "out")
    assert surgery.diff(tmp_path / "out", plain).equal


def said_of(path: Path) -> dict[str, Any]:
    """The metadata of a file, as they are written."""
    fields = gguf.GGUFReader(path).fields
    return {n: f.contents() for n, f in fields.items() if not n.startswith(("GGUF.", "general.architecture"))}
