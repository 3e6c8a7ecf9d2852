"""Tables in Markdown and plots of benchmark results."""

import io
from collections.abc import Iterator
from pathlib import Path as File
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .results import Results, replace

Entry = dict[str, Any]
# What the ratios of whole steps are taken to: what users would write, what they run today, the usual way.
BASES = ("best own way", "SA alone", "eager maps")


def markdown(results: Results, figures: list[str] = ()) -> str:  # type: ignore[assignment]
    """Return the whole report. figures: file names of plots to include."""
    machine, commit = results["machine_info"], results["commit_info"]
    peaks = results["peaks"]
    products = ", ".join(
        f"{name.removeprefix('matmul ')} {_tera(peak)}" for name, peak in peaks.items() if name != "copy"
    )
    lines = [
        f"Measured on {machine['device'].replace('_', ' ')} with torch {machine['torch']}, triton "
        f"{machine['triton']}, timm {machine['timm']}, at commit {commit.get('id', 'unknown')[:12]}"
        f"{' with changes' if commit.get('dirty') else ''}, {results['datetime'][:10]}.",
        "",
        f"Peak rates measured in the same run: matrix product {products} TFLOP/s; "
        f"copy {peaks['copy'] / 1e9:.1f} GB/s (read plus written).",
        "",
        "Times are medians. A ratio compares a path with the one named, or with the first of its group; "
        "below 1 is better. It is the median over rounds, with quartiles in brackets.",
        "",
        *model_table(results),
        *operation_table(results),
        *growth_table(results),
        *(line for name in figures for line in (f"![{File(name).stem}]({name})", "")),
        *not_measured(results),
    ]
    return "\n".join(lines)


def model_table(results: Results) -> list[str]:
    """Return the table of training and evaluation steps: time and memory, each with its ratios to `BASES`.

    The ratios of memory are in the order of those of time.
    """
    rows = []
    for entries in groups(results):
        if "N" in entries[0]["params"]:
            continue
        peaks = {entry["name"]: entry["extra_info"]["peak_bytes"] for entry in entries}
        for entry in entries:
            peak = peaks[entry["name"]]
            rows.append(
                [
                    entry["group"] if entry is entries[0] else "",
                    entry["name"],
                    _time(entry["stats"]["median"]),
                    *(ratio(entry, base) for base in BASES),
                    _bytes(peak),
                    " / ".join(f"{peak / peaks[base]:.2f}" for base in BASES),
                ]
            )
    ratios = [f"of {base}" for base in BASES]
    return _table(["step", "path", "time", *ratios, "peak memory", " / ".join(ratios)], rows)


def operation_table(results: Results) -> list[str]:
    """Return the table of operations: time, ratio, arithmetic and memory rates, memory."""
    rows = []
    for entries in groups(results):
        if "N" not in entries[0]["params"]:
            continue
        first = entries[0]["name"]
        for entry in entries:
            extra, median = entry["extra_info"], entry["stats"]["median"]
            rows.append(
                [
                    entry["group"] if entry is entries[0] else "",
                    entry["name"],
                    _time(median),
                    ratio(entry, first),
                    f"{share_of_matmul(results, entry):.0%}",
                    f"{extra['moved'] / median / 1e9:.1f}",
                    _bytes(extra["peak_bytes"]),
                ]
            )
    return _table(["operation", "path", "time", "ratio", "of matmul peak", "GB/s", "peak memory"], rows)


def not_measured(results: Results) -> list[str]:
    """Return a list of what was left out, with reasons; nothing if nothing was."""
    left_out = [f"- {sentence}" for sentence in results["left_out"]]
    return ["Not measured:", "", *left_out, ""] if left_out else []


def growth_table(results: Results) -> list[str]:
    """Return the table of exponents of N in time and memory."""
    rows = [
        [name, path, f"{time:.2f}", f"{memory:.2f}"]
        for (name, path), (time, memory) in growth(results).items()
    ]
    return _table(["operation", "path", "time ~ N^", "memory ~ N^"], rows)


def growth(results: Results) -> dict[tuple[str, str], tuple[float, float]]:
    """Fit the exponents of N in time and memory for each (operation, path) with at least 3 lengths."""
    return {
        (name, path): (exponent(lengths, times), exponent(lengths, memory))
        for (name, path), (lengths, times, memory) in series(results).items()
        if len(lengths) > 2
    }


