"""Measure artinsight beside its peers: all in one process, rounds alternate, medians and ratios are printed.

    python benchmarks/run.py            # under 5 minutes
    python benchmarks/run.py --full     # more rounds, more pictures, 100,000 in the growth part
"""
import argparse, copy, io, json, os, platform, shutil, statistics, subprocess, sys, tempfile, time, warnings
from contextlib import redirect_stdout, suppress
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import fastai, kornia, numpy as np, pandas as pd, PIL, psutil, timm, torch, torchvision
from PIL import Image
from scipy.stats import ks_2samp

warnings.filterwarnings('ignore')
from artinsight.data import index
from artinsight.engine.pictures import open_picture, squash
from artinsight.engine.precision import pick_precision, PRECISIONS
from artinsight.engine.store import build_store, build_stores, Store
from artinsight.engine.runs import git_commit
from artinsight.loading import dataloaders, epoch_order, CHUNK
from artinsight.sample import painted_sample
from artinsight.study import EXPERIMENTS, build_model
from artinsight.training import make_learner
from peers import AUGMENTERS, folder, LOADERS, RECIPES, torchvision_steps, WORKERS
from predict import processor

HERE = Path(__file__).parent

def say(*words): print(*words, file=sys.stderr, flush=True)

def rate(loader, seconds):
    "Pictures a second of a loader, epoch after epoch for some seconds."
    begin, n = time.perf_counter(), 0
    while True:
        for x, _ in loader:
            n += len(x)
            if time.perf_counter() - begin > seconds: return n / (time.perf_counter() - begin)

def summary(rounds):
    "Median, and each round, of every contestant."
    return {name: {'median': statistics.median(values), 'rounds': [round(value, 4) for value in values]}
            for name, values in rounds.items()}

def rates(measured):
    "Medians in a line."
    return ', '.join(f"{name} {value['median']:.0f}/s" for name, value in measured.items())

def settle():
    """Wait until no worker process computes: a peer's workers go on until their queues are full, and would take the
    next one's cores."""
    def used():
        seconds = 0
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess): seconds += sum(child.cpu_times()[:2])
        return seconds
    before, now = -1, used()
    while abs(now - before) > .02:
        time.sleep(.1)
        before, now = now, used()

def alternate(contestants, rounds):
    "Run the contestants in turn, several times, each when the one before it has come to an end."
    results = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            settle()
            results[name].append(measure())
    return summary(results)

def loaders(root, store, args):
    "(a) and time to first batch of (c): pictures a second, augmented and normalised, batches of 64."
    rows = []
    for size, recipe in [(32, 'plain'), (32, 'augmented'), (32, 'aggressive'), (224, 'plain'), (224, 'augmented')]:
        made, first = {}, {}
        for name, make in LOADERS.items():
            extra = {'store_folder': store} if name == 'artinsight' else {}
            begin = time.perf_counter()
            made[name] = make(root, size, RECIPES[recipe], 64, **extra)
            next(iter(made[name]))
            first[name] = time.perf_counter() - begin
        measured = alternate({name: partial(rate, loader, args.seconds) for name, loader in made.items()}, args.rounds)
        del made
        fastest = max(value['median'] for name, value in measured.items() if name != 'artinsight')
        rows.append({'size': size, 'recipe': recipe, 'images_per_second': measured, 'first_batch_seconds': first,
                     'ratio': measured['artinsight']['median'] / fastest})
        say(f"loader {size} px {recipe}: {rates(measured)}, ratio {rows[-1]['ratio']:.1f}")
    return rows

def sgd(model):
    "The optimiser of a plain script: layers that are frozen stay out."
    return torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3, momentum=.9)

