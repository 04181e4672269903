"""A sweep as a picture: latency over throughput, as PNG, with matplotlib."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ganserve.load_test.sweep import Sweep

_CURVES = {"p50": "#1f5a99", "p99": "#c2571a"}


def require_plotting() -> None:
    """Check that pictures can be drawn, before minutes are spent on what they show.

    Raises:
        ImportError: matplotlib is not installed; the message says what to install.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        message = "a plot needs matplotlib: in a checkout, pip install '.[load-test]'"
        raise ImportError(message) from None


def draw_sweep(result: "Sweep", target: Path) -> None:
    """Write the latency-throughput curve; points without a success are left out.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require_plotting()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")  # its own canvas: needs no display
    axes = figure.add_subplot()
    points = [point for point in result.points if point.latency_seconds]
    throughput = [point.calls_per_second for point in points]
    for name, colour in _CURVES.items():
        times = [point.latency_seconds[name] * 1000 for point in points]
        axes.plot(throughput, times, "o-", color=colour, markersize=4, label=f"latency {name}")
    _label_points(result, axes)
    number_latencies(axes)
    axes.margins(x=0.08, y=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("calls answered per second")
    axes.set_ylabel("latency (ms)")
    loop = "closed loop" if result.kind == "concurrency" else "open loop, Poisson arrivals"
    axes.set_title(f"Latency over throughput ({loop}; numbers: {result.kind} offered)")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(loc="upper left")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="png", dpi=120)


def number_latencies(axes: "Axes") -> None:
    """Make the vertical axis logarithmic, with plain numbers: 0.5, 1, 2, 5 and so on."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _label_points(result: "Sweep", axes: "Axes") -> None:
    """Write each load beside its point of the upper curve, and mark the knee."""
    for index, point in enumerate(result.points):
        if not point.latency_seconds:
            continue
        load = point.concurrency if point.rate is None else point.rate
        place = (point.calls_per_second, point.latency_seconds["p99"] * 1000)
        axes.annotate(
            f"{load:g}",
            place,
            xytext=(0, 7),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
        if index == result.knee:
            axes.axvline(
                point.calls_per_second,
                color="#3a7d44",
                linestyle="--",
                zorder=0,
                label=f"knee: {result.kind} {load:g}",
            )
