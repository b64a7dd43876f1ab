"Stated rates of false alarms on the predictions of trained runs, and on runs that lack them."
import json

import numpy as np
import pandas as pd
import pytest

from artinsight.data import CLASSES
from artinsight.evaluation import Predictions, load
from artinsight.study import EXPERIMENTS
from artinsight.trust.alarms import alarm, alarm_table, by_style, realised
from artinsight.trust.calibration import fit_temperature
from artinsight.use.card import card
from artinsight.use.export import to_hub
from artinsight.use.predict import load_run
from scripts import call


def soft(run):
    "Validation and test as the run answers."
    validation = load(run, 'validation')
    temperature = fit_temperature(validation)
    return validation.soften(temperature), load(run).soften(temperature)


def test_trained_runs_keep_what_they_state(runs):
    "Fifteen statements of 95 %, three each of five runs on the same pictures: one or two may fail."
    tables = {name: alarm_table(*soft(runs/name)) for name in EXPERIMENTS}
    missed = [(name, row.wanted) for name, table in tables.items() for row in table.itertuples() if not row.test_within]
    assert len(missed) <= 2, missed
    for table in tables.values():
        assert (table.rate <= table.wanted).eq(table.enough).all()
        assert table.caught.is_monotonic_decreasing and table.limit.is_monotonic_increasing


def test_styles_add_up_to_the_whole(runs):
    validation, test = soft(runs/'simple_cnn')
    stated = alarm(validation, .05)
    styles = by_style(test, stated['limit'])
    alarms = (styles['false alarms'] * styles.pictures).sum()
    assert alarms == pytest.approx(realised(test, stated)['rate'] * realised(test, stated)['pictures'])
    assert (styles.low <= styles['false alarms']).all() and (styles['false alarms'] <= styles.high).all()


def scores(human, ai=(), groups=None):
    "Predictions with these probabilities of AI."
    probs = np.zeros((len(human) + len(ai), 20))
    probs[:, CLASSES.index('AI_realism')] = sure = np.concatenate([human, ai])
    probs[:, CLASSES.index('human_realism')] = 1 - sure
    p = Predictions([CLASSES.index('human_realism')]*len(human) + [CLASSES.index('AI_realism')]*len(ai), probs)
    p.table = None if groups is None else pd.DataFrame({'group': groups})
    return p


@pytest.mark.parametrize('human', [[1.]*50, [0.]*50, [.5]*25 + [1.]*25, [.3]])
def test_equal_scores_never_raise_a_rate(human):
    "Where many pictures have the highest score, nothing lies above it"
    for rate in (.9, .05, .001):
        stated = alarm(scores(human, [1., .2]), rate)
        assert (np.array(human) > stated['limit']).mean() <= stated['rate']
        assert 0 <= stated['low'] <= stated['high'] <= 1


def test_one_artist_stands_for_one_picture():
    "A hundred pictures, ten artists: where an artist's pictures are all alike, they are worth ten"
    each = np.random.default_rng(0).random(10).repeat(10)
    crowd = alarm(scores(each, groups=np.arange(10).repeat(10)), .1)
    alone = alarm(scores(each, groups=np.arange(100)), .1)
    assert crowd['worth'] < 15 < 90 < alone['worth'] and crowd['high'] > alone['high']


def test_a_run_without_predictions_keeps_the_rates_it_was_copied_with(runs, tmp_path):
    run = load_run(runs/'simple_cnn')
    to_hub(run, tmp_path/'hub')
    hub = load_run(tmp_path/'hub')
    assert hub.alarms() == run.alarms() and hub.alarm(.01) == run.alarm(.01)
    with pytest.raises(ValueError, match='rates known are 0.05, 0.01'): hub.alarm(.02)
    assert 'human pictures called AI' in card(hub)
    record = json.loads((tmp_path/'hub/record.json').read_text())
    for kept in (run.alarms()[:1], []):
        (tmp_path/'hub/record.json').write_text(json.dumps({**record, 'false_alarms': kept}))
        assert load_run(tmp_path/'hub').alarms() == kept
    assert 'False alarms, from' not in card(load_run(tmp_path/'hub'))


def test_predict_says_what_is_called_ai(runs, sample):
    pictures = sorted((sample/'test').glob('*/*.jpg'))[::40]
    done = call('artinsight_predict', runs/'simple_cnn', *pictures, '--false_alarms', '.05', '--steady', '--json')
    assert done.returncode == 0, done.stderr
    limit, rows = load_run(runs/'simple_cnn').alarm(.05)['limit'], json.loads(done.stdout)
    assert [row['called_AI'] for row in rows] == [row['AI'] > limit for row in rows]
    assert all(row['unsure'] or row['steady'] for row in rows)
    assert 'validation pictures' in done.stderr
    done = call('artinsight_predict', runs/'simple_cnn', pictures[0], '--false_alarms', '1')
    assert done.returncode == 2 and done.stderr.count('\n') == 1


def test_a_run_that_knows_no_origin_states_no_rate(runs, tmp_path):
    run = load_run(runs/'simple_cnn')
    run.classes = ('cat', 'dog')
    assert run.alarms() == []
    with pytest.raises(ValueError, match='does not tell human from AI'): run.alarm(.01)


def test_predict_keeps_its_columns(runs, sample):
    pictures = sorted((sample/'test').glob('*/*.jpg'))[:2]
    run = load_run(runs/'simple_cnn')
    plain = run.predict(pictures)
    more = run.predict([*pictures, 'missing.png'], steady=True, false_alarms=.01)
    assert list(plain) == [name for name in more if name not in ('steady', 'spread', 'because', 'called_AI')]
    assert more.problem.iloc[2] and list(more.columns)[-1] == 'problem'
