"""The commands on recipes: run, which makes what one says, and schema, for editors."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

import typer

from .options import Debug, Writing, writing_options
from .running import guarded, written, wrong_usage

app = typer.Typer()
PANEL = "Recipes"


@app.command(rich_help_panel=PANEL)
@writing_options
def run(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A recipe: YAML, TOML or JSON; or an output, to make it again.", show_default=False
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STEP.OPTION=VALUE", help="In the place of what it says; may be given often."),
    ] = None,
    *,
    options: Writing,
) -> None:
    """Make what a recipe says: its source, through its steps, to its output, in one pass."""
    from surgery.recipes.kinds import WrongValue
    from surgery.recipes.run import check, made_by, read_recipe

    from .recipe_output import with_output

    def read() -> Any:
        try:
            document = read_recipe(recipe, set_ or ())
            check(document)
            return document
        except WrongValue as error:
            raise wrong_usage(error, "--set") from error

    document = guarded(read, json=options.json, debug=options.debug)
    chosen = guarded(partial(with_output, document, options), json=options.json, debug=options.debug)
    written(lambda: made_by(document), chosen)


@app.command(rich_help_panel=PANEL)
def schema(debug: Debug = False) -> None:
    """Print the JSON schema of recipes, by which editors complete and check them."""
    from surgery.recipes.schema import schema_of

    from .recipe_output import OUTPUT

    guarded(lambda: print(json.dumps(schema_of(OUTPUT), indent=2, ensure_ascii=False)), json=False, debug=debug)
