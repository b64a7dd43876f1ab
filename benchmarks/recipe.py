"""What is each part of the modern recipe worth? Each one switched off, or another one on, with paired seeds.

    python benchmarks/recipe.py --data DIR --weights FILE     # writes benchmarks/results/<date>-recipe.json

First the whole recipe, one run a seed, then the variants, a seed at a time, as far as `--minutes` allow. Runs that are
finished are read, a broken one goes on, and the figures are written anew after each run: call it again for more. Where
a device has room for several trainings, call it several times at once, with other `--variants`, and once again at last.
Choices are made on the validation figures; the test half is looked at once a finished run.
"""
import argparse, json, os, re, shutil, statistics, sys, time
from contextlib import redirect_stdout
from dataclasses import asdict
from itertools import product
from pathlib import Path

from artinsight.data import index, parts
from artinsight.engine.files import atomic_write
from artinsight.engine.precision import find_device, PRECISIONS
from artinsight.engine.recipes import modern
from artinsight.engine.runs import paths_of, predict_probs, save_predictions
from artinsight.evaluation import compare
from artinsight.loading import loaders_of, open_store
from artinsight.resnet18 import load_model, weights_name
from artinsight.study import finish, run_experiment
from artinsight.training import Experiment, read_record
from run import environment, HERE, say

FIGURES = ('accuracy', 'balanced_accuracy')
OFF = {'head_epochs': 0, 'layer_decay': 1., 'smoothing': 0., 'mix': 'none', 'average': 0., 'start_size': 0,
       'train_size': 0, 'one_cycle': False, 'frozen': ()}  # fields of the recipe and what switches each off
VARIANTS = {'whole': {}, **{f'without {field}': {field: value} for field, value in OFF.items()},
            'without half_crop': {'augment': ('hflip',)}, 'sgd': {'optimiser': 'sgd', 'lr': .01},
            'cutmix': {'mix': 'cutmix'},
            'with damage': {'augment': ('hflip', 'damage', 'half_crop')},
            'without flip_average': {'flip_average': False}}


def recipe(args, variant, seed):
    "The experiment of a variant and seed: a cheap version of the preset, for a CPU."
    fields = {**modern(args.model), 'size': args.size, 'start_size': args.start_size, 'train_size': args.train_size,
              'batch_size': args.batch_size, 'frozen': ('stage:0', 'stage:1')}
    name = re.sub(r'\W+', '_', f'{args.model}_{variant}_{seed}')
    return Experiment(name, model=args.model, seed=seed, **{**fields, **VARIANTS[variant]})


def without_flips(args, frame, seed):
    "The whole recipe's run of a seed, answering without mirror images: no training is needed for that."
    experiment, other = (recipe(args, variant, seed) for variant in ('without flip_average', 'whole'))
    run, source = args.runs / experiment.name, args.runs / other.name
    if (run / 'record.json').exists(): return read_record(run)
    record, predicted = read_record(source), {}
    tables = parts(frame, experiment.per_style, experiment.validation, experiment.split_by, experiment.seed)
    dls = loaders_of(experiment, tables, open_store(tables, frame.attrs['root'], experiment.size), find_device())
    precision, model = PRECISIONS[record['environment']['precision']], load_model(source).to(dls.device)
    model.flip_average = False
    for part, batches in (('validation', dls.valid), ('test', dls.test)):
        probs, target = predict_probs(precision.prepare(model), batches, precision)
        predicted[part] = paths_of(batches), target, probs
    shutil.copytree(source, run)
    save_predictions(run / 'predictions.npz', predicted)
    kept = {key: record[key] for key in record if key not in ('experiment', 'validation', 'test', 'quick')}
    return finish(run, experiment, kept)


