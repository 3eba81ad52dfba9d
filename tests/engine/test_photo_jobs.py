"""A job on image files: the images that it trains on and evaluates, and the handling of broken ones."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.loading.image_cache import INDEX_BYTES
from domainbed.loading.splits import split_environment
from domainbed.records import read_job
from tests.images import write_tree

NAMES = ["day", "dusk", "night"]
SEEN: list[list[torch.Tensor]] = []


class QuarterColors(Algorithm):
    """A fast classifier by the mean colors of an image's quarters. It keeps the images that it is trained on."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        assert input_shape == (3, 224, 224)
        self.layer = torch.nn.Linear(12, num_classes)
        self.optimizer = torch.optim.SGD(self.parameters(), 0.1)
        SEEN.clear()

    def update(self, minibatches, unlabeled=None):
        SEEN.append([x for x, _ in minibatches])
        losses = [torch.nn.functional.cross_entropy(self.predict(x), y) for x, y in minibatches]
        self.optimizer.zero_grad()
        sum(losses).backward()
        self.optimizer.step()
        return {"loss": sum(losses).detach()}

    def predict(self, x):
        return self.layer(torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with ALGORITHMS.temporarily("QuarterColors", QuarterColors):
        yield


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", {name: {"car": 8, "tram": 7} for name in NAMES})


def run(tree: Path, name: str, control: JobControl | None = None, **kwargs) -> list[dict]:
    folder = tree.parent / name
    arguments = {"test_envs": (2,), "steps": 4, "checkpoint_freq": 2, "hparams": '{"batch_size": 3}'} | kwargs
    train(JobConfig("Folder", "QuarterColors", data_dir=str(tree), output_dir=str(folder), **arguments), control)
    records, problems = read_job(folder)
    assert problems == []
    return records


def reproducible(records: list[dict]) -> list[dict]:
    """Return the records without entries that differ between equal jobs."""
    return [{k: v for k, v in r.items() if k not in ("step_time", "mem_gb", "args")} for r in records]


def test_records_of_a_job_on_photographs(tree: Path, capsys):
    records = run(tree, "job", skip_model_save=True)
    assert [r["step"] for r in records] == [0, 2, 3]
    for record in records:
        assert record["environments"] == NAMES
        assert record["bad_images"] == 0
        assert all(0 <= record[f"env{i}_{part}_acc"] <= 1 for i in range(3) for part in ("in", "out"))
    assert "[night " in capsys.readouterr().out
    assert [len(x) for x in SEEN] == [2] * 4
    assert all(x.shape == (3, 3, 224, 224) for step in SEEN for x in step)


def test_clean_evaluation_affects_training_environments_only(tree: Path):
    published, repeated = run(tree, "published"), run(tree, "repeated")
    clean = run(tree, "clean", clean_evaluation=True)
    plain = run(tree, "plain", hparams='{"batch_size": 3, "data_augmentation": false}')
    assert reproducible(published) == reproducible(repeated)
    losses = [[r["loss"] for r in records] for records in (published, clean, plain)]
    assert losses[0] == losses[1], "training is the same"
    assert losses[0] != losses[2]

    def accuracies(records: list[dict], envs: tuple[int, ...]) -> list[float]:
        return [r[f"env{env}_{part}_acc"] for r in records for env in envs for part in ("in", "out")]

    # The test environment is never augmented; the others are.
    assert accuracies(published, (2,)) == accuracies(clean, (2,))
    assert accuracies(published, (0, 1)) != accuracies(clean, (0, 1))
    assert accuracies(clean, (0, 1)) != accuracies(plain, (0, 1)), "the models differ"


def test_unfinished_run_on_another_folder_is_kept(tree: Path):
    run(tree, "job")
    (tree.parent / "job" / "done").unlink()
    other = write_tree(tree.parent / "other", {name: {"car": 8, "tram": 7} for name in NAMES})
    with pytest.raises(UsageError, match=r"contains another, unfinished run .*data_dir .*/tree\b"):
        run(other, "job")
    assert len(run(tree, "job")) == 3


def test_out_of_memory_error_is_explained(tree: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(QuarterColors, "update", full)
    with pytest.raises(UsageError, match=r"out of memory: use --resident_gb 0 .*CUDA out of memory"):
        run(tree, "job")


def test_clean_accuracies_equal_a_plain_count(tree: Path):
    from PIL import Image
    from torchvision.transforms import functional as TF

    from domainbed.engine.model import load_model

    last = run(tree, "job", clean_evaluation=True)[-1]
    model = load_model(tree.parent / "job" / "model.pkl")
    for env, name in enumerate(NAMES):
        files = sorted((tree / name).glob("*/*.png"))
        split = split_environment(len(files), env, 0, 0.2)
        for part, indices in split.parts().items():
            correct = []
            for i in indices:
                image = Image.open(files[i]).resize((224, 224), Image.Resampling.BILINEAR)
                x = TF.normalize(TF.to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
                correct.append(int(model.predict(x[None]).argmax()) == (files[i].parent.name == "tram"))
            assert last[f"env{env}_{part}_acc"] == pytest.approx(np.mean(correct))


def test_eval_splits_omits_in_splits_of_training_environments(tree: Path, capsys):
    all_splits, selected = run(tree, "all"), run(tree, "selected", eval="splits")
    omitted = {"env0_in_acc", "env1_in_acc"}
    assert reproducible(selected) == [
        {k: v for k, v in r.items() if k not in omitted} for r in reproducible(all_splits)
    ]
    assert "day -/" in capsys.readouterr().out


@pytest.mark.parametrize("fits_pixels", [True, False])
def test_cache_does_not_change_results(tree: Path, fits_pixels: bool):
    plain = run(tree, "plain")
    sizes = [file.stat().st_size for file in tree.glob("*/*/*")]
    index = INDEX_BYTES * (len(sizes) + 100 * len(NAMES))
    cache_gb = 1.0 if fits_pixels else (sum(sizes) + index) / 2**30
    cached = [run(tree, f"cached{i}", cache=str(tree.parent / "cache"), cache_gb=cache_gb) for i in range(2)]
    assert len(list((tree.parent / "cache").glob("Folder-*.pack"))) == 3
    assert reproducible(plain) == reproducible(cached[0]) == reproducible(cached[1])
    # The same folder by a link uses the same packs.
    (tree.parent / "link").symlink_to(tree)
    run(tree.parent / "link", "linked", cache=str(tree.parent / "cache"), cache_gb=cache_gb)
    assert len(list((tree.parent / "cache").glob("*.pack"))) == 3


def test_job_that_is_stopped_while_it_fills_the_cache_can_be_resumed(tree: Path):
    cache = tree.parent / "cache"
    plain = run(tree, "plain")

    def should_stop() -> bool:
        return len(list(cache.glob("*.pack"))) == 2

    with pytest.raises(Interrupted) as error:
        run(tree, "stopped", JobControl(should_stop), cache=str(cache))
    assert error.value.updates == 0
    assert not (tree.parent / "stopped").exists()
    assert len(list(cache.glob("*.pack"))) == 2
    assert not list(cache.glob("*.part"))
    complete = {path: path.stat().st_mtime_ns for path in cache.glob("*.pack")}
    assert reproducible(run(tree, "stopped", cache=str(cache))) == reproducible(plain)
    assert complete.items() < {path: path.stat().st_mtime_ns for path in cache.glob("*.pack")}.items()


@pytest.mark.slow
def test_worker_processes_do_not_change_results(tree: Path):
    assert reproducible(run(tree, "no workers")) == reproducible(run(tree, "workers", loader_workers=2))


def test_broken_image_fails_the_job_or_is_replaced(tree: Path):
    for i in range(3):
        (tree / f"night/car/00{i}.png").write_bytes(b"oops")
    with pytest.raises(UsageError, match=r"night/car/00\d\.png is a broken image .*--on_bad_image skip"):
        run(tree, "error")
    assert not (tree.parent / "error" / "done").exists()
    records = run(tree, "skip", on_bad_image="skip")
    assert [r["bad_images"] for r in records] == [3, 3, 3]
    # Equal configurations have the same folder in a sweep.
    assert JobConfig("Folder", "ERM", (0,), data_dir=str(tree), on_bad_image="skip") == JobConfig(
        "Folder", "ERM", (0,), data_dir=str(tree)
    )


def test_trials_have_different_splits(tree: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reproducible(run(tree, "one")) != reproducible(run(tree, "two", trial_seed=1))
