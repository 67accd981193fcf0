"""The loss curve of a training, as a picture."""

from pathlib import Path

from lockstep.artifacts import jsonl_log


def draw(metrics: Path, picture: Path, title: str) -> None:
    """Training loss, held-out loss and learning rate over the steps, as a PNG; equal logs give equal bytes.

    Args:
        metrics: a metrics.jsonl.
        title: Latin text; plots have no Chinese font everywhere.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = jsonl_log.read(metrics)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    for key, name, color, marker in (("loss", "training", "#4878a8", ""), ("eval_loss", "held out", "#c44e52", "o")):
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, color=color, marker=marker, markersize=4, linewidth=1.2)
    rates = [(record["step"], record["learning_rate"]) for record in records if "learning_rate" in record]
    if rates:
        right = axes.twinx()
        right.plot(*zip(*rates, strict=True), color="#999999", linewidth=0.8, linestyle="--")
        right.set_ylabel("learning rate (dashed)", color="#777777")
        right.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, nats per supervised token")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(picture, metadata={"Software": None})
    pyplot.close(figure)
