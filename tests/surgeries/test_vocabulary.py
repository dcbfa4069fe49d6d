"""Vocabularies of another size, and of another tokenizer: what transformers' own `resize_token_embeddings` makes of
shapes, config and ties, and the logits of tokens that stay.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
import vocabularies
from safetensors.torch import load_file, save_file
from vocabularies import MODELS, edited, logits, made, words

import surgery
from surgery.errors import NotACheckpoint, NothingMatched, NotSupported, PlanError, SurgeryError
from surgery.surgeries import token_rows

IDS = [3, 9, 27, 81, 5, 3, 60, 44]
Saved = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """models(family) -> a checkpoint, and the model in it."""
    held: dict[str, tuple[Path, Any]] = {}

    def of(family: str) -> tuple[Path, Any]:
        if family not in held:
            model, path = made(family), tmp_path_factory.mktemp(family) / "base"
            model.save_pretrained(path)
            held[family] = path, type(model).from_pretrained(path).eval()  # what is made anew, such as positions
        return held[family]

    return of


def changed(path: Path, out: Path, **said: Any) -> Path:
    surgery.write(surgery.vocabulary(surgery.open_checkpoint(path), **said), out)
    return out


def loaded(model: Any, path: Path) -> Any:
    found, info = type(model).from_pretrained(path, output_loading_info=True)
    assert not any(info.values())
    return found.eval()


def pointers(model: Any) -> set[frozenset[str]]:
    """Which names are one tensor."""
    held: dict[int, set[str]] = {}
    for name, tensor in model.state_dict().items():
        held.setdefault(tensor.data_ptr(), set()).add(name)
    return {frozenset(names) for names in held.values()}


def by_transformers(model: Any, size: int) -> Any:
    wanted = copy.deepcopy(model)
    if wanted.config.model_type == "mobilebert":
        wanted.resize_token_embeddings(size)
    else:
        wanted.resize_token_embeddings(size, mean_resizing=False)
    return wanted


@pytest.mark.parametrize("size", [110, 91])
@pytest.mark.parametrize("family", MODELS)
def test_is_what_transformers_resizes_to(family: str, size: int, models: Saved, tmp_path: Path) -> None:
    path, model = models(family)
    got = loaded(model, changed(path, tmp_path / "out", size=size))
    wanted = by_transformers(model, size)
    assert {n: t.shape for n, t in got.state_dict().items()} == {n: t.shape for n, t in wanted.state_dict().items()}
    assert pointers(got) == pointers(wanted)
    ours, theirs = got.config.to_dict(), wanted.config.to_dict()
    assert {k for k in theirs if ours[k] != theirs[k]} <= {"_name_or_path", "dtype"}
    before, after = logits(model, IDS), logits(got, IDS)
    many = 3 if family == "llama-labels" else 91
    assert torch.equal(before[..., :many], after[..., :many])


@pytest.mark.parametrize("family", ["llama", "llama-tied", "bart", "gptj", "mobilebert", "bert"])
@pytest.mark.parametrize("new", ["zero", "mean", "drawn"])
def test_new_rows(family: str, new: str, models: Saved, tmp_path: Path) -> None:
    path, model = models(family)
    got = loaded(model, changed(path, tmp_path / "out", size=400, new=new)).state_dict()
    for name, old in model.state_dict().items():
        if got[name].shape == old.shape:
            continue
        axis = next(n for n in range(old.dim()) if got[name].shape[n] != old.shape[n])
        table, rows = old.movedim(axis, 0), got[name].movedim(axis, 0)
        assert torch.equal(rows[:97], table)
        if new == "zero" or name == "final_logits_bias" or (new == "drawn" and old.dim() == 1):
            assert not rows[97:].any()
        elif new == "mean":
            assert torch.equal(rows[97:], table.double().mean(0).float().expand(303, *table.shape[1:]))
        else:
            assert 0.018 < rows[97:].std() < 0.022 and abs(rows[97:].mean()) < 0.002


def test_a_mean_is_rounded_once(tmp_path: Path) -> None:
    model = made("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    got = load_file(changed(tmp_path / "base", tmp_path / "out", size=98) / "model.safetensors")["lm_head.weight"]
    exact = model.lm_head.weight.double().mean(0)
    near = exact.float().to(torch.bfloat16)
    steps = torch.stack([(near.view(torch.int16) + step).view(torch.bfloat16) for step in (-1, 0, 1)])
    assert torch.equal((got[97].double() - exact).abs(), (steps.double() - exact).abs().amin(0))


def test_drawn_rows_follow_from_seed_and_name_alone(models: Saved, tmp_path: Path) -> None:
    path, _ = models("llama")
    rows = {
        (size, seed): load_file(
            changed(path, tmp_path / f"{size}-{seed}", size=size, new="drawn", seed=seed) / "model.safetensors"
        )
        for size, seed in ((100, 0), (120, 0), (100, 1))
    }
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    assert torch.equal(rows[100, 0][embedding][97:], rows[120, 0][embedding][97:100])
    assert not torch.equal(rows[100, 0][embedding][97:], rows[100, 1][embedding][97:])
    assert not torch.equal(rows[100, 0][embedding][97:], rows[100, 0][head][97:])


@pytest.mark.parametrize("new", ["mean", "drawn"])
def test_equal_copies_stay_equal(new: str, models: Saved, tmp_path: Path) -> None:
    """A file that holds both names of a tied tensor."""
    path, model = models("llama-tied")
    base = shutil.copytree(path, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    held = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(held, base / "model.safetensors", {"format": "pt"})
    got = load_file(changed(base, tmp_path / "out", size=120, new=new) / "model.safetensors")
    assert torch.equal(got["lm_head.weight"], got["model.embed_tokens.weight"])
    assert any(len(names) > 1 for names in pointers(loaded(model, tmp_path / "out")))


@pytest.mark.parametrize("new", ["mean", "drawn"])
def test_what_a_header_ties_stays_tied(new: str, models: Saved, tmp_path: Path) -> None:
    base = shutil.copytree(models("llama")[0], tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, base / "model.safetensors", {"format": "pt", "lm_head.weight": "model.embed_tokens.weight"})
    made = surgery.vocabulary(surgery.open_checkpoint(base), size=120, new=new)
    assert "lm_head.weight" not in made.tensors
    assert made.metadata["model.safetensors"] == {"format": "pt", "lm_head.weight": "model.embed_tokens.weight"}


def test_padding_to_a_multiple(models: Saved, tmp_path: Path) -> None:
    base = surgery.open_checkpoint(models("llama")[0])
    assert surgery.vocabulary(base, multiple_of=64).config["vocab_size"] == 128
    assert surgery.vocabulary(base, size=129, multiple_of=64).config["vocab_size"] == 192
    assert surgery.vocabulary(base, multiple_of=97).tensors == base.tensors


def test_files_of_the_body_alone(models: Saved, tmp_path: Path) -> None:
    """As GPT-2's own repository has it: no `transformer.` before the names, no head."""
    path, model = models("gpt2")
    base = shutil.copytree(path, tmp_path / "base")
    held = load_file(base / "model.safetensors")
    save_file(
        {n.removeprefix("transformer."): t for n, t in held.items()}, base / "model.safetensors", {"format": "pt"}
    )
    got = loaded(model, changed(base, tmp_path / "out", size=99))
    assert torch.equal(logits(got, IDS)[..., :97], logits(model, IDS)[..., :97])


