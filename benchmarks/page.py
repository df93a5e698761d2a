"""Write the benchmarks' results into the pages in docs/results, and draw the learning curves.

The text between `<!-- NAME -->` and `<!-- /NAME -->` is replaced by a table; all other text stays.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd

RESULTS = Path("docs/results")
SCALE = Path("docs/explanation/scale.md")
NOTHING = "Not measured yet."
PICTURE = Path("docs/images/training.png")
BARS = (
    # candidate, CPU minutes, required test accuracy, desired test accuracy
    ("pretrained", 20, 0.942, 0.950),
    ("pretrained", 60, 0.953, 0.960),
    ("pretrained", 180, 0.960, 0.967),
    ("scratch", 20, 0.865, 0.885),
    ("scratch", 60, 0.910, 0.920),
    ("scratch", 180, 0.930, 0.940),
)
BUDGETS = {"cifar10_10m": 20, "cifar10_30m": 60, "cifar10_90m": 180}
"""CPU minutes that a recipe's bars are for."""
RUNTIMES = {
    "litert_float32": "LiteRT",
    "litert_int8": "LiteRT, int8",
    "onnxruntime": "ONNX Runtime",
    "savedmodel": "SavedModel",
    "keras": "`keras.Model.predict`",
}


def main() -> None:
    """Update the pages and the figure."""
    for page in (
        *(RESULTS / f"{name}.md" for name in ("training", "serving", "own-images", "cluster", "speed")),
        SCALE,
    ):
        page.write_text(filled(page.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    if curves := sorted((RESULTS / "curves").glob("*.csv")):
        draw(curves, PICTURE)


def filled(page: str, results: Path) -> str:
    """Return the page with an updated table in every block."""
    studies = [json.loads(line) for line in (results / "studies.jsonl").read_text(encoding="utf-8").splitlines()]
    tables = {
        name: study_table([row for row in studies if row["study"] == name]) for name in {r["study"] for r in studies}
    }
    if (results / "training.json").exists():
        tables["rows"] = accuracy_table(json.loads((results / "training.json").read_text(encoding="utf-8")))
    if (results / "serving.json").exists():
        tables |= serving_tables(json.loads((results / "serving.json").read_text(encoding="utf-8")))
    if (results / "runtimes.json").exists():
        tables["runtimes"] = runtimes_table(json.loads((results / "runtimes.json").read_text(encoding="utf-8")))

    if (results / "own-images.json").exists():
        tables |= own_images_tables(json.loads((results / "own-images.json").read_text(encoding="utf-8")))
    if (results / "rows.json").exists():
        tables |= rows_tables(json.loads((results / "rows.json").read_text(encoding="utf-8")))

    if (results / "speed.json").exists():
        tables["speed"] = speed_table(json.loads((results / "speed.json").read_text(encoding="utf-8")))
    if (results / "profile.json").exists():
        tables["profile"] = profile_table(json.loads((results / "profile.json").read_text(encoding="utf-8")))
    if (results / "cluster.json").exists():
        tables |= cluster_tables(json.loads((results / "cluster.json").read_text(encoding="utf-8")))

    def put(block: re.Match) -> str:
        return f"<!-- {block[1]} -->\n{tables.get(block[1], NOTHING)}\n<!-- /{block[1]} -->"

    return re.sub(r"<!-- ([\w-]+) -->\n(?:.*?\n)?<!-- /\1 -->", put, page, flags=re.DOTALL)


def study_table(rows: Sequence[Mapping]) -> str:
    """Return a row per variant, in recorded order, compared with the first row."""
    first = rows[0]["validation_accuracy"]
    lines = [
        "| changed | multiply-adds | epochs | CPU min | train accuracy | validation accuracy | against the first |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        # params.yaml writes None as null.
        settings = {key: "null" if value is None else value for key, value in row["changes"].items()}
        changed = ", ".join(f"`{key}: {value}`" for key, value in settings.items()) or "–"
        lines.append(
            f"| {changed} | {row['million_multiply_adds']:.1f} M | {row['epochs']:.3g} | {row['cpu_minutes']:.1f} "
            f"| {row['train_accuracy']:.2%} | {row['validation_accuracy']:.2%} "
            f"| {(row['validation_accuracy'] - first) * 100:+.2f} |"
        )
    return "\n".join(lines)


def bar_of(row: Mapping) -> tuple[str, int, float, float] | None:
    """Return the bar of the row's recipe; None without one."""
    return next((bar for bar in BARS if bar[:2] == (row["candidate"], BUDGETS.get(row["recipe"]))), None)


def accuracy_table(rows: Sequence[Mapping]) -> str:
    """Return a row per candidate and budget: its accuracy and the required accuracy."""
    lines = [
        "| candidate | recipe | CPU min | test accuracy | seeds | bar | stretch | commits |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        bar = bar_of(row)
        excess = row["cpu_minutes"] - bar[1] if bar else 0
        more = f" (exceeded by {excess:.1f})" if excess > 0 else ""
        limit = f"{bar[2]:.1%} in {bar[1]}{more} | {bar[3]:.1%}" if bar else "– | –"
        spread = f" ± {row['sd'] * 100:.2f}" if row["sd"] is not None else ""
        commits = ", ".join(dict.fromkeys(run["git_commit"][:7] for run in row["runs"]))
        lines.append(
            f"| {row['candidate']} | `{row['recipe']}` | {row['cpu_minutes']:.1f} | {row['test_accuracy']:.2%}{spread} "
            f"| {row['seeds']} | {limit} | {commits} |"
        )
    return "\n".join(lines)


def serving_tables(recipes: Mapping[str, Mapping]) -> dict[str, str]:
    """Return the tables of the serving benchmark by name.

    The first has the ratios, the others the figures behind them.
    """
    names = list(next(iter(recipes.values()))["ratios"])
    ratios = ["| | " + " | ".join(f"`{recipe}`" for recipe in recipes) + " |", "| --- |" + " --- |" * len(recipes)]
    ratios += [
        f"| {name} | " + " | ".join(str(figures["ratios"][name]) for figures in recipes.values()) + " |"
        for name in names
    ]
    requests = ["| recipe | service | clients | requests/s | p50 ms | p95 ms | p99 ms |", "| --- |" + " --- |" * 6]
    overload = [
        "| recipe | times capacity | offered/s | accepted/s | refused | not sent | p50 ms | p99 ms |",
        "| --- |" + " --- |" * 7,
    ]
    parts = ["| recipe | part | ms |", "| --- |" + " --- |" * 2]
    batches = ["| recipe | images at a time | images/s, 1 thread | images/s, 2 threads |", "| --- |" + " --- |" * 3]
    batching = requests[:]
    for recipe, figures in recipes.items():
        requests += request_rows(recipe, figures["requests"])
        batching += request_rows(recipe, figures.get("adaptive_batching", {}))
        own = figures["batches"]["in_process_images_per_second"]
        for size in dict.fromkeys(key.partition(" ")[0] for key in own):
            cells = [f"{median(own[f'{size} images, {threads} threads']):.4g}" for threads in (1, 2)]
            batches.append(f"| `{recipe}` | {size} | {' | '.join(cells)} |")
        parts += [f"| `{recipe}` | {name} | {ms:.3g} |" for name, ms in figures.get("parts_ms", {}).items()]
        for row in figures.get("overload", ()):
            cells = [f"{row[key]:.4g}" for key in ("times_capacity", "offered_per_second", "accepted_per_second")]
            cells += [f"{row[key]:.1%}" for key in ("refused_share", "unsent_share")]
            cells += [f"{row[key]:.4g}" for key in ("p50_ms", "p99_ms")]
            overload.append(f"| `{recipe}` | {' | '.join(cells)} |")
    tables = {"ratios": ratios, "requests": requests, "batches": batches, "parts": parts, "overload": overload}
    tables["batching"] = batching
    return {name: "\n".join(lines) for name, lines in tables.items() if len(lines) > 2}


def request_rows(recipe: str, services: Mapping[str, Mapping]) -> list[str]:
    """Return a row per service and number of clients: medians over the turns."""
    rows = []
    for service, by_clients in services.items():
        for clients, figures in by_clients.items():
            cells = [f"{median(figures[key]):.4g}" for key in ("requests_per_second", "p50_ms", "p95_ms", "p99_ms")]
            rows.append(f"| `{recipe}` | {service} | {clients} | {' | '.join(cells)} |")
    return rows


def runtimes_table(models: Mapping[str, Mapping]) -> str:
    """Return a row per model and runtime: medians over the turns.

    A dash means that the runtime has no setting for its number of threads.
    """
    lines = [
        "| model | runtime | MB | one image, ms | p99 ms | images/s, 1 thread | images/s, 2 threads "
        "| largest difference | other classes | validation accuracy |",
        "| --- |" + " --- |" * 9,
    ]
    for model, document in models.items():
        for name, figures in document["runtimes"].items():
            rates = figures["images_per_second"]
            cells = [f"{median(figures[key]):.3g}" for key in ("one_image_ms", "one_image_p99_ms")]
            cells += [f"{median(rates[threads]):.4g}" if threads in rates else "–" for threads in ("1", "2")]
            lines.append(
                f"| `{model}` | {RUNTIMES[name]} | {figures['bytes'] / 1e6:.2f} | {' | '.join(cells)} "
                f"| {figures['largest_difference']:.1e} | {figures['other_classes']} | {figures['accuracy']:.2%} |"
            )
    return "\n".join(lines)


def own_images_tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of the benchmark of own images by name."""
    large, answers = figures["large"], figures["answers"]
    kinds = list(next(iter(answers.values()))["unfamiliar"]["other_images"])
    machine = f"{figures['machine']['cpu']}, {figures['machine']['cores']} cores"
    tables = {
        "source": table(
            ["date", "machine", "commit", "command"],
            [[figures["date"], machine, f"`{figures['commit'][:7]}`", f"`{figures['command']}`"]],
        ),
        "ingestion": table(
            ["cores", "images/s", "peak MiB"],
            [[run["cores"], f"{run['images_per_second']:,}", f"{run['peak_mib']:,}"] for run in figures["ingestion"]],
        ),
        "large": table(
            ["command", "images", "dataset, MiB", "limit, MiB", "s", "peak MiB"],
            [
                [
                    f"`{name}`",
                    f"{large['images']:,}",
                    f"{large['mib']['dataset']:,}",
                    f"{large['limit_mib']:,}",
                    stage["seconds"],
                    f"{stage['peak_mib']:,}",
                ]
                for name, stage in large["stages"].items()
            ],
        ),
        "streaming": table(
            [
                "pixels",
                "images",
                "file, MiB",
                "from memory, images/s",
                "from the file, images/s",
                "ratio",
                "from memory, peak MiB",
                "from the file, peak MiB",
            ],
            [
                [size["size"], f"{size['images']:,}", f"{size['mib']:,}"]
                + [f"{size['images_per_second'][side]:,}" for side in ("memory", "file")]
                + [size["speed_ratio"], *(f"{size['peak_mib'][side]:,}" for side in ("memory", "file"))]
                for size in figures["streaming"]
            ],
        ),
        "answers": table(
            ["model", "coverage", "mean set size", "flagged: test images", "corrupted", *kinds],
            [
                [name, f"{each['prediction_sets']['coverage']:.2%}", f"{each['prediction_sets']['mean_size']:.2f}"]
                + [f"{each['unfamiliar']['test']:.1%}", f"{mean(each['unfamiliar']['corruptions'].values()):.1%}"]
                + [f"{each['unfamiliar']['other_images'][kind]:.1%}" for kind in kinds]
                for name, each in answers.items()
            ],
        ),
        "twins": table(
            ["model", "test images with a near duplicate", "accuracy with", "accuracy without"],
            [
                [name, each["rows"], f"{each['accuracy_with']:.2%}", f"{each['accuracy_without']:.2%}"]
                for name, each in figures["accuracy_with_and_without"].items()
            ],
        ),
        "int8": table(
            ["candidate", "float32, ms", "int8, ms", "ratio", "float32, MB", "int8, MB", "accuracy", "int8 accuracy"],
            [
                [name, *(f"{ms:.2f}" for ms in row["milliseconds"]), row["latency_ratio"]]
                + [f"{size / 1e6:.2f}" for size in row["bytes"]]
                + [f"{accuracy:.2%}" for accuracy in row["test_accuracy"]]
                for name, row in figures["int8"].items()
            ],
        ),
    }
    return {f"own-images-{name}": text for name, text in tables.items()}


WORKERS = {"one": "one", "two": "two", "two_synchronised": "two, synchronised norms"}


def cluster_tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of the benchmark of clusters by name."""
    origins = []
    for name in ("scaling", "failures"):
        if part := figures.get(name):
            machine = f"{part['machine']['cpu']}, {part['machine']['cores']} cores"
            origins.append([name, part["date"], machine, f"`{part['commit'][:7]}`", f"`{part['command']}`"])
    tables = {"source": table(["part", "date", "machine", "commit", "command"], origins)}
    if "scaling" in figures:
        tables |= _scaling_tables(figures["scaling"])
    if "failures" in figures:
        columns = ["event", "what was said", "largest difference of losses and accuracies"]
        rows = figures["failures"]["rows"]
        lines = [[row["event"], f"`{row['said']}`", _difference(row["largest_difference"])] for row in rows]
        tables["failures"] = table(columns, lines)
    return {f"cluster-{name}": text for name, text in tables.items()}


def _difference(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _scaling_tables(scaling: Mapping[str, Any]) -> dict[str, str]:
    cases, gpus = scaling["cases"], scaling["gpus"]
    found: dict[str, tuple[list[str], list[list[object]]]] = {
        "scaling": (["candidate", "pixels", *(f"{words}, images/s" for words in WORKERS.values())], []),
        "model": (["candidate", "workers", "model, s", "measured, s", "error"], []),
        "constants": (["candidate", "s a step", "ms an image", "beside another", "MB", "ms a message"], []),
        "gpu": (["images/s, alone", "ms a step besides", "latency of a message, µs", "bandwidth, GB/s"], []),
        "gpus": (["GPUs", "images on each", "batch", "exchange, ms", "efficiency", "images/s", "up to 8,192"], []),
    }
    found["constants"][0].extend(("GB/s", "exchange: model / measured, ms"))
    found["scaling"][0].extend(("efficiency", "synchronised norms", "exchanging nothing", "share of the exchange"))
    for name, case in cases.items():
        speeds = [f"{case['global_batch'] / case['step_seconds'][kind]:.4g}" for kind in WORKERS]
        shares = [case[key] for key in ("efficiency", "efficiency_sync_norm", "efficiency_without_exchange")]
        row = [name, case["size"], *speeds, *(f"{share:.3f}" for share in shares), f"{case['share_of_exchange']:.1%}"]
        found["scaling"][1].append(row)
        for kind, words in WORKERS.items():
            seconds = [f"{case[key][kind]:.3f}" for key in ("predicted_seconds", "step_seconds")]
            found["model"][1].append([name, words, *seconds, f"{case['errors'][kind]:.1%}"])
        model = case["model"]
        compute = [f"{model['per_step']:.3f}", f"{model['per_image'] * 1e3:.2f}", f"{case['contention']:.3f} ×"]
        network = [f"{model['bytes'] / 1e6:.2f}", f"{model['latency'] * 1e3:.2f}", f"{model['bandwidth'] / 1e9:.2f}"]
        exchange = case["share_of_exchange"] * case["predicted_seconds"]["two"], case["exchange_seconds"]
        found["constants"][1].append([name, *compute, *network, " / ".join(f"{value * 1e3:.1f}" for value in exchange)])
    gpu = gpus["assumed"]
    units = [gpu["per_step"] * 1e3, gpu["latency"] * 1e6, gpu["bandwidth"] / 1e9]
    found["gpu"][1].append([f"{gpu['images_per_second']:,.0f}", *(f"{value:g}" for value in units)])
    for row in gpus["rows"]:
        speed = [f"{row['efficiency']:.0%}", f"{row['images_per_second']:,}"]
        batch = [f"{row['gpus']:,}", row["images_per_gpu"], f"{row['global_batch']:,}"]
        found["gpus"][1].append([*batch, row["exchange_ms"], *speed, "yes" if row["within_the_rule"] else "no"])
    return {name: table(columns, rows) for name, (columns, rows) in found.items()}


def speed_table(rows: Sequence[Mapping]) -> str:
    """Return a row per figure: now, earlier, their ratio, and the bar."""
    columns = ["figure", "now", "earlier", "ratio", "bar", "met", "command", "date", "machine"]
    lines = []
    for row in rows:
        figures = [f"{row[key]:.4g}" for key in ("value", "base", "ratio")]
        origin = [f"`{row['command']}`", row["date"], row["machine"]]
        lines.append([row["name"], *figures, row["bar"] or "–", within(row), *origin])
    return table(columns, lines)


def within(row: Mapping) -> str:
    """Return whether the figure meets its bar, like "value ≤ 5"; a dash without a bar."""
    if not row["bar"]:
        return "–"
    name, sign, limit = row["bar"].split()
    met = row[name] <= float(limit) if sign == "≤" else row[name] >= float(limit)
    return "yes" if met else "no"


def profile_table(figures: Mapping[str, Any]) -> str:
    """Return a row per kind of operation and a column per setting: the shares of a step, and the products' speed."""
    settings = figures["rows"]
    names = [f"{row['size']} px, {'bfloat16' if row['precision'] == 'auto' else row['precision']}" for row in settings]
    lines = [[kind, *(f"{row['shares'].get(kind, 0):.1%}" for row in settings)] for kind in settings[0]["shares"]]
    lines.append(["CPU s per 1,000 images", *(f"{row['seconds_per_1000_images']:.2f}" for row in settings)])
    for kind, words in (("step", "pointwise convolutions and stem"), ("plain", "plain matrix products")):
        lines.append([f"{words}, GFLOP/s", *(f"{row['gigaflops'][kind]:.0f}" for row in settings)])
    return table(["", *names], lines)


def rows_tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of the benchmark of many rows by name."""
    machine, sizes = f"{figures['machine']['cpu']}, {figures['machine']['cores']} cores", figures["sizes"]
    stages = table(
        ["stage", *(f"{size:,} images, CPU s" for size in sizes), "exponent", f"{sizes[-1]:,} images, peak MiB"],
        [
            [f"`{name}`" if " " not in name else name]
            + [figures["cpu_seconds"][name].get(str(size), "–") for size in sizes]
            + [figures["growth"][name], f"{figures['million_rows_peak_mib'][name]:,}"]
            for name in figures["million_rows_peak_mib"]
        ]
        + [
            ["generation of the pictures"]
            + [figures["generation"]["cpu_seconds"].get(str(size), "–") for size in sizes]
            + [figures["generation"]["growth"], "–"]
        ],
    )
    source = table(
        ["date", "machine", "commit", "command"],
        [[figures["date"], machine, f"`{figures['commit'][:7]}`", f"`{figures['command']}`"]],
    )
    return {"million-stages": stages, "million-source": source}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def draw(curves: Sequence[Path], picture: Path) -> None:
    """Draw the validation accuracy over the epochs of each training. The seeds of a candidate have one colour.

    All epochs but the last are validated on a part of the images.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    candidates = {name: list(files) for name, files in groupby(curves, lambda file: file.stem.rpartition("-")[0])}
    for number, (name, files) in enumerate(candidates.items()):
        for seed, file in enumerate(files):
            history, label = pd.read_csv(file), "" if seed else name.replace("-", ", ")
            axes.plot(history["epoch"], history["validation_accuracy"], color=f"C{number}", label=label)
    axes.set(xlabel="epoch", ylabel="validation accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
