"""Kinds of state that users' algorithms keep. Each is a class whose `step` changes its state and returns a number.

A kind's `setup` runs in the constructor of the algorithm, its `step` in each update, before the optimizer's step.
"""

import collections
import copy
import dataclasses
import enum
import functools
import itertools
import random
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.hparams_registry import default_hparams

LATE = 3  # the update that changes what changes only once


class Stage(enum.Enum):
    EARLY = 1
    LATE = 2


@dataclasses.dataclass
class Sample:
    value: torch.Tensor
    count: int = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    scale: float
    history: tuple = ()


class Pair(NamedTuple):
    a: torch.Tensor
    b: int


class Slotted:
    __slots__ = ("__value", "other")

    def __init__(self):
        self.__value = 1.0

    def grow(self):
        self.__value *= 1.1
        self.other = self.__value
        return self.other


class MovingAverage:
    """As DomainBed's."""

    def __init__(self, ema, oneminusema_correction=True):
        self.ema = ema
        self.ema_data = {}
        self._updates = 0
        self._oneminusema_correction = oneminusema_correction

    def update(self, dict_data):
        result = {}
        for name, data in dict_data.items():
            data = data.view(1, -1)
            previous = torch.zeros_like(data) if self._updates == 0 else self.ema_data[name]
            ema_data = self.ema * previous + (1 - self.ema) * data
            result[name] = ema_data / (1 - self.ema) if self._oneminusema_correction else ema_data
            self.ema_data[name] = ema_data.clone().detach()
        self._updates += 1
        return result


class KernelDensity(nn.Module):
    def __init__(self, train_xs):
        super().__init__()
        self.train_Xs = train_xs
        self.h = 0.9 * float(train_xs.detach().std()) + 0.1


class Nonparametric:
    """As DomainBed's: the first call makes a module."""

    def __init__(self):
        self.data = self.kernel = None

    def estimate_parameters(self, x):
        self.data, _ = torch.sort(x)
        self.kernel = KernelDensity(self.data)


class SAM(torch.optim.Optimizer):
    """An optimizer around another, whose state its state_dict lacks."""

    def __init__(self, params, base, **kwargs):
        super().__init__(params, kwargs)
        self.base_optimizer = base(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure=None):
        self.base_optimizer.step()


class Tracked(dict):
    """A dict with an attribute."""

    changes = 0


class Smooth:
    """A callable with a tensor."""

    def __init__(self):
        self.mean = torch.zeros(3)

    def __call__(self, x):
        self.mean = 0.9 * self.mean + x
        return float(self.mean.sum())


class SmoothWithStateDict(Smooth):
    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