def test_a_table_of_some_tokens_stays_where_others_are_added(tmp_path: Path) -> None:
    """Gemma 3n's table for each layer has fewer rows: tokens behind them have none."""
    torch.manual_seed(0)
    model = vocabularies.gemma3n(90).eval()
    model.save_pretrained(tmp_path / "base")
    for size, rows in ((120, 90), (93, 90), (85, 85)):
        got = loaded(model, changed(tmp_path / "base", tmp_path / str(size), size=size))
        assert got.model.embed_tokens_per_layer.weight.shape[0] == rows == got.config.vocab_size_per_layer_input
        ids = [n for n in (*IDS, 92) if n < size]
        assert torch.equal(logits(got, ids)[..., :85], logits(model, ids)[..., :85])


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({}, "which vocabulary is meant is not said"),
        ({"size": 0}, "a vocabulary cannot have 0 tokens"),
        ({"multiple_of": -4}, "a vocabulary cannot have -4 tokens"),
        ({"size": 10**12}, "a vocabulary cannot have 1000000000000 tokens"),
        ({"size": 99, "new": "random"}, "new rows cannot be `random`"),
        ({"size": 2}, r"eos_token_id = 2: no row would be left for it, of 2"),
    ],
)
def test_numbers_that_cannot_be(said: dict[str, Any], what: str, models: Saved) -> None:
    with pytest.raises(SurgeryError, match=what):
        surgery.vocabulary(surgery.open_checkpoint(models("llama")[0]), **said)


