"""Draws what stands on what in a checkout: its rooms on floors, and the imports between them.

    python -m tools.draw_rooms --checkout=. --output=docs/images/rooms.png

An older checkout is drawn as well; no code of it is run.
"""

import collections
import sys
from pathlib import Path

import grimp
from absl import app, flags
from matplotlib.figure import Figure

_PACKAGES = ("isa_tf", "tools", "experiments")
# Of programs, what others stand on is a room of its own.
_BELOW = ("tools.command", "tools.progress", "tools.tables", "tools.typed", "tools.stablehlo")
_WRITERS = "tools: command, progress,\ntables, typed, stablehlo"


def rooms(checkout):
    """What stands on what: the rooms of a checkout, on floors, and the imports between them.

    A room stands above all that it imports; rooms that import each other in a circle are on one
    floor, and the arrows between them are red. What is imported by way of another room as well
    has no arrow of its own.

    Args:
        checkout: folder that holds isa_tf, tools and experiments, of any version.

    Returns:
        `matplotlib.figure.Figure`.
    """
    # Packages are looked for where they are imported from, and this one is not to be found.
    hidden = {name: sys.modules.pop(name, None) for name in _PACKAGES}
    sys.path.insert(0, str(checkout))
    try:
        graph = grimp.build_graph(*_PACKAGES, cache_dir=None)
    finally:
        sys.path.pop(0)
        sys.modules.update({name: module for name, module in hidden.items() if module})
    files, imports = collections.Counter(), collections.defaultdict(set)
    for module in graph.modules:
        files[_room(module)] += 1
        imported = graph.find_modules_directly_imported_by(module)
        imports[_room(module)] |= {_room(other) for other in imported} - {_room(module)}
    floors = _floors(sorted(files), imports)
    figure = Figure(figsize=(11, 0.8 * len(floors) + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(-0.5, len(floors) - 0.5))
    places, floor_of = {}, {}
    for height, floor in enumerate(floors):
        for number, room in enumerate(floor):
            places[room] = (number + 0.5 + 0.25 * (-1) ** height / 2) / len(floor), height
            floor_of[room] = height
    patches = {}
    for room, (x, y) in places.items():
        count = f"{files[room]} file{'s' * (files[room] > 1)}"
        box = {"boxstyle": "round,pad=0.4", "facecolor": "#eef3fb", "edgecolor": "#5b7db1"}
        text = axes.text(
            x, y, f"{room}\n{count}", ha="center", va="center", size=8, bbox=box, zorder=3
        )
        patches[room] = text.get_bbox_patch()
    figure.canvas.draw()  # so that it is known how large they are
    reached = _reached(imports)
    for room, others in imports.items():
        for other in others:
            if any(other in reached[third] for third in others if room not in reached[third]):
                continue
            up = floor_of[other] >= floor_of[room]
            style = {"color": "tab:red" if up else "0.75", "lw": 1.6 if up else 0.7}
            ends = {"patchA": patches[room], "patchB": patches[other], "shrinkA": 0, "shrinkB": 0}
            shape = {"arrowstyle": "-|>", **ends, **style}
            axes.annotate("", places[other], places[room], arrowprops=shape, zorder=1 + up)
    return figure


def _room(module):
    if module.startswith(_BELOW):
        return _WRITERS
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] or "isa_tf" if first == "isa_tf" else first


def _reached(imports):
    """Of every room, those that it imports and those that these import, and so on."""
    reached = collections.defaultdict(set)
    for name in list(imports):
        waiting = [name]
        while waiting:
            new = imports[waiting.pop()] - reached[name]
            reached[name] |= new
            waiting += new
    return reached


def _floors(names, imports):
    """Lists of rooms, from the ground up."""
    reached = _reached(imports)

    def height(name):
        # What is reached and does not reach back lies below.
        below = [other for other in reached[name] if name not in reached[other]]
        return 1 + max(map(height, below), default=-1)

    floors = collections.defaultdict(list)
    for name in names:
        floors[height(name)].append(name)
    return [floors[number] for number in sorted(floors)]


def main(argv):
    del argv
    figure = rooms(Path(flags.FLAGS.checkout).resolve())
    figure.savefig(flags.FLAGS.output, dpi=90)
    print(flags.FLAGS.output)


if __name__ == "__main__":
    flags.DEFINE_string("checkout", ".", "Folder that holds isa_tf, tools and experiments.")
    flags.DEFINE_string("output", None, "The picture.", required=True)
    app.run(main)