def run_one(args, frame, variant, seed):
    "Train a variant unless it is done; a row of the figures."
    with redirect_stdout(sys.stderr):
        if variant == 'without flip_average': record = without_flips(args, frame, seed)
        else: record = run_experiment(recipe(args, variant, seed), frame, args.runs, args.weights, None, args.precision)
    row = {'variant': variant, 'seed': seed, 'minutes': record['train_seconds'] / 60, 'commit': record['git'],
           'best_epoch': record['best_epoch'], 'images_per_second': record['images_per_second'],
           'precision': record['environment']['precision'], 'threads': record['environment']['threads']}
    row |= {f'{part}_{figure}': record[part][figure] for part in ('validation', 'test') for figure in FIGURES}
    figures = f"{row['validation_accuracy']:.3f} {row['validation_balanced_accuracy']:.3f}"
    say(f'{variant}, seed {seed}: validation {figures}, '
        f"{row['minutes']:.1f} min")
    return row


def differences(args, frame, rows):
    "Each variant against the whole recipe on the test pictures, seeds paired."
    found = []
    for variant in VARIANTS:
        seeds = [row['seed'] for row in rows if row['variant'] == variant]
        paired = [seed for seed in seeds if any(row['variant'] == 'whole' and row['seed'] == seed for row in rows)]
        if variant == 'whole' or not paired: continue
        whole, other = ([args.runs / recipe(args, name, seed).name for seed in paired] for name in ('whole', variant))
        for figure in FIGURES:
            row = compare(other, whole, figure)
            found.append({'variant': variant, 'seeds': paired, 'figure': figure,
                          **{key: row[key] for key in ('a', 'b', 'difference', 'low', 'high')}})
    return found


def mean_of(rows, key): return {'mean': statistics.mean(row[key] for row in rows), 'seeds': [row[key] for row in rows]}


def write(args, frame, rows, file):
    "The figures so far, by a rename."
    whole = [row for row in rows if row['variant'] == 'whole']
    keys = [f'{part}_{figure}' for part in ('validation', 'test') for figure in FIGURES if whole]
    result = {**environment(), 'load': os.getloadavg()[0], 'data': frame.attrs['name'],
              'weights': weights_name(args.weights),
              'experiment': asdict(recipe(args, 'whole', args.seeds[0])),
              'whole': {key: mean_of(whole, key) for key in keys},
              'rows': rows}
    if found := differences(args, frame, rows): result['differences'] = found
    with atomic_write(file) as unfinished: unfinished.write_text(json.dumps(result, indent=1) + '\n')


def main():
    parser = argparse.ArgumentParser(description='what is each part of the modern recipe worth?')
    parser.add_argument('--data', required=True, help='data set folder')
    parser.add_argument('--weights', default='imagenet', help='imagenet, none or a file')
    parser.add_argument('--model', default='mobilenet_v2')
    parser.add_argument('--size', type=int, default=320, help='pixels, as it answers')
    parser.add_argument('--train_size', type=int, default=256, help='pixels of training pictures at the end')
    parser.add_argument('--start_size', type=int, default=192, help='pixels of training pictures before')
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--precision', default='auto', help='a name of engine.precision; depthwise convolutions are '
                        'faster in "fp32 channels_last" than in bf16 on a CPU')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--variants', nargs='+', default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument('--minutes', type=float, default=1e9, help='train no run after that')
    parser.add_argument('--runs', type=Path, default=Path('runs-recipe'), help='folder of runs')
    parser.add_argument('--results', type=Path, default=HERE / 'results' / f'{time.strftime("%Y-%m-%d")}-recipe.json')
    args, begin = parser.parse_args(), time.perf_counter()
    frame, rows = index(args.data), []
    asked = sorted(product(args.variants, args.seeds), key=lambda pair: (pair[0] != 'whole', pair[1]))
    for variant, seed in asked:
        late = time.perf_counter() - begin > 60 * args.minutes
        if late and not (args.runs / recipe(args, variant, seed).name / 'record.json').exists(): continue
        rows.append(run_one(args, frame, variant, seed))
        write(args, frame, rows, args.results)
    print(json.dumps({'file': args.results.name, 'rows': len(rows)}))


if __name__ == '__main__': main()
