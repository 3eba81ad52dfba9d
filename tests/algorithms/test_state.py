"""State of every kind that a user's algorithm can keep: it is restored exactly, or the algorithm is rejected."""

import copy
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.construction import Construction
from domainbed.algorithms.state import check_plain
from domainbed.engine.averaging.base import Averaging
from domainbed.engine.checkpoint import Checkpointer, Progress
from domainbed.engine.config import JobConfig
from domainbed.engine.train import train
from domainbed.errors import UsageError
from tests.algorithms.stateful import (
    ACCEPTED,
    LATE,
    REJECTED,
    ExchangesOptimizer,
    Kind,
    ResetsOptimizer,
    Sample,
    Shared,
    make,
)
from tests.engine.test_resume import crash_at, result, stop_at, train_disturbed

STEPS = 2 * LATE + 2


def batch(t: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(t)
    return [
        (torch.rand(4, 1, 2, 3, generator=generator), torch.randint(3, (4,), generator=generator)) for _ in range(2)
    ]


def checkpointer(algorithm: Algorithm, folder: str) -> Any:
    lock = types.SimpleNamespace(check=lambda: None, start_from=lambda step: None)
    config = JobConfig("ColoredDigits", "ERM", (0,), output_dir=folder)
    setup = types.SimpleNamespace(
        algorithm=algorithm,
        averaging=Averaging(config, algorithm),
        feed=types.SimpleNamespace(bad_images=set()),
        code=None,
        backbone_weights="",
    )
    return Checkpointer(config, setup, lock, lambda: False)  # type: ignore[arg-type]


def updates(algorithm: Algorithm, steps: range) -> list[dict[str, float]]:
    metrics = []
    for t in steps:
        torch.manual_seed(t)
        metrics.append(dict(algorithm.update(batch(t))))
    return metrics


def assert_equal(first: Any, second: Any, path: str = "state") -> None:
    assert type(first) is type(second), path
    if isinstance(first, dict) and first.get("class") in ("set", "frozenset"):  # not ordered
        first, second = ({**encoded, "items": sorted(encoded["items"], key=repr)} for encoded in (first, second))
    if isinstance(first, dict):
        # The order of the keys matters, but not that of an optimizer's group, which load_state_dict changes.
        assert first.keys() == second.keys() if "params" in first else list(first) == list(second), path
        for key in first:
            assert_equal(first[key], second[key], f"{path}[{key!r}]")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{path}[{i}]")
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, path
        assert first.stride() == second.stride(), path
        assert torch.equal(first, second), path
    else:
        assert first == second or (first != first and second != second), path


def check_resume(kinds: list[type[Kind]], step: int, again: int = STEPS) -> None:
    """Check that an algorithm resumed after `step` updates, and once more after `again`, equals one that was not."""
    whole, stopped = make(*kinds), make(*kinds)
    whole.record_construction()
    expected = updates(whole, range(STEPS))
    with tempfile.TemporaryDirectory() as folder:
        position = 0
        for end in sorted({step, again, STEPS}):
            saver = checkpointer(stopped, folder)
            assert saver.resume().step == position
            assert updates(stopped, range(position, end)) == expected[position:end]
            saver.save(Progress(end))
            torch.save(stopped.training_state(), Path(folder) / "state.pt")
            torch.load(Path(folder) / "state.pt", weights_only=True)
            position, stopped = end, make(*kinds)
        checkpointer(stopped, folder).resume()
    assert_equal(stopped.training_state(), whole.training_state())


@pytest.mark.parametrize("kind", ACCEPTED)
def test_state_of_each_kind_is_restored(kind: type[Kind]):
    for step in (0, LATE, LATE + 1, STEPS - 2):
        check_resume([kind], step)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(ACCEPTED), unique=True, max_size=len(ACCEPTED)), st.integers(0, STEPS), st.data())
def test_any_state_is_restored(kinds, step, data):
    """Or rejected: an attribute cannot share a parameter group with an optimizer that was replaced."""
    again, rejection = data.draw(st.integers(step, STEPS)), ""
    try:
        check_resume(kinds, step, again)
    except UsageError as error:
        rejection = str(error)
    if rejection:
        assert "is also referenced elsewhere and cannot be saved" in rejection
        assert {Shared} < set(kinds) & {Shared, ExchangesOptimizer, ResetsOptimizer}


