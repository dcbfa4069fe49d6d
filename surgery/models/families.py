"""What must be known of model classes without importing them. A test checks each table against transformers.

Facts that follow from names, shapes and config.json are not here; this is only what those do not tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .ties_table import ALWAYS, FLAG_MEANS_MORE, TIED, UNTIED
from .ties_table import EMBEDDINGS as EMBEDDINGS_OF

# Types whose class ties the output head to the input embedding where config.json does not say.
TIED_BY_DEFAULT = frozenset(
    """
    albert aya_vision bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small blip
    blip_text_model bloom camembert canary cohere cohere2 cohere2_moe cohere2_vision cohere_compass_text convbert
    cpmant csm ctrl d_fine dab-detr data2vec-text deberta deberta-v2 deepseek_vl deepseek_vl_hybrid deformable_detr
    deimv2 diffusion_gemma diffusion_gemma_text distilbert electra ernie ernie4_5 ernie4_5_moe ernie4_5_vl_moe
    ernie4_5_vl_moe_text esm falcon falcon_mamba flaubert flava florence2 fnet fun_asr_nano funnel gemma gemma2
    gemma3 gemma3_text gemma3n gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_assistant
    gemma4_unified_text glmasr got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox_japanese granite_docling
    granite_docling_text granite_speech granite_speech5_ctc granite_speech_plus granite_swa grounding-dino gte
    hunyuan_vl hunyuan_vl_text hyperclovax_vision_v2 ibert internvl janus jetmoe jina_embeddings_v3 kimi_k25
    kosmos-2 kosmos-2.5 kosmos_2_5_text_model kosmos_2_text_model layoutlm led lfm2 lfm2_moe lfm2_vl lfm3 lfm3_vl
    lighton_ocr longformer longt5 luke lxmert m2m_100 mamba marian mbart megatron-bert mimi mimi_decoder
    mimi_encoder minicpm3 minicpm_ocr mistral3 mm-grounding-dino mobilebert modernbert modernbert-decoder moonshine
    moss_transcribe_diarize mpnet mpt mra mt5 mvp neomme nllb-moe nomic_bert nystromformer openai-gpt opt ovis2
    paddleocr_vl paddleocr_vl_text paligemma pe_audio_video pegasus pegasus_x plbart pop2piano pp_chart2table
    pp_doclayout_v3 pp_doclayout_v4 prophetnet qwen2_5_omni_text qwen3_asr qwen3_vl_moe_text recurrent_gemma roberta
    roberta-prelayernorm roc_bert roformer rt_detr_v2 sam sam_hq seamless_m4t seamless_m4t_v2 shieldgemma2 smollm3
    speech_to_text speecht5 squeezebert starcoder2 switch_transformers t5 t5_gemma_module t5gemma t5gemma2
    t5gemma2_decoder t5gemma2_encoder t5gemma2_text tapas trocr udop umt5 vaultgemma vilt visual_bert
    voxtral_realtime whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso youtu zamba zamba2 zaya
    """.split()
)

# Types that use transformers' Conv1D, whose weight is (in, out), and the modules in which they do: also the parts that
# splitting makes of c_attn, of which only q_attn is a name of transformers' own.
CONV1D_TYPES = frozenset({"gpt2", "gpt-sw3", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"})
CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn", "k_attn", "v_attn"})

# Last names of the modules that weight tying joins.
EMBEDDINGS = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared", "tokens_embed"}
)
HEADS = frozenset(
    {
        "lm_head",
        "embed_out",
        "output",
        "decoder",
        "output_projection",
        "proj_out",
        "vocab_projector",
        "generator_lm_head",
    }
)


# The output head by its whole name, as `get_output_embeddings` gives it: what PEFT leaves out of "all-linear".
OUTPUT_HEAD = re.compile(
    r"(?:(?:language_model|text_model|decoder)\.)?(?:lm_head(?:\.(?:decoder|out_proj))?|cls\.predictions\.decoder)"
    r"|(?:head|predictions)\.decoder|generator_lm_head|vocab_projector|pred_layer\.proj|proj_out|lm_loss|embed_out|output_projection|output"
)
OUTPUT_HEADS = {
    "rwkv": "head",
    "speecht5": "text_decoder_postnet.lm_head",
    "modernbert": "decoder",
    "modernbert-decoder": "decoder",
}  # what is no head in other types

# Two-axis weights of torch.nn.Embedding whose last name (numbers left out) has no "embed" in it, and of nn.Linear
# that have one.
OTHER_EMBEDDINGS = EMBEDDINGS | frozenset(
    """
    audio_bos_eos_token bias_values codebook freq_emb hq_token iou_token mask_tokens obj_score_token pe_k pos_emb
    presence_token queries_features query_feat reference_points rel_pos_emb relative_attention_bias segment_emb w wpe
    HashBucketCodepointEmbedder
    """.split()
)
LINEAR_EMBEDDINGS = frozenset(
    """
    box_linear_embeddings class_embed embed_action embed_out embed_return embed_state embedding_hidden_mapping_in
    embedding_projection embedding_transformation embeddings_project enc_out_class_embed entity_embedding_dense
    inputs_embeds_projector mask_embedder patch_embed patch_embedding patch_embedding_projection predictor_embeddings
    relative_pos_embeddings unembedding_projection vision_embed_tokens xpath_unitseq2_embeddings
    """.split()
)
# Routers of experts whose weight is a parameter of their own class, by last name: no module that LoRA can be put on.
ROUTERS: Mapping[str, frozenset[str]] = {
    "gate": frozenset(
        """
        axk1 axk2 bailing_hybrid cohere2_moe deepseek_v2 deepseek_v3 deepseek_v4 dots1 dots3_note dots3_note_text
        ernie4_5_moe ernie4_5_vl_moe exaone_moe flex_olmo flint glm4_moe glm4_moe_lite glm4v_moe glm4v_moe_text
        glm5_next hy_v3 hy_v4 inkling2 inkling2_text inkling_mm_model inkling_text kimi_k25 kimi_linear kolibri1
        laguna mellum mimo_v2_flash minimax minimax_m2 minimax_m3_vl minimax_m3_vl_text mistral4 mistral_large4
        mistral_large4_text mixtral muse_spark muse_spark_text nemo_speechlm nemotron_h nemotron_h_omni olmoe
        qwen2_moe qwen3_5_moe qwen3_5_moe_text qwen3_moe qwen3_next qwen3_omni_moe_thinker qwen3_vl_moe
        qwen3_vl_moe_text qwen4_exp_text solar_open step3p7 unlimited_ocr
        """.split()
    ),
    "router": frozenset(
        """
        aria aria_text gpt_oss granitemoe granitemoe_swa granitemoehybrid granitemoeshared jamba
        openai_privacy_filter
        """.split()
    ),
}
# Names of modules that a type's files have and that its class holds in one parameter, or as a router's own: PEFT
# takes them for these
# parameters, by type.
_OF_MIXTRAL = {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
_OF_QWEN = {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
EXPERT_TARGETS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys("minimax minimax_m2 mixtral".split(), _OF_MIXTRAL),
    **dict.fromkeys(
        """
        afmoe beam cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5_moe exaone_moe flex_olmo glm4_moe
        glm4_moe_lite glm4v_moe glm_moe_dsa hunyuan_v1_moe longcat_flash mellum olmoe qwen3_moe qwen3_next
        qwen3_omni_moe qwen3_omni_moe_text qwen3_omni_moe_thinker solar_open
        """.split(),
        _OF_QWEN,
    ),
}
# Encoder-decoders that are not called with input_ids, as PEFT's model for SEQ_2_SEQ_LM calls them.
NOT_FROM_TEXT = frozenset(
    "canary cohere_asr moonshine moonshine_streaming pix2struct pp_formulanet speech_to_text whisper".split()
)
# Convolutions that go the other way, whose weight is (in, out / groups, *kernel), by last name without its number.
TRANSPOSED_CONVOLUTIONS = frozenset(
    "compress_vit_conv conv_t convt_pre convtr encoder_conv upsampler upscale_conv".split()
)
# Types with convolutions in groups of several channels, which the shape does not tell from one group.
GROUPED_CONVOLUTIONS = frozenset("data2vec-audio mgp-str regnet squeezebert timm_backbone timm_wrapper zaya".split())
# Last names of tensors that are stored and are no parameters, in any type and in some.
BUFFERS = frozenset(
    """
    running_mean running_var num_batches_tracked position_ids relative_position_index inv_freq masked_bias
    final_logits_bias e_score_correction_bias
    """.split()
)
CAUSAL_MASKS = {"gpt2": "attn.bias", "gpt_neo": "attn.attention.bias", "gpt_neox": "attention.bias"}

# Tensors of one entry per word of the vocabulary that are neither embedding nor head.
VOCABULARY_BIASES = frozenset({"cls.predictions.bias", "predictions.bias", "final_logits_bias"})


@dataclass(frozen=True, slots=True)
class Ties:
    """The tensors that a class ties, each to the one it is tied to, and how config.json says that they are apart.

    Their order is transformers': where the one that others are tied to is not stored, it is the first of them that
    is. `said`: `tie_word_embeddings: false` loads both as they are stored, and changes nothing else. Where not, the
    flag has to stay: BERT would miss a bias, BART its two other embeddings, Switch would scale its output otherwise;
    transformers 5 keeps stored tensors apart that differ. `always`: the class ties what is not stored, whatever the
    flag says. `embedding`: the input embedding, as `get_input_embeddings` gives it, where others are not tied to
    that one.
    """

    others: Mapping[str, str]
    said: bool = True
    always: bool = False
    embedding: str = ""


def _tied(lines: str, name: str) -> Ties:
    """The class's row of the table: lines of a source and what is tied to it."""
    pairs = [line.split(" = ") for line in lines.split("\n")]
    others = {one: source for source, tied in pairs for one in tied.split()}
    said = len(others) == 1 and name not in FLAG_MEANS_MORE
    embedding = next((one for one, classes in EMBEDDINGS_OF.items() if name in classes.split()), "")
    return Ties(others, said, name in ALWAYS, embedding)


