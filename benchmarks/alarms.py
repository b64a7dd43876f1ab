"""Is a stated rate of false alarms kept on other pictures? Three seeds of a quick simple CNN, on each data set.

    python benchmarks/alarms.py DIR...     # writes benchmarks/results/<date>-alarms.json

The validation pictures set the limit, the test pictures judge it: all together, and the human ones of each style alone.
A miss comes with what the data tell of its cause. Runs that are finished in `--runs` are not trained again.
"""
import argparse, json, os, time
from collections import Counter
from pathlib import Path

import pandas as pd
from scipy.stats import ks_2samp

from artinsight.data import index, parts
from artinsight.engine.files import atomic_write
from artinsight.evaluation import load
from artinsight.study import find_experiment, run_experiment
from artinsight.trust.alarms import alarm, by_style, realised
from artinsight.trust.calibration import fit_temperature
from run import environment, HERE, say

RATES = .05, .01
FEW = 10  # human training pictures of a style


def trained(frame, seed, runs):
    "A quick run of a seed, and its predictions as a run answers: folder, record, validation, test."
    recipe = find_experiment('simple_cnn', quick=True, seed=seed).fit_epochs(frame)
    folder = runs / f"{frame.attrs['name'].replace(' ', '-')}-{seed}"
    record = run_experiment(recipe, frame, folder, 'none', 'cpu')
    validation = load(folder / recipe.name, 'validation')
    temperature = fit_temperature(validation)
    return recipe, record, validation.soften(temperature), load(folder / recipe.name).soften(temperature)


def learnt_from(frame, recipe):
    "Human training pictures of each style, and the human groups (artists, where names tell them) of both halves."
    tables = parts(frame, recipe.per_style, recipe.validation, recipe.split_by, recipe.seed)
    human = {part: table[table.origin == 'human'] for part, table in tables.items()}
    return Counter(human['train']['style']), {part: set(table.group) for part, table in human.items()}


def cause(style, row, stated, learnt, validation_styles):
    "Why a style's false alarms are not what was stated for all: as far as the numbers tell."
    if row['pictures'] and learnt[style] < FEW: return f'{learnt[style]} human pictures of this style to learn from'
    if style in validation_styles.index:
        known, way = validation_styles.loc[style], 1 if row['rate'] > stated['rate'] else -1
        if way * (known['false alarms'] - stated['rate']) > 0:
            return f"{'harder' if way > 0 else 'easier'} than other styles on the validation pictures, too"
    return 'its test pictures are not as its validation pictures are, or chance: one of twenty intervals misses'


def scores_of_humans(p):
    "What was said of human pictures: probabilities of AI, and each one's group."
    told = p.summed('origin')
    human = told.target == told.classes.index('human')
    return told.probs[human, told.classes.index('AI')], p.table.group.to_numpy()[human]


def whole_cause(validation, test, seen):
    "Why the rate of all human test pictures is not what was stated: as far as the numbers tell."
    (known, of_known), (judged, of_judged) = scores_of_humans(validation), scores_of_humans(test)
    p_value, way = ks_2samp(known, judged).pvalue, 'lower' if judged.mean() < known.mean() else 'higher'
    text = f'human test pictures score {way} than human validation pictures, p = {p_value:.2g}'
    if p_value >= .05: text += ': chance, one of twenty intervals misses'
    before, after = (f'{pd.Series(artists).isin(seen).mean():.0%}' for artists in (of_known, of_judged))
    return f'{text}; {after} of the former and {before} of the latter are by artists that were trained on'


def styles_of(test, stated, learnt, validation):
    "The stated rate judged by the human test pictures of one style after the other."
    known, rows = by_style(validation, stated['limit']), []
    for style, places in test.table.reset_index(drop=True).groupby('style').groups.items():
        try: row = realised(test.take(places), stated)
        except ValueError: continue  # no human picture
        row = {'style': style, **{name: row[name] for name in ('pictures', 'rate', 'low', 'high', 'within')}}
        if not row['within']: row['cause'] = cause(style, row, stated, learnt, known)
        rows.append(row)
    return rows


def one_seed(frame, seed, runs):
    "Both rates of one run."
    recipe, record, validation, test = trained(frame, seed, runs)
    learnt, groups = learnt_from(frame, recipe)
    rows = []
    for rate in RATES:
        stated = alarm(validation, rate)
        kept = {f'test_{name}': value for name, value in realised(test, stated).items()}
        rows.append({'data': frame.attrs['name'], 'seed': seed, 'commit': record['git'], **stated, **kept,
                     'artists': {part: len(known) for part, known in groups.items()},
                     'test_artists_also_trained_on': len(groups['test'] & groups['train']),
                     'styles': styles_of(test, stated, learnt, validation)})
        if not kept['test_within']: rows[-1]['cause'] = whole_cause(validation, test, groups['train'])
        say(f"{frame.attrs['name']}, seed {seed}: {rows[-1]['rate']:.2%} stated, {kept['test_rate']:.2%} on test, "
            f"within {kept['test_within']}, {sum(row['within'] for row in rows[-1]['styles'])} of "
            f"{len(rows[-1]['styles'])} styles within")
    return rows


def summary(rows):
    "A row a data set and rate: how many intervals held, over seeds and over their styles."
    found = []
    for (data, wanted), some in pd.DataFrame(rows).groupby(['data', 'wanted'], sort=False):
        styles = [row for styles in some.styles for row in styles]
        misses = Counter(f"all styles: {cause}" for cause in some.get('cause', pd.Series(dtype=str)).dropna())
        misses.update(f"{row['style']}: {row['cause']}" for row in styles if not row['within'])
        found.append({'data': data, 'wanted': wanted, 'stated': some['rate'].mean(), 'on_test': some.test_rate.mean(),
                      'caught': some.test_caught.mean(), 'pictures': int(some.pictures.min()),
                      'worth': some.worth.min(), 'seeds': len(some), 'seeds_within': int(some.test_within.sum()),
                      'styles': len(styles), 'styles_within': sum(row['within'] for row in styles),
                      'misses': dict(misses.most_common())})
    return found


def main():
    parser = argparse.ArgumentParser(description='is a stated rate of false alarms kept on other pictures?')
    parser.add_argument('data', nargs='+', help='data set folders')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--runs', type=Path, default=Path('runs/alarms'), help='folder of runs')
    parser.add_argument('--results', type=Path, default=HERE / 'results' / f'{time.strftime("%Y-%m-%d")}-alarms.json')
    args, load_before = parser.parse_args(), os.getloadavg()[0]
    rows = [row for folder in args.data for seed in args.seeds for row in one_seed(index(folder), seed, args.runs)]
    result = {**environment(), 'load_before': load_before, 'summary': summary(rows), 'rows': rows}
    with atomic_write(args.results) as unfinished: unfinished.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result['summary'], indent=1))


if __name__ == '__main__': main()
