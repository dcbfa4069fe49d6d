"""A row for each parser of foreign bytes."""

from __future__ import annotations

import atexit
import json
import pickle
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from handmade import write_adapter, write_phi3, write_tensors

import surgery
from surgery.checks.inspection import inspect_checkpoint
from surgery.errors import FormatError, SurgeryError
from surgery.evaluation.corrections import correct
from surgery.files.adapter_config import check_config
from surgery.files.adapters.format import Found, Said
from surgery.files.adapters.table import FORMATS
from surgery.files.card import metadata_of
from surgery.files.hostile_patterns import check_patterns
from surgery.files.index import parse_index
from surgery.files.manifest import manifest_of
from surgery.files.peft import parse_adapter
from surgery.files.refs import parse_ref
from surgery.files.safetensors import Header, header_length, parse_header
from surgery.files.strict import POINTER, parse_object
from surgery.files.tokens import tokens_in
from surgery.files.torchfile.parts import chosen
from surgery.files.torchfile.reader import read_torch
from surgery.files.torchfile.records import read_pickle
from surgery.hub.card import completed
from surgery.lazy.dtypes import DTYPES
from surgery.lazy.tensor import Constant, File, Stored, Tensor
from surgery.patterns.matching import fullmatch
from surgery.planning.record import ShardRecord, _packed, _unpacked, read_shard_records, sealed, unsealed
from surgery.planning.recorded import check_facts, check_places, recipes_in
from surgery.recipes.document import overridden
from surgery.recipes.run import check, read_recipe

from .against_safetensors import check_no_laxer

JSON_WORDS = (b'"', b'":', b"{", b"}", b"[", b"]", b",", b"null", b"true", b"1e400", b"NaN", b"\\ud800", b"\xff", b"-0")
MODULES = {f"model.layers.0.{name}": (16, 16) for name in ("self_attn.o_proj",)}
CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Harness:
    """What reads the bytes, and bytes that it takes; `words` are what its format is written in."""

    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = JSON_WORDS


def fail(what: str) -> FormatError:
    """The error for JSON."""
    return FormatError(what, where=["x"])