# What each class ties: its `_tied_weights_keys`. The classes that are not here are refused where an adapter would
# untie them.
TIES: Mapping[str, Ties] = {name: _tied(lines, name) for lines, classes in TIED.items() for name in classes.split()}

# What classes tie where config.json says something else than most: Marian's encoder and decoder have a vocabulary
# each, DeBERTa's newer head computes with the embedding itself, which no checkpoint can hold apart.
_OTHERWISE: Mapping[tuple[str, bool], Mapping[str, Ties | None]] = {
    ("share_encoder_decoder_embeddings", False): {
        "MarianMTModel": Ties(
            {"lm_head.weight": "model.decoder.embed_tokens.weight"}, embedding="model.encoder.embed_tokens.weight"
        ),
        "MarianModel": None,
    },
    ("legacy", False): {"DebertaForMaskedLM": None, "DebertaV2ForMaskedLM": None},
}
# Classes whose config may not say that they tie: its class refuses that.
NEVER = frozenset({"DbrxForCausalLM"})
# Types whose class ties where config.json says so of the text model within, whatever it says of the whole.
TIED_WITHIN = frozenset(
    """
    fast_vlm glm4v glm4v_moe glm_ocr hunyuan_vl llava llava_next_video llava_onevision minimax_m3_vl paddleocr_vl
    qwen2_5_vl qwen2_vl shieldgemma2 video_llama_3
    """.split()
)
# Classes whose head is not over the vocabulary, by what they are for: there is nothing that the input embedding could
# be tied to.
_HEADLESS = re.compile(r"For(?:\w*Classification|QuestionAnswering|MultipleChoice|NextSentencePrediction)$")


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the model shares one tensor between its input embedding and its output head."""
    classes = config.get("architectures") or []
    untied = UNTIED if not config.get("auto_map") else frozenset[str]()
    if classes and all(_HEADLESS.search(str(name)) or name in untied for name in classes):
        return False
    return _says_tied(config)


def _says_tied(config: Mapping[str, Any]) -> bool:
    """What `tie_word_embeddings` is once the model type's config class has read config.json."""
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else None
    within = text.get("tie_word_embeddings") if text else None
    said = config.get("tie_word_embeddings", within)
    if within and config.get("model_type") in TIED_WITHIN:
        return True
    return bool(said) if said is not None else config.get("model_type") in TIED_BY_DEFAULT


