"""Images a second of a training, ours and timm's own train script: same networks, pictures and machine, in turn.

    python benchmarks/timm_script.py                     # writes benchmarks/results/<date>-timm.json
    python benchmarks/timm_script.py --script train.py   # with a copy of timm's script that is there already

timm's script is in its repository, not in its wheel. Without `--script` the pinned version is fetched from GitHub into
a temporary folder; its SHA-256 is checked. Each training is a process of its own, of one epoch: the same painted
pictures, batches, precision and memory layout, threads, SGD, random crops and flips, no validation. Seconds a batch
count from batch to batch, loading and augmenting included; the first ones, in which a process warms up, are left out.
timm decodes each picture in each epoch, in worker processes; we read from the store, built before.

On a machine that computes for others, too, `--cpu` counts processor seconds in the place of the clock's, of one thread
in one process without workers: timm's script then does the same, since its clock is replaced by the processor's.
"""
import argparse, hashlib, json, os, re, statistics, subprocess, sys, tempfile, time
from pathlib import Path
from urllib.request import urlopen

import torch
from fastai.callback.core import Callback

from artinsight.data import index
from artinsight.engine.files import atomic_write
from artinsight.engine.precision import find_device, pick_precision, PRECISIONS
from artinsight.engine.store import build_store
from artinsight.loading import dataloaders
from artinsight.resnet18 import build_model
from artinsight.sample import painted_sample
from artinsight.training import Experiment, make_learner, prepare
from peers import WORKERS
from run import environment, HERE, say, summary

COMMIT = 'aa4b5850c1543fa488abf260f18390eda46cf85d'
URL = f'https://raw.githubusercontent.com/huggingface/pytorch-image-models/{COMMIT}/train.py'
SHA256 = 'f0bb70b9e1c8c576eb1f7beba9cb46953d01ec1308d68c59ec055a6266f76388'
MODELS, CLASSES = ('resnet18', 'resnet50', 'convnext_tiny'), 30
CPU_CLOCK = ('import runpy, sys, time; time.time = time.process_time; del sys.argv[0]; '
             "runpy.run_path(sys.argv[0], None, '__main__')")


class Stopwatch(Callback):
    "Seconds from batch to batch, of work that is done; what comes before the first one counts for it."
    def __init__(self, cpu): self.clock = time.process_time if cpu else time.perf_counter
    def before_train(self): self.seconds, self.last = [], self.clock()
    def after_batch(self):
        if self.dls.device.type == 'cuda': torch.cuda.synchronize()
        now = self.clock()
        self.seconds.append(now - self.last)
        self.last = now