@cache
def work() -> Path:
    """A folder of this process, in memory where there is one; removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="surgery-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def at(name: str, raw: bytes) -> str:
    """A file of that name with those bytes."""
    (path := work() / name).write_bytes(raw)
    return str(path)


def dumped(*values: Any) -> list[bytes]:
    """Seeds of JSON."""
    return [json.dumps(value).encode() for value in values]


# ---------------------------------------------------------------- checkpoints that are read beside what is changed


@cache
def phi3() -> surgery.Checkpoint:
    """A tiny model with fused qkv."""
    return surgery.open_checkpoint(write_phi3(work() / "phi3", layers=1, hidden=16, heads=4))


@cache
def lora() -> surgery.Adapter:
    """A LoRA on it."""
    return surgery.open_adapter(write_adapter(work() / "lora", MODULES))


@cache
def merged() -> surgery.Checkpoint:
    """The two merged, with an undo record."""
    base = phi3()
    surgery.write(surgery.reversible(surgery.merge(base, lora()), base), work() / "merged")
    return surgery.open_checkpoint(work() / "merged")


@cache
def coded() -> Mapping[str, surgery.Checkpoint]:
    """Checkpoints of one quantised weight, by what config.json calls the method."""
    import torch
    from quantization.made import bitsandbytes_4bit, bitsandbytes_8bit, compressed, fixtures, fp8
    from safetensors.torch import save_file

    half = torch.float16
    weights = {"num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True}
    made = {
        "bitsandbytes": bitsandbytes_4bit((16, 64), "nf4", 64, True, half),
        "bitsandbytes 8": bitsandbytes_8bit((16, 64), half),
        "fp8": fp8((16, 64), (8, 8), torch.float32, torch.bfloat16),
        "gptq": fixtures("gptq")["4-32-sym-gptq-float16"](),
        "awq": fixtures("awq")["gemm-32x64-32"](),
        "torchao": fixtures("torchao")["int8-rows"](),
        "compressed-tensors": compressed((16, 64), "pack-quantized", half, **weights),
        "auto-round": fixtures("gptq")["4-32-sym-gptq-float16"](),
        "compressed-tensors of floats": compressed(
            (16, 64), "float-quantized", half, num_bits=8, type="float", strategy="tensor"
        ),
    }
    auto = {"bits": 4, "group_size": 32, "sym": True, "packing_format": "auto_round:auto_gptq"}
    more = {"auto-round": {"quant_method": "auto-round", **auto, "extra_config": {"n": {"bits": 16}}}}
    found = {}
    for name, one in made.items():
        (folder := work() / f"coded {name}").mkdir()
        save_file({n: t.contiguous() for n, t in one.tensors.items()}, folder / "model.safetensors", one.header or None)
        told = {**one.config, **more.get(name, {})}
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": told}))
        found[name] = surgery.open_checkpoint(folder)
    return found


# ---------------------------------------------------------------- the parsers


def header(raw: bytes) -> None:
    """A whole file of safetensors: whatever the library refuses is refused, what is refused besides has a reason."""
    check_no_laxer(raw)
    length = header_length(raw[: len(POINTER)], len(raw), "x")
    parse_header(raw[8 : 8 + length], len(raw), "x")


def header_seeds() -> list[bytes]:
    """Files with a tensor or three."""
    found = []
    for tensors in ({"a": ("F32", (2, 2))}, {"a": ("BF16", (3,)), "b": ("I8", (0, 4)), "c": ("F4", (4,))}, {}):
        write_tensors(work() / "seed", tensors)
        found.append((work() / "seed").read_bytes())
    return found


def adapter(raw: bytes) -> None:
    """adapter_config.json, to the merge that it asks for."""
    config = parse_object(raw, fail)
    check_config(config, "x")
    held = parse_adapter("x", config, lora().tensors)
    surgery.merge(phi3(), replace(held, inputs=lora().inputs))


def adapter_seeds() -> list[bytes]:
    """Configs as PEFT writes them, with what is rarely said."""
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["o_proj"], "bias": "none"}
    rich = {
        **plain, "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/name", "fan_in_fan_out": False,
        "use_rslora": True, "use_dora": False, "lora_dropout": 0.1, "modules_to_save": None, "layers_to_transform": [0],
        "layers_pattern": "layers", "rank_pattern": {"o_proj": 4}, "alpha_pattern": {"^model.*o_proj": 8},
        "exclude_modules": ".*q_proj", "target_modules": r".*\.o_proj", "init_lora_weights": True,
    }  # fmt: skip
    more = {**plain, "target_parameters": ["mlp.experts.w"], "trainable_token_indices": {"embed_tokens": [1, 2]}}
    more |= {"layer_replication": [[0, 1], [0, 1]], "loftq_config": {}, "megatron_config": None, "revision": "main"}
    return dumped(plain, rich, more)


def model_config(raw: bytes) -> None:
    """config.json, to what is told of the checkpoint, and to a split and a merge."""
    made = replace(phi3(), files={"config.json": raw})
    inspect_checkpoint(made)
    surgery.merge(made, lora())
    surgery.split_qkv(made)


def model_seeds() -> list[bytes]:
    """Configs of models."""
    said = json.loads(Path(phi3().path, "config.json").read_bytes())
    rich = {
        **said, "architectures": ["Phi3ForCausalLM"], "vocab_size": 32, "tie_word_embeddings": True, "head_dim": 4,
        "partial_rotary_factor": 0.5, "rope_parameters": {"rope_theta": 1e4}, "text_config": {"model_type": "phi3"},
        "torch_dtype": "bfloat16", "auto_map": {"AutoModel": "modeling.X"}, "layer_types": ["full_attention"],
    }  # fmt: skip
    return dumped(said, rich)


def quantization(raw: bytes) -> None:
    """config.json of a quantised model, to the values that it asks for."""
    fits = [one for name, one in coded().items() if name.split()[0].encode() in raw] or [*coded().values()][:1]
    for number, held in enumerate(fits, 1):
        made = replace(held, files={"config.json": raw})
        inspect_checkpoint(made)
        try:
            surgery.dequantize(made)
            return
        except SurgeryError:
            if number == len(fits):
                raise


def quantization_seeds() -> list[bytes]:
    """One of each method."""
    return [Path(one.path, "config.json").read_bytes() for one in coded().values()]


def quant_state(raw: bytes) -> None:
    """The JSON that bitsandbytes keeps as a tensor."""
    held = coded()["bitsandbytes"]
    name = next(name for name in held.tensors if ".quant_state." in name)
    blob = Constant(DTYPES["U8"], (len(raw),), raw)
    surgery.dequantize(replace(held, tensors={**held.tensors, name: blob}))


def quant_state_seeds() -> list[bytes]:
    """As bitsandbytes writes it."""
    held = coded()["bitsandbytes"]
    name = next(name for name in held.tensors if ".quant_state." in name)
    state = json.loads(bytes(held.load(name).tolist()))
    return dumped(state, {**state, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5})


def torchao(raw: bytes) -> None:
    """What the header of a shard says of torchao's tensors: an object of texts."""
    held = coded()["torchao"]
    said = {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in _tree(raw).items()}
    surgery.dequantize(replace(held, metadata=dict.fromkeys(held.metadata, said)))


