"Backbones by name: head, normalisation, stages and maps of seven of torchvision's and two of timm's."
from dataclasses import asdict, replace

import numpy as np, pytest, torch
from captum.attr import LayerGradCam
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from artinsight.data import index, TARGETS
from artinsight.engine.augment import normalise
from artinsight.engine.backbones import build_backbone, describe_backbone, find_head, find_stages, freeze
from artinsight.engine.layers import default_layer
from artinsight.engine.precision import PRECISIONS
from artinsight.engine.store import build_store
from artinsight.gradcam import ask, GradCAM
from artinsight.loading import dataloaders
from artinsight.resnet18 import build_model, literature, load_experiment, paper_experiment
from artinsight.sample import painted_sample
from artinsight.training import Experiment, make_learner

timm = pytest.importorskip('timm')
SMALL = ['resnet18', 'mobilenet_v2', 'mobilenet_v3_small', 'squeezenet1_1', 'shufflenet_v2_x0_5', 'mnasnet0_5',
         'efficientnet_b0', 'timm/mobilenetv3_small_050', 'timm/convnext_atto']
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ('resnet50', 'convnext_tiny', 'densenet121')]


def lively(name, size=64):
    "A backbone with random weights that reacts to its pictures: measured statistics, a head of useful weights."
    torch.manual_seed(0)
    model = build_backbone(name, 20, 'none', size)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d): layer.momentum = None
    nn.init.normal_(model.get_submodule(find_head(model)).weight, std=.2)
    with torch.no_grad(): model.train()(torch.randn(8, 3, size, size))
    return model.eval()


@pytest.fixture(scope='module')
def loaders(tmp_path_factory):
    folder = painted_sample(train=4, test=1)
    store = build_store(index(folder), folder, 64, tmp_path_factory.mktemp('store'), progress=False)
    return dataloaders(store, range(16), range(16, 24), batch_size=16, device='cpu')


@pytest.mark.parametrize('name', [*SMALL, *LARGE])
def test_one_step_of_the_modern_recipe_moves_every_weight(name, loaders):
    recipe = Experiment('any', model=name, size=64, optimiser='adamw', layer_decay=.7, smoothing=.1, lr=1e-3)
    model = build_model(recipe, 'none')
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    learn = make_learner(recipe, model, loaders, PRECISIONS['fp32'])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 20)
    still = [key for key, weight in model.named_parameters() if torch.equal(weight, before[key])]
    assert still == []


@pytest.mark.parametrize('name', [*SMALL, *LARGE])
def test_the_head_is_new_and_all_else_is_the_library_s(name):
    "Against the library's own model of 1000 classes: the same entries of the same shapes, but for its last layer."
    short, model = name.removeprefix('timm/'), build_backbone(name, 20, 'none')
    theirs = (models.get_model(name) if short == name else timm.create_model(short)).state_dict()
    own, head = model.state_dict(), find_head(model)
    assert own.keys() == theirs.keys()
    assert {key for key in own if own[key].shape != theirs[key].shape} == {f'{head}.weight', f'{head}.bias'}
    assert all(own[f'{head}.{part}'].shape == (20, *theirs[f'{head}.{part}'].shape[1:]) for part in ('weight', 'bias'))
    if short != name: assert model.get_classifier() is model.get_submodule(head)


@pytest.mark.parametrize('name', [*SMALL, *LARGE])
def test_maps_agree_with_captum(name):
    model, x = lively(name), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    layer = default_layer(model, 64)
    asked = torch.tensor(ask(model(x).detach(), None))
    peer = LayerGradCam(model, model.get_submodule(layer)).attribute(x, asked, relu_attributions=True)[:, 0].detach()
    ours = GradCAM(model)(x, raw=True)
    assert peer.amax((1, 2)).max() > 0 and min(ours.shape[1:]) > 1
    assert (ours - peer).abs().max() <= 1e-5 * max(1, peer.max())


