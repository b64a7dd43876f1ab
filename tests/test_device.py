"""Loading and training on a device that is not here: a stand-in that computes, as strict as the real one.

What it stands for: CUDA and Apple's MPS as PyTorch shows them. How the real thing is known: PyTorch's notes on pinned
memory and `non_blocking`, its caching host allocator (aten/src/ATen/core/CachingHostAllocator.h, which keeps pinned
memory until the copy is done), its device checks ("Expected all tensors to be on the same device"), and pytorch
#139550, where `.to('mps', non_blocking=True)` reads a source that has gone. How it was made as awkward: a tensor
there has no `numpy()` and no memory that Python sees; an operation on tensors of two devices is an error; a copy that
need not be waited for is made when its result is first used, and from memory that was not pinned and has gone by then
it brings rubbish, on CUDA, too, which really is more patient; threads work there as well, so the reading thread
stays. Not shown: streams, speed, kernels' rounding.
"""
import gc, threading, weakref
from functools import partial

import pytest, torch
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import fastai.callback.progress  # noqa: F401, gives a Learner its no_bar
from artinsight.data import index
from artinsight.engine.augment import AUGMENTATIONS, augment_batch, normalise
from artinsight.engine.precision import pick_precision
from artinsight.engine.store import build_store
from artinsight.loading import dataloaders
from artinsight.sample import painted_sample

THERE = ('cuda:0', 'mps:0')


class Claimed(torch.Tensor):
    "A tensor on the device that is not here: a tensor of this machine that nobody may touch."
    @staticmethod
    def __new__(cls, held, device, source=None):
        layout = held.shape, held.stride(), held.storage_offset()
        return torch.Tensor._make_wrapper_subclass(cls, *layout, dtype=held.dtype, device='meta')
    def __init__(self, held, device, source=None):
        self.held, self.place, self.source = held, torch.device(device), source
    def __repr__(self): return f'{self.now()} on {self.place}'
    device = property(lambda self: self.place)
    is_cuda = property(lambda self: self.place.type == 'cuda')
    is_meta = False
    def tolist(self): return self.now().tolist()
    def numpy(self, *args, **kwargs): raise TypeError(f"can't convert {self.place} device type tensor to numpy")

    def now(self):
        "The value; a copy that is still to be made is made now, if its source is still there."
        if self.source is not None:
            source, self.source = self.source(), None
            if source is not None: self.held.copy_(source)
        return self.held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    "An operation: checked as a device would, computed here."
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    places = {value.place for value in tensors if isinstance(value, Claimed)}
    name, target = func._schema.name, torch.device(kwargs['device']) if kwargs.get('device') is not None else None
    copies, kwargs = name in ('aten::_to_copy', 'aten::copy_'), dict(kwargs)
    strangers = [value for value in tensors if not isinstance(value, Claimed) and value.dim()]
    if places and (len(places) > 1 or strangers) and not copies and not name.startswith('aten::index'):
        found = [value.device for value in tensors]
        raise RuntimeError(f'{name}: Expected all tensors to be on the same device, found {found}')
    place = places.pop() if places and target in (None, torch.device('meta')) else target
    if target is not None: kwargs['device'] = torch.device('cpu')
    if target == torch.device('meta'): target = place  # what PyTorch's C++ takes a claimed tensor for
    held_args, held_kwargs = tree_map(lambda value: value.now() if isinstance(value, Claimed) else value, (args,
        kwargs))
    result = func(*held_args, **held_kwargs)
    if place is None or place.type == 'cpu': return result
    source = None
    waits = not kwargs.get('non_blocking') or isinstance(args[0], Claimed) or hasattr(args[0], 'stays')
    if name == 'aten::_to_copy' and not waits:
        source = weakref.ref(args[0])
        result.view(torch.uint8).fill_(0x5A) if result.dim() else result.fill_(90)
    made = tree_map(lambda value: Claimed(value, place, source) if isinstance(value, torch.Tensor) else value, result)
    return made if target is not None else return_and_correct_aliasing(func, args, kwargs, made)


class Device(TorchDispatchMode):
    "Makes tensors on the devices that are not here."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return compute(func, args, kwargs or {})


@pytest.fixture
def device(monkeypatch):
    "The claimed devices, for this thread and all that it starts."
    def pinned(tensor):
        copy = tensor.clone()
        copy.stays = True
        return copy
    def run(thread, real=threading.Thread.run):
        with Device(): real(thread)
    monkeypatch.setattr(threading.Thread, 'run', run)
    monkeypatch.setattr(torch.Tensor, 'pin_memory', pinned)
    monkeypatch.setattr(torch.cuda, '_lazy_init', lambda: None)
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: None)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device=None: (2 ** 40, 2 ** 40))
    monkeypatch.setattr(torch.__future__, '_swap_module_params_on_conversion', True)
    gc.collect()  # what earlier tests left on the device
    torch._C._ensureCUDADeviceGuardSet()  # as PyTorch's own fake tensors do: no driver is asked
    with Device() as mode: yield mode


@pytest.fixture(scope='module')
def frame(): return index(painted_sample())


@pytest.fixture(scope='module')
def store(frame, tmp_path_factory):
    return build_store(frame[:200], frame.attrs['root'], 32, tmp_path_factory.mktemp('stores'), progress=False)


# The stand-in

def test_it_notices_a_mix_of_devices(device):
    with pytest.raises(RuntimeError, match='same device'): torch.ones(2).to('cuda') + torch.ones(2)
    with pytest.raises(TypeError): torch.ones(2).to('cuda').numpy()


