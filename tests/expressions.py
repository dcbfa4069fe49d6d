"""Regular expressions that may take forever, and such as people write."""

from __future__ import annotations

HOSTILE = [
    r"(a+)+$",
    r"(.*)*x",
    r"([a-z.]+)*!",
    r"(\w|\.)*(\w|\d|x)*!" + r"(?:a|ab|b)*",
    r"(.*a){20,}",
    r"(?:(?:x*)*)*",
    r"(a?){50,90}a{50}",
    r".*.*.*.*.*.*.*.*z",
    r"(?=(.+)+$)x",
]
USUAL = [
    r".*\.(q|v)_proj",
    r"model\.layers\.\d+\.self_attn\.(?:q|k|v|o)_proj",
    r"^(?!.*vision).*(?:q_proj|v_proj).*",
    r"(?:.*?(?:vision|visual|language|text).*?(?:self_attn|attn|mlp|ffn).*?(?:k_proj|v_proj|fc1).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:k_proj|v_proj))",
    "all-linear",
    r"layers\.(1[0-9]|2[0-3])\.mlp\..*",
    r"(?:[^.]+\.)*q_proj",
    r"model(?:\.[a-z_]+|\.\d+)*\.(?:q|v)_proj",
    r"(?:\w+\.)+(?:q_proj|v_proj)",
    r"(?:[^.]*\.)*self_attn\.[qv]_proj",
]