def test_ids_that_would_lie_outside(models: Saved) -> None:
    for family, size, what in (
        ("llava", 90, "image_token_index = 90|image_token_id = 90"),
        ("whisper", 6, r"suppress_tokens = 6[\s\S]*begin_suppress_tokens = 7"),
    ):
        with pytest.raises(NotSupported, match=what):
            surgery.vocabulary(surgery.open_checkpoint(models(family)[0]), size=size)


def test_generation_config_is_looked_at(models: Saved, tmp_path: Path) -> None:
    base = shutil.copytree(models("llama")[0], tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 95]}))
    with pytest.raises(NotSupported, match=r"generation_config.json: eos_token_id = 95"):
        surgery.vocabulary(surgery.open_checkpoint(base), size=95)


def refused(model: Any, path: Path, what: str, **said: Any) -> None:
    model.save_pretrained(path)
    with pytest.raises((NotSupported, PlanError), match=what):
        surgery.vocabulary(surgery.open_checkpoint(path), **(said or {"size": 200}))


def test_models_that_have_no_one_vocabulary(tmp_path: Path) -> None:
    seq, ids = vocabularies._SEQ, vocabularies._IDS
    apart = tf.MarianConfig(**seq, **ids, decoder_vocab_size=97, share_encoder_decoder_embeddings=False)
    refused(tf.MarianMTModel(apart), tmp_path / "marian", "MarianMTModel has two vocabularies")
    other = tf.MarianConfig(**seq, **ids, decoder_vocab_size=80, share_encoder_decoder_embeddings=False)
    refused(tf.MarianMTModel(other), tmp_path / "other", "no field of config.json is the size of the whole vocabulary")
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = tf.ViTModel(tf.ViTConfig(**small, image_size=32, patch_size=16))
    refused(vit, tmp_path / "vit", "ViTModel has no embedding of tokens")
    bert = tf.BertConfig(**small, vocab_size=97)
    both = tf.EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
    refused(tf.EncoderDecoderModel(both), tmp_path / "both", "no field of config.json is the size")
    cpm = tf.CpmAntConfig(vocab_size=97, hidden_size=32, num_attention_heads=2, dim_head=16, dim_ff=32,
                          num_hidden_layers=1)  # fmt: skip
    refused(tf.CpmAntForCausalLM(cpm), tmp_path / "cpm", "rows for prompts behind those of the vocabulary")


def test_a_folder_without_a_class(models: Saved, tmp_path: Path) -> None:
    base = shutil.copytree(models("llama")[0], tmp_path / "base")
    with pytest.raises(PlanError, match=r"config.json names no architecture: what has a row for each token"):
        surgery.vocabulary(surgery.open_checkpoint(edited(base, architectures=None)), size=99)
    lone = shutil.copy(base / "model.safetensors", tmp_path / "lone.safetensors")
    with pytest.raises(PlanError, match=r"config.json names no architecture"):
        surgery.vocabulary(surgery.open_checkpoint(lone), size=99)


