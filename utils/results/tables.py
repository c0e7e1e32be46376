"""The factsheet table, as text, Markdown and LaTeX: a view of the results record."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.files import write_text
from utils.record import BUSY_CORES, Audit, Complexity, MemoryMethod, Record, Runtime, SteadyRuntime, Tiles, mean

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
LUMA_COLUMNS = ("Val PSNR-Y", "Val SSIM-Y")  # after the SSIM, if a model was scored on luma
AFTER_SSIM = COLUMNS.index("Val SSIM") + 1
DASH = "-"
LEFT_OUT_SHARE = 0.005  # of a figure; a note names larger parts that are not counted
LATEX = {character: f"\\{character}" for character in "_%&#${}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
}  # fmt: skip


MEMORY = {
    MemoryMethod.GPU_ALLOCATED: "torch.cuda.max_memory_allocated over the whole run",
    MemoryMethod.PROCESS_GROWTH: (
        "peak resident growth of a fresh process that keeps nothing freed, in one pass over the largest image (CPU)"
    ),
}
MEMORY[MemoryMethod.PROCESS_GROWTH_WITH_BUILDING] = (
    f"{MEMORY[MemoryMethod.PROCESS_GROWTH]}; what the network took while it was built may count, too"
)


def factsheet_row(record: Record) -> list[str]:
    """Return a record's cells as text, in the factsheet's columns; a CPU's time and memory are marked "(CPU)"."""
    counts = record.complexity
    static = (counts.params, counts.flops, counts.activations, counts.convs) if counts else (None,) * 4
    mark = " (CPU)" if record.environment.device == "cpu" else ""
    tiled = " (tiles)" if any(record.images.tile) else ""
    return [
        record.model.name,
        _number(record.psnr_db, 2),
        _number(record.ssim, 2),
        _number(record.runtime_ms, 2, mark + tiled),
        _number(static[0], 3, per=1e6),
        _number(static[1], 2, per=1e9),
        _number(static[2], 2, per=1e6),
        _number(record.memory.peak_mib, 2, mark),
        _number(static[3], 0),
    ]


def columns(records: list[Record]) -> list[str]:
    """Return the columns of a table of these records."""
    return [*COLUMNS[:AFTER_SSIM], *(LUMA_COLUMNS if _any_luma(records) else ()), *COLUMNS[AFTER_SSIM:]]


def rows(records: list[Record]) -> list[list[str]]:
    """Return the records' cells as text, in the order of `columns`."""
    cells = [factsheet_row(record) for record in records]
    if _any_luma(records):
        for row, record in zip(cells, records, strict=True):
            row[AFTER_SSIM:AFTER_SSIM] = [_number(record.luma_psnr_db, 2), _number(record.luma_ssim, 4)]
    return cells


def _any_luma(records: list[Record]) -> bool:
    return any(record.luma_psnr_db is not None for record in records)


def notes(records: list[Record], short: bool = False) -> list[str]:
    """Return the notes under a table: data, machine, method, and what is special about each model.

    `short` notes, for a terminal, leave out the memory method, models without an audit, and steady times.
    """
    lines = []
    for data in dict.fromkeys(_data(record) for record in records):
        lines.append(f"Data: {data}")
    if any(record.psnr_db is not None for record in records):
        on_luma = "; PSNR-Y, SSIM-Y: on luma (BT.601), as most papers print" if _any_luma(records) else ""
        lines.append(f"PSNR, SSIM: on RGB, as the challenge scores{on_luma}")
    for machine in dict.fromkeys(_machine(record) for record in records):
        lines.append(f"Machine: {machine}")
    for method in dict.fromkeys(_runtime_method(record.runtime) for record in records):
        lines.append(f"Val Time: {method}")
    for memory in dict.fromkeys(record.memory.method for record in records if not short):
        lines.append(f"Mem: {MEMORY[memory]}")
    if not short and (inside := [record.model.name for record in records if record.audit is None]):
        lines.append(f"Not audited, run in this process as trusted: {', '.join(inside)}")
    plain = {_weights(record): record for record in records if record.model.origin == "registry"}
    for record in records:
        name = record.model.name
        if not short and (steady := record.runtime.trusted_steady):
            lines.append(f"{name}: {_steady(steady)}")
        lines += [f"{name}: {line}" for line in _model_notes(record)]
        of = record.model.variant_of
        if of is not None and (of, record.model.sha256) in plain:
            lines.append(f"{name}: {_against_plain(record, plain[of, record.model.sha256])}")
    return lines


