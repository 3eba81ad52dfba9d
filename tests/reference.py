"""A slow reference implementation of model selection and tables, on lists of records, written from the paper."""

import math


def runs_of(records, **args):
    """Return the records with these arguments."""
    return [r for r in records if all(r["args"][name] == value for name, value in args.items())]


def mean(values):
    return sum(values) / len(values)


def training_domain(records, test_env, n, **run):
    """Return (val_acc, test_acc, step) of the selected record of a run, or None."""
    best = None
    for r in sorted(runs_of(records, test_envs=[test_env], **run), key=lambda r: r["step"]):
        val = mean([r[f"env{i}_out_acc"] for i in range(n) if i != test_env])
        if best is None or val > best[0]:
            best = (val, r[f"env{test_env}_in_acc"], r["step"])
    return best


def leave_one_domain_out(records, test_env, n, **run):
    best = None
    for r in sorted(runs_of(records, test_envs=[test_env], **run), key=lambda r: r["step"]):
        accuracies = []
        for v in range(n):
            for pair in runs_of(records, test_envs=sorted([test_env, v]), **run) if v != test_env else []:
                if pair["step"] == r["step"]:
                    accuracies.append(pair[f"env{v}_in_acc"])
        if len(accuracies) == n - 1:
            val = mean(accuracies)
            if best is None or val > best[0]:
                best = (val, r[f"env{test_env}_in_acc"], r["step"])
    return best


def test_domain(records, test_env, n, **run):
    matches = runs_of(records, test_envs=[test_env], **run)
    if not matches:
        return None
    last = max(matches, key=lambda r: r["step"])
    return last[f"env{test_env}_out_acc"], last[f"env{test_env}_in_acc"], last["step"]


test_domain.__test__ = False  # keep pytest from collecting it
METHODS = {
    "training-domain": training_domain,
    "leave-one-domain-out": leave_one_domain_out,
    "test-domain": test_domain,
}


def trial_accuracy(method, records, dataset, algorithm, test_env, n, trial_seed):
    """Return (test_acc, hparams_seed) of the best hyperparameters of a trial, or None."""
    best = None
    for hparams_seed in sorted({r["args"]["hparams_seed"] for r in records}):
        run = {"dataset": dataset, "algorithm": algorithm, "trial_seed": trial_seed, "hparams_seed": hparams_seed}
        selected = METHODS[method](records, test_env, n, **run)
        if selected is not None and (best is None or selected[0] >= best[0]):
            best = (*selected, hparams_seed)
    return None if best is None else (best[1], best[3])


def cell(accuracies):
    """Return mean and standard error in percent, or None."""
    if not accuracies:
        return None
    m = mean(accuracies)
    deviation = math.sqrt(mean([(a - m) ** 2 for a in accuracies]))
    return 100 * m, 100 * deviation / math.sqrt(len(accuracies))


def dataset_table(method, records, dataset, algorithm, n):
    """Return the row of an algorithm: {environment index or "Avg": cell}."""
    trials = sorted({r["args"]["trial_seed"] for r in records})
    per_trial = {
        t: [trial_accuracy(method, records, dataset, algorithm, env, n, t) for env in range(n)] for t in trials
    }
    row = {env: cell([a[env][0] for a in per_trial.values() if a[env] is not None]) for env in range(n)}
    complete = [mean([a[0] for a in accuracies]) for accuracies in per_trial.values() if None not in accuracies]
    row["Avg"] = cell(complete)
    return row