def test_a_config_of_other_tensors(models: Saved, tmp_path: Path) -> None:
    base = shutil.copytree(models("llama")[0], tmp_path / "base")
    with pytest.raises(NotSupported, match=r"lm_head.weight: \(97, 48\), not \(96, 48\)"):
        surgery.vocabulary(surgery.open_checkpoint(edited(base, vocab_size=96)), size=99)
    held = load_file(base / "model.safetensors")
    more = {
        **held,
        "model.layers.2.shared_head.head.weight": torch.zeros(97, 48),
        "mtp.lm_head.weight": held["lm_head.weight"].clone(),
    }
    save_file(more, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotSupported, match=r"does not load have a row for each token as well[\s\S]*mtp.lm_head.weight"):
        surgery.vocabulary(surgery.open_checkpoint(edited(base, vocab_size=97)), size=99)
    del held["lm_head.weight"]
    save_file(held, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotSupported, match=r"lm_head.weight: missing"):
        surgery.vocabulary(surgery.open_checkpoint(base), size=99)


# Tokenizers

PLAIN = ["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(3, 80))]


def with_tokenizer(models: Saved, family: str, path: Path) -> tuple[Path, Any]:
    base, model = models(family)
    shutil.copytree(base, path)
    return words(path, PLAIN, bos_token="<s>", eos_token="</s>"), model


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "gptj", "bart", "t5", "llava", "whisper", "gemma3n"])
def test_a_text_computes_the_same_through_either_tokenizer(family: str, models: Saved, tmp_path: Path) -> None:
    base, model = with_tokenizer(models, family, tmp_path / "base")
    if family == "llava":
        edited(base, image_token_index=70)
    if family in ("bart", "whisper", "t5"):
        edited(base, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    kept = ["</s>", *reversed(PLAIN[3:75]), "<s>", "<unk>", "fresh"]
    new = words(tmp_path / "new", kept, bos_token="<s>", eos_token="</s>")
    out = changed(base, tmp_path / "out", tokenizer=str(new))
    got, text = loaded(model, out), "w7 w31 w5 w7 w60 w9"
    ids = [tf.AutoTokenizer.from_pretrained(p)(text, add_special_tokens=False)["input_ids"] for p in (base, out)]
    assert ids[0] != ids[1] and len(ids[0]) == 6
    places = [PLAIN.index(token) for token in kept[:-1]]
    before = logits(model, ids[0])[..., places]
    assert torch.allclose(logits(got, ids[1])[..., : len(places)], before, atol=1e-5)
    config = got.config.get_text_config()
    assert (config.vocab_size, config.eos_token_id) == (len(kept), 0)
    if family == "llava":
        assert got.config.image_token_index == kept.index("w70")
    if family == "whisper":
        assert got.config.suppress_tokens == [kept.index("w5"), kept.index("w6")]


def test_the_tokenizers_files_are_replaced(models: Saved, tmp_path: Path) -> None:
    base, _ = with_tokenizer(models, "llama", tmp_path / "base")
    (base / "chat_template.jinja").write_text("w3")
    (base / "preprocessor_config.json").write_text("{}")
    new = words(tmp_path / "new", PLAIN[:40], eos_token="</s>")
    out = changed(base, tmp_path / "out", tokenizer=str(new))
    for file in new.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert not (out / "chat_template.jinja").exists() and (out / "preprocessor_config.json").exists()
    notes = " ".join(surgery.vocabulary(surgery.open_checkpoint(base), tokenizer=str(new)).notes)
    assert "the vocabulary has 40 rows, and had 97; 57 are gone" in notes
    assert "40 of its 40 tokens were there" in notes and "chat_template.jinja" in notes


def test_the_same_tokenizer_changes_nothing_but_the_number_of_rows(models: Saved, tmp_path: Path) -> None:
    base, _ = with_tokenizer(models, "llama", tmp_path / "base")
    checkpoint = surgery.open_checkpoint(base)
    same = surgery.vocabulary(checkpoint, tokenizer=str(base), size=97)
    assert same.tensors == checkpoint.tensors and same.config == checkpoint.config
    assert surgery.vocabulary(checkpoint, tokenizer=str(base)).config["vocab_size"] == 80
    assert surgery.vocabulary(checkpoint, tokenizer=str(base), multiple_of=64).config["vocab_size"] == 128


def test_rows_that_the_tokenizer_uses_are_not_cut(models: Saved, tmp_path: Path) -> None:
    base, _ = with_tokenizer(models, "llama", tmp_path / "base")
    checkpoint = surgery.open_checkpoint(base)
    assert surgery.vocabulary(checkpoint, size=80).config["vocab_size"] == 80
    with pytest.raises(NotSupported, match=r"2 tokens of the tokenizer would have no row any more, of 78[\s\S]*w78"):
        surgery.vocabulary(checkpoint, size=78)
    with pytest.raises(SurgeryError, match="the tokenizer has 80 tokens, and 79 rows were asked for"):
        surgery.vocabulary(checkpoint, tokenizer=str(base), size=79)


@pytest.mark.parametrize(("old", "new"), [("bytes", "metaspace"), ("metaspace", "bytes")])
def test_tokenizers_that_spell_otherwise(old: str, new: str, models: Saved, tmp_path: Path) -> None:
    """`Ġthe` and `▁the` are one token; what only one of them has is new."""
    path, model = models("llama")
    base = vocabularies.trained(shutil.copytree(path, tmp_path / "base"), old, 90)
    other = vocabularies.trained(tmp_path / "new", new, 60, special=("<s>", "</s>", "<pad>", "<unk>"))
    out = changed(base, tmp_path / "out", tokenizer=str(other))
    tokenizers = [tf.AutoTokenizer.from_pretrained(p) for p in (base, out)]
    said = [t("the cat")["input_ids"] for t in tokenizers]
    pieces = [t.convert_ids_to_tokens(ids) for t, ids in zip(tokenizers, said, strict=True)]
    assert [p.replace("Ġ", "▁") for p in pieces[0]] == [p.replace("Ġ", "▁") for p in pieces[1]]
    assert said[0] != said[1]
    got = loaded(model, out)
    table, rows = model.get_input_embeddings().weight, got.get_input_embeddings().weight
    assert torch.equal(rows[said[1]], table[said[0]])


def test_ids_of_another_tokenizer_that_cannot_follow(models: Saved, tmp_path: Path) -> None:
    base, _ = with_tokenizer(models, "llava", tmp_path / "base")
    new = words(tmp_path / "new", PLAIN[:40], bos_token="<s>", eos_token="</s>")
    with pytest.raises(NotSupported, match=r"image_token_(index|id) = 70: the new tokenizer has no w70"):
        surgery.vocabulary(surgery.open_checkpoint(edited(base, image_token_index=70)), tokenizer=str(new))


def test_positions_that_count_from_padding(models: Saved, tmp_path: Path) -> None:
    """RoBERTa's first position is that behind the number of the padding token."""
    path, _ = models("roberta")
    base = words(shutil.copytree(path, tmp_path / "base"), PLAIN, pad_token="<s>")
    new = words(tmp_path / "new", ["<unk>", "</s>", "<s>", *PLAIN[3:]], pad_token="<s>")
    with pytest.raises(NotSupported, match=r"position_embeddings: counts from padding, 1, and would from 2"):
        surgery.vocabulary(surgery.open_checkpoint(base), tokenizer=str(new))
    same = words(tmp_path / "same", ["</s>", "<s>", "<unk>", *PLAIN[3:]], pad_token="<s>")
    assert surgery.vocabulary(surgery.open_checkpoint(base), tokenizer=str(same)).config["pad_token_id"] == 1


def test_a_role_is_the_new_tokenizers_own(models: Saved, tmp_path: Path) -> None:
    """What was the old one's end is the new one's; another token stays the token that it was."""
    base, _ = with_tokenizer(models, "llama", tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], "bos_token_id": 1, "top_p": 0.5}))
    new = words(tmp_path / "new", ["<unk>", "w7", "<end>", "</s>"], eos_token="<end>")
    made = surgery.vocabulary(surgery.open_checkpoint(base), tokenizer=str(new))
    assert (made.config["eos_token_id"], made.config["bos_token_id"], made.config["pad_token_id"]) == (2, None, 0)
    assert json.loads(made.files["generation_config.json"]) == {
        "eos_token_id": [2, 1],
        "bos_token_id": None,
        "top_p": 0.5,
    }


