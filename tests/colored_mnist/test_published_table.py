from domainbed.colored_mnist.tables import landscape_courses, landscape_table, table
from domainbed.landscape import PREFIX, QUANTITIES


def runs(algorithm: str, *accuracies: float) -> list[dict]:
    return [{"algorithm": algorithm, "train_acc": a, "test_acc": a - 0.1, "gray_acc": a - 0.2} for a in accuracies]


def cells(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_means_deviations_and_differences_beside_the_published():
    text = table(runs("ERM", 0.5, 0.6) + runs("Fishr", 0.7), ["Fishr", "ERM", "IRM", "Mine"], 2, 0.25, comparable=True)
    rows = cells(text)
    assert rows["Algorithm"] == [
        f"{column}{of}" for column in ("train", "test", "gray") for of in ("", ", published", ", difference")
    ]
    assert list(rows)[2:] == ["Fishr (1 of 2 restarts)", "ERM", "IRM (0 of 2 restarts)", "Mine (0 of 2 restarts)"]
    assert rows["ERM"] == [
        *("55.0 ± 5.0", "86.4 ± 0.2", "-31.4"),
        *("45.0 ± 5.0", "14.0 ± 0.7", "+31.0"),
        *("35.0 ± 5.0", "71.0 ± 0.7", "-36.0"),
    ]
    assert rows["Fishr (1 of 2 restarts)"][3:6] == ["60.0 ± 0.0", "69.5 ± 1.0", "-9.5"]
    assert rows["IRM (0 of 2 restarts)"][:3] == ["X", "71.0 ± 0.5", "X"]
    assert rows["Mine (0 of 2 restarts)"][:3] == ["X", "-", "-"]


def test_no_minus_stands_before_a_difference_of_zero():
    rows = cells(table(runs("ERM", 0.8638), ["ERM"], 1, 0.25, comparable=True))
    assert rows["ERM"][:3] == ["86.4 ± 0.0", "86.4 ± 0.2", "+0.0"]


def test_other_settings_stand_beside_nothing():
    for label_flip, comparable in ((0.25, False), (0.0, True)):
        assert cells(table(runs("ERM", 0.5), ["ERM"], 1, label_flip, comparable))["ERM"][:3] == ["50.0 ± 0.0", "-", "-"]


def test_the_landscape_at_the_end_and_its_course():
    names = [*(PREFIX + name for name in QUANTITIES)]
    names += [f"inconsistency_{of}_{way}" for of in ("training", "all") for way in ("exact", "diagonal")]
    restarts = [
        {"algorithm": algorithm, "course": [{"step": s, PREFIX + "risk": v / (1 + s)} for s in (0, 10)]}
        | {name: v + i for i, name in enumerate(names)}
        | ({"damping_all_exact": 0.1} if v == 2.0 else {})
        for algorithm, v in (("ERM", 1.0), ("ERM", 2.0), ("Fishr", 4.0))
    ]
    rows = cells(landscape_table(restarts, ["Fishr", "ERM", "IRM"]))
    assert rows[""] == ["Fishr", "ERM", "IRM"]
    assert rows["risks, squared distance"] == ["4 ± 0", "1.5 ± 0.5", "X"]
    assert rows["inconsistency, all environments, exact Hessians"] == ["10 ± 0", "7.5 ± 0.5*", "X"]
    assert rows["inconsistency, all environments, diagonal Hessians"] == ["11 ± 0", "8.5 ± 0.5", "X"]
    assert len(rows) == 2 + 8
    courses = landscape_courses(restarts)
    assert courses["algorithm"].tolist() == ["ERM"] * 4 + ["Fishr"] * 2
    assert courses["folder"].tolist() == [0, 0, 1, 1, 2, 2]
    assert courses["step"].tolist() == [0, 10] * 3
    assert courses[PREFIX + "risk"].tolist() == [1.0, 1 / 11, 2.0, 2 / 11, 4.0, 4 / 11]
