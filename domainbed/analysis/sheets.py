"""Contact sheets of the images that all runs fail, or that one algorithm alone solves."""

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from domainbed.analysis.analysis import Section
from domainbed.analysis.measures import count_images
from domainbed.analysis.thumbnails import ImageKey, ImageSource
from domainbed.reporting.plots import Plot
from domainbed.reporting.plots.gallery import file_stem
from domainbed.reporting.plots.style import FIGURE_WIDTH, label_text, print_style

DPI = 200  # of PNG files
COLUMNS = 8
# Inches.
GAP = 0.06  # between images
SIDE = (FIGURE_WIDTH - GAP) / COLUMNS - GAP  # of an image
LINE = 0.093  # of a label
TITLE_LINE = 0.16
NOTE_LINE = 0.14
# Points.
TITLE_SIZE = 8
LABEL_SIZE = 5.5
# Characters.
TITLE_LENGTH = 86
LABEL_LENGTH = 14
ALL_FAIL, ONE_SOLVES = "all_fail", "one_solves"  # kinds of sheets


@dataclass(frozen=True)
class Sheet:
    """The images of a sheet.

    Attributes:
        section: the selection method and dataset.
        kind: ALL_FAIL or ONE_SOLVES.
        n: the number of such images.
        rows: those to show, as returned by `measures.find_extremes`.
    """

    section: Section
    kind: str
    n: int
    rows: pd.DataFrame

    @property
    def keys(self) -> list[ImageKey]:
        """The image of each row."""
        return [ImageKey(*values) for values in self.rows[list(ImageKey._fields)].itertuples(index=False)]


def draw_sheets(
    sections: Sequence[Section], source: ImageSource, max_images: int, warn: Callable[[str], object]
) -> Iterator[Plot]:
    """Draw the contact sheets of a dataset.

    Args:
        sections: those of the dataset.
        source: its images.
        max_images: the largest number of images on a sheet.
        warn: called with one line that counts the images that cannot be shown, if there are any.

    Raises:
        UsageError: the dataset cannot be read.
    """
    sheets = [sheet for section in sections for sheet in make_sheets(section, max_images)]
    keys = {key for sheet in sheets for key in sheet.keys}
    thumbnails = source.read_thumbnails(keys)
    if missing := sorted(keys - thumbnails.keys()):
        warn(
            f"{source.name}: {len(missing):,} of {len(keys):,} images to show are not in --data_dir "
            f"{source.data_dir!r} with the same class, or cannot be read, such as {missing[0].image}; skipped"
        )
    for sheet in sheets:
        is_readable = np.array([key in thumbnails for key in sheet.keys])
        if is_readable.any():
            yield _draw(Sheet(sheet.section, sheet.kind, sheet.n, sheet.rows[is_readable]), thumbnails)


def make_sheets(section: Section, max_images: int) -> Iterator[Sheet]:
    """Yield the sheets of each test environment, without empty ones."""
    [extremes] = [table.frame for table in section.tables if table.name == "images"]
    for _, of_environment in extremes.groupby("test_env"):
        is_failed = of_environment["outcome"] == "all fail"
        for kind, rows, column, order in (
            (ALL_FAIL, of_environment[is_failed], "label", section.runs[0].classes),
            (ONE_SOLVES, of_environment[~is_failed], "outcome", [f"only {name}" for name in section.algorithms]),
        ):
            if len(rows):
                yield Sheet(section, kind, len(rows), choose_images(rows, column, order, max_images))


def choose_images(rows: pd.DataFrame, column: str, order: Sequence[str], n: int) -> pd.DataFrame:
    """Return n images, evenly over groups: of each one, the errors of the highest confidence.

    A group with fewer images leaves its places to the others. If groups cannot have equal numbers, those whose next
    errors are more confident have one more.

    Args:
        rows: as returned by `measures.find_extremes`.
        column: the column of the groups.
        order: the groups, in the order of the result; errors of a group are in descending order of confidence.
        n: the number of images; all if there are fewer.
    """
    rows = rows.sort_values(["confidence", "image"], ascending=[False, True], kind="stable")
    rounds = rows.groupby(column).cumcount().sort_values(kind="stable").index[:n]
    chosen = rows[rows.index.isin(rounds)]
    positions = chosen[column].map(list(order).index)
    return chosen.loc[positions.sort_values(kind="stable").index].reset_index(drop=True)