def test_tokenizers_that_are_not_there_or_say_no_ids(models: Saved, tmp_path: Path) -> None:
    path, _ = models("llama")
    new = words(tmp_path / "new", PLAIN)
    with pytest.raises(NotSupported, match="no tokenizer lies beside the checkpoint"):
        surgery.vocabulary(surgery.open_checkpoint(path), tokenizer=str(new))
    base, _ = with_tokenizer(models, "llama", tmp_path / "base")
    checkpoint = surgery.open_checkpoint(base)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotACheckpoint, match="no tokenizer is there"):
        surgery.vocabulary(checkpoint, tokenizer=str(tmp_path / "empty"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    with pytest.raises(NothingMatched, match="no token of the tokenizer is one of the model's"):
        surgery.vocabulary(checkpoint, tokenizer=str(tmp_path / "other"))
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "tokenizer.model").write_bytes(b"\n\x00")
    with pytest.raises(NotSupported, match=r"not read from tokenizer.model"):
        surgery.vocabulary(checkpoint, tokenizer=str(tmp_path / "slow"))
    settings = json.loads((new / "tokenizer_config.json").read_text())
    (new / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<pad>"}))
    with pytest.raises(NotSupported, match=r"special tokens of the tokenizer have no id[\s\S]*<pad>"):
        surgery.vocabulary(checkpoint, tokenizer=str(new))


def test_rows_that_are_codes(quantised: Callable[[str], Path], tmp_path: Path) -> None:
    base = surgery.open_checkpoint(quantised("nf4"))
    assert surgery.vocabulary(base, size=base.config["vocab_size"] + 7).config["quantization_config"]


def test_rows_that_are_codes_are_refused_by_name(models: Saved, tmp_path: Path) -> None:
    path, _ = models("llama")
    fp8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "modules_to_not_convert": []}
    base = shutil.copytree(path, tmp_path / "base")
    held = load_file(base / "model.safetensors")
    held["lm_head.weight"] = held["lm_head.weight"].to(torch.float8_e4m3fn)
    held["lm_head.weight_scale_inv"] = torch.ones(7, 3)
    save_file(held, base / "model.safetensors", {"format": "pt"})
    checkpoint = surgery.open_checkpoint(edited(base, quantization_config=fp8))
    with pytest.raises(NotSupported, match=r"rows of the vocabulary are quantised[\s\S]*--only 'lm_head'"):
        surgery.vocabulary(checkpoint, size=99)
    plain = surgery.dequantize(checkpoint, only="lm_head", dtype="float32")
    assert surgery.vocabulary(plain, size=99).tensors["lm_head.weight"].shape == (99, 48)


@pytest.mark.parametrize("new", ["zero", "mean", "drawn"])
def test_rows_that_are_scattered_are_the_same_in_pieces(
    new: str, models: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large vocabulary's rows are picked one by one, a small one's joined."""
    base, _ = with_tokenizer(models, "gptj", tmp_path / "base")
    other = [PLAIN[n * 7 % 80] if n % 5 else f"new{n}" for n in range(70)]
    said = {"tokenizer": str(words(tmp_path / "new", ["<unk>", *other], eos_token="</s>")), "new": new, "size": 90}
    joined = load_file(changed(base, tmp_path / "joined", **said) / "model.safetensors")
    monkeypatch.setattr(token_rows, "SCATTERED", 1)
    made = surgery.vocabulary(surgery.open_checkpoint(base), **said)
    surgery.write(made, tmp_path / "picked", memory=20_000_000, workers=2)
    got = load_file(tmp_path / "picked" / "model.safetensors")
    assert got.keys() == joined.keys() and all(torch.equal(got[n], joined[n]) for n in got)
    assert all(torch.equal(made.load(n), joined[n]) for n in ("lm_head.bias", "lm_head.weight"))
    assert type(made.tensors["lm_head.weight"]).__name__ == "Picked"


def test_a_recipe_of_it_in_one_pass(models: Saved, tmp_path: Path) -> None:
    """After other surgeries, twice in a row, and as a command."""
    path, _ = models("llama")
    base = surgery.open_checkpoint(path)
    twice = surgery.vocabulary(surgery.vocabulary(surgery.cast(base, "bfloat16"), size=105), size=120, new="zero")
    surgery.write(twice, tmp_path / "once")
    steps = surgery.write(surgery.cast(base, "bfloat16"), tmp_path / "1") and tmp_path / "1"
    changed(changed(steps, tmp_path / "2", size=105), tmp_path / "3", size=120, new="zero")
    assert (tmp_path / "once" / "model.safetensors").read_bytes() == (tmp_path / "3" / "model.safetensors").read_bytes()


def clip(path: Path, eos: int) -> Path:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = tf.CLIPTextConfig(**sizes, vocab_size=97, eos_token_id=eos, bos_token_id=1, pad_token_id=0)
    tf.CLIPTextModel(config).save_pretrained(path)
    return path


def test_ids_whose_order_means_something(tmp_path: Path) -> None:
    """CLIP takes the largest id of a text for its end where eos_token_id is 2, as in its first files."""
    ends = [*(token for token in PLAIN if token != "</s>"), "</s>"]
    new = words(tmp_path / "new", [ends[-1], *ends[:-1]], bos_token="<s>", eos_token="</s>")
    old = words(clip(tmp_path / "old", 2), ends, bos_token="<s>", eos_token="</s>")
    checkpoint = surgery.open_checkpoint(old)
    with pytest.raises(NotSupported, match="CLIPTextModel takes the largest id of a text for its end"):
        surgery.vocabulary(checkpoint, tokenizer=str(new))
    assert "no token can stand behind that one" in " ".join(surgery.vocabulary(checkpoint, size=99).notes)
    named = words(clip(tmp_path / "named", 79), ends, bos_token="<s>", eos_token="</s>")
    out = changed(named, tmp_path / "out", tokenizer=str(new))
    said = [tf.AutoTokenizer.from_pretrained(p)("w7 w9 </s>", return_tensors="pt").input_ids for p in (named, out)]
    with torch.no_grad():
        before, after = (
            tf.CLIPTextModel.from_pretrained(p).eval()(input_ids=ids).pooler_output
            for p, ids in zip((named, out), said, strict=True)
        )
    assert torch.allclose(before, after, atol=1e-6) and not torch.equal(*said)


def test_the_tokenizer_of_a_component_lies_beside_it(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    clip(pipeline / "text_encoder", 79)
    (pipeline / "model_index.json").write_text(json.dumps({"text_encoder": ["transformers", "CLIPTextModel"]}))
    words(pipeline / "tokenizer", PLAIN)
    with pytest.raises(PlanError, match=r"a pipeline is of several classes[\s\S]*--component text_encoder"):
        surgery.vocabulary(surgery.open_checkpoint(pipeline), size=99)
    part = surgery.open_checkpoint(pipeline, component="text_encoder")
    assert surgery.vocabulary(part, size=80).config["vocab_size"] == 80
    with pytest.raises(NotSupported, match="1 tokens of the tokenizer would have no row any more"):
        surgery.vocabulary(part, size=79)


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    config = tf.Mamba2Config(
        vocab_size=97, hidden_size=24, num_heads=4, head_dim=12, n_groups=1, state_size=4, num_hidden_layers=1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = tf.Mamba2ForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "base")
    assert "Infinity" in (tmp_path / "base" / "config.json").read_text()
    got = loaded(model, changed(tmp_path / "base", tmp_path / "out", size=110))
    assert list(got.config.time_step_limit) == list(model.config.time_step_limit)
    assert torch.equal(logits(got, IDS)[..., :97], logits(model, IDS))