def _weights(record: Record) -> tuple[int, str | None]:
    return record.model.id, record.model.sha256


def _runtime_method(runtime: Runtime) -> str:
    runs = len(runtime.runs)
    shared = f"; images shared by {runtime.processes} processes" if runtime.processes > 1 else ""
    busy = "; throughput mode: images were read and scored on the same CPU meanwhile" if runtime.busy_cpu else ""
    return (
        "forward pass alone, every image once per run, the first unwarmed one included, plain mean of all"
        f"{busy}{shared}; average of {runs} run{'s' * (runs != 1)}"
    )


def _against_plain(variant: Record, plain: Record) -> str:
    quality, plain_quality = variant.psnr_db, plain.psnr_db
    difference = "PSNR unknown"
    if quality is not None and plain_quality is not None:
        difference = f"PSNR {quality - plain_quality:+.4f} dB"
    steady, plain_steady = variant.runtime.trusted_steady, plain.runtime.trusted_steady
    ratio = ""
    if steady and plain_steady:
        ratio = f", {plain_steady.median_ms / steady.median_ms:.2f} times as fast (steady)"
    return f"the function of {plain.model.name}, against it: {difference}{ratio}"


def _steady(steady: SteadyRuntime) -> str:
    return (
        f"steady time {steady.median_ms:.2f} ms (10th to 90th percentile {steady.p10_ms:.2f} to "
        f"{steady.p90_ms:.2f}; {steady.warmup} warm-up, {steady.repeats} timed passes on "
        f"{steady.lr_width} x {steady.lr_height})"
    )


def _model_notes(record: Record) -> Iterator[str]:
    images = record.images
    if record.model.missing_weights:
        yield f"no quality, {record.model.missing_weights}"
    elif not record.dataset.has_hr:
        yield "no quality, the data has no HR images"
    if record.model.ignored:
        yield f"loaded leniently, {record.model.ignored}"
    yield from record.model.notes
    if as_computed := _as_computed(record.complexity):
        yield as_computed
    if tiles := [tile for tile in images.tile if tile]:
        yield (
            f"memory ran out, {len(tiles)} of {len(images.name)} images restored in tiles of "
            f"{'/'.join(map(str, sorted(set(tiles))))} LR pixels; runtime is the sum over tiles" + _seams(record.tiles)
        )
    if broken := sum(images.nan):
        yield f"NaN in the output of {broken} of {len(images.name)} images, where it counts as black"
    if record.runtime.parts > 1:
        yield f"measured in {record.runtime.parts} parts, resumed after a stop"
    if record.runtime.host_runs:
        reported = mean(mean(run) for run in record.runtime.runs if run)
        yield f"its own clock reported {reported:.2f} ms; the time shown is the host's, transfers subtracted"
    if (record.runtime.others_cores or 0) > BUSY_CORES:
        yield _busy(record.runtime.others_cores or 0)
    yield from _audit_notes(record.audit)
    if not record.is_complete:
        yield f"incomplete: {record.incomplete_because}"


def _busy(others_cores: float) -> str:
    return f"the machine was busy, other processes used {others_cores:.1f} cores; measure again on an idle one"


def _as_computed(complexity: Complexity | None) -> str | None:
    """Name the figures that would differ if everything that a pass computes and reads was counted, or return None."""
    if complexity is None or complexity.computed is None:
        return None
    computed = complexity.computed
    figures = (
        ("Params", complexity.params, computed.values, 1e6, 3, " M"),
        ("FLOPs", complexity.flops, computed.flops, 1e9, 2, " G"),
        ("Acts", complexity.activations, computed.activations, 1e6, 2, " M"),
        ("Conv", complexity.convs, computed.convs, 1, 0, ""),
    )
    more = [
        f"{name} {value / per:.{decimals}f}{unit} (counted: {counted / per:.{decimals}f})"
        for name, counted, value, per, decimals, unit in figures
        if value - counted > LEFT_OUT_SHARE * value
    ]
    return f"as computed, by torch's dispatcher: {', '.join(more)}" if more else None


