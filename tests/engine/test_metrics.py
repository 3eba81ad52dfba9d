import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domainbed.engine.metrics import MetricLog, NonFiniteError


def test_means_are_over_the_updates_that_told_a_figure():
    told = MetricLog(start=3)
    told.add({"a": torch.tensor(1.0), "b": 4.0})
    told.add({"a": torch.tensor([2.0], requires_grad=True)})  # some forget to detach, or to reduce
    told.add({"c": torch.tensor(1, dtype=torch.int32), "b": torch.tensor(5.0)})
    assert told.read() == {"a": 1.5, "b": 4.5, "c": 1.0}
    assert MetricLog(0).read() == {}


def test_an_algorithm_may_write_into_its_own_tensor_again():
    told, own = MetricLog(0), torch.tensor(0.0)
    for value in (1.0, 2.0, 6.0):
        told.add({"a": own.fill_(value)})
    assert told.read() == {"a": 3.0}


def test_a_figure_may_lie_here_and_there():
    """A penalty that is torch.tensor(0.0) until it begins lies on the host, then on the device."""
    told = MetricLog(0)
    told.add({"penalty": torch.tensor(0.0), "loss": 1e308})
    told.add({"penalty": 2.0, "loss": 1e308})
    assert told.read() == {"penalty": 1.0, "loss": 1e308}  # whose sum is no finite number


@pytest.mark.parametrize("value", [None, "a", torch.rand(2), [1.0]])
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match="update's figure 'spread' must be one number"):
        MetricLog(0).add({"loss": 1.0, "spread": value})


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1e38, -3.5, math.nan, math.inf, -math.inf]), min_size=2, max_size=2)),
    st.integers(0, 100),
    st.booleans(),
)
def test_the_first_step_that_is_not_finite_is_named_with_all_its_terms(steps, start, as_tensor):
    told = MetricLog(start)
    for a, b in steps:
        told.add({"a": torch.tensor(a) if as_tensor else a, "b": b})
    bad = [(start + i, values) for i, values in enumerate(steps) if not all(map(math.isfinite, values))]
    if not bad:
        assert told.read().keys() == ({"a", "b"} if steps else set())
        return
    with pytest.raises(NonFiniteError) as error:
        told.read()
    step, values = bad[0]
    terms = " and ".join(f"{n} is {v}" for n, v in zip("ab", values, strict=True) if not math.isfinite(v))
    assert str(error.value).startswith(f"at step {step} {terms};")


@given(st.lists(st.tuples(st.floats(), st.booleans()), max_size=8), st.integers(0, 8))
def test_figures_can_be_put_down_and_taken_up_again(values, when):
    """What was told before a stop counts like what is told after it, not finite or not."""
    whole, first = MetricLog(3), MetricLog(3)
    for n, (value, is_tensor) in enumerate(values):
        told = {"a": torch.tensor(value) if is_tensor else value} | ({"b": float(n)} if n % 2 else {})
        whole.add(told)
        if n == when:
            first = MetricLog(3 + n, first.numbers())
        first.add(told)
    outcomes = []
    for figures in (whole, first, MetricLog(3 + len(values), first.numbers())):
        try:
            outcomes.append(figures.read())
        except NonFiniteError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_numbers_are_pythons_own():
    told = MetricLog(5)
    told.add({"a": torch.tensor(1.5), "b": 2.0})
    told.add({"a": torch.tensor([2.5])})
    assert told.numbers() == {"a": [(5, 1.5), (6, 2.5)], "b": [(5, 2.0)]}
    assert all(type(value) is float for values in told.numbers().values() for _, value in values)
    assert MetricLog(0).numbers() == {}
