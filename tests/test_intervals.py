"""Intervals of several seeds, pooled, hold the truth about all seeds; those of one seed do not."""
import numpy as np, pytest
from scipy import special

from artinsight import evaluation
from artinsight.beyond import by_generator, factored
from artinsight.data import STYLES, folder_name
from artinsight.evaluation import HEADLINES, Predictions, bootstrap, compare, headline_columns, headline_figures
from artinsight.trust.calibration import calibration, plot_calibration

FOLDER = [folder_name(style, generator) for generator in ('SD', 'human') for style in STYLES]


def trainings(seed, seeds, groups=400, recipe=0):
    """Several trainings of a recipe on one test set: hard groups are hard for all, a training is a bit better or worse,
    mostly by the luck of its seed, which all recipes share."""
    world = np.random.default_rng(seed)
    kind = world.integers(20, size=groups)
    code = np.repeat(np.arange(groups), np.where(kind < 10, 4, world.geometric(.2, groups)))
    ids = [f'test/{FOLDER[c]}/0-{g}-{n}.jpg' if c < 10 else f'test/{FOLDER[c]}/painter-{g}_{n}-1900.jpg'
           for n, (c, g) in enumerate(zip(kind[code], code))]
    shared, result = 1.2 * world.normal(size=(groups, 20))[code] + world.normal(size=(len(code), 20)), []
    for training in range(seeds):
        own, luck = np.random.default_rng([seed, training, recipe]), np.random.default_rng([seed, training])
        scores = shared + .9 * own.normal(size=(groups, 20))[code] + 1.1 * own.normal(size=(len(code), 20))
        scores[np.arange(len(code)), kind[code]] += 3.5 + .3 * luck.normal() + .1 * own.normal()
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


@pytest.mark.slow
def test_paired_seeds_hold_the_truth():
    "Two recipes that are equally good: 95 % of the intervals hold nothing, and pairs make them narrower."
    held, widths = 0, []
    for seed in range(200):
        one, other = trainings(seed, 3), trainings(seed, 3, recipe=1)
        paired, crossed = (compare(one, some, resamples=100) for some in (other, other[1:] + other[:1]))
        held += paired['low'] <= 0 <= paired['high']
        widths.append([found['high'] - found['low'] for found in (paired, crossed)])
    assert .91 <= held / 200, held
    narrow, wide = np.mean(widths, axis=0)
    assert narrow < .7 * wide, (narrow, wide)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('kinds, n', [([11], 1), ([1], 1), ([11], 8), ([1], 8), ([11, 12], 8)])
def test_one_sided_predictions_have_all_figures(kinds, n):
    "One class, one origin, one picture: every figure is there or None, and nothing divides by nothing"
    target = np.resize(kinds, n)
    folder = {1: 'AI_SD_baroque', 11: 'baroque', 12: 'expressionism'}
    names = {True: '1-2', False: 'somebody_title'}
    ids = [f'test/{folder[kind]}/{names[kind < 10]}-{place}.jpg' for place, kind in enumerate(target)]
    for probs in (np.eye(20)[target], np.eye(20)[(target + 10) % 20], np.full((n, 20), .05)):
        p = evaluation.Predictions(target, probs, ids)
        record = evaluation.evaluate(target, probs, ids)
        assert record['n'] == n and all(np.isfinite(value).all() for value in record.values())
        told = calibration(p, p)
        assert told['ece_after'] >= 0 and factored(p)['origin_auc'] is None
        plot_calibration(p, p.soften(2)), evaluation.plot_confusion(p)
        assert not evaluation.ladder({'simple_cnn': p, 'resnet18_base': p}).real.any()
        assert len(by_generator(p)) == 3
        evaluation.plt.close('all')
