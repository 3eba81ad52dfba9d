#!/usr/bin/env python3
"""Compare implementations of Fishr's penalty: matrix products ("ours"), BackPACK's SumGradSquared, and its BatchGrad.

Reported for each size: the median time of the penalty and its gradient with respect to features and classifier, and the
additional peak memory.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, SumGradSquared
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # also works if the package is not installed

import timing

from domainbed import cli
from domainbed.algorithms.fishr import squared_distances
from domainbed.gradients import flatten, gradient_factors, gradient_variance, split_factors
from domainbed.networks import Classifier

# features, classes, domains, samples per domain, nonlinear head
SIZES = {
    "ColoredMNIST": (128, 2, 2, 64, False),
    "ColoredMNIST, nonlinear head": (128, 2, 2, 64, True),
    "PACS": (2048, 7, 3, 32, False),
    "OfficeHome": (2048, 65, 3, 32, False),
    "DomainNet": (2048, 345, 5, 32, False),
    "DomainNet, nonlinear head": (2048, 345, 5, 32, True),
}


def with_matrix_products(head: nn.Module, z: torch.Tensor, y: torch.Tensor, domains: int) -> torch.Tensor:
    _, factors = gradient_factors(head, z, y)
    v = [gradient_variance(f) for f in split_factors(factors, [len(y) // domains] * domains)]
    return squared_distances(torch.stack(v)).mean()


def with_backpack(extension: type) -> Callable[[nn.Module, torch.Tensor, torch.Tensor, int], torch.Tensor]:
    def penalty(head: nn.Module, z: torch.Tensor, y: torch.Tensor, domains: int) -> torch.Tensor:
        loss, parameters, v = extend(nn.CrossEntropyLoss(reduction="sum")), list(head.parameters()), []
        for z_e, y_e in zip(z.chunk(domains), y.chunk(domains), strict=True):
            with backpack(extension()):
                value = loss(head(z_e), y_e)
                gradients = torch.autograd.grad(value, [z_e, *parameters], create_graph=True)[1:]
            if extension is BatchGrad:
                v.append(flatten(p.grad_batch.var(0, correction=0) for p in parameters))
            else:
                second = flatten(p.sum_grad_squared / len(y_e) for p in parameters)
                v.append(second - flatten(g / len(y_e) for g in gradients) ** 2)
            for p in parameters:
                del p.__dict__["grad_batch" if extension is BatchGrad else "sum_grad_squared"]
        return squared_distances(torch.stack(v)).mean()

    return penalty


IMPLEMENTATIONS = {
    "ours": with_matrix_products,
    "SumGradSquared": with_backpack(SumGradSquared),
    "BatchGrad": with_backpack(BatchGrad),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="scripts/benchmark fishr", description=__doc__)
    sizes = list(SIZES)
    names = ", ".join(map(repr, sizes))
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=sizes, metavar="NAME", help=f"any of {names}")
    timing.add_options(parser, repeats=20)
    args = parser.parse_args(argv)
    report = timing.Report(args)
    device = timing.device().type
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {name}\n{'':32}" + "".join(f"{side:>26}" for side in IMPLEMENTATIONS))
    for size in args.sizes:
        d, classes, domains, n, nonlinear = SIZES[size]
        samples, peaks = {}, {}
        for side, penalty in IMPLEMENTATIONS.items():
            torch.manual_seed(0)
            head = Classifier(d, classes, nonlinear).to(device)
            if penalty is not with_matrix_products:
                head = extend(head)
            features = torch.rand(n * domains, d, device=device).requires_grad_()
            y = torch.randint(classes, (n * domains,), device=device)

            def once(penalty=penalty, head=head, features=features, y=y, domains=domains) -> None:
                z = features * 1.0
                torch.autograd.grad(penalty(head, z, y, domains), [features, *head.parameters()])

            samples[side], peaks[side] = times(once, args.repeats), timing.peak_memory(once)
        report.record(size, "s", samples, peak_bytes=peaks)
        cells = [
            f"{1000 * statistics.median(samples[side]):9.2f} ms {peaks[side] / 1e6:9.1f} MB" for side in IMPLEMENTATIONS
        ]
        print(f"{size:32}" + "".join(f"{cell:>26}" for cell in cells), flush=True)
    return report.finish()


def times(once, repeats: int) -> list[float]:
    for _ in range(3):  # warm-up
        once()
    return [timing.seconds(once) for _ in range(repeats)]


if __name__ == "__main__":
    cli.run(main)
