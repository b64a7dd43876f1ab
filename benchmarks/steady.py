"""Do answers hold when pictures are passed on? What flips, before and after "unsure", and how right is what remains.

    python benchmarks/steady.py RUN... --data DIR     # writes benchmarks/results/<date>-steady.json

Each run is asked for its classes, and for the origin alone. Three stages: all answers; those that the run's confidence
leaves; of these, those that stay the same in all looks of trust.steady. The last cannot flip under a look that they
were asked with, so damage that nobody asked with is counted, too.
"""
import argparse, datetime, json, os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import stats

from artinsight.data import coarser, index, TARGETS
from artinsight.engine.files import atomic_write
from artinsight.engine.pictures import open_picture, squash
from artinsight.engine.runs import git_commit
from artinsight.evaluation import load
from artinsight.trust.calibration import choose_threshold
from artinsight.trust.shortcuts import jpeg
from artinsight.trust.steady import _scaled, CHECKS, holds, looks
from artinsight.use.predict import ACCURACY, load_run, verdicts
from predict import processor

ASKED = 'JPEG 50', 'half size'


OTHERS = {'JPEG 30': lambda picture: Image.open(jpeg(picture, 30)), '40 % size': lambda picture: _scaled(picture, .4),
          'both': lambda picture: Image.open(jpeg(_scaled(picture, .4), 30))}


def views(file, size):
    "A picture, its looks, and what damage nobody asks with makes of it, as the model sees them."
    picture = open_picture(file)
    seen = [picture, *looks(picture), *(damage(picture) for damage in OTHERS.values())]
    return torch.tensor(np.stack([np.asarray(squash(one, size)) for one in seen])).permute(0, 3, 1, 2)


def questions(run):
    "What a run is asked: all its classes and, where it tells it, the origin alone, with a threshold of its own."
    whole = {'asked': run.record['experiment']['target'], 'classes': run.classes, 'sums': np.eye(len(run.classes)),
             'threshold': run.calibration['threshold']}
    numbers = coarser(run.classes, 'origin')
    if numbers is None or whole['asked'] == 'origin': return [whole]
    told = load(run.path, 'validation').soften(run.calibration['temperature']).summed('origin')
    return [whole, {'asked': 'origin', 'classes': TARGETS['origin'], 'sums': np.eye(2)[numbers],
                    'threshold': choose_threshold(told, ACCURACY)}]


def judged(probs, question, truth):
    "Whether the answer about a picture was right, sure and steady, and what it flips under."
    probs = probs @ question['sums']
    first, *others = told = verdicts(probs, question['threshold'], question['classes'])
    parts = [part for part in ('style', 'origin') if part in first] or ['class']
    flips = {name: any(other[part] != first[part] for part in parts) for name, other in zip([*CHECKS, *OTHERS], others)}
    asked = 1 + len(CHECKS)
    return {'right': all(first[part] == truth[part] for part in parts), 'sure': not first['unsure'],
            'steady': holds(told[:asked], probs[:asked])['steady'], 'flips': flips}


def share(hits):
    "A share and its 95 % interval; None without any."
    if not len(hits): return None
    ends = stats.binomtest(sum(hits), len(hits)).proportion_ci(method='wilson')
    return {'share': float(np.mean(hits)), 'low': float(ends.low), 'high': float(ends.high)}


def stage(name, rows):
    "What flips, and how many are right."
    flips = {damage: share([row['flips'][damage] for row in rows]) for damage in [*ASKED, *OTHERS]}
    return {'stage': name, 'answers': len(rows), 'right': share([row['right'] for row in rows]), 'flips': flips}


def one_question(question, answers, truths):
    "All three stages of what a run is asked."
    rows = [judged(probs, question, truth) for probs, truth in zip(answers, truths)]
    sure = [row for row in rows if row['sure']]
    return {'asked': question['asked'], 'threshold': question['threshold'],
            'stages': [stage('all', rows), stage('sure', sure),
                       stage('sure and steady', [row for row in sure if row['steady']])],
            'steady_alone': stage('steady', [row for row in rows if row['steady']])}


def one_run(folder, frame):
    "All questions of a run, on the same pictures."
    run, truths = load_run(folder), frame.to_dict('records')
    answers = [run.probs(views(f"{frame.attrs['root']}/{row['path']}", run.size)) for row in truths]
    experiment = run.record['experiment']
    known = {'run': experiment['name'], 'size': run.size, 'seed': experiment['seed'], 'quick': run.record['quick'],
             'trained_on': run.record['data']['name'], 'commit': run.record['git']}
    return [known | one_question(question, answers, truths) for question in questions(run)]


def main():
    parser = argparse.ArgumentParser(description='do answers hold when pictures are passed on?')
    parser.add_argument('runs', nargs='+', help='folders of trained runs')
    parser.add_argument('--data', required=True, help='data set folder')
    parser.add_argument('--pictures', type=int, default=200, help='test pictures')
    today = datetime.date.today().isoformat()
    parser.add_argument('--results', type=Path, default=Path(__file__).parent / f'results/{today}-steady.json')
    args = parser.parse_args()
    frame = index(args.data)
    attrs = frame.attrs
    some = frame[frame.split == 'test'].sample(args.pictures, random_state=0)
    some.attrs = attrs
    result = {'date': today, 'git': git_commit(), 'processor': processor(), 'load_before': os.getloadavg()[0],
              'data': attrs['name'], 'pictures': len(some), 'counts': some.origin.value_counts().to_dict(),
              'versions': {name: version(name) for name in ('torch', 'pillow')},
              'answers': [row for run in args.runs for row in one_run(run, some)]}
    with atomic_write(args.results) as unfinished: unfinished.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result['answers'], indent=1))


if __name__ == '__main__': main()
