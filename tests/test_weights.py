"""First weights as they really come: torchvision's published file, old files, checkpoints of other people's training
scripts, and what is no file of weights."""
import io, os, pickle, sys, zipfile
from argparse import Namespace
from collections import OrderedDict
from dataclasses import replace
from functools import cache as cache_of_calls
from pathlib import Path

import numpy as np, pytest, torch
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights, resnet34, resnet50, resnet18 as torchvision_resnet18

from artinsight import study, training
from artinsight.resnet18 import resnet18
from artinsight.study import find_experiment, reproduce
from artinsight.use.commands import artinsight_train
from artinsight.training import read_record

PUBLISHED = Path(ResNet18_Weights.IMAGENET1K_V1.url).name


@cache_of_calls
def pretrained(seed=5):
    "A ResNet18 of 1,000 classes with its own numbers everywhere, statistics and counters too."
    torch.manual_seed(seed)
    model = torchvision_resnet18()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(), layer.running_var.uniform_(.5, 2), layer.num_batches_tracked.fill_(7)
    return model


def published(model=None, counters=False, parameters=True, metadata=False):
    """Stands for torchvision's `resnet18-f37072fd.pth`.

    How the real one is known: `ResNet18_Weights.IMAGENET1K_V1` in torchvision/models/resnet.py has its address and its
    size (44.661 MiB: 46,830,571 bytes);
    102 entries, none of them `num_batches_tracked`. pytorch/vision issue 2068 tells how it was made: the file of 2016
    (a `.tar` that PyTorch reads back as
    an `OrderedDict`, weights as `Parameter`s, statistics as tensors) was loaded and saved again as a zip. PyTorch added
    `_metadata` to state dicts later than that file,
    so it has none; saved so under the same name, this stand-in is 768 bytes smaller than the real one (names of
    storages and padding depend on PyTorch's version);
    a legacy file would be 17,876 bytes smaller.

    How this is made as awkward: the same entries, order and kinds of value; the options make torchvision's other
    layouts, with counters, plain tensors,
    and metadata of BatchNorm's version 1 (without counters) or 2."""
    model = model or pretrained()
    weights, state = dict(model.named_parameters()), model.state_dict()
    names = [name for name in state if counters or not name.endswith('num_batches_tracked')]
    result = OrderedDict((name, weights[name] if parameters and name in weights else state[name]) for name in names)
    if metadata: result._metadata = OrderedDict((name, {'version': 2 if counters else 1}) for name in state._metadata)
    return result


def same_trunk(model, source):
    "Whether all but the head is the source's, counters aside."
    ours, theirs = model.state_dict(), source.state_dict()
    return all(ours[name].equal(theirs[name])
               for name in ours if name.split('.')[0] != 'fc' and 'num_batches' not in name)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "torch's cache, empty: where the published file is looked for."
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # nobody listens there
    (tmp_path / 'torch/hub/checkpoints').mkdir(parents=True)
    return tmp_path / 'torch/hub/checkpoints' / PUBLISHED


def test_the_stand_in_has_the_published_layout(tmp_path):
    held = published()
    assert len(held) == 102 and not any('num_batches' in name for name in held) and not hasattr(held, '_metadata')
    torch.save(held, tmp_path / PUBLISHED)
    assert zipfile.is_zipfile(tmp_path / PUBLISHED) and abs((tmp_path / PUBLISHED).stat().st_size - 46_830_571) < 5000