def torchao_seeds() -> list[bytes]:
    """As transformers writes it."""
    return dumped(*coded()["torchao"].metadata.values())


def _tree(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise fail("no JSON") from error
    return found if isinstance(found, dict) else {}


def manifest(raw: bytes) -> None:
    """The manifest of an output."""
    manifest_of(parse_object(raw, fail), "x")


def base_record(raw: bytes) -> None:
    """What an undo record says of a base, under a digest that fits."""
    facts = unsealed(Header({}, sealed(raw.decode("utf-8", "replace")), 8), "x")
    check_facts(facts, fail)
    check_places(facts, {}, {"model.safetensors.index.json": b'{"weight_map": {}}'}, fail)


def shard_record(raw: bytes) -> None:
    """What one says of a shard's tensors, to the tensors that it would restore."""
    said = unsealed(Header({}, sealed(raw.decode("utf-8", "replace")), 8), "x")
    record = ShardRecord(File("x", 0, 0), recipes_in(said, fail), _record().stored)
    for number, name in enumerate(record.recipes):
        record.restored(number, name, merged().tensors)


@cache
def _record() -> ShardRecord:
    from surgery.files.folder import LocalFolder

    return read_shard_records(LocalFolder(merged().path), [next(iter(merged().weight_map.values()))])[0]


def shard_record_seeds() -> list[bytes]:
    """As it is written."""
    return dumped({"format": 1, "tensors": dict(_record().recipes)})


def base_record_seeds() -> list[bytes]:
    """As it is written."""
    from surgery.files.safetensors import read_header

    merged()
    facts = (read_header(str(work() / "merged/.surgery/base.undo"))[1].metadata or {})["undo"]
    return [facts.encode()]


def frame(raw: bytes) -> None:
    """A correction to a block; the first byte says how wide its elements are."""
    correct(raw[1:], memoryview(bytearray(range(256))), (8, 16, 32, 64)[raw[0] % 4] if raw else 8, "x")


def frame_seeds() -> list[bytes]:
    """One of each mode."""
    from surgery.evaluation.corrections import difference

    block, few, all_ = bytes(range(256)), bytearray(range(256)), bytes(range(255, -1, -1))
    few[9] ^= 3
    found = [bytes((i,)) + difference(block, one, bits) for one in (few, all_) for i, bits in enumerate((8, 16, 32))]
    return [*found, b"\1\4" + block]


def packed(raw: bytes) -> None:
    """A file in an undo record, under zstandard."""
    _unpacked(raw, "x")


def recipe(raw: bytes, name: str) -> None:
    """A recipe, as far as it is read before anything is opened."""
    check(read_recipe(at(name, raw)))


def recipes() -> list[dict[str, Any]]:
    """Recipes as trees."""
    step: dict[str, Any] = {"merge": {"adapters": [{"path": "x", "scale": 0.5}], "only": r".*o_proj"}}
    return [
        {"source": "base", "steps": [step, {"drop": {"pattern": r".*\.bias"}}, "split-qkv"], "output": {"output": "o"}},
        {"source": ["a", "b"], "steps": [{"blend": {"method": "linear", "parameter": ["weight=0.5"]}}]},
        {"merge_method": "slerp", "base_model": "a", "dtype": "float16",
         "parameters": {"t": [{"filter": "x", "value": [0, 1]}]},
         "slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [0, 2]}]}]},
        {"merge_method": "ties", "base_model": "a", "models": [{"model": "b", "parameters": {"density": 0.5}}]},
    ]  # fmt: skip


def yaml_seeds() -> list[bytes]:
    """In YAML, with what only YAML has."""
    import yaml

    odd = b"source: &a [x, y]\nsteps:\n- {drop: {pattern: !!str 1}}\n- merge: {adapters: *a, scale: .5e1}\n"
    return [*(yaml.safe_dump(one).encode() for one in recipes()), odd, b"%YAML 1.2\n---\nsource: >-\n  x\n<<: {a: 1}\n"]


def toml_seeds() -> list[bytes]:
    """In TOML."""
    return [
        b'source = "base"\noutput = "o"\n[[steps]]\n[steps.merge]\nadapters = ["x"]\nscale = 0.5\n[[steps]]\n'
        b"drop = {pattern = '.*bias'}\n",
        b'source = ["a", "b"]\nsteps = [{blend = {method = "linear", t = 1979-05-27T07:32:00Z, n = 0xff}}, "x"]\n',
    ]


def said(raw: bytes) -> None:
    """What `--set` says, a line each."""
    overridden(recipes()[0], raw.decode("utf-8", "replace").split("\n")[:8])


def pickled(raw: bytes) -> None:
    """A pickle, to the tensors that it may hold."""
    chosen(read_pickle(raw, "x"), "x", ".")


def pickle_seeds() -> list[bytes]:
    """Of plain values, and of what torch saves."""
    values = ([1, "a", (b"x", 2.5, None), {"k": {3}}], {"w": 2**70, "s": ["x"] * 300})
    return [*(pickle.dumps(one, p) for one in values for p in range(6)), *_torch_pickles()]


def _torch_pickles() -> Iterator[bytes]:
    import io
    import zipfile

    for raw in torch_seeds()[:2]:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            yield next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))


