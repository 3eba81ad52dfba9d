"""The tables as text, in DomainBed's form: `mean +/- error`, one decimal."""

import pandas as pd
from tabulate import tabulate

from domainbed.model_selection import SELECTION_METHODS, best_hparams
from domainbed.reporting.tables import AVERAGE, averages, summarise

MISSING = "X"
FEWER = "*"
UNFINISHED = "~"


def report(records: pd.DataFrame) -> str:
    """All tables of a sweep: for each selection method the datasets' and the averages."""
    sections = [_progress(records)]
    for name in SELECTION_METHODS:
        best = best_hparams(SELECTION_METHODS[name](records))
        sections.append(f"==== Model selection: {name} ====")
        if best.empty:
            sections.append(_why_empty(name))
            continue
        cells = summarise(records, best)
        for dataset, of_dataset in cells.groupby("dataset", sort=False):
            sections.append(f"{dataset}\n{_table(of_dataset, 'environment')}")
        sections.append(f"Averages\n{_table(averages(cells), 'dataset')}")
    return "\n\n".join(sections)


def _progress(records: pd.DataFrame) -> str:
    """How many jobs the tables rest on."""
    done = records.groupby("folder")["done"].first()
    line = f"{len(done)} jobs with records, {done.sum()} of them done"
    if not done.all():
        line += f", {(~done).sum()} unfinished"
    return line


def _why_empty(method: str) -> str:
    if method == "leave-one-domain-out":
        return "No table: it needs the runs with each pair of test environments (sweep launch --leave_one_out)."
    return "No table: there is no run with a single test environment."


def _table(cells: pd.DataFrame, columns: str) -> str:
    """A row an algorithm, a column each value of `columns`, and below it what the marks mean."""
    texts = cells.assign(text=[_cell(cell) for cell in cells.to_dict("records")])
    order = [c for c in texts[columns].unique() if c != AVERAGE] + [AVERAGE]
    wide = texts.pivot(index="algorithm", columns=columns, values="text")
    wide = wide.reindex(index=texts["algorithm"].unique(), columns=order)
    table = tabulate(
        [[name, *row] for name, row in zip(wide.index, wide.to_numpy(), strict=True)],
        headers=["Algorithm", *order],
        colalign=["left", *["right"] * len(order)],
        disable_numparse=True,
    )
    notes = []
    if cells["mean"].isna().any():
        notes.append(f"{MISSING}: no run to choose from, or an average over such a cell")
    fewer = cells[cells["mean"].notna() & (cells["trials"] < cells["of_trials"])]
    if len(fewer):
        which = [f"{c['algorithm']} {c[columns]} {c['trials']} of {c['of_trials']}" for c in fewer.to_dict("records")]
        notes.append(f"{FEWER}: from fewer trials than there are: {', '.join(which)}")
    if (cells["mean"].notna() & (cells["unfinished"] > 0)).any():
        notes.append(f"{UNFINISHED}: from runs that are not finished; what they have recorded so far counts")
    if (cells["error"].notna() & (cells["trials"] == 1)).any():
        notes.append("A single trial has no spread: its +/- 0.0 says nothing.")
    return "\n".join([table, *notes])


def _cell(cell: dict) -> str:
    if pd.isna(cell["mean"]):
        return MISSING
    text = f"{cell['mean']:.1f}"
    if not pd.isna(cell["error"]):
        text += f" +/- {cell['error']:.1f}"
    return text + (FEWER if cell["trials"] < cell["of_trials"] else "") + (UNFINISHED if cell["unfinished"] else "")