@pytest.mark.parametrize('as_zip', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('metadata', [True, False], ids=['metadata', 'no metadata'])
@pytest.mark.parametrize('parameters', [True, False], ids=['Parameters', 'tensors'])
@pytest.mark.parametrize('counters', [True, False], ids=['counters', 'no counters'])
def test_every_layout_of_torchvision_is_taken_from_the_cache(cache, counters, parameters, metadata, as_zip):
    "Before: 'imagenet does not hold the weights of a ResNet18' for all that have no counters."
    source = pretrained()
    torch.save(published(source, counters, parameters, metadata), cache, _use_new_zipfile_serialization=as_zip)
    model = resnet18('imagenet')
    assert same_trunk(model, source) and model.fc.weight.shape == (20, 512)
    assert model.bn1.num_batches_tracked == (7 if counters else 0)


def renamed(before): return lambda state: {f'{before}{name}': value for name, value in state.items()}

def without(*starts): return lambda state: {name: value for name, value in state.items() if not name.startswith(starts)}

def other_head(state): return without('fc.')(state) | {'fc.weight': torch.zeros(37, 512), 'fc.bias': torch.zeros(37)}

def projection_head(state):
    return without('fc.')(state) | {f'fc.{layer}.weight': torch.zeros(128, 512) for layer in (0, 2)}

def last_linear(state):
    return without('fc.')(state) | {'last_linear.weight': state['fc.weight'], 'last_linear.bias': state['fc.bias']}

def floats(state): return {name: value.float() for name, value in state.items()}

def lists_of_one(state): return {name: value[None] if value.dim() == 0 else value for name, value in state.items()}

def some_counters(state):
    return {name: value for name, value in state.items() if 'num_batches' not in name or name.startswith('layer2')}

def pytorch_example(state):
    "As pytorch/examples, imagenet/main.py, saves it on several GPUs."
    return {'epoch': 90, 'arch': 'resnet18', 'state_dict': renamed('module.')(state), 'best_acc1': torch.tensor(69.7),
            'optimizer': momentum(), 'scheduler': {'last_epoch': 90}}

def torchvision_script(state):
    "As torchvision's references/classification/train.py saves it: arguments, and averaged weights after the others."
    ema = {'n_averaged': torch.tensor(9)} | {f'module.{name}': torch.zeros_like(value) for name, value in state.items()}
    return {'model': state, 'optimizer': momentum(), 'lr_scheduler': {}, 'epoch': 9,
            'args': Namespace(lr=.1, model='resnet18'), 'model_ema': ema}

def timm_checkpoint(state):
    "As timm's CheckpointSaver saves it."
    averaged = {name: torch.zeros_like(value) for name, value in state.items()}
    return {'epoch': 3, 'arch': 'resnet18', 'state_dict': state, 'optimizer': momentum(), 'version': 2,
            'args': Namespace(), 'state_dict_ema': averaged, 'metric': .7}

def lightning(state):
    """As Lightning's ModelCheckpoint saves a module whose network is called model, with a loss that has weights of its
    own."""
    return {'epoch': 3, 'global_step': 99, 'pytorch-lightning_version': '2.4.0',
            'state_dict': renamed('model.')(state) | {'loss.weight': torch.ones(20)},
            'loops': {'fit_loop': {'state_dict': {}}}, 'callbacks': {}, 'optimizer_states': [momentum()],
            'lr_schedulers': [], 'hyper_parameters': {'lr': .1}}

def fastai_saved(state): return {'model': state, 'opt': {'hypers': [{'lr': .1}], 'state': []}}

def momentum(): return {'state': {0: {'momentum_buffer': torch.zeros(3)}}, 'param_groups': [{'lr': .1, 'params': [0]}]}

def moco(state): return {'state_dict': renamed('module.encoder_q.')(state) | {'module.queue': torch.zeros(128, 8)}}

WRAPPINGS = [renamed('module.'), renamed('model.'), renamed('module.model.'), renamed('_orig_mod.'), without('fc.'),
             other_head, projection_head, last_linear, floats,
             lists_of_one, some_counters, pytorch_example, torchvision_script, timm_checkpoint, lightning, fastai_saved,
             moco,
             lambda state: {'checkpoint': {'model': state}}]


@pytest.mark.parametrize('wrap', WRAPPINGS, ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize('counters', [True, False], ids=['counters', 'no counters'])
def test_weights_are_found_in_their_wrapping(tmp_path, wrap, counters):
    source = pretrained()
    torch.save(wrap(dict(published(source, counters, parameters=False))), tmp_path / 'own.pth')
    assert same_trunk(resnet18(str(tmp_path / 'own.pth')), source)


def test_safetensors_and_half_precision(tmp_path):
    source = pretrained()
    save_file({f'model.{name}': value.detach().contiguous().bfloat16() for name, value in published(source).items()},
              tmp_path / 'own.safetensors')
    own = resnet18(str(tmp_path / 'own.safetensors'))
    assert own.conv1.weight.equal(source.conv1.weight.bfloat16().float()) and own.conv1.weight.dtype == torch.float32


def lacking(name): return lambda: {key: value for key, value in published().items() if key != name}

def resized(): return published() | {'layer3.0.bn2.bias': torch.zeros(255)}

def not_a_tensor(): return published(parameters=False) | {'bn1.weight': [1., 2.]}

UNFIT = [(lacking('layer1.0.conv1.weight'), 'layer1.0.conv1.weight'), (lacking('bn1.running_mean'), 'bn1.running_mean'),
         (resized, 'layer3.0.bn2.bias'),
         (not_a_tensor, 'bn1.weight'), (lambda: resnet34().state_dict(), 'layer1.2.conv1.weight'),
         (lambda: resnet50().state_dict(), 'layer1.0.conv1.weight'),
         (lambda: {}, 'conv1.weight'), (lambda: torch.zeros(3), 'conv1.weight'),
         (lambda: {0: torch.zeros(3)}, 'conv1.weight')]


@pytest.mark.parametrize('make,named', UNFIT, ids=range(len(UNFIT)))
def test_what_does_not_fit_is_named(tmp_path, make, named):
    torch.save(make(), tmp_path / 'own.pth')
    with pytest.raises(ValueError, match='does not hold the weights of a ResNet18') as raised:
        resnet18(str(tmp_path / 'own.pth'))
    assert named in str(raised.value) and str(tmp_path
                                              / 'own.pth') in str(raised.value) and len(str(raised.value)) < 1000


def saved(value, as_zip=True):
    torch.save(value, held := io.BytesIO(), _use_new_zipfile_serialization=as_zip)
    return held.getvalue()

def half(as_zip): return lambda: saved(published(), as_zip)[:20_000_000]

def other_zip():
    with zipfile.ZipFile(held := io.BytesIO(), 'w') as opened: opened.writestr('readme.txt', 'hello')
    return held.getvalue()

LFS = (b'version https://git-lfs.github.com/spec/v1\n'
       b'oid sha256:f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec\nsize 46830571\n')
NO_WEIGHTS = {'a web page': lambda: b'<!DOCTYPE html>\n<html><body>Sign in to the network</body></html>',
              'half a zip': half(True), 'half a legacy file': half(False),
              'empty': lambda: b'', 'zeros': lambda: bytes(5000), 'LFS pointer': lambda: LFS, 'another zip': other_zip,
              'text': lambda: 'gestört'.encode('latin1'),
              'a pickle': lambda: pickle.dumps({'conv1.weight': [1]}), 'gzip': lambda: b'\x1f\x8b\x08\x00' + bytes(20)}


def said(words, monkeypatch, capsys):
    "Call artinsight_train as the shell would: exit code and standard error."
    monkeypatch.setattr(sys, 'argv', ['artinsight_train', *map(str, words)])
    try: artinsight_train()
    except SystemExit as leaving: return leaving.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


@pytest.mark.parametrize('what', NO_WEIGHTS)
def test_what_lies_in_the_cache_and_is_no_file_of_weights(cache, sample, tmp_path, monkeypatch, capsys, what):
    """Before: UnpicklingError, RuntimeError or EOFError with a traceback, although our own line tells people to put a
    file there."""
    cache.write_bytes(NO_WEIGHTS[what]())
    code, err = said(['resnet18_base', '--data', sample, '--runs', tmp_path / 'runs', '--quick'], monkeypatch, capsys)
    assert code == 2 and len(err.splitlines()) == 1 and str(cache) in err and 'delete it' in err, err
    assert not (tmp_path / 'runs').exists()


class Command:
    def __reduce__(self): return os.system, ('touch bang',)


@pytest.mark.parametrize('value,named', [(torchvision_resnet18, 'ResNet'),
                                         (lambda: published() | {'x': Command()}, 'system'),
                                         (lambda: {'model': published(), 'best': np.float64(.7)}, 'numpy')],
                         ids=['a whole model', 'a command', 'a number of numpy'])
def test_nothing_is_run_and_the_way_out_is_told(tmp_path, monkeypatch, value, named):
    monkeypatch.chdir(tmp_path)
    torch.save(value(), tmp_path / 'own.pth')
    with pytest.raises(ValueError, match=r'not a file of weights.*state_dict\(\)') as raised:
        resnet18(str(tmp_path / 'own.pth'))
    assert named in str(raised.value) and not (tmp_path / 'bang').exists()


def test_a_home_folder_is_spelled_out(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    source = pretrained()
    torch.save(published(source), tmp_path / 'own.pth')
    assert same_trunk(resnet18('~/own.pth'), source)


def test_quick_base_trains_from_the_cache(cache, tiny, tmp_path, monkeypatch, capsys):
    "Before: exit 2 after the published file was refused."
    torch.save(published(), cache)
    monkeypatch.setitem(training.QUICK, 'epochs', 1)
    monkeypatch.setenv('ARTINSIGHT_CACHE', str(tmp_path / 'cache'))
    code, err = said(['resnet18_base', '--quick', '--data', tiny, '--runs', tmp_path / 'runs'], monkeypatch, capsys)
    assert code == 0, err
    record = read_record(tmp_path / 'runs/resnet18_base')
    assert record['weights'] == 'imagenet' and record['quick'] and record['test']['n'] == 90


@pytest.mark.slow
def test_the_five_experiments_begin_with_the_published_file(cache, tiny, tmp_path, monkeypatch):
    "Before: ended after the simple CNN. One epoch each, on few pictures."
    torch.save(published(), cache)
    monkeypatch.setenv('ARTINSIGHT_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(study, 'find_experiment', lambda *words: replace(find_experiment(*words), epochs=1))
    records = reproduce(tiny, tmp_path / 'runs', quick=True, weights='imagenet')
    assert [record['weights'] for record in records] == ['none', *4 * ['imagenet']]
    assert all(record['test']['n'] == 90 for record in records)
