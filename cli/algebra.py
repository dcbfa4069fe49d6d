"""The commands on adapters without their base, or from two of them: combine, resize-adapter, extract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .adapters import PANEL
from .options import Base, Writing, parse_weights, writing_options
from .reading import Reading
from .running import written

if TYPE_CHECKING:
    import surgery

app = typer.Typer()
Rank = Annotated[
    int | None, typer.Option("--rank", "-r", metavar="N", help="The rank of each module, or what it has, if less.")
]
Energy = Annotated[
    float | None,
    typer.Option(
        "--energy",
        metavar="SHARE",
        help="In place of --rank: the least that keeps this share of the squares of the singular values, as 0.99.",
    ),
]
MaxRank = Annotated[int | None, typer.Option("--max-rank", metavar="N", help="With --energy: at most this rank.")]
AnAdapter = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="A LoRA adapter, here or on the Hub.", show_default=False)
]


@app.command(rich_help_panel=PANEL)
@writing_options
def combine(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER", help="LoRA adapters, here or on the Hub.", show_default=False)
    ],
    weights: Annotated[
        str, typer.Option("--weights", metavar="W,W,…", help="One factor for each adapter, such as 0.7,0.3; else 1.")
    ] = "",
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank", "-r", metavar="N", help="The best approximation of that rank; if not given, ranks add up: exact."
        ),
    ] = None,
    average_factors: Annotated[
        bool,
        typer.Option(
            "--average-factors", help="Sum A's and B's apart, as AdapterHub does: not the sum of what adapters do."
        ),
    ] = False,
    any_base: Annotated[bool, typer.Option("--any-base", help="Combine adapters that name different bases.")] = False,
    *,
    reading: Reading,
    options: Writing,
) -> None:
    """Make one LoRA adapter that does what the weighted sum of adapters does."""
    import surgery

    numbers = parse_weights(weights, len(adapters))

    def made() -> surgery.Adapter:
        opened = [surgery.open_adapter(path, **reading.reading()) for path in adapters]
        return surgery.combine(opened, numbers, rank=rank, average_factors=average_factors, any_base=any_base)

    written(made, options)


@app.command(rich_help_panel=PANEL)
@writing_options
def resize_adapter(
    adapter: AnAdapter,
    rank: Rank = None,
    energy: Energy = None,
    max_rank: MaxRank = None,
    *,
    reading: Reading,
    options: Writing,
) -> None:
    """Give a LoRA adapter another rank: for each module the best approximation; the report says what it keeps."""
    import surgery

    def made() -> surgery.Adapter:
        return surgery.resize_adapter(
            surgery.open_adapter(adapter, **reading.reading()), rank=rank, energy=energy, max_rank=max_rank
        )

    written(made, options)


@app.command(rich_help_panel=PANEL)
@writing_options
def extract(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The checkpoint that the adapter is for.", show_default=False)
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="What was trained of it, of the same names.", show_default=False)
    ],
    rank: Rank = None,
    energy: Energy = None,
    max_rank: Annotated[
        int | None, typer.Option("--max-rank", metavar="N", help="With --energy: at most this rank; 64 if not given.")
    ] = None,
    rest: Annotated[
        str,
        typer.Option(
            "--rest",
            metavar="error|save|leave",
            help="What differs and gets no LoRA: refuse, hold it whole, or leave it as it is in BASE.",
        ),
    ] = "error",
    only: Annotated[
        str, typer.Option("--only", metavar="REGEX", help="LoRA on the modules whose whole name matches alone.")
    ] = "",
    except_: Annotated[
        str, typer.Option("--except", metavar="REGEX", help="No LoRA on the modules whose whole name matches.")
    ] = "",
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="LoRA on embeddings, too, where they are not tied.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The method's random numbers follow from it.")] = 0,
    *,
    options: Writing,
) -> None:
    """Make a LoRA adapter of the difference of two checkpoints, in bounded memory; the report says what it keeps."""
    import surgery
    from surgery.planning.sharding import parse_size

    from .progress import looking

    def made() -> surgery.Adapter:
        with looking(shown=not (options.quiet or options.json)) as on_tensor:
            return surgery.extract(
                surgery.open_checkpoint(base),
                surgery.open_checkpoint(tuned),
                rank=rank,
                energy=energy,
                max_rank=max_rank,
                rest=rest,
                only=only or None,
                except_=except_ or None,
                embeddings=embeddings,
                seed=seed,
                workers=options.workers,
                memory=parse_size(options.memory) if options.memory else None,
                on_tensor=on_tensor,
            )

    written(made, options)


@app.command(rich_help_panel=PANEL)
@writing_options
def convert_adapter(
    adapter: AnAdapter,
    to: Annotated[
        str, typer.Option("--to", metavar="peft|kohya|diffusers|mlx", help="The form that is written.")
    ] = "peft",
    base: Base = None,
    only: Annotated[
        str, typer.Option("--only", metavar="REGEX", help="The modules whose whole name in the file matches alone.")
    ] = "",
    except_: Annotated[
        str, typer.Option("--except", metavar="REGEX", help="Without the modules whose whole name in the file matches.")
    ] = "",
    *,
    reading: Reading,
    options: Writing,
) -> None:
    """Write an adapter in another tool's form: what it does stays the same, and nothing is rounded."""
    import surgery

    def made() -> surgery.Adapter | surgery.Checkpoint:
        opened = surgery.open_adapter(adapter, **reading.reading())
        of = surgery.open_checkpoint(base) if base else None
        return surgery.convert_adapter(opened, to, of, only=only or None, except_=except_ or None)

    written(made, options)