@pytest.mark.parametrize('name', [*SMALL, *LARGE, 'timm/vit_tiny_patch16_224', 'timm/mixer_s32_224'])
def test_what_a_model_sees_is_what_its_library_would_show_it(name):
    "A picture that has the native size already: the library's own mean and deviation and ours give the same numbers"
    about = describe_backbone(name)
    pixels = np.random.default_rng(0).integers(0, 256, (about.size, about.size, 3), dtype=np.uint8)
    model, seen = build_backbone(name, 3, 'none'), []
    first = next(layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))
    first.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    model.eval()(normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
    x = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    if name.startswith('timm/'):
        config = timm.get_pretrained_cfg(name.removeprefix('timm/'))
        mean, std = config.mean, config.std
    else: mean, std = (getattr(models.get_model_weights(name).DEFAULT.transforms(), part) for part in ('mean', 'std'))
    expected = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(seen[0].reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize('name', SMALL)
def test_a_stage_begins_where_maps_get_smaller_and_all_weights_have_one(name):
    model = build_backbone(name, 20, 'none')
    stages = find_stages(model)
    parts = [part for stage in stages for part in stage]
    assert 4 <= len(stages) <= 7 and len(set(parts)) == len(parts)
    assert all(sum(key.startswith(f'{part}.') for part in parts) == 1 for key, _ in model.named_parameters())
    assert find_head(model).startswith(stages[-1][0])
    sides = []
    for stage in stages[:-1]:
        model.get_submodule(stage[-1]).register_forward_hook(lambda layer, _, out: sides.append(out.shape[-1]))
    model.eval()(torch.zeros(1, 3, 224, 224))
    assert sides == sorted(set(sides), reverse=True)


def test_frozen_stages_keep_weights_and_statistics(loaders):
    recipe = Experiment('any', model='mobilenet_v2', size=64, frozen=('stage:0', 'stage:1', 'features.4'))
    model = build_model(recipe, 'none')
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learn = make_learner(recipe, model, loaders, PRECISIONS['fp32'])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    same = {key.split('.')[1] for key, value in model.state_dict().items()
            if key.startswith('features') and torch.equal(value, before[key])}
    assert same == {'0', '1', '2', '3', '4'}


@pytest.mark.parametrize('name', ['vit_b_16', 'timm/vit_tiny_patch16_224'])
def test_a_transformer_has_no_stages_and_says_so(name):
    model = build_backbone(name, 20, 'none')
    with pytest.raises(ValueError, match='has no stages'): find_stages(model)
    with pytest.raises(ValueError, match='has no stages'): freeze(model, ('stage:0',))


@pytest.mark.parametrize('name, says', [
    ('resnet19', "no model 'resnet19'"), ('fasterrcnn_resnet50_fpn', 'no model'),
    ('timm/resnet19', 'timm has no model'),
    ('timm/resnet18.no_such_tag', 'timm has no model'), ('keras/vgg', "no library 'keras'"), ('', "no model ''")])
def test_an_unknown_name_is_refused_in_one_line(name, says):
    with pytest.raises(ValueError, match=says) as raised: build_backbone(name, 20, 'none')
    assert '\n' not in str(raised.value)


def test_a_size_that_a_model_cannot_take_is_refused():
    with pytest.raises(ValueError, match='vit_b_16 cannot take pictures of 64 px: it was made for 224'):
        build_backbone('vit_b_16', 20, 'none', 64)


def test_a_layer_to_freeze_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no layer 'layer9' to freeze: there are conv1"):
        freeze(build_backbone('resnet18', 20, 'none'), ('layer9',))
    with pytest.raises(ValueError, match="no layer 'stage:9' to freeze: there are stage:0, stage:1"):
        freeze(build_backbone('resnet18', 20, 'none'), ('stage:9',))


@pytest.mark.parametrize('name', SMALL)
def test_a_file_of_weights_fills_all_but_the_head(name, tmp_path):
    torch.manual_seed(1)
    source = build_backbone(name, 7, 'none')
    head = find_head(source)
    save_file({f'module.{key}': value for key, value in source.state_dict().items()}, tmp_path / 'w.safetensors')
    got = build_backbone(name, 20, str(tmp_path / 'w.safetensors')).state_dict()
    for key, value in source.state_dict().items():
        if key.startswith(f'{head}.'): assert got[key].shape[0] == 20
        else: assert torch.equal(got[key], value)


def test_features_alone_are_weights_of_mobilenet(shared):
    file = shared / 'weights' / 'mobilenet_v2_features.safetensors'
    got, held = build_backbone('mobilenet_v2', 20, str(file)).state_dict(), load_file(file)
    assert len(held) == 312 and all(torch.equal(got[key], value) for key, value in held.items())
    with pytest.raises(ValueError, match='does not hold the weights of mobilenet_v3_small'):
        build_backbone('mobilenet_v3_small', 20, str(file))


@pytest.mark.parametrize('name', ['mobilenet_v2', 'timm/convnext_atto'])
def test_imagenet_weights_without_the_internet_say_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    def refuse(*args, **kwargs): raise OSError('no route to host')
    monkeypatch.setattr('torch.hub.download_url_to_file', refuse)
    monkeypatch.setattr('timm.models._hub.hf_hub_download', refuse)
    with pytest.raises(OSError, match=f'{name} cannot be .*--weights FILE') as raised: build_backbone(name, 20)
    assert '\n' not in str(raised.value)


def test_a_record_may_name_a_backbone_but_no_nonsense():
    def record(**changes): return {'experiment': {**asdict(Experiment('any', 'timm/convnext_atto')), **changes}}
    assert load_experiment(record()).model == 'timm/convnext_atto'
    for model in ('../x', 'a b', '', 7, None, 'timm/../x', ['resnet18']):
        with pytest.raises(ValueError, match='does not know'): load_experiment(record(model=model))


OWN = ['cifake', 'zeng', 'artbrain']
ZHAO = [pytest.param(name, marks=pytest.mark.slow) for name in literature().name if name.startswith('zhao')]


@pytest.mark.parametrize('name', [*OWN, *ZHAO])
def test_an_experiment_of_a_paper_has_its_own_question_and_a_map(name):
    recipe = paper_experiment(name)
    size, names = min(recipe.size, 64), TARGETS[recipe.target]
    model = build_model(replace(recipe, size=size), 'none', len(names)).eval()
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert model(x).shape == (1, {'origin': 2, 'style': 10, 'generator_style': 30}[recipe.target])
    maps = GradCAM(model, classes=names)(x, 1)
    assert maps.shape[1] == maps.shape[2] > 1
