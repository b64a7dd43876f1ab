"""A GPU's path without a GPU: tensors that only claim to lie on one (PyTorch's fake tensors) go through loaders and augmentation.

Nothing is computed there. But every operation checks where its tensors lie, as a GPU would, so one that mixes devices fails here, too.
"""
import pytest, torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from artinsight import loading
from artinsight.data import index
from artinsight.loading import AUGMENTATIONS, augment_batch, build_store, dataloaders, normalise
from artinsight.sample import painted_sample


class ClaimedGPU(FakeTensorMode):
    "Operations that touch the device 'cuda' are only checked; all others are computed."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = lambda value: isinstance(value, FakeTensor) or (isinstance(value, torch.device) and value.type == 'cuda')
        if any(map(there, tree_leaves((args, kwargs or {})))): return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs or {})


@pytest.fixture
def gpu(monkeypatch):
    "The claimed GPU; a thread that reads ahead would not see it, so reading stays in this one."
    monkeypatch.setattr(loading, 'ahead', map)
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor: tensor)
    with ClaimedGPU(allow_non_fake_inputs=True) as mode: yield mode


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    frame = index(painted_sample())
    return build_store(frame[:200], frame.attrs['root'], 32, tmp_path_factory.mktemp('stores'), progress=False)


def test_it_notices_a_mix_of_devices(gpu):
    with pytest.raises(RuntimeError, match='same device'): torch.ones(2).to('cuda') + torch.ones(2)


@pytest.mark.parametrize('steps', [(), *((step,) for step in AUGMENTATIONS), AUGMENTATIONS], ids='+'.join)
def test_pictures_are_augmented_where_they_lie(gpu, steps):
    pictures = torch.zeros(8, 32, 32, 3, dtype=torch.uint8).to('cuda').permute(0, 3, 1, 2)
    made = normalise(augment_batch(pictures, steps, torch.Generator().manual_seed(0)))
    assert (made.device.type, made.dtype, made.shape) == ('cuda', torch.float32, (8, 3, 32, 32))
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('free', [2 ** 40, 0], ids=['kept on the device', 'copied a batch at a time'])
def test_batches_arrive_on_the_device(gpu, store, monkeypatch, free):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device=None: (free, free))
    store.kept.clear()
    dls = dataloaders(store, range(150), range(150, 170), range(170, 200), augment=AUGMENTATIONS, device='cuda')
    for batches, sizes in ((dls.train, [64, 64]), (dls.valid, [20]), (dls.test, [30])):
        assert [(x.device.type, y.device.type, len(x), len(y)) for x, y in batches] == [('cuda', 'cuda', n, n) for n in sizes]
    assert any(device.type == 'cuda' for device in store.kept) == bool(free)