def _draw(sheet: Sheet, thumbnails: Mapping[ImageKey, np.ndarray]) -> Plot:
    section, rows = sheet.section, sheet.rows
    env, environment = rows[["test_env", "environment"]].iloc[0]
    if sheet.kind == ALL_FAIL:
        n = len(section.algorithms)
        subject = f"images that fail with every run of {n} algorithm{'s' * (n != 1)}"
        choice = "the most confident errors of each class"
        note = "Below each image: its class, → the most frequent prediction, and the mean confidence"
        columns = ["label", "predicted"]
    else:
        subject = "images that only one algorithm solves"
        choice = "by algorithm, the most confident errors of the others"
        note = (
            "Below each image: the algorithm, the class, → the others' most frequent prediction, and their confidence"
        )
        columns = ["outcome", "label", "predicted"]
    title = [
        f"{section.title}, {environment}: {subject}",
        f"{sheet.n:,} of {count_images(section.runs)[environment]:,} images; "
        + (f"{len(rows):,} shown: {choice}" if len(rows) < sheet.n else "all shown"),
    ]
    labels = [
        [*names, f"→ {predicted}", f"{100 * confidence:.0f}%"]
        for *names, predicted, confidence in rows[[*columns, "confidence"]].itertuples(index=False)
    ]
    figure = plot_sheet([thumbnails[key] for key in sheet.keys], labels, title, note)
    stem = file_stem([sheet.kind, section.dataset, str(env), environment, section.selection])
    frame = rows.drop(columns="trial_seed").assign(**_predictions(sheet))
    return Plot(stem, f"{'; '.join(title)}. {note}.", figure, frame)


def _predictions(sheet: Sheet) -> dict[str, list[str]]:
    """Return a column for each run: the class that it predicts, or "" if its in split does not have the image."""
    env, columns = sheet.rows["test_env"].iloc[0], {}
    for run in sheet.section.runs:
        if run.run["test_env"] == env:
            outputs, classes = run.outputs, run.classes
            rows = np.flatnonzero(np.isin(outputs.image, sheet.rows["image"].to_numpy(dtype=str)))
            predicted = {(outputs.image[i], classes[outputs.labels[i]]): classes[outputs.predicted[i]] for i in rows}
            images = zip(sheet.rows["image"], sheet.rows["label"], strict=True)
            columns[f"{run.run['algorithm']}, trial {run.run['trial_seed']}"] = [predicted.get(i, "") for i in images]
    return columns


@print_style
def plot_sheet(
    thumbnails: Sequence[np.ndarray], labels: Sequence[Sequence[str]], title: Sequence[str], note: str
) -> Figure:
    """Plot images in rows of COLUMNS, in their own aspect ratios.

    Args:
        thumbnails: [height, width, 3] each.
        labels: the lines below each image.
        title: paragraphs.
        note: a line below the title.
    """
    lines = [line for paragraph in title for line in textwrap.wrap(paragraph, TITLE_LENGTH)]
    heights = [TITLE_LINE] * len(lines) + [NOTE_LINE]
    sizes = [TITLE_SIZE] * len(lines) + [LABEL_SIZE + 1]
    row_height = SIDE + LINE * max(map(len, labels)) + 2 * GAP
    top = sum(heights) + 2 * GAP
    width, height = FIGURE_WIDTH, top + math.ceil(len(thumbnails) / COLUMNS) * row_height
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")  # with layout="none", savefig would restore the one of the style

    def write(x: float, y: float, text: str, size: float) -> None:
        figure.text(x / width, y / height, text, ha="center", va="top", fontsize=size)

    y = height - GAP
    for line, size, line_height in zip([*lines, note], sizes, heights, strict=True):
        write(width / 2, y, line.replace("$", r"\$"), size)
        y -= line_height
    for i, (pixels, label) in enumerate(zip(thumbnails, labels, strict=True)):
        x = GAP + (SIDE + GAP) * (i % COLUMNS)
        y = height - top - row_height * (i // COLUMNS) - SIDE
        ax = figure.add_axes((x / width, y / height, SIDE / width, SIDE / height))
        ax.imshow(pixels, interpolation="nearest" if max(pixels.shape) < DPI * SIDE else "antialiased")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, linewidth=0.3, color="0.6")
        write(x + SIDE / 2, y - 0.02, "\n".join(label_text(line, LABEL_LENGTH) for line in label), LABEL_SIZE)
    return figure
