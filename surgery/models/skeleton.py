"""What transformers says of a model type: its complete config, and the names and shapes of its class. No weight, no
remote code.

Beside `checks/loadable.py` this is the only module that meets transformers, and it does so inside its functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import PlanError, listed, series
from ..files.model_config import Config, impossible
from ..lazy.tensor import Shape, Tensor
from ..names import natural


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The tensors of a class: their shapes, and for those that are shared, the name under which they are stored as
    well.
    """

    shapes: Mapping[str, Shape]
    tied: Mapping[str, str]


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every field that its class knows, defaults included, under the names that the class gives them.

    Raises PlanError where the class refuses it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    with _asked(f"the config class of model type `{kind}`", config):
        known: dict[str, Any] = CONFIG_MAPPING[kind].from_dict(_with_floats(config)).to_dict()
    return {name: value for name, value in known.items() if name != "_name_or_path"}


def skeleton(config: Mapping[str, Any], model_class: str) -> Skeleton:
    """The tensors of `model_class` for this config, built on torch's meta device. Raises PlanError where it cannot
    be built.
    """
    model = built(config, model_class)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return Skeleton(shapes, dict(model.all_tied_weights_keys))


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What a class is made of: for each module with a weight of two axes or more its type ("Linear", "Conv1D",
    "Embedding", "convolution", or the class's own name), the weight's shape, and the groups of a convolution.
    """

    modules: Mapping[str, tuple[str, Shape, int]]
    head: str  # the module that `get_output_embeddings` gives; empty: none
    parameters: Mapping[str, Shape]  # those that are shared under one of their names
    tied: Mapping[str, str]


def anatomy(config: Mapping[str, Any], model_class: str) -> Anatomy:
    """The modules of `model_class` for this config, built on torch's meta device. Raises PlanError where it cannot
    be built.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    kinds = {torch.nn.Linear: "Linear", Conv1D: "Conv1D", torch.nn.Embedding: "Embedding"}
    kinds |= dict.fromkeys((torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d), "convolution")
    model = built(config, model_class)
    modules: dict[str, tuple[str, Shape, int]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() > 1:
            kind = next((text for known, text in kinds.items() if isinstance(module, known)), type(module).__name__)
            modules[name] = (kind, tuple(weight.shape), int(getattr(module, "groups", 1)))
    with _asked(model_class, config):
        output = model.get_output_embeddings()
    head = next((name for name, module in model.named_modules() if output is not None and module is output), "")
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return Anatomy(modules, head, parameters, dict(model.all_tied_weights_keys))


def built(config: Mapping[str, Any], model_class: str) -> Any:
    """A model of `model_class` for this config, on torch's meta device. Raises PlanError where it cannot be built."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if what := impossible(config, 0):
        raise PlanError(
            f"no {model_class} is built of so much: {what}",
            where=_place(config),
            help="mend config.json: it is not this model's",
        )
    with _asked(model_class, config), torch.device("meta"):
        known = CONFIG_MAPPING[config["model_type"]].from_dict(_with_floats(config))
        model: Any = getattr(transformers, model_class)(known)
    return model


def _with_floats(value: Any) -> Any:
    """The config with the numbers that JSON has not, which transformers writes as `{"__float__": "Infinity"}`."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {key: _with_floats(one) for key, one in value.items()}
    return [_with_floats(one) for one in value] if isinstance(value, list) else value


def check_accepted(config: Mapping[str, Any], model_class: str, tensors: Mapping[str, Tensor]) -> None:
    """`model_class` would load these tensors whole. Raises PlanError: missing, unexpected, or of another shape."""
    want = skeleton(config, model_class)
    tied = {**want.tied, **{source: name for name, source in want.tied.items()}}
    missing = [name for name in want.shapes if name not in tensors and tied.get(name) not in tensors]
    unexpected = [name for name in tensors if name not in want.shapes]
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    misshapen = [f"{n} {shapes[n]}, not {shape}" for n, shape in want.shapes.items() if shapes.get(n, shape) != shape]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if rows := [f"{what}: {series(listed(sorted(names, key=natural)))}" for what, names in found.items() if names]:
        raise PlanError(
            f"{model_class} would not load the result whole",
            where=rows,
            help=(
                "unexpected tensors can be left out first with surgery drop; where others are missing, config.json is"
                " not this model's"
            ),
        )


@contextmanager
def _asked(whom: str, config: Mapping[str, Any]) -> Iterator[None]:
    """Transformers without its logging, and its refusals as ours."""
    import transformers

    logging: Any = transformers.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # validation of configs raises exceptions of many libraries
        tip = "config.json is incomplete or contradicts itself; mend it"
        raise PlanError(f"{whom} refuses the config: {first_words(error)}", where=_place(config), help=tip) from error
    finally:
        logging.set_verbosity(level)


def first_words(error: Exception) -> str:
    """The first line of what an exception says, with the next where that announces it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def _place(config: Mapping[str, Any]) -> list[str]:
    """The file that a config was read from, where it was."""
    return [config.where] if isinstance(config, Config) else []