def exponent(lengths: list[int], values: list[float]) -> float:
    """Return the slope of log values over log lengths; 0 if a path allocates nothing."""
    if min(values) <= 0:
        return 0.0
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def series(results: Results) -> dict[tuple[str, str], tuple[list[int], list[float], list[float]]]:
    """Return lengths, median seconds and peak bytes for each (operation, path)."""
    found: dict[tuple[str, str], tuple[list[int], list[float], list[float]]] = {}
    for entry in results["benchmarks"]:
        if "N" in entry["params"]:
            key = entry["extra_info"]["benchmark"], entry["name"]
            lengths, times, memory = found.setdefault(key, ([], [], []))
            lengths.append(entry["params"]["N"])
            times.append(entry["stats"]["median"])
            memory.append(entry["extra_info"]["peak_bytes"])
    return found


def groups(results: Results) -> Iterator[list[Entry]]:
    """Yield the entries of each benchmark, in the order of measurement."""
    by_group: dict[str, list[Entry]] = {}
    for entry in results["benchmarks"]:
        by_group.setdefault(entry["group"], []).append(entry)
    yield from by_group.values()


def share_of_matmul(results: Results, entry: Entry) -> float:
    """Return the rate of the needed arithmetic as a share of the measured matrix product's rate."""
    peak = results["peaks"][f"matmul {entry['params']['dtype']}"]
    return entry["extra_info"]["flops"] / entry["stats"]["median"] / peak


def ratio(entry: Entry, base: str) -> str:
    """Return the ratio to another path of the group as text, with quartiles."""
    found = entry["extra_info"]["ratios"][base]
    return f"{found['50']:.2f} ({found['25']:.2f}-{found['75']:.2f})"


def plot(results: Results, folder: File) -> list[str]:
    """Plot time, TFLOP/s, GB/s and memory over N, one PNG per operation; return the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name in dict.fromkeys(name for name, _ in series(results)):
        file = f"{name.replace(', ', '_').replace(' ', '_')}.png"
        buffer = io.BytesIO()
        _figure(results, name).savefig(buffer, format="png", dpi=110)
        replace(folder / file, buffer.getvalue())
        names.append(file)
    return names


def _figure(results: Results, name: str) -> Figure:
    figure = Figure(figsize=(12, 7), layout="constrained")
    time, tera, giga, memory = figure.subplots(2, 2).flat
    entries = [e for e in results["benchmarks"] if e["extra_info"]["benchmark"] == name]
    paths = dict.fromkeys(["library", *(entry["name"] for entry in entries)])  # the same color in every plot
    for path in paths:
        own = [entry for entry in entries if entry["name"] == path]
        lengths = [entry["params"]["N"] for entry in own]
        seconds = np.array([entry["stats"]["median"] for entry in own])
        ours = path == "library"
        style = {
            "marker": "o",
            "label": path,
            "linewidth": 2.5 if ours else 1.2,
            "zorder": 3 if ours else 2,
        }
        time.plot(lengths, seconds * 1e3, **style)
        tera.plot(lengths, [e["extra_info"]["flops"] for e in own] / seconds / 1e12, **style)
        giga.plot(lengths, [e["extra_info"]["moved"] for e in own] / seconds / 1e9, **style)
        memory.plot(lengths, [e["extra_info"]["peak_bytes"] / 2**20 for e in own], **style)
    ticks = sorted({entry["params"]["N"] for entry in entries})
    peaks = results["peaks"]
    tera.axhline(peaks[f"matmul {entries[0]['params']['dtype']}"] / 1e12, color="gray", linestyle="--")
    giga.axhline(peaks["copy"] / 1e9, color="gray", linestyle="--")
    for axes, label in ((time, "ms"), (tera, "TFLOP/s"), (giga, "GB/s"), (memory, "MiB above inputs")):
        axes.set(xlabel="N, tokens", ylabel=label, xscale="log", yscale="log")
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    time.legend()
    figure.suptitle(
        f"{name} on {results['machine_info']['device'].replace('_', ' ')}; dashed: measured peak rate"
    )
    return figure


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(row)} |" for row in lines] + [""]


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _bytes(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.3g}"
