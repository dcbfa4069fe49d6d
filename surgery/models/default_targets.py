"""The modules that PEFT puts LoRA on where none are named, by model type."""

from __future__ import annotations

from collections.abc import Mapping

# A regular expression, or last names with commas between -> the model types (peft 0.21, utils/constants.py).
_TYPES: Mapping[str, str] = {
    "q,v": "t5 mt5",
    "q_proj,v_proj": "bart opt gptj gpt_neo llama llama4 mistral mixtral stablelm gemma gemma2 gemma3_text qwen2 qwen3",
    "c_attn": "gpt2 gpt_bigcode",
    "query_key_value": "bloom gpt_neox chatglm RefinedWebModel RefinedWeb falcon",
    "q,v,q_proj,v_proj": "blip-2",
    "query,value": "bert roberta xlm-roberta electra layoutlm",
    "query_proj,value_proj": "deberta-v2",
    "in_proj": "deberta",
    "Wqkv": "mpt",
    "c_proj,c_attn": "btlm",
    "qkv_proj": "codegen",
    "q_proj,v_proj,fc1,fc2": "phi",
    ".*language_model\\..*\\.(q_proj|v_proj)": "gemma4",
    "q_proj,k_proj,v_proj,o_proj": "nemotron_h",
    "key,value,receptance,output": "rwkv",
    "r_proj,k_proj,v_proj,o_proj,key,value": "rwkv7",
}
_TARGETS: Mapping[str, str] = {kind: targets for targets, kinds in _TYPES.items() for kind in kinds.split()}


def default_targets(model_type: object) -> str | list[str]:
    """What PEFT targets in a model of this type: a regular expression or last names; none for a type that it does
    not know.
    """
    targets = _TARGETS.get(str(model_type), "")
    return targets if "*" in targets else targets.split(",") if targets else []
