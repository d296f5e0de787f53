"""The network as a table of its layers and as a drawing."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import nn

from gliotrail.report.colours import FAINT, FOREGROUND
from gliotrail.report.figures import add_text, add_title, new_figure
from gliotrail.segmentation.unet import UNet3d, count_parameters

_BOX, _BOX_EDGE = "#2F4858", "#8FB8CC"
_HALF = 0.31
"""Half the side of a box, in columns."""
_LINE_IN = 0.24
_KEY = (
    "boxes: tensors with their channels     dashed: skip, concatenated     ↓ max-pooling by 2\n"
    "→ 3x3x3 convolution and ReLU (the last: 1x1x1, to logits)     ↑ nearest upsampling by 2"
)


class LayerRow(NamedTuple):
    """One layer that has parameters of its own."""

    name: str
    kind: str
    in_channels: int | None
    out_channels: int | None
    trainable: int
    frozen: int


def layer_rows(network: nn.Module) -> list[LayerRow]:
    """The layers of a torch network in the order they were made; a shared one is counted once."""
    seen: set[int] = set()
    rows = []
    for name, layer in network.named_modules():
        own = [p for p in layer.parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for p in own)
        if own:
            kernel = getattr(layer, "kernel_size", None)
            size = " " + "x".join(map(str, kernel)) if isinstance(kernel, tuple) else ""
            rows.append(
                LayerRow(
                    name or "(network)",
                    type(layer).__name__ + size,
                    getattr(layer, "in_channels", None),
                    getattr(layer, "out_channels", None),
                    sum(p.numel() for p in own if p.requires_grad),
                    sum(p.numel() for p in own if not p.requires_grad),
                )
            )
    return rows


def parameter_table(rows: Sequence[LayerRow]) -> str:
    """The layers as aligned text, with the totals of trainable and non-trainable parameters."""
    cells = [["layer", "kind", "channels in", "out", "parameters"]]
    for row in rows:
        channels = ["" if n is None else str(n) for n in (row.in_channels, row.out_channels)]
        cells.append([row.name, row.kind, *channels, f"{row.trainable + row.frozen:,}"])
    cells.append(["trainable", "", "", "", f"{sum(row.trainable for row in rows):,}"])
    cells.append(["non-trainable", "", "", "", f"{sum(row.frozen for row in rows):,}"])
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])


def draw_table(rows: Sequence[LayerRow], title: str) -> Figure:
    """`parameter_table` as a picture."""
    lines = parameter_table(rows).split("\n")
    high_in = 0.65 + _LINE_IN * len(lines)
    figure = new_figure(max(4.0, 0.4 + 0.083 * max(map(len, lines))), high_in)
    add_title(figure, 0.2, high_in - 0.28, title)
    for n, line in enumerate(lines):
        colour = FAINT if n == 0 or set(line) == {"-"} else FOREGROUND
        y_in = high_in - 0.65 - n * _LINE_IN
        add_text(figure, 0.2, y_in, line, family="monospace", fontsize=9, color=colour)
    return figure


def draw_network(depth: int, base_filters: int, in_channels: int, classes: int) -> Figure:
    """The 3-D U-Net: boxes are tensors with their channels, arrows are layers, a row is a level."""
    with torch.device("meta"):  # sizes only, no memory
        network = UNet3d(depth, base_filters, in_channels, classes)
    trainable, other = count_parameters(network)
    filters = [
        [conv.out_channels for conv in level if isinstance(conv, nn.Conv3d)]
        for level in (*network.down, *network.up)
        if isinstance(level, nn.ModuleList)
    ]
    n_columns = 4 * depth
    high_in = 0.9 * depth + 1.5
    figure = new_figure(max(6.0, 0.8 * n_columns + 0.4), high_in)
    add_title(figure, 0.2, high_in - 0.28, f"3-D U-Net, depth {depth}, {base_filters} base filters")
    add_text(
        figure, 0.2, high_in - 0.58, f"{trainable:,} trainable parameters, {other:,} other",
        color=FAINT,
    )  # fmt: skip
    add_text(figure, 0.2, 0.32, _KEY, color=FAINT, fontsize=8)
    axes = figure.add_axes((0, 0.6 / high_in, 1, 0.9 * depth / high_in))
    axes.set_axis_off()
    axes.set_xlim(-0.8, figure.get_size_inches()[0] / 0.8 - 0.8)
    axes.set_ylim(0.55 - depth, 0.6)

    for level in range(depth):
        x = 2 * level
        incoming = filters[level - 1][1] if level else in_channels
        _row(axes, x, -level, [str(n) for n in (incoming, *filters[level])])
        side = "full size" if level == 0 else f"1/{2**level} the side"
        at_x, at_y, align = (x - 0.4, -level, "right") if level else (x, 0.45, "center")
        axes.text(at_x, at_y, side, ha=align, va="center", fontsize=7.5, color=FAINT)
        if level:
            _arrow(axes, (x, 1 - level - _HALF), (x, _HALF - level))
    coming, x = filters[depth - 1][1], 2 * depth
    for level, (c, d) in zip(range(depth - 2, -1, -1), filters[depth:], strict=True):
        skip = filters[level][1]
        _row(axes, x, -level, [f"{coming}\n+ {skip}", str(c), str(d)])
        _arrow(axes, (x, _HALF - level - 1), (x, -level - _HALF))
        _arrow(axes, (2 * level + 2 + _HALF, -level), (x - _HALF, -level), dashed=True)
        coming, x = d, x + 2
    _row(axes, x, 0, ["", str(classes)])
    return figure


def _row(axes: Axes, x: float, y: float, names: Sequence[str]) -> None:
    """Boxes side by side with a convolution between each; an empty name is a box already there."""
    for n, name in enumerate(names):
        if name:
            corner = (x + n - _HALF, y - _HALF)
            axes.add_patch(
                Rectangle(corner, 2 * _HALF, 2 * _HALF, facecolor=_BOX, edgecolor=_BOX_EDGE)
            )
            size = 8 if "+" in name else 9.5
            axes.text(x + n, y, name, ha="center", va="center", fontsize=size, color=FOREGROUND)
        if n:
            _arrow(axes, (x + n - 1 + _HALF, y), (x + n - _HALF, y))


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], dashed: bool = False
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=9, color=FAINT, shrinkA=1, shrinkB=1,
            linewidth=1, linestyle="--" if dashed else "-",
        )
    )  # fmt: skip
