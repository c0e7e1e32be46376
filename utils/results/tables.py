"""The factsheet table, as text, Markdown and LaTeX: a view of the results record."""

from utils.files import write_text
from utils.results.record import mean, protocol_runtime_ms

COLUMNS = (
    "Model",
    "Val PSNR",
    "Val SSIM",
    "Val Time [ms]",
    "Params [M]",
    "FLOPs [G]",
    "Acts [M]",
    "Mem [M]",
    "Conv",
)
DASH = "-"
LEFT_OUT_SHARE = 0.005  # of a network's multiply-accumulates, from which on a row names what is not counted
LATEX = {character: f"\\{character}" for character in "_%&#${}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
}  # fmt: skip


def factsheet_row(record):
    """Return a record's cells as text, in the factsheet's columns; a CPU's time and memory are marked "(CPU)"."""
    images, complexity = record["images"], record["complexity"] or {}
    mark = " (CPU)" if record["environment"]["device"] == "cpu" else ""
    tiled = " (tiles)" if any(images.get("tile", [])) else ""
    peak = (record["memory"] or {}).get("peak_mib")
    return [
        record["model"]["name"],
        _number(mean(images["psnr"]), 2),
        _number(mean(images["ssim"]), 2),
        _number(protocol_runtime_ms(record), 2, mark + tiled),
        _number(complexity.get("params"), 3, per=1e6),
        _number(complexity.get("flops"), 2, per=1e9),
        _number(complexity.get("activations"), 2, per=1e6),
        _number(peak, 2, mark),
        _number(complexity.get("convs"), 0),
    ]


def notes(records):
    """Return the lines that a reader of the table needs: data, machine, method, and why a cell shows a dash."""
    lines = []
    for data in dict.fromkeys(_data(record) for record in records):
        lines.append(f"Data: {data}")
    for machine in dict.fromkeys(_machine(record) for record in records):
        lines.append(f"Machine: {machine}")
    for method, runs in dict.fromkeys((r["runtime"]["method"], len(r["runtime"]["runs"])) for r in records):
        lines.append(f"Val Time: {method}; average of {runs} run{'s' * (runs != 1)}")
    for method in dict.fromkeys(record["memory"]["method"] for record in records if record["memory"]):
        lines.append(f"Mem: {method}")
    if inside := [record["model"]["name"] for record in records if "audit" in record and not record["audit"]]:
        lines.append(f"Not audited, run in this process as trusted: {', '.join(inside)}")
    plain = {_weights(record): record for record in records if record["model"]["origin"] == "registry"}
    for record in records:
        name = record["model"]["name"]
        lines += [f"{name}: {line}" for line in _model_notes(record)]
        of = record["model"]["variant_of"]
        if of is not None and (of, record["model"]["sha256"]) in plain:
            lines.append(f"{name}: {_against_plain(record, plain[of, record['model']['sha256']])}")
    return lines


def _weights(record):
    return record["model"]["id"], record["model"]["sha256"]


def _against_plain(variant, plain):
    quality = [mean(record["images"]["psnr"]) for record in (variant, plain)]
    difference = "PSNR unknown" if None in quality else f"PSNR {quality[0] - quality[1]:+.4f} dB"
    steady = [record["runtime"]["steady"] for record in (variant, plain)]
    ratio = "" if None in steady else f", {steady[1]['median_ms'] / steady[0]['median_ms']:.2f} times as fast (steady)"
    return f"the function of {plain['model']['name']}, against it: {difference}{ratio}"


def _model_notes(record):
    steady = record["runtime"]["steady"]
    if steady:
        yield (
            f"steady time {steady['median_ms']:.2f} ms (10th to 90th percentile {steady['p10_ms']:.2f} to "
            f"{steady['p90_ms']:.2f}; {steady['warmup']} warm-up, {steady['repeats']} timed passes on "
            f"{steady['lr_width']} x {steady['lr_height']})"
        )
    if record["model"]["missing_weights"]:
        yield f"no quality, {record['model']['missing_weights']}"
    elif not record["dataset"]["has_hr"]:
        yield "no quality, the data has no HR images"
    if record["model"].get("ignored"):
        yield f"loaded leniently, {record['model']['ignored']}"
    yield from record["model"]["notes"]
    if left_out := _left_out(record["complexity"]):
        yield left_out
    tiles = [tile for tile in record["images"].get("tile", []) if tile]
    if tiles:
        yield (
            f"memory ran out, {len(tiles)} of {len(record['images']['name'])} images restored in tiles of "
            f"{'/'.join(map(str, sorted(set(tiles))))} LR pixels; runtime is the sum over tiles"
            + _seams(record["tiles"])
        )
    if broken := sum(record["images"].get("nan", [])):
        yield f"NaN in the output of {broken} of {len(record['images']['name'])} images, where it counts as black"
    sittings = record["runtime"].get("sittings", 1)
    if sittings > 1:
        yield f"measured in {sittings} sittings"
    yield from _audit_notes(record.get("audit"))
    if record["status"] != "complete":
        yield record["status"]