def ties(config: Mapping[str, Any]) -> Ties | None:
    """What the model's class ties, each to the one it is tied to; None where nothing is tied, or the class is not in
    the table.
    """
    name = str(next(iter(config.get("architectures") or []), ""))
    known = TIES.get(name)
    for (key, value), classes in _OTHERWISE.items():
        known = classes.get(name, known) if config.get(key) is value else known
    return known if known and (known.always or _says_tied(config)) else None


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json has to say so that the class loads tensors that it would tie as they are stored."""
    text = config.get("text_config")
    inside = isinstance(text, Mapping) and text.get("tie_word_embeddings")
    return {"tie_word_embeddings": False} | (
        {"text_config": dict(text or {}) | {"tie_word_embeddings": False}} if inside else {}
    )


def tied(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json has to say so that the class ties what it would load as it is stored: `untied` the other way
    round.
    """
    text = config.get("text_config")
    inside = isinstance(text, Mapping) and (
        text.get("tie_word_embeddings") is False or config.get("model_type") in TIED_WITHIN
    )
    return {"tie_word_embeddings": True} | (
        {"text_config": dict(text or {}) | {"tie_word_embeddings": True}} if inside else {}
    )


def is_conv1d(config: Mapping[str, Any], module: str) -> bool:
    """Whether `module` is a Conv1D, with a weight of (in, out) instead of (out, in).

    A composite model, such as an encoder-decoder with a GPT-2 for a decoder, names the type in a nested config.
    """
    nested = [v for v in config.values() if isinstance(v, Mapping)]
    types = {c.get("model_type") for c in (config, *nested)}
    return bool(types & CONV1D_TYPES) and module.rpartition(".")[2] in CONV1D_MODULES