class Scaled(nn.Module):
    """A layer that counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.seen = collections.deque(maxlen=2)
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.register_buffer("missing", None)

    def forward(self, x):
        self.calls += 1
        self.seen.append(self.calls)
        self.hidden = self.hidden + 1
        self.missing = self.hidden.double() / 3
        return x * (1 + 0.01 * sum(self.seen)) + self.missing.sum().float()


def one(x):
    return 1.0


def half(x):
    return 0.5


def make_counter():
    n, seen = 0, []

    def count():
        nonlocal n
        n += 1
        seen.append(n)
        return n / (1 + len(seen))

    return count


class Kind:
    is_rejected = False  # whether training must end with a UsageError

    def setup(self, a): ...

    def step(self, a, t):
        return 0.0


class Containers(Kind):
    def setup(self, a):
        a.list, a.deque, a.set, a.frozen_set = [], collections.deque(maxlen=3), {1}, frozenset()
        a.counter, a.lists = collections.Counter(), collections.defaultdict(list)
        a.ordered = collections.OrderedDict(x=1.0, y=2.0)
        a.bytes, a.bytearray, a.path, a.complex = b"\xff", bytearray(b"x"), Path("a"), 1j
        a.by_key = {Stage.EARLY: 1.0, ("x", 1): 2.0, 3: {}, frozenset({1}): None}
        a.tracked = Tracked(x=1)

    def step(self, a, t):
        a.list.append([t, {"x": (t, None)}])
        a.deque.append(float(t))
        a.set |= {t, f"x{t}"}
        a.frozen_set |= {t % 3}
        a.counter[t % 2] += 1
        a.lists[t % 3].append(torch.tensor(float(t)))
        a.ordered.move_to_end("x" if t % 2 else "y")
        a.bytes += bytes([t])
        a.bytearray[0] = t
        a.path /= "b"
        a.complex *= 1j
        a.by_key[Stage.EARLY] += 1
        a.by_key[3][t] = a.by_key
        a.tracked.changes += 1
        a.tracked[t] = t
        numbers = [len(a.list), sum(a.deque), len(a.set), len(a.frozen_set), a.counter[0], float(sum(a.lists[0], 0.0))]
        numbers += [next(iter(a.ordered.values())), len(a.bytes), a.bytearray[0], len(a.path.parts), a.complex.real]
        return sum(numbers) + a.by_key[Stage.EARLY] + a.tracked.changes + len(a.by_key[3])


class Arrays(Kind):
    def setup(self, a):
        a.array, a.single, a.empty = np.ones(3), np.float32(0.1), np.zeros((0, 2))
        a.fortran, a.flags = np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array([True, False])
        a.same_array = a.array

    def step(self, a, t):
        a.array *= 1.01
        a.single = a.single * np.float32(1.1)
        a.fortran = a.fortran * 1.1
        a.flags = ~a.flags
        return float(a.array.sum() + a.same_array.sum() + a.single + a.fortran.sum() + a.flags[0])


class Generators(Kind):
    def setup(self, a):
        a.torch_rng = torch.Generator().manual_seed(1)
        a.numpy_rng, a.old_rng, a.python_rng = np.random.default_rng(1), np.random.RandomState(1), random.Random(1)
        a.draw = a.numpy_rng.normal

    def step(self, a, t):
        draws = [float(torch.rand(1, generator=a.torch_rng)), a.numpy_rng.integers(5), a.old_rng.randn()]
        return sum(draws) + a.python_rng.gauss(0, 1) + a.draw() + a.numpy_rng.random(dtype=np.float32)


class Objects(Kind):
    def setup(self, a):
        a.averages = [MovingAverage(0.9) for _ in range(2)]
        a.density, a.smooth, a.stated, a.slotted = Nonparametric(), Smooth(), SmoothWithStateDict(), Slotted()
        a.sample, a.samples, a.frozen_data = Sample(torch.zeros(2)), [], Frozen(1.0)
        a.pair, a.stage, a.dtype, a.device = Pair(torch.zeros(1), 0), Stage.EARLY, torch.float32, torch.device("cpu")

    def step(self, a, t):
        ema = sum(average.update({"w": a.linear.weight.detach()})["w"].sum() for average in a.averages)
        previous = 0.0 if a.density.kernel is None else a.density.kernel.h + a.density.kernel.train_Xs.sum().item()
        a.density.estimate_parameters(a.linear.weight[0, :3])
        a.samples.append(Sample(torch.full((2,), float(t)), t))
        a.sample.count += 1
        a.sample.value = a.samples[-1].value
        a.sample.value += 1
        a.frozen_data = Frozen(a.frozen_data.scale * 1.1, (*a.frozen_data.history, t))
        a.pair = Pair(a.pair.a + 1, a.pair.b + 1)
        a.stage, a.dtype = (Stage.LATE, torch.float64) if t >= LATE else (a.stage, a.dtype)
        numbers = [ema, previous, a.smooth(torch.ones(3)), a.stated(torch.ones(3)), a.slotted.grow(), a.sample.count]
        numbers += [a.frozen_data.scale, a.pair.a.sum(), a.pair.b, a.stage is Stage.LATE, a.dtype == torch.float64]
        return float(sum(numbers) + a.samples[-1].value.sum() + len(a.samples))


class Functions(Kind):
    def setup(self, a):
        a.weighting, a.count, a.current = one, make_counter(), a.first
        a.partial = functools.partial(pow, *[2.0])
        a.collected = functools.partial(list.append, [])
        a.squared = torch.square
        a.closure = lambda: a.first() + 1

    def step(self, a, t):
        a.weighting = half if t >= LATE else one
        a.current = a.second if t >= LATE else a.first
        a.collected(t)
        return a.weighting(0) + a.count() + a.current() + len(a.collected.args[0]) + a.partial(2) + a.closure()


class Hyperparameters(Kind):
    def step(self, a, t):
        a.hparams["lr"] *= 0.9
        a.hparams["new"] = [t]
        return a.hparams["lr"] + a.hparams["new"][0]


class Freezes(Kind):
    def step(self, a, t):
        a.linear.bias.requires_grad_(t < LATE)
        a.dropout.p = 0.5 / (1 + t)
        a.dropout.eval() if t == LATE else a.dropout.train()
        return float(a.dropout.training)


class ModuleState(Kind):
    def setup(self, a):
        a.scaled = Scaled()

    def step(self, a, t):
        return float(a.scaled(torch.ones(1)))


class LateBuffer(Kind):
    def step(self, a, t):
        if t == LATE:
            a.register_buffer("late", torch.ones(2))
            a.register_buffer("late_hidden", torch.ones(2), persistent=False)
        if t >= LATE:
            a.late = a.late * 1.1
            a.late_hidden += 1
            return float(a.late.sum() + a.late_hidden.sum())
        return 0.0


class ResizedBuffer(Kind):
    def setup(self, a):
        a.register_buffer("q", torch.Tensor())

    def step(self, a, t):
        a.q = torch.cat([a.q.double(), torch.ones(1) / 3])
        return float(a.q.sum())


class ExchangesOptimizer(Kind):
    def step(self, a, t):
        if t == LATE:
            a.optimizer = a.exchanged = torch.optim.Adam([a.linear.weight], lr=0.02, betas=(0.8, 0.9))
            a.scheduler = torch.optim.lr_scheduler.ExponentialLR(a.optimizer, 0.9)
        if t == LATE + 2:
            a.exchanged.add_param_group({"params": [a.linear.bias], "lr": 0.03})
            a.exchanged.defaults["lr"] = 0.5
        return 0.0


class ResetsOptimizer(Kind):
    """As IRM of DomainBed. The scheduler remains that of the old one."""

    def step(self, a, t):
        if t == LATE:
            a.optimizer = torch.optim.SGD(a.parameters(), lr=0.02, momentum=0.5)
        return 0.0


class Schedulers(Kind):
    def setup(self, a):
        other = torch.optim.lr_scheduler.CosineAnnealingLR(a.optimizer, 5)
        a.schedulers = [torch.optim.lr_scheduler.MultiStepLR(a.optimizer, [2, 4]), other]

    def step(self, a, t):
        a.optimizer.step()
        for scheduler in a.schedulers:
            scheduler.step()
        return a.optimizer.param_groups[0]["lr"]


class WrapsOptimizer(Kind):
    def setup(self, a):
        a.sam = SAM(a.linear.parameters(), torch.optim.Adam, lr=0.01)

    def step(self, a, t):
        a.sam.step()
        a.sam.param_groups[0]["lr"] *= 0.9
        assert a.sam.param_groups is a.sam.base_optimizer.param_groups
        return a.sam.base_optimizer.param_groups[0]["lr"]


class Temperature(Kind):
    """A trained tensor that is not a parameter, and one that is, but in no module."""

    def setup(self, a):
        a.log_alpha = torch.zeros(1, requires_grad=True)
        a.others = [nn.Parameter(torch.ones(2))]
        a.alpha_optimizer = torch.optim.Adam([a.log_alpha, *a.others], lr=0.1)
        a.alpha = lambda: a.log_alpha.exp()

    def step(self, a, t):
        a.alpha_optimizer.zero_grad()
        ((a.alpha() - 3).square().sum() + a.others[0].square().sum()).backward()
        a.alpha_optimizer.step()
        return a.log_alpha.item() + a.others[0].sum().item()


class AccumulatesGradients(Kind):
    def setup(self, a):
        a.extra = nn.Linear(2, 1)
        a.extra_optimizer = torch.optim.SGD(a.extra.parameters(), lr=0.1)

    def step(self, a, t):
        a.extra(torch.full((1, 2), float(t))).sum().backward()
        if t % 3 == 2:
            a.extra_optimizer.step()
            a.extra_optimizer.zero_grad()
        return a.extra.weight.sum().item()


class Shared(Kind):
    def setup(self, a):
        a.base = torch.zeros(4)
        a.part, a.twin, a.weight_data = a.base[1:3], a.base, a.linear.weight.data[0]
        a.queue = []
        a.helper = Sample(a.base)
        a.helper.queue, a.helper.owner, a.helper.network = a.queue, a, a.linear
        a.helper.own = copy.deepcopy(a.linear)
        a.cycle = [a.helper]
        a.cycle.append(a.cycle)
        a.group = a.optimizer.param_groups[0]
        a.parameters_list = list(a.linear.parameters())

    def step(self, a, t):
        a.base += 1
        a.part[0] += 0.5
        a.queue.append(t)
        a.weight_data *= 0.99
        with torch.no_grad():
            for p, q in zip(a.helper.own.parameters(), a.helper.network.parameters(), strict=True):
                p.lerp_(q, 0.1)
        a.group["lr"] *= 0.95
        assert a.helper.owner is a
        assert a.cycle[1] is a.cycle
        assert a.cycle[0].queue is a.queue
        numbers = [a.twin.sum(), a.part.sum(), len(a.helper.queue), a.helper.value.sum(), a.helper.own.weight.sum()]
        return float(sum(numbers) + a.parameters_list[0].sum())


class Diverges(Kind):
    """Objects that are shared after the constructor become distinct, and the reverse."""

    def setup(self, a):
        a.first_list = a.second_list = []
        a.third_list = []
        a.adam = a.other_adam = torch.optim.Adam(a.linear.parameters(), lr=0.01)
        a.temporary = 1

    def step(self, a, t):
        if t == LATE:
            a.second_list, a.third_list = [5], a.first_list
            a.other_adam = torch.optim.Adam(a.linear.parameters(), lr=0.02)
            del a.temporary
        a.first_list.append(t)
        a.second_list.append(t)
        a.adam.step()
        a.other_adam.step()
        return len(a.first_list) + 10 * len(a.second_list) + 100 * len(a.third_list) + hasattr(a, "temporary")


class Rejected(Kind):
    is_rejected = True


class LateModule(Rejected):
    def step(self, a, t):
        if t == LATE:
            a.head = nn.Linear(1, 1)
        return 0.0


class OtherShape(Rejected):
    def step(self, a, t):
        if t == LATE:
            a.unused = nn.Linear(3, 1)
        return 0.0

    def setup(self, a):
        a.unused = nn.Linear(2, 1)


class Untied(Rejected):
    def setup(self, a):
        a.sequence = nn.Sequential(a.linear)

    def step(self, a, t):
        if t == LATE:
            a.sequence[0] = copy.deepcopy(a.linear)
        return 0.0


class ChangesClass(Rejected):
    def step(self, a, t):
        type(a).class_counter.append(t)
        return 0.0


class LateLambda(Rejected):
    def step(self, a, t):
        a.late_function = lambda: t
        return 0.0


class LateLocalClass(Rejected):
    def step(self, a, t):
        class Local:
            pass

        a.local = Local()
        return 0.0


class LateSchedulerWithFunction(Rejected):
    def step(self, a, t):
        a.late_scheduler = torch.optim.lr_scheduler.LambdaLR(a.optimizer, lambda s: 1 / (1 + s))
        return 0.0


class Iterates(Rejected):
    def setup(self, a):
        a.cycle_of_domains = itertools.cycle([1, 2, 3])

    def step(self, a, t):
        return next(a.cycle_of_domains)


class Locks(Rejected):
    def setup(self, a):
        a.helper_with_lock = Sample(torch.zeros(1))
        a.helper_with_lock.lock = threading.Lock()


class DeeplyNested(Rejected):
    def step(self, a, t):
        a.nested = functools.reduce(lambda inner, _: [inner], range(3000), [])
        return 0.0


class OverlappingArrays(Rejected):
    def setup(self, a):
        a.whole = np.zeros(3)
        a.piece = a.whole[1:]


class ArrayOfTensor(Rejected):
    def setup(self, a):
        a.some_tensor = torch.zeros(3)
        a.some_array = a.some_tensor.numpy()


def all_subclasses(cls):
    return [cls, *itertools.chain.from_iterable(map(all_subclasses, cls.__subclasses__()))]


KINDS: list[type[Kind]] = [kind for kind in all_subclasses(Kind) if kind not in (Kind, Rejected)]
ACCEPTED = [kind for kind in KINDS if not kind.is_rejected]
REJECTED = [kind for kind in KINDS if kind.is_rejected]


class Anything(Algorithm):
    """A linear classifier that keeps state of the given kinds. Its loss depends on all of it."""

    kinds: tuple[Any, ...] = ()
    class_counter: list[int] = []

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.linear = nn.Linear(int(np.prod(input_shape)), num_classes)
        self.dropout = nn.Dropout(0.5)
        self.network = nn.Sequential(nn.Flatten(), self.dropout, self.linear)
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.linear.parameters(), lr=0.01)
        self.scheduler: Any = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.7)
        self.t = 0
        for kind in self.kinds:
            kind.setup(self)

    def first(self):
        return 1.0

    def second(self):
        return 2.0

    def update(self, minibatches, unlabeled=None):
        x, y = concatenate(minibatches)
        number = sum(kind.step(self, self.t) for kind in self.kinds)
        loss = (1 + abs(number % 1)) * F.cross_entropy(self.network(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.t += 1
        return {"loss": loss.item(), "number": number}

    def predict(self, x):
        return self.network(x)


def make(*kinds: type[Kind]) -> Algorithm:
    """Return an algorithm of a new class that keeps state of these kinds, for images [1, 2, 3] and three classes."""
    cls = type("Anything", (Anything,), {"kinds": tuple(kind() for kind in kinds), "class_counter": []})
    torch.manual_seed(0)
    return cls((1, 2, 3), 3, 2, default_hparams("ERM", "ColoredDigits"))
