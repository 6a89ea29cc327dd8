"""A filter of cosmic-ray that keeps a random sample of a session's mutants and skips the others.

python tests/mutation/sample.py SESSION [--mutants=12] [--seed=0]
"""

import random
import sys

from cosmic_ray.tools.filters.filter_app import FilterApp
from cosmic_ray.work_item import WorkerOutcome, WorkResult


class SampleFilter(FilterApp):
    """Keeps at most one mutant of each place in the source: some operators yield a dozen per place."""

    def description(self):
        return __doc__

    def add_args(self, parser):
        parser.add_argument("--mutants", type=int, default=12, help="How many mutants to keep.")
        parser.add_argument("--seed", type=int, default=0, help="Seed of the draw.")

    def filter(self, work_db, args):
        mutations = {item.job_id: item.mutations[0] for item in work_db.pending_work_items}
        ids = sorted(mutations, key=lambda id: (str((m := mutations[id]).module_path), m.operator_name, m.occurrence))
        rng = random.Random(args.seed)
        rng.shuffle(ids)
        one_per_place = {(str(mutations[id].module_path), mutations[id].start_pos): id for id in ids}
        places = rng.sample(sorted(one_per_place), min(args.mutants, len(one_per_place)))
        kept = {one_per_place[place] for place in places}
        skipped = WorkResult(worker_outcome=WorkerOutcome.SKIPPED, output="Not in the sample")
        work_db.set_multiple_results(set(ids) - kept, skipped)


if __name__ == "__main__":
    sys.exit(SampleFilter().main())
