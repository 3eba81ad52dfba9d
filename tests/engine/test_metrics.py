import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domainbed.engine.metrics import MetricLog, NonFiniteError


def test_mean_is_over_the_updates_that_returned_a_metric():
    log = MetricLog(step=3)
    log.add({"a": torch.tensor(1.0), "b": 4.0})
    log.add({"a": torch.tensor([2.0], requires_grad=True)})  # not detached, not 0-dim
    log.add({"c": torch.tensor(1, dtype=torch.int32), "b": torch.tensor(5.0)})
    assert log.mean() == {"a": 1.5, "b": 4.5, "c": 1.0}
    assert MetricLog(0).mean() == {}


def test_algorithm_may_overwrite_its_tensor():
    log, own = MetricLog(0), torch.tensor(0.0)
    for value in (1.0, 2.0, 6.0):
        log.add({"a": own.fill_(value)})
    assert log.mean() == {"a": 3.0}


def test_metric_may_be_tensor_and_float_in_turn():
    """And the mean is finite although the sum of the values is not."""
    log = MetricLog(0)
    log.add({"penalty": torch.tensor(0.0), "loss": 1e308})
    log.add({"penalty": 2.0, "loss": 1e308})
    assert log.mean() == {"penalty": 1.0, "loss": 1e308}


@pytest.mark.parametrize("sign", [1, -1])
def test_mean_of_the_largest_numbers_is_finite(sign: int):
    log, largest = MetricLog(0), sign * sys.float_info.max
    for _ in range(3):
        log.add({"penalty": largest})
    assert log.mean() == {"penalty": largest}


@pytest.mark.parametrize("value", [None, "a", torch.rand(2), [1.0]])
def test_metric_that_is_not_a_number_is_named(value):
    with pytest.raises(TypeError, match="metric 'spread' returned by update must be a single number"):
        MetricLog(0).add({"loss": 1.0, "spread": value})


@pytest.mark.parametrize("name", ["step", "env0_in_acc", "env12_out_acc", "env0_uda_acc", "env1_out_loss"])
def test_metric_that_records_have_already_is_named(name: str):
    with pytest.raises(ValueError, match=f"records have an entry called '{name}'"):
        MetricLog(0).add({name: 1.0})


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1e38, -3.5, math.nan, math.inf, -math.inf]), min_size=2, max_size=2)),
    st.integers(0, 100),
    st.booleans(),
)
def test_first_nonfinite_step_is_named_with_all_its_metrics(steps, start, as_tensor):
    log = MetricLog(start)
    for a, b in steps:
        log.add({"a": torch.tensor(a) if as_tensor else a, "b": b})
    bad = [(start + i, values) for i, values in enumerate(steps) if not all(map(math.isfinite, values))]
    if not bad:
        assert log.mean().keys() == ({"a", "b"} if steps else set())
        return
    with pytest.raises(NonFiniteError) as error:
        log.mean()
    step, values = bad[0]
    problems = " and ".join(f"{n} is {v}" for n, v in zip("ab", values, strict=True) if not math.isfinite(v))
    assert str(error.value).startswith(f"training diverged at step {step}: {problems};")


@given(st.lists(st.tuples(st.floats(), st.booleans()), max_size=8), st.integers(0, 8))
def test_resumed_log_equals_uninterrupted(values, when):
    """Metrics of updates before a stop count like those after it, finite or not."""
    uninterrupted, resumed = MetricLog(3), MetricLog(3)
    for n, (value, is_tensor) in enumerate(values):
        metrics = {"a": torch.tensor(value) if is_tensor else value} | ({"b": float(n)} if n % 2 else {})
        uninterrupted.add(metrics)
        if n == when:
            resumed = MetricLog(3 + n, resumed.to_python())
        resumed.add(metrics)
    outcomes = []
    for log in (uninterrupted, resumed, MetricLog(3 + len(values), resumed.to_python())):
        try:
            outcomes.append(log.mean())
        except NonFiniteError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_to_python_returns_floats():
    log = MetricLog(5)
    log.add({"a": torch.tensor(1.5), "b": 2.0})
    log.add({"a": torch.tensor([2.5])})
    assert log.to_python() == {"a": [(5, 1.5), (6, 2.5)], "b": [(5, 2.0)]}
    assert all(type(value) is float for values in log.to_python().values() for _, value in values)
    assert MetricLog(0).to_python() == {}