def test_it_computes(device):
    there = torch.arange(4.).to('cuda:0')
    assert (there.device.type, there.is_cuda, (there * 2).sum().item(), (there + there).cpu().tolist()) == ('cuda',
        True, 12, [0, 2, 4, 6])


@pytest.mark.parametrize('kind', THERE)
def test_a_late_copy_of_what_has_gone_is_rubbish(device, kind):
    kept, patient = torch.ones(3), (torch.ones(3) * 1).to(kind)
    late, lost = kept.to(kind, non_blocking=True), (torch.ones(3) * 1).to(kind, non_blocking=True)
    kept += 1
    assert late.tolist() == [2, 2, 2] and patient.tolist() == [1, 1, 1] and lost.tolist() != [1, 1, 1]
    assert (torch.ones(3) * 1).pin_memory().to(kind, non_blocking=True).tolist() == [1, 1, 1]


# Loaders

@pytest.mark.parametrize('kind', THERE)
@pytest.mark.parametrize('steps', [(), *((step,) for step in AUGMENTATIONS), tuple(AUGMENTATIONS)], ids='+'.join)
def test_pictures_are_augmented_where_they_lie(device, store, steps, kind):
    "On the device, and the same pixels as on the CPU."
    pictures = store.read(range(8))
    made = normalise(augment_batch(pictures.to(kind), steps, torch.Generator().manual_seed(0)))
    assert (str(made.device), made.dtype, made.shape) == (kind, torch.float32, (8, 3, 32, 32))
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made.cpu(), normalise(augment_batch(pictures, steps, torch.Generator().manual_seed(0))))


def loaders(store, kind):
    return dataloaders(store, range(150), range(150, 170), range(170, 200), AUGMENTATIONS, device=kind)


@pytest.mark.parametrize('kind,free', [('cuda:0', 2 ** 40), ('cuda:0', 0), ('mps:0', 0)], ids=['kept on the device',
    'copied a batch at a time', 'mps'])
def test_batches_arrive_on_the_device(device, store, monkeypatch, kind, free):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device=None: (free, free))
    dls, here = loaders(store, kind), loaders(store, 'cpu')
    for batches, known, sizes in zip(dls.loaders, here.loaders, ([64, 64], [20], [30])):
        for n, (x, y), (known_x, known_y) in zip(sizes, batches, known, strict=True):
            assert (str(x.device), str(y.device), len(x)) == (kind, kind, n)
            assert torch.equal(x.cpu(), known_x) and torch.equal(y.cpu(), known_y)
    assert bool(len(store.on_gpu)) == bool(free)


def trained(store, kind):
    "The weights of a small network after an epoch of a fastai Learner."
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(900, 20))
    optimiser = partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9)
    learn = Learner(loaders(store, kind), model.to(kind), loss_func=torch.nn.functional.cross_entropy,
        opt_func=optimiser, lr=.01)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert {str(p.device) for p in model.parameters()} == {kind}
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


@pytest.mark.parametrize('kind,free', [('cuda:0', 2 ** 40), ('cuda:0', 0), ('mps:0', 0)], ids=['kept on the device',
    'copied a batch at a time', 'mps'])
def test_a_training_there_is_a_training_here(device, store, monkeypatch, kind, free):
    "Reading thread, pinned memory, forward, backward and optimiser: bit for bit the CPU's weights."
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device=None: (free, free))
    there, here = trained(store, kind), trained(store, 'cpu')
    assert all(torch.equal(there[name], here[name]) for name in here)


# What stays on the device

@pytest.mark.parametrize('answers', [[0, 2 ** 40], [2 ** 40, 0]], ids=['more later', 'less later'])
def test_a_loader_makes_up_its_mind_once(device, store, monkeypatch, answers):
    "Another program takes or frees memory after the first batch: nothing changes."
    told = iter(answers)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device=None: (next(told, answers[-1]),) * 2)
    dls = loaders(store, 'cuda:0')
    for _ in range(2): assert len(list(dls.train)) == 2
    assert bool(len(store.on_gpu)) == bool(answers[0]) and next(told) == answers[1]


def test_loaders_of_a_store_share_one_copy(device, store):
    dls = loaders(store, 'cuda:0')
    for batches in dls.loaders: list(batches)
    assert len({id(batches.dataset.on_device[torch.device('cuda:0')]) for batches in dls.loaders}) == 1


def test_stores_of_five_runs_leave_the_device(device, frame, tmp_path, monkeypatch):
    "The next run finds the device empty, though stores are kept, and loaders held in circles, as a learner's are."
    stores = [build_store(frame[i:i + 64], frame.attrs['root'], 32, tmp_path, progress=False) for i in range(5)]
    left = []
    def ask(device=None):
        left.append(sum(len(store.on_gpu) for store in stores))
        return 2 ** 40, 2 ** 40
    monkeypatch.setattr(torch.cuda, 'mem_get_info', ask)
    for store in stores:
        dls = dataloaders(store, range(40), range(40, 64), device='cuda:0', batch_size=16)
        dls.train.circle, _ = dls, list(dls.train)
    del dls
    assert left == [0] * 5
    gc.collect()
    assert not any(len(store.on_gpu) for store in stores)


# Precision

@pytest.mark.parametrize('kind', ['cpu', 'mps', torch.device('cpu')])
def test_fp16_is_not_recorded_where_it_is_not_computed(kind):
    with pytest.raises(ValueError, match='fp16 channels_last needs a CUDA GPU'):
        pick_precision(kind, 224, 'fp16 channels_last')
    assert pick_precision('cuda', 224, 'fp16 channels_last').dtype == torch.float16
    assert pick_precision(kind, 224, 'bf16 channels_last').dtype == torch.bfloat16
