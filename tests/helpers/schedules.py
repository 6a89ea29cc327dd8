"""A pruning schedule, and a `fit` without output."""


class Every:
    """A schedule like those of tfmot: prunes every `frequency` steps from `begin` to `end`, linearly up to `final`."""

    def __init__(self, final=0.5, begin=0, end=10, frequency=2):
        self.final, self.begin, self.end_step, self.frequency = final, begin, end, frequency

    def __call__(self, step):
        prune = self.begin <= step <= self.end_step and (step - self.begin) % self.frequency == 0
        return prune, self.final * min(1.0, max(0.0, (step - self.begin) / (self.end_step - self.begin)))


def fit(model, data, *callbacks, epochs=3, **options):
    return model.fit(*data, epochs=epochs, batch_size=6, verbose=0, shuffle=False, callbacks=list(callbacks), **options)
