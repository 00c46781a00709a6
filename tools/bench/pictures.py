"""Pictures of what things cost."""


def draw(rows, path):
    """Time and memory: bars for one size, curves over the positions for several.

    Args:
        rows: dicts of `costs`.
        path: of the pictures, without the ending.

    Returns:
        The endings of what was written: none where nothing was measured.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure

    figures = {"forward_ms": "forward (ms)", "forward_mb": "memory (MB)"}
    # In turn, no memory is measured; and of what is refused, nothing.
    figures = {key: label for key, label in figures.items() if any(key in row for row in rows)}
    if not figures:
        return []
    names = list(dict.fromkeys(row["name"] for row in rows))
    curve = len({row["size"] for row in rows}) > 1
    height = 4.5 if curve else 1.2 + 0.35 * len(names)
    fig = Figure(figsize=(5.5 * len(figures), height), layout="constrained")
    axes = fig.subplots(1, len(figures), squeeze=False)[0]
    for ax, (figure, label) in zip(axes, figures.items(), strict=True):
        for i, name in enumerate(names):
            points = [r for r in rows if r["name"] == name and figure in r]
            values = [row[figure] for row in points]
            if curve:
                positions = [row["positions"] for row in points]
                ax.plot(positions, values, "o-", color=f"C{i % 10}", label=name)
            else:
                bars = ax.barh([name] * len(values), values, color="C0")
                ax.bar_label(bars, fmt="%.0f", padding=3)
        if curve:
            ax.set(xscale="log", yscale="log", xlabel="positions", ylabel=label)
            ax.grid(which="both", alpha=0.3)
        else:
            ax.set(xlabel=label)
            ax.set_yticks(range(len(names)), names)
            ax.invert_yaxis()
            ax.margins(x=0.15)
        ax.spines[["top", "right"]].set_visible(False)
    if curve:
        axes[0].legend(frameon=False)
    else:
        for ax in axes[1:]:
            ax.set_yticklabels([])
    endings = [".png", ".svg"]
    for ending in endings:
        fig.savefig(f"{path}{ending}", dpi=150)
    return endings