def _seams(tiles: Tiles | None) -> str:
    if tiles is None:
        return ""
    if tiles.reach <= tiles.overlap:
        return ", without a seam"
    return (
        f", with seams: a pixel depends on others up to {tiles.reach} LR pixels away or more, tiles overlap by "
        f"{tiles.overlap}"
    )


def _audit_notes(audit: Audit | None) -> Iterator[str]:
    """Yield what the audit found, a line each, for a model that ran in a worker process."""
    if audit is None:
        return
    verdict = "not clean" if audit.findings else "clean" if audit.busy is None else "clean so far, times not checked"
    yield f"audit: {verdict} ({audit.sandbox})"
    if audit.busy is not None:
        yield _busy(audit.busy.others_cores)
    yield from (f"audit: {finding}" for finding in audit.findings)
    yield from (f"note: {note}" for note in audit.notes)


def _data(record: Record) -> str:
    data = record.dataset
    return "; ".join([f"{data.label}, sha256 {data.sha256[:12]}", *data.notes])


def _machine(record: Record) -> str:
    environment = record.environment
    processor = environment.gpu or f"{environment.cpu}, {environment.threads} threads"
    return f"{processor}, torch {environment.libraries['torch']}, {environment.date[:10]}"


def text_table(records: list[Record], short: bool = False) -> str:
    """Return the aligned table and its notes."""
    lines = aligned([columns(records), *rows(records)])
    return "\n".join([*lines, "", *notes(records, short)]) + "\n"


def aligned(cells: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """Return the lines of a text table, its head underlined. The column `left` is aligned to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        padded[left] = row[left].ljust(widths[left])
        lines.append("  ".join(padded))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def reasons_table(records: list[Record]) -> str:
    """Return a text table of the models without a complete record, and the reasons."""
    rows = [("No row", "Reason"), *((record.model.name, record.incomplete_because) for record in records)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {reason}" for name, reason in rows]
    lines.insert(1, f"{'-' * width}  {'-' * 6}")
    return "\n".join(lines) + "\n"


def markdown_table(records: list[Record]) -> str:
    """Return the table in Markdown, its notes as a list below."""
    head = columns(records)
    cells = [head, ["---"] + ["---:"] * (len(head) - 1), *rows(records)]
    return (
        "\n".join([*(f"| {' | '.join(row)} |" for row in cells), "", *(f"- {line}" for line in notes(records))]) + "\n"
    )


def latex_table(records: list[Record], fit: bool = False) -> str:
    """Return the table as a LaTeX `table` environment with the notes as comments.

    With `fit`, scale it to the line's width, which needs graphicx. Otherwise it needs no package.
    """
    head = columns(records)
    lines = [
        *(f"% {line}" for line in notes(records)),
        r"\begin{table}",
        r"  \centering",
        *([r"  \resizebox{\linewidth}{!}{%"] if fit else []),
        rf"  \begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"    \hline",
        *(f"    {' & '.join(map(latex, row))} " + r"\\" for row in [head]),
        r"    \hline",
        *(f"    {' & '.join(map(latex, row))} " + r"\\" for row in rows(records)),
        r"    \hline",
        rf"  \end{{tabular}}{'}' if fit else ''}",
        rf"  \caption{{{latex('; '.join(dict.fromkeys(record.dataset.label for record in records)))}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def write_tables(folder: Path, records: list[Record]) -> str:
    """Write the table of the complete records as factsheet.txt, .md and .tex into a folder.

    In the text, models without a complete record follow with the reason. Return the text with short notes.
    """
    complete = [record for record in records if record.is_complete]
    others = [record for record in records if not record.is_complete]
    reasons = [reasons_table(others)] if others else []
    whole, shown = (
        "\n".join([*([text_table(complete, short)] if complete else []), *reasons]) for short in (False, True)
    )
    write_text(folder / "factsheet.txt", whole)
    write_text(folder / "factsheet.md", markdown_table(complete))
    write_text(folder / "factsheet.tex", latex_table(complete))
    return shown


def latex(text: str) -> str:
    """Return a text or a cell, escaped for LaTeX."""
    return "--" if text == DASH else "".join(LATEX.get(character, character) for character in text)


def _number(value: float | None, decimals: int, mark: str = "", per: float = 1) -> str:
    return DASH if value is None else f"{value / per:.{decimals}f}{mark}"