def train_and_save(algorithm: Algorithm, folder: str) -> None:
    check_plain(algorithm.training_state())
    saver = checkpointer(algorithm, folder)
    updates(algorithm, range(LATE + 1))
    saver.save(Progress(LATE + 1))


def assert_rejected(*kinds: type[Kind]) -> None:
    algorithm = make(*kinds)
    with tempfile.TemporaryDirectory() as folder, pytest.raises(UsageError, match=r"not be resumed|other jobs share"):
        train_and_save(algorithm, folder)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(REJECTED), st.lists(st.sampled_from(ACCEPTED), unique=True, max_size=3))
def test_other_state_is_rejected(rejected, others):
    """When the algorithm is constructed, or by the first checkpoint after the change."""
    assert_rejected(*others, rejected)


@pytest.mark.parametrize("kind", REJECTED)
def test_each_other_kind_is_rejected(kind: type[Kind]):
    assert_rejected(kind)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda items: st.lists(items) | st.tuples(items, items) | st.dictionaries(st.text() | st.integers(), items),
    max_leaves=20,
)


@settings(max_examples=40, deadline=None)
@given(values, values)
def test_any_plain_value_is_restored(before, after):
    original, restored = make(), make()
    for algorithm in (original, restored):
        value = copy.deepcopy(before)
        algorithm.value = [value, {"__kind__": value, None: value}]
        algorithm.record_construction()
    original.value = [after, {"__kind__": after, (1, "x"): original.value}]
    state = original.training_state()
    check_plain(state)
    restored.load_training_state(state)
    assert_equal(restored.value, original.value)


def test_shared_objects_remain_shared():
    original, restored = make(Shared), make(Shared)
    restored.load_training_state(original.training_state())
    assert restored.helper.owner is restored
    assert restored.helper.network is restored.linear
    assert restored.group is restored.optimizer.param_groups[0]
    assert restored.parameters_list[0] is restored.linear.weight
    restored.part.fill_(7)
    assert restored.twin.tolist() == [0, 7, 7, 0]
    restored.linear.weight.data.fill_(3)
    assert restored.weight_data.tolist() == [3] * 6


def test_message_names_the_attribute():
    algorithm = make()
    algorithm.helpers = [Sample(torch.zeros(1))]
    algorithm.helpers[0].reader = iter([1])
    with pytest.raises(UsageError, match=r"^self\.helpers\[0\]\.reader \(of type list_iterator\) cannot be saved"):
        algorithm.training_state()


def test_state_of_an_earlier_version_is_loaded():
    """Its attributes were not distinguished by kind: that of an optimizer was its state_dict."""
    original, restored = make(), make()
    updates(original, range(3))
    attributes = {"optimizer": original.optimizer.state_dict(), "scheduler": original.scheduler.state_dict(), "t": 3}
    restored.load_training_state({"modules": original.state_dict(), "attributes": attributes})
    assert updates(restored, range(3, 6)) == updates(original, range(3, 6))


def test_job_with_all_state_resumes_exactly(tmp_path: Path):
    with ALGORITHMS.temporarily("Anything", type(make(*ACCEPTED))):
        configs = [
            JobConfig(
                "ColoredDigits", "Anything", (2,), hparams='{"batch_size": 4}', steps=STEPS, checkpoint_freq=4,
                eval="splits", save_every=1e-9, output_dir=str(tmp_path / name),
            )
            for name in ("whole", "stopped")
        ]  # fmt: skip
        train(configs[0])
        assert train_disturbed(configs[1], [stop_at(n) for n in (1, 5, 9)] + [crash_at(n) for n in (2, 4)]) == 5
    assert result(tmp_path / "whole") == result(tmp_path / "stopped")


def test_forged_state_cannot_name_what_a_module_imports():
    class Own(Algorithm):
        pass

    construction = Construction(Own((1, 2, 2), 2, 2, {}))
    assert construction.find(f"{__name__}:batch") is batch
    for name in (f"{__name__}:copy.deepcopy", "torch.nn.modules.module:functools.partial", "posix:system"):
        assert construction.find(name) is None
