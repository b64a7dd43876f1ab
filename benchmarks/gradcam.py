"""Grad-CAM beside its peers, in one run: ResNet18 at 224 px, batch 32; a model that has learnt something.

    python benchmarks/gradcam.py    # writes benchmarks/results/<date>-gradcam-<device>.json

Rounds alternate between the rivals, so that a busy machine slows all of them alike.
"""
import argparse, datetime, json, os, platform, re, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path

import numpy as np, torch, torch.nn.functional as F
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM as PeerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from artinsight.data import CLASSES, index
from artinsight.engine.files import atomic_write
from artinsight.gradcam import GradCAM, scale
from artinsight.engine.augment import normalise
from artinsight.engine.precision import pick_precision
from artinsight.engine.runs import git_commit
from artinsight.engine.store import build_store
from artinsight.resnet18 import resnet18
from artinsight.sample import painted_sample


def learn(store, device, epochs, size):
    "A ResNet18 that tells the classes apart, more or less: maps of random weights are noise in any precision."
    torch.manual_seed(0)
    model, frame = resnet18('none').to(device), store.frame
    rows = frame.index[frame.split == 'train'].to_numpy()
    x = normalise(F.interpolate(store.read(rows).float(), (size, size), mode='bilinear', antialias=True)).to(device)
    y = torch.tensor([CLASSES.index(c) for c in frame['class'][rows]], device=device)
    opt = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 2e-3, epochs * -(-len(x) // 32))
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(32):
            F.cross_entropy(model(x[part]), y[part]).backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            schedule.step()
    return model.eval()


def processor():
    "The processor's name."
    if torch.cuda.is_available(): return torch.cuda.get_device_name()
    file = Path('/proc/cpuinfo')
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', type=int, default=224, help='px')
    parser.add_argument('--layer', default='layer4')
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--results', type=Path, default=Path(__file__).parent / 'results')
    args = parser.parse_args()
    try: GradCAM(resnet18('none'), args.layer).at((args.size, args.size))
    except ValueError as error: sys.exit(f'benchmarks/gradcam.py: {error}')
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]   # timings of a busy machine are worth less: the record says how busy it was
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    folder = painted_sample()
    frame = index(folder).groupby(['split', 'class', 'generator'], sort=False).head(16).reset_index(drop=True)
    with tempfile.TemporaryDirectory() as scratch:
        store = build_store(frame, folder, args.size, scratch, progress=False)
        model = learn(store, device, args.epochs, 64)
        tests = store.frame.index[store.frame.split == 'test'].to_numpy()
        x = normalise(store.read(np.random.default_rng(0).permutation(tests)[:args.batch])).to(device)
    with torch.no_grad(): asked = model(x).argmax(1).tolist()

    precision = pick_precision(device, args.size)
    targets, layer = [ClassifierOutputTarget(a) for a in asked], model.get_submodule(args.layer)
    peer = PeerCAM(model, [layer])
    class AtLayer(PeerCAM):   # its maps before they are enlarged
        def get_target_width_height(self, _): return maps.shape[2], maps.shape[1]
    exact, automatic = GradCAM(model, args.layer), GradCAM(model, args.layer, precision)
    maps = exact(x, asked).cpu()
    rivals = {'pytorch-grad-cam': lambda: peer(x, targets),
              'captum': lambda: LayerGradCam(model, layer).attribute(x, torch.tensor(asked, device=device),
                                                                     relu_attributions=True).detach(),
              'artinsight, float32': lambda: exact(x, asked),
              f'artinsight, {precision.name}': lambda: automatic(x, asked)}

    seconds = {name: [] for name in rivals}   # by the clock
    work = {name: [] for name in rivals}   # of processor time, which other jobs stretch less
    for number in range(args.rounds + 1):   # the first round warms up
        for name, run in rivals.items():
            begun, worked = time.perf_counter(), time.process_time()
            run()
            if device.type == 'cuda': torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - begun)
                work[name].append(time.process_time() - worked)
        print(f'round {number} of {args.rounds}', file=sys.stderr)

    raw, captum = exact(x, asked, raw=True).cpu(), rivals['captum']()[:, 0].cpu()
    with AtLayer(model, [layer]) as small: theirs = torch.from_numpy(small(x, targets))
    ours = scale(maps - maps.amin((1, 2), keepdim=True))   # pytorch-grad-cam also subtracts each map's smallest value
    fast = automatic(x, asked).cpu()
    peer_seconds, peer_work = np.array(seconds['pytorch-grad-cam']), np.median(work['pytorch-grad-cam'])
    times_faster = {name: dict(by_median=float(np.median(peer_seconds) / np.median(values)),
                               by_best=float(peer_seconds.min() / min(values)),
                               by_processor_time=float(peer_work / np.median(work[name])),
                               by_round=[round(float(ratio), 2) for ratio in peer_seconds / np.array(values)])
                    for name, values in seconds.items()}
    record = dict(
        what=f'Grad-CAM maps of ResNet18, {args.layer}, {args.size} px, batch {args.batch}',
        date=datetime.date.today().isoformat(), device=processor(), threads=args.threads,
        load=[load, os.getloadavg()[0]], commit=git_commit(), rounds=args.rounds,
        versions={name: version(name) for name in ('torch', 'torchvision', 'grad-cam', 'captum')},
        seconds={name: dict(median=float(np.median(v)), best=min(v), all=[round(s, 4) for s in v])
                 for name, v in seconds.items()},
        processor_seconds={name: dict(median=float(np.median(v)), best=min(v)) for name, v in work.items()},
        times_faster_than_pytorch_grad_cam=times_faster,
        largest_difference=dict(float32_to_captum_raw=(raw - captum).abs().max().item(),
                                float32_to_pytorch_grad_cam_scaled=(ours - theirs).abs().max().item(),
                                automatic_to_float32_scaled=(fast - maps).abs().max().item(),
                                largest_raw_value=raw.max().item()))
    name = f"{record['date']}-gradcam-{re.sub('[^a-z0-9]+', '-', record['device'].lower()).strip('-')}.json"
    args.results.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.results / name) as unfinished:
        Path(unfinished).write_text(json.dumps(record, indent=1) + '\n')
    print(json.dumps({k: record[k] for k in ('device', 'times_faster_than_pytorch_grad_cam', 'largest_difference')},
                     indent=1))


if __name__ == '__main__': main()
