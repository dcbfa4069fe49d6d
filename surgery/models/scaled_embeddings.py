"""Models whose embedding multiplies what it looks up: an adapter's layer on it, which adds without that factor, is no
change of the weight by what it adds.

Each type has a class `…ScaledWordEmbedding` in transformers; some scale where config.json says `scale_embedding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..names import is_called
from .families import EMBEDDINGS
from .fused.layout import sections

SCALED = frozenset(
    """
    bart bigbird_pegasus biogpt blenderbot m2m_100 mbart minicpm3 nllb_moe pegasus_x plbart pp_formulanet trocr
    vaultgemma xglm
    """.split()
)
STEMS = ("diffusion_gemma", "embedding_gemma", "gemma", "seamless_m4t", "t5gemma2")  # and all that begin so


def scales(config: Mapping[str, Any], module: str) -> bool:
    """Whether the module is an embedding of words that a model of that config scales, as far as is known."""
    kinds = [(str(one.get("model_type")).replace("-", "_"), one) for one in sections(config)]
    said = [one for kind, one in kinds if kind in SCALED or kind.startswith(STEMS)]
    scaled = any(one.get("scale_embedding") is not False for one in said)
    return scaled and (is_called(module, EMBEDDINGS) or "embed" in module.rpartition(".")[2])