def pictures(args):
    "The painted sample, as large as the batches need: it has 30 folders."
    return painted_sample(-(-(args.warm + args.batches) * args.batch_size // CLASSES), 2)


def timm_script(args, folder):
    "timm's train script: the one that is given, or the pinned one; ends with one clear line where it cannot be had."
    if args.script:
        if not args.script.is_file(): sys.exit(f'no file {args.script}: give --script a copy of train.py of timm')
        return args.script
    try:
        with urlopen(URL, timeout=30) as answer: words = answer.read()
    except OSError as error:
        sys.exit(f'{URL} cannot be fetched ({error}): connect to the internet, or give --script a copy of it')
    if hashlib.sha256(words).hexdigest() != SHA256: sys.exit(f'{URL} is not the file that it was: give --script a copy')
    (folder / 'train.py').write_bytes(words)
    return folder / 'train.py'


def our_seconds(args):
    "Seconds of each batch of our training of one epoch."
    recipe = Experiment('ours', f'timm/{args.ours}', target='generator_style', size=args.size, epochs=1,
                        batch_size=args.batch_size, augment=('hflip', 'crop'))
    frame = index(pictures(args))
    frame = frame[frame.split == 'train'].reset_index(drop=True)
    store = build_store(frame, frame.attrs['root'], args.size, args.stores, progress=False)
    dls = dataloaders(store, range(len(store)), range(8), augment=recipe.augment, batch_size=args.batch_size,
                      device=args.device, target=recipe.target)
    watch, model = Stopwatch(args.cpu), build_model(recipe, 'none', CLASSES)
    precision, _ = prepare(recipe, model, dls, args.precision)
    learn = make_learner(recipe, model, dls, precision, [watch])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return watch.seconds


def child(words, args):
    "What a process wrote, standard output and errors, with as many threads as the other one has."
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE='1')
    done = subprocess.run([sys.executable, *map(str, words)], env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{words} failed: {done.stderr[-2000:]}')
    return done.stdout, done.stderr


def ours(name, args, folder):
    "A process of this file; seconds a batch."
    words = [__file__, '--ours', name, '--stores', folder / 'stores', '--precision', args.precision,
             '--size', args.size, '--batch-size', args.batch_size, '--warm', args.warm, '--batches', args.batches,
             '--device', args.device]
    if args.cpu: words.append('--cpu')
    return json.loads(child(words, args)[0].strip().splitlines()[-1])


def theirs(name, args, folder):
    "A process of timm's script; seconds a batch as it says them itself."
    precision = PRECISIONS[args.precision]
    words = [*(['-c', CPU_CLOCK] if args.cpu else []), args.script, '--data-dir', pictures(args),
             '--train-split', 'train', '--val-split', '', '--model', name, '--num-classes', CLASSES,
             '--img-size', args.size, '--batch-size', args.batch_size,
             '--epochs', 1, '--warmup-epochs', 0, '--opt', 'sgd', '--lr', 1e-3, '--momentum', .9, '--weight-decay', 0,
             '--smoothing', 0, '--color-jitter', 0, '--train-interpolation', 'bilinear', '--device', args.device,
             '--workers', args.workers, '--log-interval', 1, '--output', folder / 'output']
    if precision.channels_last: words.append('--channels-last')
    if precision.dtype != torch.float32: words += ['--amp', '--amp-dtype', str(precision.dtype).removeprefix('torch.')]
    said = ''.join(child(words, args))
    return [float(seconds) for seconds in re.findall(r'Train: .*?Time: ([\d.]+)s', said)]


def rate(seconds, args):
    "Pictures a second behind the first batches."
    counted = seconds[args.warm:args.warm + args.batches]
    if len(counted) < args.batches: sys.exit(f'{len(seconds)} batches, {args.warm + args.batches} are needed')
    return args.batch_size * len(counted) / sum(counted)


def measure(name, args, folder):
    "Both in turn, some rounds; a row of the record."
    rounds = {'artinsight': [], 'timm': []}
    for _ in range(args.rounds):
        for who, train in (('artinsight', ours), ('timm', theirs)):
            rounds[who].append(rate(train(name, args, folder), args))
    ratios = [mine / other for mine, other in zip(*rounds.values())]
    row = {'model': name, 'images_per_second': summary(rounds), 'ratios': ratios, 'ratio': statistics.median(ratios)}
    say(f"{name}: ours {statistics.median(rounds['artinsight']):.1f}/s, timm "
        f"{statistics.median(rounds['timm']):.1f}/s, ratio {row['ratio']:.2f}")
    return row


def write(args, rows, load, begin):
    "Write what has been measured; the file."
    said = {name: getattr(args, name) for name in ('rounds', 'batches', 'warm', 'batch_size', 'size', 'threads',
                                                   'workers', 'precision')}
    script = {'url': URL, 'sha256': hashlib.sha256(args.script.read_bytes()).hexdigest()}
    result = {**environment(), 'load_before': load, 'load_after': os.getloadavg()[0], 'data': 'painted sample',
              'script': script, 'seconds_of': 'processor' if args.cpu else 'clock', **said, 'timm_script': rows,
              'seconds': time.perf_counter() - begin}
    args.results.mkdir(parents=True, exist_ok=True)
    file = args.results / f"{result['date']}-timm{'-gpu' if args.device != 'cpu' else ''}.json"
    with atomic_write(file) as unfinished: unfinished.write_text(json.dumps(result, indent=1) + '\n')
    return file


def main():
    parser = argparse.ArgumentParser(description='our training beside the train script of timm')
    parser.add_argument('--script', type=Path, help='a copy of train.py of timm (default: fetched from GitHub)')
    parser.add_argument('--models', nargs='+', default=MODELS, help='as timm names them')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--batches', type=int, default=24, help='that are counted, of each training')
    parser.add_argument('--warm', type=int, default=5, help='batches before them')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='of each training')
    parser.add_argument('--workers', type=int, default=WORKERS, help="processes of timm's loader")
    parser.add_argument('--device', default=find_device().type, help='cpu or cuda (default: the best one here)')
    parser.add_argument('--cpu', action='store_true', help='count processor seconds of one thread')
    parser.add_argument('--precision', help='of both (default: what we pick for this machine)')
    parser.add_argument('--results', default=HERE / 'results', type=Path, help='where to write the figures')
    parser.add_argument('--ours', help=argparse.SUPPRESS)  # in a process of its own: the network
    parser.add_argument('--stores', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cpu: args.threads, args.workers, args.device = 1, 0, 'cpu'
    args.precision = args.precision or pick_precision(args.device, args.size).name
    if args.ours: return print(json.dumps(our_seconds(args)))
    begin, load, rows = time.perf_counter(), os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as work:
        args.script = timm_script(args, Path(work))
        for name in args.models:
            rows.append(measure(name, args, Path(work)))
            file = write(args, rows, load, begin)
    say(f"{time.perf_counter() - begin:.0f} s, figures in {file}")
    print(json.dumps({row['model']: round(row['ratio'], 2) for row in rows}))


if __name__ == '__main__': main()
