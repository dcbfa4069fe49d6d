"""OFT, BOFT, HRA, MiSS, RoAd: what turns, reflects or repeats."""

from __future__ import annotations

from peft import BOFTConfig, HRAConfig, MissConfig, OFTConfig, RoadConfig

from .cases import Case

LINEARS = ["q_proj", "v_proj", "down_proj"]
POINTWISE = r".*layer\.[02]\.convolution"
CASES: dict[str, Case] = {
    "OFT on Linear": Case("linear", lambda: OFTConfig(oft_block_size=8, target_modules=LINEARS)),
    "OFT, exact": Case(
        "linear", lambda: OFTConfig(oft_block_size=8, target_modules=LINEARS, use_cayley_neumann=False, bias="all")
    ),
    "OFT, number of blocks": Case(
        "linear", lambda: OFTConfig(r=4, oft_block_size=0, target_modules=LINEARS, bias="oft_only"), size=0.05
    ),
    "OFT, three terms, shared": Case(
        "bare",
        lambda: OFTConfig(oft_block_size=8, target_modules=LINEARS, block_share=True, num_cayley_neumann_terms=3),
    ),
    "OFT, number of blocks, shared": Case(
        "bare", lambda: OFTConfig(r=4, oft_block_size=0, target_modules=LINEARS, block_share=True), size=0.05
    ),
    "OFT, two terms": Case(
        "bare", lambda: OFTConfig(oft_block_size=4, target_modules=LINEARS, num_cayley_neumann_terms=2)
    ),
    "OFT, block size that does not divide": Case(
        "linear", lambda: OFTConfig(oft_block_size=7, target_modules=LINEARS, modules_to_save=["lm_head"])
    ),
    "OFT, limited": Case(
        "linear", lambda: OFTConfig(oft_block_size=8, target_modules=LINEARS, coft=True, eps=0.5), size=0.3
    ),
    "OFT, limited and shared": Case(
        "linear",
        lambda: OFTConfig(
            oft_block_size=8, target_modules=LINEARS, coft=True, eps=0.1, block_share=True, use_cayley_neumann=False
        ),
        size=0.3,
    ),
    "OFT on an embedding": Case(
        "linear",
        lambda: OFTConfig(oft_block_size=8, target_modules=["embed_tokens", "q_proj"]),
        parts=("oft_embedding_R", "embed_tokens.base_layer"),
    ),
    "OFT on a tied embedding": Case(
        "tied", lambda: OFTConfig(oft_block_size=8, target_modules=["embed_tokens", "q_proj"], use_cayley_neumann=False)
    ),
    "OFT on Conv2d of 1 x 1": Case("bottleneck", lambda: OFTConfig(oft_block_size=4, target_modules=POINTWISE)),
    "BOFT on Linear": Case("linear", lambda: BOFTConfig(boft_block_size=8, target_modules=LINEARS, bias="boft_only")),
    "BOFT, a factor that needs a kernel": Case(
        "linear", lambda: BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=2, target_modules=LINEARS)
    ),
    "BOFT, number of blocks": Case(
        "bare", lambda: BOFTConfig(boft_block_size=0, boft_block_num=4, target_modules=["q_proj", "v_proj"])
    ),
    "BOFT on Conv2d": Case(
        "resnet", lambda: BOFTConfig(boft_block_size=4, target_modules=r".*layer\.[01]\.convolution")
    ),
    "HRA on Linear": Case("linear", lambda: HRAConfig(r=4, target_modules=LINEARS, bias="hra_only"), size=0.5),
    "HRA, odd rank": Case("bare", lambda: HRAConfig(r=5, target_modules=LINEARS), size=0.5),
    "HRA, made orthogonal": Case("linear", lambda: HRAConfig(r=4, target_modules=LINEARS, apply_GS=True), size=0.5),
    "HRA on Conv2d": Case("resnet", lambda: HRAConfig(r=4, target_modules=["convolution"]), size=0.5),
    "MiSS on Linear": Case("linear", lambda: MissConfig(r=8, target_modules=LINEARS, bias="miss_only")),
    "MiSS, rank that does not divide": Case("bare", lambda: MissConfig(r=7, target_modules=LINEARS)),
    "MiSS, mini": Case("linear", lambda: MissConfig(r=8, mini_r=4, init_weights="mini", target_modules=LINEARS)),
    "MiSS, bat": Case("linear", lambda: MissConfig(r=8, init_weights="bat", target_modules=LINEARS), weighs=False),
    "RoAd 1": Case("linear", lambda: RoadConfig(variant="road_1", group_size=8, target_modules=LINEARS)),
    "RoAd 2": Case("linear", lambda: RoadConfig(variant="road_2", group_size=4, target_modules=LINEARS)),
    "RoAd 4": Case(
        "bare",
        lambda: RoadConfig(variant="road_4", group_size=8, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    ),
}