def torch_file(raw: bytes) -> None:
    """A file that torch saved, of any age."""
    read_torch(at("x.bin", raw), key=".")


def torch_seeds() -> list[bytes]:
    """As torch writes them."""
    import io

    import torch

    found, state = [], {"a": torch.arange(6.0).reshape(2, 3).t(), "n": [torch.ones(2).half(), 5, {"x": None}]}
    for zipped, protocol in ((True, 2), (True, 4), (False, 2)):
        out = io.BytesIO()
        torch.save(state, out, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        found.append(out.getvalue())
    return found


def distributed(raw: bytes) -> None:
    """The metadata of a distributed checkpoint."""
    (work() / "dcp").mkdir(exist_ok=True)
    at("dcp/.metadata", raw)
    surgery.open_checkpoint(work() / "dcp")


def distributed_seeds() -> list[bytes]:
    """As torch writes it; its data stays in the folder."""
    import warnings

    import torch
    import torch.distributed.checkpoint as dcp

    state = {"model": {"a": torch.arange(6.0), "b": torch.ones(2, 3)}, "step": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=work() / "dcp", no_dist=True)
    return [(work() / "dcp/.metadata").read_bytes()]


def gguf(raw: bytes) -> None:
    """A GGUF file, to its tensors under the names of Hugging Face."""
    surgery.open_checkpoint(at("x.gguf", raw))


def gguf_seeds() -> list[bytes]:
    """A header as llama.cpp writes it, and its data."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.attention.head_count") + struct.pack("<II", 4, 2),
        text("llama.rope.freq_base") + struct.pack("<If", 6, 1e4),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ2f", 9, 6, 2, 0, 1),
        text("general.alignment") + struct.pack("<II", 4, 32),
    ]
    entries = [
        text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 4, 8, 0),
        text("blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 32, 4, 0, 160),
        text("output_norm.weight") + struct.pack("<IQIQ", 1, 32, 1, 672),
    ]
    raw = b"".join([b"GGUF" + struct.pack("<IQQ", 3, 3, 6), *keys, *entries])
    return [raw + bytes(-len(raw) % 32) + bytes(736)]


def tokenizer(raw: bytes) -> None:
    """tokenizer.json, and the same bytes as each other file of a tokenizer beside one that is right."""
    right = tokenizer_seeds()[0]
    for files in (
        {"tokenizer.json": raw}, {"vocab.json": raw}, {"vocab.txt": raw},
        {"tokenizer.json": right, "tokenizer_config.json": raw}, {"tokenizer.json": right, "added_tokens.json": raw},
    ):  # fmt: skip
        try:
            found = tokens_in(files, "x")
        except SurgeryError:
            continue
        for one in list(found.ids)[:8] if found else []:
            assert found is not None
            found.said(one)


def tokenizer_seeds() -> list[bytes]:
    """One of each kind of file."""
    fast = {
        "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Metaspace"}, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    }  # fmt: skip
    listed = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": []}
    settings = {"added_tokens_decoder": {"3": {"content": "<s>"}}, "bos_token": {"content": "<s>"}, "eos_token": "a"}
    return dumped(fast, listed, settings, {"a": 0, "b": 1})


def card(raw: bytes) -> None:
    """The metadata of a model card, and the card with some more."""
    text = raw.decode("utf-8", "replace")
    metadata_of(text)
    completed(text, {"base_model": ["org/name"]})


def card_seeds() -> list[bytes]:
    """Cards."""
    return [
        b"---\nlicense: mit\ntags:\n- a\n- b\nbase_model: org/name\n---\n# x\n",
        b"---\na: &x [1, 2]\nb: *x\nc: 2001-01-01\nd: {? [1] : 2}\ne: !!set {a}\nf: 1:30\n---\n",
    ]


@cache
def zeros() -> File:
    """A file of zeros, as large as a tensor of a name may be."""
    path = Path(at("zeros", bytes(4 * 99 * 99)))
    return File(str(path), path.stat().st_size, path.stat().st_mtime_ns)


NAMES = ("model.layers.0.self_attn.q_proj", "a" * 60, "a." * 40, "aaaa aaaa_bbbb.12345678901234567890!")


def pattern(raw: bytes) -> None:
    """A regular expression of an adapter, held against names."""
    text = raw.decode("utf-8", "replace")
    check_patterns({"target_modules": text, "rank_pattern": {text: 4}}, "x")
    for name in NAMES:
        fullmatch(text, name)


def pattern_seeds() -> list[bytes]:
    """Expressions that people write, and some that never end."""
    return [
        rb".*\.(q|v)_proj", rb"^(?!.*vision).*(?:q_proj|v_proj)\d{1,3}[^.]+", rb"(?:[^.]+\.)*q_proj", rb"(a+)+$",
        rb"(?P<x>a)(?P=x)\1(?i:b)(?<=c)(?(x)d|e)", rb"([a-z.]+)*!|(\w|\.)*x{2,}?", rb"(?>a*)b++",
    ]  # fmt: skip


def adapter_names(raw: bytes) -> None:
    """The tensors of an adapter by their names, a line each, to every format of adapters."""
    lines = list(dict.fromkeys(raw.decode("utf-8", "replace").split("\n")))[:40]
    tensors: dict[str, Tensor] = {}
    for line in lines:
        name, _, shape = line.partition(" ")
        sizes = tuple(int(one) for one in shape.split("x") if one.isascii() and one.isdecimal() and len(one) < 3)[:2]
        tensors[name] = Stored(DTYPES["F32"], sizes or (4, 4), zeros(), 0)
    found = Found("x", tensors)
    for format in FORMATS.values():
        try:
            format.recognise(found)
            if format.can_be(found):
                format.read(found, Said(strict=False))
        except SurgeryError:
            continue


def names_seeds() -> list[bytes]:
    """Names as tools give them."""
    return [
        b"base_model.model.layers.0.q_proj.lora_A.weight 4x8\nbase_model.model.layers.0.q_proj.lora_B.weight 8x4",
        b"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight 4x8\nlora_unet_down_blocks_0_attentions_0_proj"
        b"_in"
        b".lora_up.weight 8x4\nlora_unet_down_blocks_0_attentions_0_proj_in.alpha 1",
        b"model.layers.0.self_attn.q_proj.lora_a 8x4\nmodel.layers.0.self_attn.q_proj.lora_b 4x8",
        b"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight 4x8\ntransformer.single_transformer_blocks.0"
        b".attn.to_q.lora_B.weight 8x4",
        b"h.0.attn.c_attn.lora_A 8x8\nh.0.attn.c_attn.lora_B 24x4",
        b"diffusion_model.blocks.0.lokr_w1 2x2\ndiffusion_model.blocks.0.lokr_w2 4x4\ndiffusion_model.blocks.0.diff 4",
        b"encoder.layer.0.adapters.x.adapter_down.0.weight 4x8\nencoder.layer.0.adapters.x.adapter_up.weight 8x4",
    ]


def reference(raw: bytes) -> None:
    """The name of something on the Hub."""
    parse_ref(raw.decode("utf-8", "replace"))


def pipeline(raw: bytes) -> None:
    """model_index.json of a pipeline, whose folder has one component."""
    if not (folder := work() / "pipe").exists():
        shutil.copytree(phi3().path, folder / "transformer")
    at("pipe/model_index.json", raw)
    surgery.open_checkpoint(folder)


PIPELINE = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.40.0",
    "transformer": ["diffusers", "FluxTransformer2DModel"],
}
TOML_WORDS = (b"[[", b"]]", b"=", b'"""', b"steps.", b"{", b"[")
OPCODES = (b"cos\nsystem\n", b"\x80\x04", b"(", b"t", b"R", b"}", b"\x85", b"u", b".", b"\xff" * 8)
SET = [b"merge.scale=0.5\n2.pattern=.*\nsource=x", b"output.output=[1, {a: 2}]"]
REFS = [b"hf://org/name@main/folder/x", b"https://huggingface.co/org/name"]
INDEX = {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "x/y.safetensors"}}
RE_WORDS = (
    b"(",
    b")",
    b"(?:",
    b"*",
    b"+",
    b"?",
    b"{1,9}",
    b"{20,}",
    b"[^.]",
    b".",
    b"|",
    b"\\1",
    b"\\d",
    b"^",
    b"$",
    b"(?=",
)
YAML_WORDS = (
    b"- ",
    b": ",
    b"\n",
    b"&a ",
    b"*a",
    b"!!python/object:os.system ",
    b"!!set ",
    b"<<: ",
    b"? ",
    b"|\n",
    b"{",
    b"[",
)
GGUF_WORDS = (b"GGUF", b"\xff" * 8, b"general.architecture", struct.pack("<Q", 1 << 62), b"llama")
NAME_WORDS = (
    b".",
    b"\n",
    b"lora_A.weight",
    b"lora_up.weight",
    b"alpha",
    b" 4x4",
    b"lora_unet_",
    b"diffusion_model.",
    b".default",
)

