"""Measure artinsight beside its peers: every figure comes from one process, rounds alternate, medians and ratios are
printed.

    python benchmarks/run.py            # under 5 minutes
    python benchmarks/run.py --full     # more rounds, more pictures, 100,000 in the growth part
"""
import argparse, copy, json, os, platform, shutil, statistics, subprocess, sys, tempfile, time, warnings
from contextlib import redirect_stdout, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np, pandas as pd, psutil, torch, torchvision, fastai, timm, PIL
from PIL import Image

warnings.filterwarnings('ignore')
from artinsight.data import index
from artinsight.engine.pictures import open_picture, squash
from artinsight.engine.precision import pick_precision
from artinsight.engine.store import build_store, Store
from artinsight.loading import dataloaders, epoch_order, CHUNK
from artinsight.sample import painted_sample
from artinsight.study import EXPERIMENTS, build_model
from artinsight.training import make_learner
from peers import LOADERS, RECIPES, WORKERS, folder

HERE = Path(__file__).parent

def say(*words): print(*words, file=sys.stderr, flush=True)

def rate(loader, seconds):
    "Pictures a second of a loader, epoch after epoch for some seconds."
    begin, n = time.perf_counter(), 0
    while True:
        for x, y in loader:
            n += len(x)
            if time.perf_counter() - begin > seconds: return n / (time.perf_counter() - begin)

def summary(rounds):
    "Median, and each round, of every contestant."
    return {name: {'median': statistics.median(values), 'rounds': [round(value, 4) for value in values]}
            for name, values in rounds.items()}

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
            begin = time.perf_counter()
            made[name] = make(root, size, RECIPES[recipe], 64,
                              **({'store_folder': store} if name == 'artinsight' else {}))
            next(iter(made[name]))
            first[name] = time.perf_counter() - begin
        measured = alternate({name: partial(rate, loader, args.seconds) for name, loader in made.items()}, args.rounds)
        del made
        fastest = max(value['median'] for name, value in measured.items() if name != 'artinsight')
        rows.append({'size': size, 'recipe': recipe, 'images_per_second': measured, 'first_batch_seconds': first,
                     'ratio': measured['artinsight']['median'] / fastest})
        say(f"loader {size} px {recipe}: " + ', '.join(f"{name} {value['median']:.0f}/s"
            for name, value in measured.items()) + f", ratio {rows[-1]['ratio']:.1f}")
    return rows

def plain_epoch(model, train, valid, batch_size, frozen):
    "An epoch as a plain script has it: float32, torchvision's loader with two workers, validation at the end."
    optimiser = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3, momentum=.9)
    loss_of, begin = torch.nn.CrossEntropyLoss(), time.perf_counter()
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
    place = {path: i for i, (path, _) in enumerate(folder(root, experiment.size).samples)}
    where = [place[f"{frame.attrs['root']}/{path}"] for path in frame.path]
    train, valid = (torch.utils.data.Subset(folder(root, experiment.size, augment), [where[i] for i in part])
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
                     'precision': pick_precision('cpu', experiment.size).name,
                     'images_per_second': measured,
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

def steps_a_second(step):
    begin = time.perf_counter()
    for _ in range(3): step()
    return 3 / (time.perf_counter() - begin)

def precisions(args):
    "Training and inference of ResNet18 at each size and precision, and with --full compiled, on synthetic batches."
    from artinsight.engine.precision import PRECISIONS
    rows = []
    for size, n in ((32, 64), (224, 8)):
        for train in (True, False):
            picked = pick_precision('cpu', size)
            made = {name: stepper(size, n, PRECISIONS[name], train)
                    for name in PRECISIONS if not name.startswith('fp16')}
            if args.full: made['picked, compiled'] = stepper(size, n, picked, train, True)
            measured = alternate({name: partial(lambda step: n * steps_a_second(step), step)
                                  for name, (step, _) in made.items()}, args.rounds)
            rows.append({'size': size, 'training': train, 'images_per_second': measured, 'picked': picked.name,
                         'first_step_seconds': {name: seconds for name, (_, seconds) in made.items()}})
            say(f"{'training' if train else 'inference'} at {size} px: "
                + ', '.join(f"{name} {value['median']:.0f}/s" for name, value in measured.items()))
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

def build(frame, size):
    "Pictures a second of building a new store."
    with tempfile.TemporaryDirectory() as place:
        begin = time.perf_counter()
        build_store(frame, frame.attrs['root'], size, place, progress=False)
        return len(frame) / (time.perf_counter() - begin)

def both_sizes(frame):
    "Pictures a second of building both sizes from one decoding."
    from artinsight.engine.store import build_stores
    with tempfile.TemporaryDirectory() as place:
        begin = time.perf_counter()
        build_stores(frame, frame.attrs['root'], [32, 224], place, progress=False)
        return len(frame) / (time.perf_counter() - begin)

def one_process(function, size, paths):
    "Pictures a second of one process."
    begin = time.perf_counter()
    function(size, paths)
    return len(paths) / (time.perf_counter() - begin)

def building(root, args):
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
        say(f"building at {size} px: " + ', '.join(f"{name} {value['median']:.0f}/s"
            for name, value in measured.items()) + f", ratio {rows[-1]['ratio']:.2f}")
    both = alternate({'32 and 224 px at once': partial(both_sizes, frame)}, args.rounds)
    return {'pictures': len(paths), 'sizes': rows, 'both': both}

def forget(file):
    "Drop a file from the page cache."
    with open(file, 'rb') as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

def formats(root, store, args):
    """Why memory-mapped uint8: reading a batch at 224 px from the page cache, from disk in several orders, or by
    decoding again."""
    import io
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
    say('reading 224 px: ' + ', '.join(f"{name} {value['median']:.0f}/s" for name, value in measured.items()))
    return {'images_per_second': measured, 'bytes_per_picture': {'uint8': 224 * 224 * 3,
        'JPEG 95': float(np.mean([len(jpeg) for jpeg in jpegs]))}}

def larger_than_memory(args):
    """Batches of 64 at 224 px out of a store that does not fit beside a ballast: in the order of a training, and freely
    shuffled."""
    available = next(int(line.split()[1]) * 1024 for line in open('/proc/meminfo') if line.startswith('MemAvailable'))
    with tempfile.TemporaryDirectory() as place:
        frame = pd.DataFrame({'path': [f'{i}.jpg' for i in range(args.large)], 'class': 'human_baroque'})
        store = Store(Path(place), 224, frame)
        store.frame, store.slots = frame, np.arange(len(frame))
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
        say(f"a store of {store.bytes / 1e9:.1f} GB in {(available - len(ballast)) / 1e9:.1f} GB: "
            + ', '.join(f"{name} {value['median']:.0f}/s" for name, value in measured.items()))
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

def growth(root, args):
    "(d) The same small pictures linked under many names: time and memory of building, a process each."
    rows = []
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / f'{i}.jpg' for i in range(16)]
        for file, source in zip(files, sorted(root.glob('*/*.jpg'))):
            open_picture(source).resize((64, 64)).save(file, quality=90)
        for n in args.growth:
            data = Path(place) / f'data{n}'
            for number in range(n):
                if number % 10000 == 0:  # file systems limit the names of one file
                    originals = [shutil.copy(file, data.parent / f'{n}-{number}-{file.name}') for file in files]
                where = data / ('train' if number % 2
                                else 'test') / root.parent.joinpath('train').glob('*').__next__().name
                if number < 2: where.mkdir(parents=True)
                os.link(originals[number % 16], where / f'a_b-{number}.jpg')
            out = subprocess.run([sys.executable, '-W', 'ignore', '-c', GROWTH, str(data),
                                  str(Path(place) / f'store{n}')], capture_output=True, text=True, check=True)
            rows.append(json.loads(out.stdout))
            say(f"growth: {n} pictures in {rows[-1]['seconds']:.1f} s, opened again in "
                f"{rows[-1]['reopen_seconds']:.1f} s, worker's peak "
                f"{rows[-1]['peak_bytes']['largest worker'] / 1e6:.0f} MB")
    return rows

