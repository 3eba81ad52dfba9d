"""The measured landscape of a trained model: values, tables, JSON and plots."""

import io
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from torch.nn import functional as F

from domainbed.algorithms import sma
from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_data
from domainbed.engine.model import load_model
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.landscape import LAYERS, PREFIX, QUANTITIES, measure, slices
from domainbed.landscape.distances import pair_distances
from domainbed.landscape.inconsistency import diagonal_ratios, inconsistency_score
from domainbed.landscape.measure import Landscape, measure_landscape, to_json
from domainbed.landscape.plots import CONTOUR_RISES, landscape_figures, plot_distances, plot_distances_over_training
from domainbed.landscape.slices import LINE_POINTS
from domainbed.landscape.tables import compare_algorithms, format_comparison, format_landscape
from domainbed.reporting.plots import write_figure
from domainbed.reporting.plots.style import make_style


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return models of short jobs, by algorithm; the test environment is the middle one."""
    paths = {}
    for algorithm in ("ERM", "Fishr"):
        folder = tmp_path_factory.mktemp(algorithm)
        train(JobConfig("ColoredDigits", algorithm, (1,), steps=11, output_dir=str(folder)))
        paths[algorithm] = folder / "model.pkl"
    return paths


@pytest.fixture(scope="module")
def landscape(models: dict[str, Path]) -> Landscape:
    return measure_landscape(models["ERM"], images=100, epsilon=0.5)


def test_training_environments_come_first_with_the_risks_of_the_model(models: dict[str, Path], landscape: Landscape):
    assert landscape.environments == ["+90%", "-90%", "+80%"]
    assert landscape.labels == ["+90%", "-90%", "[+80%]"]
    assert (landscape.n_training, landscape.images, landscape.n_weights) == (2, [100] * 3, 66)
    algorithm = load_model(models["ERM"]).algorithm
    dataset, splits = load_data(landscape.config, landscape.config.resolved_hparams())
    for found, env in zip(landscape.statistics, (0, 2, 1), strict=True):
        rows = splits[env].in_[:100]
        with torch.no_grad():
            logits = algorithm.predict(torch.from_numpy(dataset[env].images[rows]).float() / 255)
        y = torch.from_numpy(dataset[env].labels[rows])
        assert found.risk == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
        assert found.accuracy == (logits.argmax(1) == y).sum().item() / 100
        assert found.curvature == "Hessian"
    assert landscape.slices.lines["random direction"][:, LINE_POINTS // 2].tolist() == pytest.approx(
        [s.risk for s in landscape.statistics], rel=1e-5
    )


@pytest.mark.parametrize("layers", LAYERS)
def test_algorithm_that_averages_is_measured_at_the_average(
    layers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sma, "START", 3)
    train(JobConfig("ColoredDigits", "SMA", (1,), steps=11, output_dir=str(tmp_path)))
    measured = measure_landscape(tmp_path / "model.pkl", layers=layers, images=7, with_slices=False)
    algorithm = load_model(tmp_path / "model.pkl").algorithm
    dataset, splits = load_data(measured.config, measured.config.resolved_hparams())
    rows = splits[0].in_[:7]
    x, y = torch.from_numpy(dataset[0].images[rows]).float() / 255, torch.from_numpy(dataset[0].labels[rows])
    with torch.no_grad():
        expected, of_training = (F.cross_entropy(f(x), y).item() for f in (algorithm.predict, algorithm.network))
    assert expected != pytest.approx(of_training, rel=1e-3)
    assert measured.statistics[0].risk == pytest.approx(expected, rel=1e-5)
    assert measured.statistics[0].curvature == ("Hessian" if layers == "classifier" else "GGN")


def test_algorithm_that_predicts_otherwise_is_rejected(tmp_path: Path):
    train(JobConfig("ColoredDigits", "MTL", (1,), steps=1, output_dir=str(tmp_path)))
    with pytest.raises(UsageError, match=r"MTL does not predict by classifier\(featurizer\(x\)\)"):
        measure_landscape(tmp_path / "model.pkl")


def test_distances_are_computed_once(landscape: Landscape, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(measure, "pair_distances", lambda domains: calls.append(1) or pair_distances(domains))
    fresh = replace(landscape)
    to_json(fresh)
    format_landscape(fresh)
    compare_algorithms({"ERM": [fresh]})
    list(landscape_figures({"": [replace(fresh, slices=None)]}))
    assert len(calls) == 2  # the last one is that of the copy without slices


def test_scores_belong_to_their_domains(landscape: Landscape):
    assert list(landscape.scores) == list(itertools.product(("training", "all"), ("exact", "diagonal")))
    for (domain_set, _), score in landscape.scores.items():
        a, b = score.pair
        assert domain_set == "all" or max(a, b) < 2
        gap = landscape.statistics[b].risk - landscape.statistics[a].risk
        assert score.score == pytest.approx(gap + 0.5 * score.ratio)
    diagonals = [s.hessian_diagonal for s in landscape.statistics]
    expected = inconsistency_score([s.risk for s in landscape.statistics[:2]], diagonal_ratios(diagonals[:2]), 0.5)
    assert landscape.scores["training", "diagonal"] == expected


def test_summary_covers_the_training_domains(landscape: Landscape):
    summary = landscape.summary()
    matrices = pair_distances(landscape.statistics)
    for name in QUANTITIES:
        assert summary[name] == matrices[name][0, 1].item()
    first, second = landscape.statistics[:2]
    v = torch.stack([first.gradient_variance, second.gradient_variance])
    expected = (v[0] - v[1]).square().sum() / v.square().sum(1).mean()
    assert summary["gradient_variance, relative"] == pytest.approx(expected.item())
    assert summary["cosine"] == (first.cosine + second.cosine) / 2
    single = replace(landscape, n_training=1)
    assert "risk" not in single.summary()
    json.dumps(to_json(single), allow_nan=False)


def test_splits_layers_and_numbers_of_images(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    out = measure_landscape(models["ERM"], part="out", images=0, with_slices=False)
    assert out.images == [119, 119, 119]
    assert out.slices is None
    monkeypatch.setattr(slices, "LINE_POINTS", 3)
    monkeypatch.setattr(slices, "PLANE_POINTS", 3)
    whole = measure_landscape(models["ERM"], layers="all", images=7)
    for risks in (*whole.slices.lines.values(), *(plane[:, 1] for plane in whole.slices.planes.values())):
        assert risks[:, 1].tolist() == pytest.approx([s.risk for s in whole.statistics], rel=1e-5)
    assert {s.curvature for s in whole.statistics} == {"GGN"}
    assert (whole.n_weights, whole.images) == (14_418, [7] * 3)
    assert {kind for _, kind in whole.scores} == {"diagonal"}  # there are too many weights for a full Hessian
    text = format_landscape(whole)
    assert "No exact scores" in text
    assert "Gauss-Newton" in text
    assert "GGN trace" in text


def test_unreadable_or_diverged_models_raise(models: dict[str, Path], tmp_path: Path):
    (tmp_path / "model.pkl").write_bytes(b"no model")
    with pytest.raises(UsageError, match="is not a model saved by train"):
        measure_landscape(tmp_path / "model.pkl")
    saved = torch.load(models["ERM"], weights_only=True)
    saved["args"] |= {"dataset": "ColoredMNIST", "data_dir": "/no/such"}
    torch.save(saved, tmp_path / "moved.pkl")
    with pytest.raises(UsageError, match="/no/where"):
        measure_landscape(tmp_path / "moved.pkl", data_dir="/no/where")
    saved = torch.load(models["ERM"], weights_only=True)
    saved["model_dict"] = {name: w * 1e30 if w.is_floating_point() else w for name, w in saved["model_dict"].items()}
    torch.save(saved, tmp_path / "diverged.pkl")
    with pytest.raises(UsageError, match=r"diverged\.pkl: the risk in \+90% or one of its derivatives is not finite"):
        measure_landscape(tmp_path / "diverged.pkl", images=20)


def test_text_contains_all_values(landscape: Landscape):
    text = format_landscape(landscape)
    for label, s in zip(landscape.labels, landscape.statistics, strict=True):
        (row,) = [line for line in text.splitlines() if line.startswith(f"{label} ")]
        assert f" {s.risk:.4f} " in row
        assert f" {100 * s.accuracy:.1f} " in row
    (pair,) = [line for line in text.splitlines() if line.startswith("+90%, [+80%]")]
    matrices = pair_distances(landscape.statistics)
    assert pair.split()[2:] == [f"{m[0, 2].item():.3g}" for m in matrices.values()]
    for score in landscape.scores.values():
        assert f" {score.score:.4g} " in text
    assert "ε = 0.5" in text
    assert "domain" not in text.lower()  # as in options and JSON
    assert not [line for line in text.splitlines() if len(line) > 120]


def test_json_contains_all_values(landscape: Landscape):
    content = json.loads(json.dumps(to_json(landscape), allow_nan=False))
    assert content["environments"] == landscape.environments
    assert [d["risk"] for d in content["domains"]] == [s.risk for s in landscape.statistics]
    assert np.array(content["squared_distances"]["hessian_diagonal"]).shape == (3, 3)
    assert np.array(content["slices"]["lines"]["leading curvature of -90%"]).shape == (3, LINE_POINTS)
    assert content["summary"] == landscape.summary()
    assert content["inconsistency"][0]["score"] == landscape.scores["training", "exact"].score


def test_non_finite_values_are_null_in_json(landscape: Landscape):
    scores = {key: replace(score, score=math.inf) for key, score in landscape.scores.items()}
    content = json.loads(json.dumps(to_json(replace(landscape, scores=scores)), allow_nan=False))
    assert [score["score"] for score in content["inconsistency"]] == [None] * 4
    assert content["inconsistency"][0]["pair"] == list(landscape.scores["training", "exact"].pair)
    assert not [name for name in content["summary"] if name.startswith("inconsistency")]


def test_comparison_is_the_mean_over_trials_with_its_standard_error(landscape: Landscape, models: dict[str, Path]):
    other = measure_landscape(models["Fishr"], images=50, with_slices=False)
    comparison = compare_algorithms({"ERM": [landscape, other], "Fishr": [other]})
    cells = comparison.set_index(["algorithm", "metric"])
    a, b = landscape.summary()["risk"], other.summary()["risk"]
    assert cells.loc[("ERM", "risk"), "mean"] == pytest.approx((a + b) / 2)
    assert cells.loc[("ERM", "risk"), "error"] == pytest.approx(abs(a - b) / 2 / math.sqrt(2))
    assert math.isnan(cells.loc[("Fishr", "risk"), "error"])
    text = format_comparison(comparison)
    assert text.count("+/-") == len(comparison) // 2, "a single trial has no error"
    assert text.splitlines()[0].split() == ["ERM", "Fishr"]
    assert [line for line in text.splitlines() if line.startswith("risks, |a - b|² ")]
    assert "*" not in text
    damped = {key: replace(score, damping=0.1) for key, score in other.scores.items()}
    starred = format_comparison(compare_algorithms({"ERM": [landscape], "Fishr": [replace(other, scores=damped)]}))
    rows = [line for line in starred.splitlines() if line.startswith("inconsistency")]
    assert [row.count("*") for row in rows] == [1] * 4
    assert all(row.endswith("*") for row in rows)
    missing = comparison[(comparison["algorithm"] != "Fishr") | (comparison["metric"] != "risk")]
    (row,) = [line for line in format_comparison(missing).splitlines() if line.startswith("risks, |a - b|² ")]
    assert row.split()[-1] == "X"


def test_plots_of_one_model_and_of_two(landscape: Landscape):
    for landscapes, n in (({"": [landscape]}, 1), ({"ERM": [landscape], "Fishr": [landscape] * 2}, 2)):
        figures = {stem: figure for stem, _, figure in landscape_figures(landscapes)}
        assert list(figures) == ["lines", "planes", "distances"]
        panels = figures["lines"].axes
        assert len(panels) == 3 * n
        assert len({ax.get_ylim() for ax in panels}) == 1
        for ax, (direction, risks) in zip(panels, [*landscape.slices.lines.items()] * n, strict=True):
            drawn = np.array([line.get_ydata() for line in ax.lines if len(line.get_xdata()) == LINE_POINTS])
            training = drawn[: landscape.n_training].mean(axis=0)
            half = LINE_POINTS // 2
            if direction.startswith("random"):
                np.testing.assert_allclose(drawn, risks.numpy())
            else:
                assert training[:half].mean() <= training[-half:].mean()
                assert np.allclose(drawn, risks.numpy()) or np.allclose(drawn[:, ::-1], risks.numpy())
        assert len(figures["planes"].axes) == 2 * n
        assert len(figures["distances"].axes) == (4 if n == 1 else 8)
        for figure in figures.values():
            for kind in ("png", "pdf"):
                file = io.BytesIO()
                write_figure(figure, file, kind, 50)
                assert file.tell() > 1000
    without_slices = replace(landscape, slices=None)
    assert [stem for stem, _, _ in landscape_figures({"": [without_slices]})] == ["distances"]
    # A single training domain has no distances, but there are scores among all domains.
    single = replace(without_slices, n_training=1, scores={k: v for k, v in landscape.scores.items() if k[0] == "all"})
    ((_, _, figure),) = landscape_figures({"ERM": [single], "Fishr": [single]})
    assert [ax.get_title() for ax in figure.axes] == ["Score, all\nexact", "Score, all\ndiagonal"]


def test_sign_of_curvature_directions_does_not_change_the_plots(landscape: Landscape):
    def flipped(risks: dict[str, torch.Tensor], axes: list[int]) -> dict[str, torch.Tensor]:
        return {name: r if name.startswith("random") else r.flip(axes) for name, r in risks.items()}

    slices = landscape.slices
    lines, planes = flipped(slices.lines, [1]), flipped(slices.planes, [1, 2])
    other = replace(landscape, slices=replace(slices, lines=lines, planes=planes))
    drawn = []
    for shown in (landscape, other):
        figures = {stem: figure for stem, _, figure in landscape_figures({"ERM": [shown]}, "Digits, test -90%")}
        ys = [line.get_ydata() for ax in figures["lines"].axes for line in ax.lines]
        contours = [path.vertices for ax in figures["planes"].axes for c in ax.collections for path in c.get_paths()]
        drawn.append([ys, contours])
        labels = {text.get_text() for ax in figures["planes"].axes for text in ax.texts}
        assert labels
        assert labels <= {f"+{rise:g}" for rise in CONTOUR_RISES}
        assert {stem: figure.get_suptitle() for stem, figure in figures.items()} == {
            "lines": "Risk along lines through the weights, Digits, test -90%",
            "planes": "Risk in planes through the weights, Digits, test -90%",
            "distances": "Distances between domains, Digits, test -90%",
        }
    for first, second in zip(*drawn, strict=True):
        assert len(first) == len(second) > 0
        for a, b in zip(first, second, strict=True):
            np.testing.assert_allclose(a, b)


def test_plots_one_point_per_trial():
    frame = pd.DataFrame({"series": ["A", "A", "B"], **{name: [1.0, 2.0, 3.0] for name in QUANTITIES}})
    figure = plot_distances(frame, {"A": make_style(0), "B": make_style(1)})
    for ax in figure.axes:
        assert [line.get_ydata().tolist() for line in ax.lines] == [[1.0, 2.0], [3.0]]


def test_plots_runs_over_training_with_their_geometric_mean():
    rows = [
        {"algorithm": algorithm, "folder": f"{algorithm}{run}", "step": step}
        | {PREFIX + name: 10.0 ** (run + i - step / 10) for i, name in enumerate(QUANTITIES)}
        for algorithm in ("ERM", "Fishr")
        for run in range(2)
        for step in (20, 0, 10)
    ]
    frame = pd.DataFrame(rows)
    frame.loc[frame["folder"] == "ERM1", PREFIX + "risk"] = [0.0, np.nan, np.inf]  # not drawn
    figure = plot_distances_over_training(frame, {"ERM": make_style(0), "Fishr": make_style(1), "IRM": make_style(2)})
    assert [ax.get_title() for ax in figure.axes] == [title.capitalize() for title in QUANTITIES.values()]
    risk, *others = figure.axes
    for i, ax in enumerate(others, start=1):
        strong = [line for line in ax.lines if line.get_linewidth() > 1]
        assert [to_hex(line.get_color()) for line in strong] == [
            make_style(0).color.lower(),
            make_style(1).color.lower(),
        ]
        for line in strong:
            np.testing.assert_allclose(line.get_xydata(), [[s, 10.0 ** (0.5 + i - s / 10)] for s in (0, 10, 20)])
        assert len(ax.lines) == 2 * 3
        assert ax.get_yscale() == "log"
    (mean,) = [
        li for li in risk.lines if li.get_linewidth() > 1 and to_hex(li.get_color()) == make_style(0).color.lower()
    ]
    np.testing.assert_allclose(mean.get_ydata(), [1.0, 0.1, 0.01])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ERM", "Fishr"]
    assert plot_distances_over_training(frame[["algorithm", "folder", "step"]], {"ERM": make_style(0)}) is None