def plain_epoch(model, train, valid, batch_size, frozen):
    "An epoch as a plain script has it: float32, torchvision's loader with two workers, validation at the end."
    optimiser, loss_of, begin = sgd(model), torch.nn.CrossEntropyLoss(), time.perf_counter()
    model.train()
    for name in frozen: model.get_submodule(name).eval()
    loader = torch.utils.data.DataLoader(train, batch_size, shuffle=True, num_workers=WORKERS)
    for x, y in loader:
        loss = loss_of(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
    model.eval()
    with torch.no_grad():
        for x, y in torch.utils.data.DataLoader(valid, batch_size, num_workers=WORKERS): loss_of(model(x), y).item()
    return time.perf_counter() - begin

def our_epoch(experiment, model, dls):
    "The same epoch as `training.train` runs it, at the precision that it picks."
    precision = pick_precision('cpu', experiment.size)
    precision.prepare(model)
    learn = make_learner(experiment, model, dls, precision)
    begin = time.perf_counter()
    with redirect_stdout(sys.stderr), learn.no_bar(), learn.no_logging(): learn.fit(1)
    return time.perf_counter() - begin

def contestants(experiment, root, store, args):
    "Pictures of an epoch, and who trains it: same first weights, same pictures, same batch size."
    frame = index(root.parent)
    frame = frame[frame.split == root.name].reset_index(drop=True)
    n = args.epoch_224 if experiment.size == 224 else args.epoch_32
    chosen = np.random.default_rng(0).permutation(np.arange(len(frame)).repeat(-(-n // len(frame))))[:n]
    held = chosen[:n // 9]
    kept = build_store(frame, frame.attrs['root'], experiment.size, store, progress=False)
    dls = dataloaders(kept, chosen, held, augment=experiment.augment, batch_size=experiment.batch_size, device='cpu')
    numbers = {path: i for i, (path, _) in enumerate(folder(root, experiment.size).samples)}
    theirs = np.array([numbers[f"{frame.attrs['root']}/{path}"] for path in frame.path])  # torchvision's own order
    train, valid = (torch.utils.data.Subset(folder(root, experiment.size, augment), theirs[part].tolist())
                    for augment, part in ((experiment.augment, chosen), ((), held)))
    first = build_model(experiment, 'none')
    return n, {'plain': lambda: len(chosen) / plain_epoch(copy.deepcopy(first), train, valid, experiment.batch_size,
                                                          experiment.frozen),
               'artinsight': lambda: len(chosen) / our_epoch(experiment, copy.deepcopy(first), dls)}

def epochs(root, store, args):
    "(b) Whole epochs of each experiment; images/s of training."
    rows = []
    for experiment in EXPERIMENTS.values():
        n, sides = contestants(experiment, root, store, args)
        measured = alternate(sides, args.rounds)
        rows.append({'experiment': experiment.name, 'size': experiment.size, 'pictures': n,
                     'precision': pick_precision('cpu', experiment.size).name, 'images_per_second': measured,
                     'ratio': measured['artinsight']['median'] / measured['plain']['median']})
        say(f"epoch of {experiment.name}: plain {measured['plain']['median']:.0f}/s, ours "
            f"{measured['artinsight']['median']:.0f}/s, ratio {rows[-1]['ratio']:.2f}")
    return rows

def frozen(root, store, args):
    "What the frozen trunk brings: our epochs of resnet18_base and resnet18_augmented, in turn."
    names = ('resnet18_augmented', 'resnet18_base')
    measured = alternate({name: contestants(EXPERIMENTS[name], root, store, args)[1]['artinsight'] for name in names},
                         args.rounds)
    whole, trunk = (measured[name]['median'] for name in names)
    say(f'frozen trunk: {trunk:.0f}/s, all layers {whole:.0f}/s, ratio {trunk / whole:.2f}')
    return {'images_per_second': measured, 'ratio': trunk / whole}

def batch_rate(augmenter, x, seconds):
    "Pictures a second of augmenting and normalising a batch again and again."
    augmenter(x)
    begin, n = time.perf_counter(), 0
    while (now := time.perf_counter() - begin) < seconds:
        augmenter(x)
        n += len(x)
    return n / now

def statistics_of(x):
    "Mean, contrast, slopes across and down, and the first channel's mean, of pictures (n, 3, size, size)."
    ramp = torch.linspace(-1, 1, x.shape[-1])
    columns = [x.mean((1, 2, 3)), x.std((1, 2, 3)), (x * ramp).mean((1, 2, 3)), (x * ramp[:, None]).mean((1, 2, 3)),
               x[:, 0].mean((1, 2))]
    return torch.stack(columns, 1).numpy().round(3)

def shared_in_batch(values):
    "Intraclass correlation of statistics (batches, n, kinds), the largest: 0 for draws a picture, 1 for draws a batch."
    values, n = values[..., values.std((0, 1)) > .01], values.shape[1]  # a flip leaves the mean as it is
    between, within = n * values.mean(1).var(0, ddof=1), values.var(1, ddof=1).mean(0)
    return float(((between - within) / (between + (n - 1) * within)).max())

def draws_of(args):
    """Does a peer draw as torchvision does?

    The largest Kolmogorov-Smirnov distance of statistics of single pictures, its limit (passed by chance once in ten
    thousand times), and how alike the draws of a batch are."""
    ramp, rows = np.mgrid[0:32, 0:32] * 5, []
    picture = np.stack([ramp[0] + 30, ramp[1] + 60, (ramp[0] + ramp[1]) // 2], 2).astype(np.uint8)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None]
    for steps in (('hflip', 'vflip'), ('rotation',), ('crop',), ('colour',)):
        model = torchvision_steps(32, steps)
        expected = statistics_of(torch.stack([model(Image.fromarray(picture)) for _ in range(args.draws)]))
        for name in ('fastai', 'kornia', 'artinsight'):
            augmenter = AUGMENTERS[name](32, steps)
            drawn = statistics_of(torch.cat([augmenter(x) for _ in range(args.draws)]))
            batches = np.stack([statistics_of(augmenter(x.expand(16, -1, -1, -1))) for _ in range(args.draws // 16)])
            rows.append({'steps': steps, 'peer': name, 'limit': 2.23 * (2 / args.draws) ** .5,
                         'distance': max(ks_2samp(*columns).statistic for columns in zip(drawn.T, expected.T)),
                         'shared_in_batch': shared_in_batch(batches)})
            say('draws of {peer}, {steps}: distance {distance:.3f} (limit {limit:.3f}), shared in a batch '
                '{shared_in_batch:.2f}'.format(**rows[-1]))
    return rows

def augment(root, store, args):
    "Augmenting and normalising a decoded batch of 64 beside fastai's and kornia's batch transforms; their draws."
    frame, rows, threads_before = index(root.parent), [], torch.get_num_threads()
    for size in (32, 224):
        kept = build_store(frame, frame.attrs['root'], size, store, progress=False)
        x = kept.read(np.random.default_rng(0).permutation(len(kept))[:64])
        recipes = ('augmented', 'aggressive', 'crop', 'colour') if args.full else ('augmented', 'aggressive')
        makers = {name: make for name, make in AUGMENTERS.items() if size == 224 or 'in parts' not in name}
        for recipe, threads in product(recipes, (1, 2)):
            torch.set_num_threads(threads)
            made = {name: make(size, RECIPES.get(recipe, (recipe,))) for name, make in makers.items()}
            measured = alternate({name: partial(batch_rate, augmenter, x, args.batch_seconds)
                                  for name, augmenter in made.items()}, args.rounds)
            ours = np.array(measured['artinsight']['rounds'])
            ratios = {name: float(np.median(ours / value['rounds'])) for name, value in measured.items()}
            rows.append({'size': size, 'recipe': recipe, 'threads': threads, 'images_per_second': measured,
                         'ratios': ratios})
            say(f'augment {size} px {recipe}, {threads} threads: {rates(measured)}; ours is as many times as fast: '
                + ', '.join(f'{name} {ratio:.2f}' for name, ratio in ratios.items()))
    torch.set_num_threads(threads_before)
    return {'speed': rows, 'draws': draws_of(args)}

def stepper(size, n, precision, train, compiled=False):
    "A function that takes one step of ResNet18 on a synthetic batch, and the seconds that its first call took."
    x, y = torch.randn(n, 3, size, size).to(memory_format=torch.channels_last), torch.randint(0, 20, (n,))
    model = precision.prepare(torchvision.models.resnet18(num_classes=20).train(train))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    called = torch.compile(model) if compiled else model
    def step():
        with precision.context('cpu'), torch.set_grad_enabled(train):
            loss = torch.nn.functional.cross_entropy(called(x).float(), y)
        if train:
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    begin = time.perf_counter()
    step()
    return step, time.perf_counter() - begin

def step_rate(step, n):
    "Pictures a second of a few steps of `n` pictures."
    begin = time.perf_counter()
    for _ in range(3): step()
    return 3 * n / (time.perf_counter() - begin)

def precisions(root, store, args):
    "Training and inference of ResNet18 at each size and precision, and with --full compiled, on synthetic batches."
    rows = []
    for size, n in ((32, 64), (224, 8)):
        for train in (True, False):
            picked = pick_precision('cpu', size)
            made = {name: stepper(size, n, PRECISIONS[name], train)
                    for name in PRECISIONS if not name.startswith('fp16')}
            if args.full: made['picked, compiled'] = stepper(size, n, picked, train, True)
            measured = alternate({name: partial(step_rate, step, n) for name, (step, _) in made.items()}, args.rounds)
            rows.append({'size': size, 'training': train, 'images_per_second': measured, 'picked': picked.name,
                         'first_step_seconds': {name: seconds for name, (_, seconds) in made.items()}})
            say(f"{'training' if train else 'inference'} at {size} px: {rates(measured)}")
    return rows

def bare(size, paths):
    "What any store must do for these pictures: decode, squash, resize."
    for path in paths:
        with Image.open(path) as im: np.asarray(squash(im.convert('RGB'), size))

def torchvision_io(size, paths):
    "The same with torchvision.io, on tensors."
    for path in paths:
        x = torchvision.io.decode_image(str(path), mode='RGB')
        for side in (256, size): x = torchvision.transforms.functional.resize(x, [side, side], antialias=True)

def in_workers(function, size, paths):
    "Pictures a second of `function` over all paths, by as many processes as there are cores."
    begin = time.perf_counter()
    with get_context('fork').Pool(os.cpu_count()) as pool:
        pool.map(partial(function, size), [paths[i:i + 64] for i in range(0, len(paths), 64)], 1)
    return len(paths) / (time.perf_counter() - begin)

def build(frame, *sizes):
    "Pictures a second of building new stores, all from one decoding."
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.perf_counter()
        build_stores(frame, frame.attrs['root'], sizes, scratch, progress=False)
        return len(frame) / (time.perf_counter() - begin)

def one_process(function, size, paths):
    "Pictures a second of one process."
    begin = time.perf_counter()
    function(size, paths)
    return len(paths) / (time.perf_counter() - begin)

def building(root, store, args):
    "(c) Building the store against the decoding and resizing that it cannot do without; memory of the build."
    frame = index(root.parent)
    paths = [f"{frame.attrs['root']}/{path}" for path in frame.path]
    few, rows = paths[::max(1, len(paths) // 200)], []
    for size in (32, 224):
        measured = alternate({'bare parallel': partial(in_workers, bare, size, paths),
                              'store': partial(build, frame, size),
                              'one PIL process': partial(one_process, bare, size, few),
                              'one torchvision.io process': partial(one_process, torchvision_io, size, few)},
                              args.rounds)
        rows.append({'size': size, 'images_per_second': measured,
                     'ratio': measured['store']['median'] / measured['bare parallel']['median']})
        say(f"building at {size} px: {rates(measured)}, ratio {rows[-1]['ratio']:.2f}")
    both = alternate({'32 and 224 px at once': partial(build, frame, 32, 224)}, args.rounds)
    return {'pictures': len(paths), 'sizes': rows, 'both': both}

def forget(file):
    "Drop a file from the page cache."
    with open(file, 'rb') as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

def formats(root, store, args):
    "Why memory-mapped uint8: reading 224 px from the page cache, from disk in several orders, or by decoding again."
    frame = index(root.parent)
    kept = build_store(frame, frame.attrs['root'], 224, store, progress=False)
    n = len(kept)
    jpegs = []
    for array in kept.read(range(64)).permute(0, 2, 3, 1).numpy():
        Image.fromarray(array).save(buffer := io.BytesIO(), 'JPEG', quality=95)
        jpegs.append(buffer.getvalue())
    orders = {'in order': np.arange(n), 'blocks shuffled': epoch_order(n, 0, 0, CHUNK),
              'shuffled': epoch_order(n, 0, 0)}
    def read(order, cold):
        if cold:
            kept.kept.clear()
            forget(kept.file)
        begin = time.perf_counter()
        for i in range(0, n, 64): kept.read(order[i:i + 64])
        return n / (time.perf_counter() - begin)
    def decode():
        begin = time.perf_counter()
        for jpeg in jpegs: np.asarray(Image.open(io.BytesIO(jpeg)))
        return len(jpegs) / (time.perf_counter() - begin)
    contestants = {'cached, shuffled': partial(read, orders['shuffled'], False)}
    contestants |= {f'from disk, {name}': partial(read, order, True) for name, order in orders.items()}
    measured = alternate(contestants | {'re-encoded as JPEG 95, one process': decode}, args.rounds)
    say(f'reading 224 px: {rates(measured)}')
    weights = {'uint8': kept.picture_bytes, 'JPEG 95': float(np.mean([len(jpeg) for jpeg in jpegs]))}
    return {'images_per_second': measured, 'bytes_per_picture': weights}

def larger_than_memory(root, store, args):
    "Batches at 224 px out of a store larger than the memory left by a ballast: in a training's order, and shuffled."
    available = next(int(line.split()[1]) * 1024 for line in open('/proc/meminfo') if line.startswith('MemAvailable'))
    with tempfile.TemporaryDirectory() as scratch:
        frame = pd.DataFrame({'path': [f'{i}.jpg' for i in range(args.large)], 'class': 'human_baroque'})
        store = Store(scratch, 224, frame)
        noise = np.random.default_rng(0).integers(0, 256, 64 * store.picture_bytes, np.uint8).tobytes()
        with open(store.file, 'wb') as file:
            for i in range(0, len(frame), 64): file.write(noise[:min(64, len(frame) - i) * store.picture_bytes])
        forget(store.file)
        ballast = np.ones(max(available - args.memory, 0), np.uint8)
        loader, free = (dataloaders(store, range(len(frame)), range(64), device='cpu').train for _ in range(2))
        free.dataset.chunk = 1
        def read(loader):
            forget(store.file)
            return rate(loader, args.large_seconds)
        measured = alternate({'as in training': partial(read, loader), 'freely shuffled': partial(read, free)},
                             args.rounds)
        say(f'a store of {store.bytes / 1e9:.1f} GB in {(available - len(ballast)) / 1e9:.1f} GB: {rates(measured)}')
        return {'store_bytes': store.bytes, 'memory_bytes': available - len(ballast), 'images_per_second': measured}

GROWTH = '''
import json, resource, sys, time
from artinsight.data import index
from artinsight.engine.store import build_store
frame = index(sys.argv[1])
begin = time.perf_counter()
store = build_store(frame, frame.attrs['root'], 32, sys.argv[2], progress=False)
seconds = time.perf_counter() - begin
again = time.perf_counter()
build_store(frame, frame.attrs['root'], 32, sys.argv[2], progress=False)
# not getrusage for ourselves: Linux hands a parent's peak on to what it starts
own = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
memory = [own * 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024]
print(json.dumps({'pictures': len(store), 'seconds': seconds, 'reopen_seconds': time.perf_counter() - again,
                  'peak_bytes': {'builder': memory[0], 'largest worker': memory[1]}}))
'''

def growth(root, store, args):
    "(d) The same small pictures linked under many names: time and memory of building, a process each."
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f'{i}.jpg' for i in range(16)]
        for file, source in zip(files, sorted(root.glob('*/*.jpg'))):
            open_picture(source).resize((64, 64)).save(file, quality=90)
        for n in args.growth:
            data = Path(scratch) / f'data{n}'
            halves = [data / split / next(root.parent.joinpath('train').iterdir()).name for split in ('test', 'train')]
            for half in halves: half.mkdir(parents=True)
            for number in range(n):
                if number % 10000 == 0:  # file systems limit the names of one file
                    originals = [shutil.copy(file, data.parent / f'{n}-{number}-{file.name}') for file in files]
                os.link(originals[number % 16], halves[number % 2] / f'a_b-{number}.jpg')
            command = [sys.executable, '-W', 'ignore', '-c', GROWTH, str(data), str(Path(scratch) / f'store{n}')]
            row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            rows.append(row)
            say(f"growth: {n} pictures in {row['seconds']:.1f} s, opened again in {row['reopen_seconds']:.1f} s, "
                f"worker's peak {row['peak_bytes']['largest worker'] / 1e6:.0f} MB")
    return rows

def environment():
    "Date, device, commit and versions."
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, fastai, kornia, timm, PIL, np)}
    return {'date': time.strftime('%Y-%m-%d'), 'device': processor() or platform.machine(), 'cores': os.cpu_count(),
            'capability': torch.backends.cpu.get_cpu_capability(), 'commit': git_commit(),
            'versions': {'python': platform.python_version(), **versions},
            **({'gpu': torch.cuda.get_device_name()} if torch.cuda.is_available() else {})}

def device_name(result):
    "For the names of files: processor and cores."
    return ''.join(c if c.isalnum() else '-' for c in result['device'].lower()).strip('-') + f"-{result['cores']}-cores"

PARTS = [loaders, epochs, frozen, augment, precisions, building, formats, growth, larger_than_memory]

def main():
    parser = argparse.ArgumentParser(description='artinsight beside its peers')
    parser.add_argument('--full', action='store_true', help='more rounds and pictures')

    parser.add_argument('--parts', nargs='+', choices=[part.__name__ for part in PARTS],
                        help='which parts to run; larger_than_memory needs 20 GB of disk, and runs by itself with '
                             '--full only')
    parser.add_argument('--results', default=HERE / 'results', type=Path, help='where to write the figures')
    args = parser.parse_args()
    ending = ''.join(f'-{part}' for part in args.parts or ())  # a record of some parts has a name of its own
    chosen = [part for part in PARTS if part.__name__ in (args.parts or ())]
    chosen = chosen or (PARTS if args.full else PARTS[:-1])
    quick = dict(rounds=3, seconds=1.5, epoch_32=384, epoch_224=64, growth=(1000, 10000), batch_seconds=.2, draws=400)
    full = dict(rounds=5, seconds=4, epoch_32=2048, epoch_224=256, growth=(1000, 10000, 100000), batch_seconds=.5,
                draws=1500)
    for name, value in (full if args.full else quick).items(): setattr(args, name, value)
    args.large, args.memory, args.large_seconds = 130_000, 12 * 10 ** 9, 15  # the study's pictures, a Colab's memory
    root = painted_sample() / 'train'
    result = {**environment(), 'load_before': os.getloadavg()[0], 'data': 'painted sample', 'rounds': args.rounds,
              'full': args.full, 'threads': torch.get_num_threads()}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as store:
        for part in chosen: result[part.__name__] = part(root, store, args)
    result['seconds'] = time.perf_counter() - begin
    args.results.mkdir(parents=True, exist_ok=True)
    file = args.results / f"{result['date']}-{device_name(result)}{ending}.json"
    file.write_text(json.dumps(result, indent=1) + '\n')
    say(f"{result['seconds']:.0f} s, figures in {file}")
    print(json.dumps({'loaders': {f"{row['size']} {row['recipe']}": round(row['ratio'], 1)
                                  for row in result.get('loaders', [])},
                      'epochs': {row['experiment']: round(row['ratio'], 2) for row in result.get('epochs', [])}}))

if __name__ == '__main__': main()