def _left_out(complexity):
    """Say what the protocol's counter of FLOPs does not count of a network, if that is a part worth knowing."""
    if not complexity or complexity["seen_macs"] is None:
        return None
    seen, counted = complexity["seen_macs"], complexity["flops"]
    if seen - counted <= LEFT_OUT_SHARE * seen:
        return None
    return (
        f"FLOPs as computed: {seen / 1e9:.2f} G, by torch's dispatcher; the protocol's counter sees {counted / 1e9:.2f}"
    )


def _seams(tiles):
    if tiles is None:
        return ""
    if tiles["reach"] <= tiles["overlap"]:
        return ", without a seam"
    return (
        f", with seams: a pixel depends on others up to {tiles['reach']} LR pixels away or more, tiles overlap by "
        f"{tiles['overlap']}"
    )


def _audit_notes(audit):
    """What the referee found, a line each, for a model that ran in a process of its own."""
    if audit:
        yield f"audit: {'clean' if not audit['findings'] else 'not clean'} ({audit['sandbox']})"
        if audit["busy"] is not None:
            cores, share = audit["busy"]["others_cores"], audit["busy"]["share"]
            yield (
                f"audit: times not judged, the machine was busy (others had {cores:.1f} cores, passes waited "
                f"{share:.0%} of their time); measure again on an idle one"
            )
        yield from (f"audit: {finding}" for finding in audit["findings"])
        yield from (f"note: {note}" for note in audit["notes"])


def _data(record):
    data = record["dataset"]
    return "; ".join([f"{data['label']}, sha256 {data['sha256'][:12]}", *data["notes"]])


def _machine(record):
    environment = record["environment"]
    processor = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} threads"
    return f"{processor}, torch {environment['libraries']['torch']}, {environment['date'][:10]}"


def text_table(records):
    """Return the aligned table and its notes."""
    rows = [list(COLUMNS), *map(factsheet_row, records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *notes(records)]) + "\n"


def reasons_table(records):
    """Return a table of the models that have no complete record, and why, as text."""
    rows = [("No row", "Reason"), *((record["model"]["name"], _reason(record)) for record in records)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {reason}" for name, reason in rows]
    lines.insert(1, f"{'-' * width}  {'-' * 6}")
    return "\n".join(lines) + "\n"


def _reason(record):
    return record["status"].removeprefix("incomplete: ")


def markdown_table(records):
    """Return the table in Markdown, its notes as a list below."""
    rows = [list(COLUMNS), ["---"] + ["---:"] * (len(COLUMNS) - 1), *map(factsheet_row, records)]
    return (
        "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *(f"- {line}" for line in notes(records))]) + "\n"
    )


def latex_table(records):
    """Return the table as a LaTeX `table` environment with the notes as comments; it needs no package."""
    lines = [
        *(f"% {line}" for line in notes(records)),
        r"\begin{table}",
        r"  \centering",
        rf"  \begin{{tabular}}{{l{'r' * (len(COLUMNS) - 1)}}}",
        r"    \hline",
        *(f"    {' & '.join(map(latex, row))} " + r"\\" for row in [list(COLUMNS)]),
        r"    \hline",
        *(f"    {' & '.join(map(latex, factsheet_row(record)))} " + r"\\" for record in records),
        r"    \hline",
        r"  \end{tabular}",
        rf"  \caption{{{latex('; '.join(dict.fromkeys(record['dataset']['label'] for record in records)))}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def write_tables(folder, records):
    """Write the table of the complete records as factsheet.txt, .md and .tex into a folder; return it as text.

    Models without one follow in the text, with the reason.
    """
    complete = [record for record in records if record["status"] == "complete"]
    others = [record for record in records if record["status"] != "complete"]
    text = "\n".join([text_table(complete)] * bool(complete) + [reasons_table(others)] * bool(others))
    write_text(folder / "factsheet.txt", text)
    write_text(folder / "factsheet.md", markdown_table(complete))
    write_text(folder / "factsheet.tex", latex_table(complete))
    return text


def latex(text):
    """Return a text, or a cell, as LaTeX shows it."""
    return "--" if text == DASH else "".join(LATEX.get(character, character) for character in text)


def _number(value, decimals, mark="", per=1):
    return DASH if value is None else f"{value / per:.{decimals}f}{mark}"
