"""Does the fast path cost accuracy? The same recipe, trained the plain way and ours.

The plain way decodes every JPEG in each epoch, takes torchvision's transforms, and computes in float32.

    python benchmarks/accuracy.py           # writes benchmarks/results/<date>-accuracy-<device>.json

Same first weights, pictures, epochs and batch size; several seeds are pooled. At 96 px our path also picks another
precision where the CPU has one.
"""
import argparse, json, sys, tempfile, time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np, torch

from artinsight.data import index
from artinsight.engine.files import atomic_write
from artinsight.evaluation import Predictions, compare
from artinsight.engine.precision import pick_precision
from artinsight.engine.store import build_store
from artinsight.loading import dataloaders
from artinsight.sample import painted_sample
from artinsight.study import build_model, find_experiment
from artinsight.engine.runs import predict_probs
from artinsight.training import make_learner
from peers import WORKERS, folder
from run import device_name, environment, HERE, say


def plain(experiment, model, root):
    "A plain script's training; test probabilities, targets and paths."
    train = folder(root / 'train', experiment.size, experiment.augment)
    test = folder(root / 'test', experiment.size)
    optimiser = torch.optim.SGD(model.parameters(), experiment.lr, momentum=experiment.momentum)
    model.train()
    for _ in range(experiment.epochs):
        for x, y in torch.utils.data.DataLoader(train, experiment.batch_size, shuffle=True, drop_last=True,
                                                num_workers=WORKERS):
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
            optimiser.zero_grad()
    probs, targets = predict_probs(model, torch.utils.data.DataLoader(test, 64, num_workers=WORKERS))
    return Predictions(targets, probs, [str(path)[len(str(root)) + 1:] for path, _ in test.samples])


def ours(experiment, model, root, store_folder):
    "Our path; the same."
    frame = index(root)
    store = build_store(frame, root, experiment.size, store_folder, progress=False)
    rows = [np.flatnonzero(store.frame.split == part) for part in ('train', 'test')]
    dls = dataloaders(store, rows[0], rows[1], rows[1], experiment.augment, experiment.batch_size, 'cpu',
                      experiment.seed)
    precision = pick_precision('cpu', experiment.size)
    learn = make_learner(experiment, precision.prepare(model), dls, precision)
    with redirect_stdout(sys.stderr), learn.no_bar(), learn.no_logging(): learn.fit(experiment.epochs)
    probs, targets = predict_probs(model, dls.test, precision)
    return Predictions(targets, probs, list(store.frame.path[rows[1]]))


def measure(size, seeds, epochs, root, store_folder):
    "Both paths at one size: accuracies, difference and its interval."
    sides = {'plain': [], 'artinsight': []}
    for seed in seeds:
        experiment = replace(find_experiment('resnet18_augmented', quick=True, seed=seed), size=size, epochs=epochs)
        for name, train in (('plain', plain), ('artinsight', lambda *args: ours(*args, store_folder))):
            torch.manual_seed(seed)
            begin = time.perf_counter()
            predictions = train(experiment, build_model(experiment, 'none'), root)
            sides[name].append(predictions)
            say(f'{size} px, seed {seed}, {name}: accuracy {predictions.right.mean():.3f}, '
                f'{time.perf_counter() - begin:.0f} s')
    return {'size': size, 'epochs': epochs, 'seeds': list(seeds), 'precision': pick_precision('cpu', size).name,
            **compare(sides['plain'], sides['artinsight'])}


def main():
    parser = argparse.ArgumentParser(description='does the fast path cost accuracy?')
    parser.add_argument('--sizes', nargs='+', type=int, default=[32, 96], help='pixels')
    parser.add_argument('--seeds', type=int, default=3, help='how many trainings of each')
    parser.add_argument('--epochs', type=int, default=8)
    parser.add_argument('--test', type=int, default=80,
                        help='test pictures in each folder: many, for a narrow interval')
    args = parser.parse_args()
    root, begin = painted_sample(test=args.test), time.perf_counter()
    with tempfile.TemporaryDirectory() as store_folder:
        rows = [measure(size, range(args.seeds), args.epochs, root, store_folder) for size in args.sizes]
    for row in rows:
        say('{size} px: plain {a:.3f}, ours {b:.3f}, difference {difference:+.3f}, 95 % interval {low:+.3f} to '
            '{high:+.3f}'.format(**row))
    result = {**environment(), 'data': 'painted sample', 'recipe': 'resnet18_augmented, quick, from scratch',
              'accuracy': rows, 'seconds': time.perf_counter() - begin}
    file = HERE / 'results' / f"{result['date']}-accuracy-{device_name(result)}.json"
    with atomic_write(file) as out: Path(out).write_text(json.dumps(result, indent=1) + '\n')
    say(f"{result['seconds']:.0f} s, figures in {file}")

if __name__ == '__main__': main()
