"""Small matrices that turn inputs, less the identity: Cayley's transform of skew ones, exactly or as Neumann's series;
butterflies of these; and reflections, in their compact form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Numbers = Mapping[str, float | str]


def cayley(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """(n, k, k) from the upper triangles (n, k (k - 1) / 2) of skew Q: (I - Q) (I + Q)^-1 - I, `transposed` or not."""
    made = _cayley(_limited(_skew(inputs[0]), float(numbers["limit"])))
    return made.mT if numbers["transposed"] else made


def neumann(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """The same of I + 2 Q + 2 Q² + …, of so many `terms`, the last one once, or `last` times.

    Three are counted as four where the last one is not doubled: peft 0.18 and later multiply once more than they add.
    """
    skew = _limited(_skew(inputs[0]), float(numbers["limit"]))
    terms, last = int(numbers["terms"]), float(numbers["last"])
    if last == 1 and terms > 2:
        terms = max(terms, 4)
    total, power = skew.new_zeros(skew.shape), None
    for number in range(1, terms):
        power = skew if power is None else power @ skew
        total += (last if number == terms - 1 and number > 1 else 2.0) * power
    return total.mT if numbers["transposed"] else total


def old_cayley(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """(n, k, k) from whole matrices, whose skew half Q is: (I - Q) (I + Q)^-1 - I, transposed."""
    whole = _limited(inputs[0], float(numbers["limit"]))
    return _cayley((whole - whole.mT) / 2).mT


def butterfly(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """(1, n / 2^(m - 1), K, K) for K = k 2^(m - 1) from factors (m, n, k, k): F_(m-1) … F_0 - I, transposed.

    F_i is P_i blockdiag(Cayley of each) P_i^T; P_i takes, in chunks of k 2^i columns, groups of k / 2 of which the
    even ones come first. A chunk of the last factor holds whole ones of those before it.
    """
    import torch

    levels, count, edge, _ = inputs[0].shape
    factors = _cayley((inputs[0] - inputs[0].mT) / 2) + torch.eye(edge, dtype=torch.float64)
    wide = edge << (levels - 1)
    eye = torch.eye(wide, dtype=torch.float64)
    total = eye.expand(count * edge // wide, wide, wide)
    for level, blocks in enumerate(factors):
        order = _even_first(wide, edge, level)
        placed = eye[order]
        diagonal = torch.zeros(len(total), wide // edge, edge, wide // edge, edge, dtype=torch.float64)
        for which in range(wide // edge):
            diagonal[:, which, :, which] = blocks[which :: wide // edge]
        total = placed @ diagonal.view(-1, wide, wide) @ placed.mT @ total
    return (total - eye).mT[None]


def turned_back(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """(I + scale * M)^-1 - I of each block M."""
    import torch

    scaled = float(numbers["scale"]) * inputs[0]
    return torch.linalg.solve(torch.eye(scaled.shape[-1], dtype=torch.float64) + scaled, -scaled)


def reflections(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """The columns of U (n, r), each of length 1; made orthogonal in their order where `orthogonal`."""
    import torch

    if not numbers["orthogonal"]:
        return inputs[0] / inputs[0].norm(dim=0)
    made: list[torch.Tensor] = []
    for column in inputs[0].unbind(1):
        for before in made:
            column = column - (before @ column) * before
        made.append(column / column.norm())
    return torch.stack(made, 1)


def reflected(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """U T (n, r), by which (I - 2 u1 u1^T) (I - 2 u2 u2^T) … is I - U T U^T for the `reflections` U."""
    import torch

    u = reflections(inputs, numbers)
    if numbers["orthogonal"]:
        return 2 * u
    inner, t = u.mT @ u, torch.zeros(u.shape[1], u.shape[1], dtype=torch.float64)
    for k in range(u.shape[1]):
        t[k, k] = 2.0
        t[:k, k] = -2 * t[:k, :k] @ inner[:k, k]
    return u @ t


def _even_first(wide: int, edge: int, level: int) -> torch.Tensor:
    """The columns of a chunk in the order that a factor takes them in."""
    import torch

    columns = torch.arange(wide)
    return columns.view(-1, 1 << level, 2, edge // 2).transpose(1, 2).reshape(-1) if level else columns


def _skew(upper: torch.Tensor) -> torch.Tensor:
    """Skew matrices from what is above their diagonals, row by row."""
    import torch

    count, size = upper.shape
    edge = (1 + round((1 + 8 * size) ** 0.5)) // 2
    made = torch.zeros(count, edge, edge, dtype=torch.float64)
    rows, columns = torch.triu_indices(edge, edge, 1)
    made[:, rows, columns] = upper
    return made - made.mT


def _limited(blocks: torch.Tensor, limit: float) -> torch.Tensor:
    """Each block no longer than `limit`, all of its numbers together; as it is for a negative limit."""
    import torch

    norms = blocks.norm(dim=(1, 2), keepdim=True)
    return blocks if limit < 0 else torch.where(norms <= limit, blocks, limit * blocks / norms)


def _cayley(skew: torch.Tensor) -> torch.Tensor:
    """(I - Q) (I + Q)^-1 - I, which is -2 Q (I + Q)^-1."""
    import torch

    eye = torch.eye(skew.shape[-1], dtype=torch.float64)
    return torch.linalg.solve(eye + skew, -2 * skew, left=False)


RULES = {
    "cayley": cayley,
    "neumann": neumann,
    "old cayley": old_cayley,
    "butterfly": butterfly,
    "turned back": turned_back,
    "reflections": reflections,
    "reflected": reflected,
}
