"""The browser: a tree of modules on the left, the tensor at hand on the right.

Loads textual: imported by `browse` alone. Values are read by a worker, so that the screen never waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Footer, Header, Input, Static, Tree
from textual.widgets.tree import TreeNode

import surgery
from surgery.checks.modules import Module, module_tree, part_of
from surgery.errors import printable
from surgery.evaluation.statistics import some_values, statistics
from surgery.lazy.tensor import Tensor
from surgery.names import compiled
from surgery.units import extent, size

Node = TreeNode[Any]


class Browser(App[None]):
    """Walks through what was opened."""

    CSS = """
    Tree { width: 1fr; min-width: 24; border-right: solid $primary-darken-2; }
    #side { width: 1fr; padding: 0 1; overflow-x: auto; }
    #facts { height: auto; } #values { height: auto; width: auto; margin-top: 1; }
    Input { dock: bottom; display: none; }
    Input.shown { display: block; }
    """
    BINDINGS: ClassVar[Any] = [
        Binding("s", "statistics", "Statistics"),
        Binding("v", "values", "Values"),
        Binding("slash", "find", "Find"),
        Binding("escape", "leave", "Back", show=False),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, found: surgery.Checkpoint | surgery.Adapter) -> None:
        super().__init__()
        self.found, self.tensors = found, found.tensors
        self.title = printable(found.path)
        self.modules: Tree[Any] = Tree("")
        self.asked = ""  # what is typed: "values" or "find"

    def compose(self) -> ComposeResult:
        """The screen."""
        yield Header()
        with Horizontal():
            yield self.modules
            with VerticalScroll(id="side"):
                yield Static(id="facts")
                yield Static(id="values")
        yield Input()
        yield Footer()

    def on_mount(self) -> None:
        """The tree shows its first level; what is deeper is made where it is opened."""
        self.grown(module_tree(self.tensors))
        self.modules.guide_depth = 2
        self.modules.focus()

    def grown(self, top: Module) -> None:
        """The tree is of these modules."""
        self.modules.reset(_label(self.title, top), top)
        self._grow(self.modules.root)
        self.modules.root.expand()

    def _grow(self, node: Node) -> None:
        if node.children or not isinstance(node.data, Module):
            return
        for name, module in node.data.modules.items():
            while len(module.modules) == 1 and not module.tensors:  # what holds one module alone is one line with it
                ((inner, module),) = module.modules.items()
                name = f"{name}.{inner}"
            if module.count == 1:  # and so is what holds one tensor alone
                ((last, tensor),) = module.tensors.items()
                self._leaf(node, f"{name}.{last}", tensor)
            else:
                node.add(_label(name, module), module)
        for last, tensor in node.data.tensors.items():
            self._leaf(node, last, tensor)

    def _leaf(self, node: Node, shown: str, name: str) -> None:
        tensor = self.tensors[name]
        what = f"  {extent(tensor.shape)} {tensor.dtype.name}"
        node.add_leaf(Text.assemble(printable(shown), (what, "dim")), name)

    def _open(self, node: Node) -> None:
        """All that is inside is made, and shown."""
        self._grow(node)
        node.expand()
        for inner in node.children:
            if inner.allow_expand:
                self._open(inner)

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[Any]) -> None:
        """What is inside is made now."""
        self._grow(event.node)

    def on_tree_node_highlighted(self, event: Tree.NodeHighlighted[Any]) -> None:
        """What is at hand is told, from headers alone."""
        self._show("values", "")
        data = event.node.data
        if isinstance(data, Module):
            self._show("facts", _table((("module", data.path or "all"), ("tensors", f"{data.count:,}"),
                                        ("size", size(data.nbytes)))))  # fmt: skip
        elif data is not None:
            self._show("facts", _table(self._facts(data)))

    def _facts(self, name: str) -> Iterable[tuple[str, str]]:
        tensor = self.tensors[name]
        yield "tensor", name
        yield "dtype", tensor.dtype.name
        yield "shape", extent(tensor.shape)
        yield "elements", f"{tensor.size:,}"
        yield "size", size(tensor.nbytes)
        if isinstance(self.found, surgery.Checkpoint):
            yield "shard", self.found.weight_map[name]

    @property
    def at_hand(self) -> str | None:
        """The tensor under the cursor."""
        node = self.modules.cursor_node
        return node.data if node is not None and isinstance(node.data, str) else None

    def action_statistics(self) -> None:
        """Read the tensor at hand, and say what its numbers are like."""
        if name := self.at_hand:
            self._show("values", "reading …")
            self._read(name, None)

    def action_values(self) -> None:
        """Ask for a part of the tensor at hand."""
        if self.at_hand:
            self._ask("values", "part, such as 0:4, 8:16; nothing: the begin")

    def action_find(self) -> None:
        """Ask for a pattern."""
        self._ask("find", "pattern that occurs in a name; nothing: all tensors")

    def action_leave(self) -> None:
        """The line for typing goes."""
        line = self.query_one(Input)
        line.remove_class("shown")
        line.value = ""
        self.modules.focus()

    def _ask(self, what: str, hint: str) -> None:
        self.asked, line = what, self.query_one(Input)
        line.placeholder = hint
        line.add_class("shown")
        line.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """What was typed is done."""
        text = event.value
        self.action_leave()
        if self.asked == "find":
            self._find(text)
        elif name := self.at_hand:
            self._read(name, text)

    def _find(self, text: str) -> None:
        try:
            pattern = compiled(text)
        except surgery.SurgeryError as error:
            self._show("values", error.told)
            return
        found = {name: tensor for name, tensor in self.tensors.items() if pattern.search(name)}
        if not found:
            self._show("values", f"no tensor's name has {text} in it")
            return
        self.grown(module_tree(found))
        if text and len(found) <= 200:
            self._open(self.modules.root)

    @work(thread=True, exclusive=True)
    def _read(self, name: str, part: str | None) -> None:
        """In a thread: statistics of a tensor, or the values of a part of it."""
        try:
            tensor = self.tensors[name]
            said = _statistics(tensor) if part is None else _values(tensor, part)
        except surgery.SurgeryError as error:
            said = Text(error.told)
        self.call_from_thread(self._shown_for, name, said)

    def _shown_for(self, name: str, said: Text) -> None:
        if name == self.at_hand:  # else the cursor has moved on
            self._show("values", said)

    def _show(self, where: str, what: Text | str) -> None:
        self.query_one(f"#{where}", Static).update(Text(what) if isinstance(what, str) else what)


def _label(name: str, module: Module) -> Text:
    return Text.assemble(printable(name), (f"  {module.count:,} · {size(module.nbytes)}", "dim"))


def _table(rows: Iterable[tuple[str, str]]) -> Text:
    return Text("\n").join(Text.assemble((f"{key:10}", "bold"), printable(value)) for key, value in rows)


def _statistics(tensor: Tensor) -> Text:
    found = statistics(tensor)
    rows = {"least": found.least, "largest": found.largest, "mean": found.mean, "deviation": found.deviation}
    counts = {"zero": found.zeros, "NaN": found.nans, "infinite": found.infinite}
    return _table(
        [*((name, f"{value:.6g}") for name, value in rows.items()), *((n, f"{c:,}") for n, c in counts.items())]
    )


def _values(tensor: Tensor, text: str) -> Text:
    found = part_of(tensor, text)
    if found.size > 4096:
        raise surgery.WrongUsage(
            f"{found.size:,} values are too many to look at", help="up to 4096, such as 0:64, 0:64"
        )
    values = some_values(found)
    rows = [row if isinstance(row, list) else [row] for row in values]
    return Text("\n".join(" ".join(f"{value:>12.6g}" for value in row) for row in rows), no_wrap=True)
