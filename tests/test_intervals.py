"""Intervals of several seeds, pooled, hold the truth about all seeds; those of one seed do not."""
import numpy as np, pytest
from scipy import special

from artinsight.data import STYLES, folder_name
from artinsight.evaluation import HEADLINES, Predictions, bootstrap, headline_columns, headline_figures

FOLDER = [folder_name(style, generator) for generator in ('SD', 'human') for style in STYLES]


def trainings(seed, seeds, groups=400):
    "What several trainings of one recipe say of one test set: hard groups are hard for all, and each training is a little better or worse as a whole."
    world = np.random.default_rng(seed)
    kind = world.integers(20, size=groups)
    code = np.repeat(np.arange(groups), np.where(kind < 10, 4, world.geometric(.2, groups)))
    ids = [f'test/{FOLDER[c]}/0-{g}-{n}.jpg' if c < 10 else f'test/{FOLDER[c]}/painter-{g}_{n}-1900.jpg' for n, (c, g) in enumerate(zip(kind[code], code))]
    shared, result = 1.2 * world.normal(size=(groups, 20))[code] + world.normal(size=(len(code), 20)), []
    for training in range(seeds):
        own = np.random.default_rng([seed, training])
        scores = shared + .9 * own.normal(size=(groups, 20))[code] + 1.1 * own.normal(size=(len(code), 20))
        scores[np.arange(len(code)), kind[code]] += 3.5 + .3 * own.normal()
        result.append(Predictions(kind[code], special.softmax(scores, axis=1), ids))
    return result


@pytest.mark.slow
def test_pooled_seeds_hold_the_truth():
    sums = [np.asarray(headline_columns(trainings(seed, 1)[0]).sum(0)) for seed in range(10_000, 10_400)]
    truth, held = headline_figures(sum(sums)[None])[0], {'pooled': 0, 'one': 0}
    for seed in range(200):
        runs = trainings(seed, 3)
        for name, some in (('pooled', runs), ('one', runs[:1])):
            found = bootstrap(some, resamples=100)
            held[name] = held[name] + ((found.low <= truth) & (truth <= found.high))
    pooled, one = (held[name][HEADLINES] / 200 for name in ('pooled', 'one'))
    assert pooled.min() >= .91, pooled  # 200 sets: chance alone moves a share by up to 4 points
    assert one.max() < .85, one
