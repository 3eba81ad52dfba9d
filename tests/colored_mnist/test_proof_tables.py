"""Tables of the Colored MNIST proof of concept."""

from domainbed.colored_mnist.tables import accuracy_table, landscape_table, load_published, tracked_distances
from domainbed.landscape import PREFIX, QUANTITIES


def make_restarts(algorithm: str, *accuracies: float) -> list[dict]:
    return [{"algorithm": algorithm, "train_acc": a, "test_acc": a - 0.1, "gray_acc": a - 0.2} for a in accuracies]


def cells(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_means_standard_deviations_and_differences_from_published():
    restarts = make_restarts("ERM", 0.5, 0.6) + make_restarts("Fishr", 0.7)
    rows = cells(accuracy_table(restarts, ["Fishr", "ERM", "IRM", "Mine"], 2, load_published(0.25)))
    assert rows["Algorithm"] == [
        f"{environment}{suffix}"
        for environment in ("train", "test", "gray")
        for suffix in ("", ", published", ", difference")
    ]
    assert list(rows)[2:] == ["Fishr (1 of 2 restarts)", "ERM", "IRM (0 of 2 restarts)", "Mine (0 of 2 restarts)"]
    assert rows["ERM"] == [
        *("55.0 ± 5.0", "86.4 ± 0.2", "-31.4"),
        *("45.0 ± 5.0", "14.0 ± 0.7", "+31.0"),
        *("35.0 ± 5.0", "71.0 ± 0.7", "-36.0"),
    ]
    assert rows["Fishr (1 of 2 restarts)"][3:6] == ["60.0", "69.5 ± 1.0", "-9.5"]
    assert rows["IRM (0 of 2 restarts)"][:3] == ["X", "71.0 ± 0.5", "X"]
    assert rows["Mine (0 of 2 restarts)"][:3] == ["X", "-", "-"]


def test_zero_difference_has_no_minus_sign():
    rows = cells(accuracy_table(make_restarts("ERM", 0.8638), ["ERM"], 1, load_published(0.25)))
    assert rows["ERM"][:3] == ["86.4", "86.4 ± 0.2", "+0.0"]


def test_other_settings_have_no_published_values():
    text = accuracy_table(make_restarts("ERM", 0.5), ["ERM"], 1, load_published(0.0))
    assert cells(text)["ERM"][:3] == ["50.0", "-", "-"]


def test_landscape_table_and_tracked_distances():
    names = [*(PREFIX + name for name in QUANTITIES)]
    names += [f"inconsistency_{domains}_{kind}" for domains in ("training", "all") for kind in ("exact", "diagonal")]
    restarts = [
        {"algorithm": algorithm, "course": [{"step": s, PREFIX + "risk": v / (1 + s)} for s in (0, 10)]}
        | {name: v + i for i, name in enumerate(names)}
        | ({"damping_all_exact": 0.1} if v == 2.0 else {})
        for algorithm, v in (("ERM", 1.0), ("ERM", 2.0), ("Fishr", 4.0))
    ]
    rows = cells(landscape_table(restarts, ["Fishr", "ERM", "IRM"]))
    assert rows[""] == ["Fishr", "ERM", "IRM"]
    assert rows["risks, squared distance"] == ["4", "1.5 ± 0.5", "X"]
    assert rows["inconsistency, all environments, exact Hessians"] == ["10", "7.5 ± 0.5*", "X"]
    assert rows["inconsistency, all environments, diagonal Hessians"] == ["11", "8.5 ± 0.5", "X"]
    assert len(rows) == 2 + 8
    distances = tracked_distances(restarts)
    assert distances["algorithm"].tolist() == ["ERM"] * 4 + ["Fishr"] * 2
    assert distances["folder"].tolist() == [0, 0, 1, 1, 2, 2]
    assert distances["step"].tolist() == [0, 10] * 3
    assert distances[PREFIX + "risk"].tolist() == [1.0, 1 / 11, 2.0, 2 / 11, 4.0, 4 / 11]