def about():
    "Date, device, commit and versions."
    name = next((line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')),
                '') if os.path.exists('/proc/cpuinfo') else ''
    told = subprocess.run(['git', '-C', str(HERE), 'rev-parse', 'HEAD'], capture_output=True, text=True)
    changed = subprocess.run(['git', '-C', str(HERE), 'status', '--porcelain', '--', '../artinsight', '.'],
                             capture_output=True, text=True)
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, fastai, timm, PIL, np)}
    return {'date': time.strftime('%Y-%m-%d'), 'device': name or platform.machine(), 'cores': os.cpu_count(),
            'capability': torch.backends.cpu.get_cpu_capability(),
            'commit': told.stdout.strip() + '+' * bool(changed.stdout.strip()),
            'versions': {'python': platform.python_version(), **versions}}

def device_name(result):
    "For the names of files: processor and cores."
    return ''.join(c if c.isalnum() else '-' for c in result['device'].lower()).strip('-') + f"-{result['cores']}-cores"

def main():
    parser = argparse.ArgumentParser(description='artinsight beside its peers')
    parser.add_argument('--full', action='store_true', help='more rounds and pictures')
    parts = ['loaders', 'epochs', 'frozen', 'precisions', 'building', 'formats', 'growth']
    parser.add_argument('--parts', nargs='+',
                        help=f'which parts to run: {" ".join(parts)}, and larger_than_memory, which needs 20 GB of '
                             'disk and --full to run by itself')
    parser.add_argument('--results', default=HERE / 'results', type=Path, help='where to write the figures')
    args = parser.parse_args()
    some = ''.join(f'-{part}' for part in args.parts or ())  # a record of some parts has a name of its own
    args.parts = args.parts or parts + ['larger_than_memory'] * args.full
    quick = dict(rounds=3, seconds=1.5, epoch_32=384, epoch_224=64, growth=(1000, 10000))
    full = dict(rounds=5, seconds=4, epoch_32=2048, epoch_224=256, growth=(1000, 10000, 100000))
    for name, value in (full if args.full else quick).items(): setattr(args, name, value)
    args.large, args.memory, args.large_seconds = 130_000, 12 * 10 ** 9, 15  # the study's pictures, a Colab's memory
    root = painted_sample() / 'train'
    result = {**about(), 'data': 'painted sample', 'rounds': args.rounds, 'full': args.full,
              'threads': torch.get_num_threads()}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as store:
        needs = {'loaders': (root, store, args), 'epochs': (root, store, args), 'frozen': (root, store, args),
                 'precisions': (args,), 'building': (root, args),
                 'formats': (root, store, args), 'growth': (root, args), 'larger_than_memory': (args,)}
        for part in args.parts: result[part] = globals()[part](*needs[part])
    result['seconds'] = time.perf_counter() - begin
    args.results.mkdir(parents=True, exist_ok=True)
    file = args.results / f"{result['date']}-{device_name(result)}{some}.json"
    file.write_text(json.dumps(result, indent=1) + '\n')
    say(f"{result['seconds']:.0f} s, figures in {file}")
    print(json.dumps({'loaders': {f"{row['size']} {row['recipe']}": round(row['ratio'], 1)
                                  for row in result.get('loaders', [])},
                      'epochs': {row['experiment']: round(row['ratio'], 2) for row in result.get('epochs', [])}}))

if __name__ == '__main__': main()