HARNESSES: Mapping[str, Harness] = {
    "header": Harness(header, header_seeds),
    "index": Harness(lambda raw: parse_index(raw, "x"), lambda: dumped(INDEX)),
    "adapter_config": Harness(adapter, adapter_seeds),
    "config": Harness(model_config, model_seeds),
    "quantization_config": Harness(quantization, quantization_seeds),
    "quant_state": Harness(quant_state, quant_state_seeds),
    "torchao": Harness(torchao, torchao_seeds),
    "manifest": Harness(manifest, lambda: [Path(merged().path, ".surgery/manifest.json").read_bytes()]),
    "base_record": Harness(base_record, base_record_seeds),
    "shard_record": Harness(shard_record, shard_record_seeds),
    "frame": Harness(frame, frame_seeds, ()),
    "packed": Harness(packed, lambda: [_packed(b"x" * 300), _packed(bytes(range(256)))], (b"\x28\xb5\x2f\xfd",)),
    "recipe_yaml": Harness(lambda raw: recipe(raw, "r.yaml"), yaml_seeds, YAML_WORDS),
    "recipe_toml": Harness(lambda raw: recipe(raw, "r.toml"), toml_seeds, TOML_WORDS),
    "recipe_json": Harness(lambda raw: recipe(raw, "r.json"), lambda: dumped(*recipes())),
    "set": Harness(said, lambda: SET, YAML_WORDS),
    "pickle": Harness(pickled, pickle_seeds, OPCODES),
    "torch": Harness(torch_file, torch_seeds, (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"data.pkl", b"\xff" * 8)),
    "distributed": Harness(distributed, distributed_seeds, OPCODES),
    "gguf": Harness(gguf, gguf_seeds, GGUF_WORDS),
    "tokenizer": Harness(tokenizer, tokenizer_seeds),
    "card": Harness(card, card_seeds, (b"---\n", *YAML_WORDS)),
    "pattern": Harness(pattern, pattern_seeds, RE_WORDS),
    "adapter_names": Harness(adapter_names, names_seeds, NAME_WORDS),
    "reference": Harness(reference, lambda: REFS, (b"/", b"@", b"hf://")),
    "pipeline": Harness(pipeline, lambda: dumped(PIPELINE)),
}  # fmt: skip


def corpus(name: str) -> list[bytes]:
    """What is kept for a parser, after its seeds."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
