"The parts of a modern recipe: resumed to the last bit, off by default, and each doing what it says."
import json
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import numpy as np, pytest, torch
from fastai.callback.core import Callback
from safetensors.torch import load_file

from artinsight.data import index
from artinsight.engine.augment import augment_batch, damage
from artinsight.engine.precision import PRECISIONS
from artinsight.engine.recipes import MODERN, modern, Options, rate_groups
from artinsight.engine.runs import predict_probs, probabilities
from artinsight.engine.store import build_store
from artinsight.loading import dataloaders
from artinsight.resnet18 import build_model, load_experiment
from artinsight.sample import painted_sample
from artinsight.study import find_experiment
from artinsight.training import Experiment, load_predictions, make_learner, read_record, train, write_record

WHOLE = Experiment('modern', model='mobilenet_v3_small', size=48, batch_size=8,
                   **{**MODERN, 'epochs': 4, 'start_size': 32, 'augment': ('hflip', 'damage', 'half_crop')})


@pytest.fixture(scope='module')
def loaders(tmp_path_factory):
    "Loaders of a few painted pictures, made anew for each training."
    folder = painted_sample(train=4, test=1)
    store = build_store(index(folder), folder, 48, tmp_path_factory.mktemp('store'), progress=False)
    rows = np.arange(0, 64, 2)
    def make(recipe=WHOLE):
        return dataloaders(store, rows[:24], rows[24:28], rows[28:], recipe.augment, recipe.batch_size, 'cpu')
    return make


class Interrupt(Callback):
    "Break off in the middle of an epoch."
    def __init__(self, epoch): self.at = epoch
    def before_batch(self):
        if self.training and self.iter == 1 and len(self.checkpoint.rows) == self.at: raise KeyboardInterrupt


@pytest.mark.parametrize('epoch, mix', [(2, 'cutmix'), pytest.param(1, 'mixup', marks=pytest.mark.slow),
                                        pytest.param(3, 'mixup', marks=pytest.mark.slow)])
def test_a_modern_training_resumes_to_the_last_bit(loaders, tmp_path, epoch, mix):
    recipe = replace(WHOLE, mix=mix)
    train(recipe, build_model(recipe, 'none'), loaders(), tmp_path / 'whole')
    with pytest.raises(KeyboardInterrupt):
        train(recipe, build_model(recipe, 'none'), loaders(), tmp_path / 'parted', cbs=[Interrupt(epoch)])
    assert not (tmp_path / 'parted' / 'model.safetensors').exists()
    summary = train(recipe, build_model(recipe, 'none'), loaders(), tmp_path / 'parted')
    whole, parted = (load_file(tmp_path / name / 'model.safetensors') for name in ('whole', 'parted'))
    assert summary['epochs'] == 4 and summary['best_epoch'] == 3
    assert all(torch.equal(whole[name], parted[name]) for name in whole)
    assert (load_predictions(tmp_path / 'whole')[2] == load_predictions(tmp_path / 'parted')[2]).all()


def test_what_is_kept_is_the_average_and_not_the_last_weights(loaders, tmp_path):
    recipe, last = replace(WHOLE, mix='none', start_size=0), {}
    class Keep(Callback):
        def after_train(self): last.update({name: value.clone() for name, value in self.model.state_dict().items()})
    train(recipe, build_model(recipe, 'none'), loaders(recipe), tmp_path, cbs=[Keep()])
    kept = load_file(tmp_path / 'model.safetensors')
    moved = [name for name in kept if name.endswith('weight') and not torch.equal(kept[name], last[name])]
    assert len(moved) > 50


def test_the_head_alone_learns_at_first(loaders):
    recipe, seen = replace(WHOLE, epochs=2, average=0.), {}
    model = build_model(recipe, 'none')
    class Look(Callback):
        def after_epoch(self):
            seen[self.epoch] = {key: value.clone() for key, value in self.model.state_dict().items()}
            self.checkpoint.rows.append(0)
    learn = make_learner(recipe, model, loaders(), PRECISIONS['fp32'], [Look()])
    learn.checkpoint = SimpleNamespace(rows=[])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    moved = {epoch: {key for key in before if not torch.equal(before[key], seen[epoch][key])} for epoch in (0, 1)}
    assert moved[0] == {'classifier.3.weight', 'classifier.3.bias'} and len(moved[1]) > 100


def test_training_pictures_are_small_until_the_last_quarter_and_the_others_never(loaders, tmp_path):
    sides = {True: [], False: []}
    class Look(Callback):
        def before_batch(self): sides[self.training].append(self.x.shape[-1])
    train(WHOLE, build_model(WHOLE, 'none'), loaders(), tmp_path, cbs=[Look()])
    assert sides[True] == 9 * [32] + 3 * [48] and set(sides[False]) == {48}


def test_all_is_off_by_default_so_that_the_study_trains_as_ever():
    recipe = find_experiment('resnet18_best')
    off = Options()
    assert all(getattr(recipe, field.name) == getattr(off, field.name) for field in fields(Options))
    learn = make_learner(recipe, torch.nn.Linear(2, 2), FakeLoaders(), PRECISIONS['fp32'])
    learn.create_opt()
    assert type(learn.opt.opt) is torch.optim.SGD and len(learn.opt.hypers) == 1


class FakeLoaders: device, train, valid = torch.device('cpu'), [], []


def test_records_from_before_these_fields_are_read(tmp_path):
    def reread(recipe):
        tables = {name: {} for name in ('data', 'validation', 'test')}
        write_record(tmp_path, {'experiment': recipe, 'weights': 'none', **tables})
        return load_experiment(read_record(tmp_path))
    new = json.loads(json.dumps(asdict(find_experiment('resnet18_best'))))
    old = {name: value for name, value in new.items() if name not in {field.name for field in fields(Options)}}
    assert len(old) == len(new) - len(fields(Options))
    assert reread(old) == find_experiment('resnet18_best')
    with pytest.raises(ValueError, match='does not know'): reread({**old, 'colour': 1})
    with pytest.raises(ValueError, match='look at its mix'): reread({**old, 'mix': 3})


def test_every_weight_is_in_one_group_and_its_rate_falls_towards_the_picture():
    model = build_model(WHOLE, 'none')
    groups, rates, decays = rate_groups(model, .5)
    named = {id(weight): name for name, weight in model.named_parameters()}
    assert sorted(id(weight) for group in groups for weight in group) == sorted(named)
    by_name = {named[id(weight)]: rate for group, rate in zip(groups, rates) for weight in group}
    assert by_name['classifier.3.weight'] == 1 and by_name['features.0.0.weight'] == min(rates) < .1
    for group, decay in zip(groups, decays): assert all((weight.ndim > 1) == (decay > 0) for weight in group)


def test_a_mirror_image_gets_the_same_answer_where_flips_are_averaged():
    assert build_model(WHOLE, 'none').flip_average and not build_model(find_experiment('simple_cnn')).flip_average
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 20)), torch.randn(4, 3, 8, 8)
    model.flip_average = True
    both = probabilities(model, x)
    assert torch.allclose(both, probabilities(model, x.flip(3)), atol=1e-6)
    assert np.array_equal(predict_probs(model, [(x, torch.zeros(4).long())])[0], both.numpy())
    model.flip_average = False
    assert not torch.allclose(probabilities(model, x), probabilities(model, x.flip(3)), atol=1e-3)


def test_damage_is_drawn_alike_for_every_class_and_goes_through_a_real_jpeg():
    x = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    damaged = [augment_batch(x, ['damage'], torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert damaged[0].dtype == torch.uint8 and damaged[0].shape == x.shape
    assert torch.equal(damaged[0], damaged[1]) and not torch.equal(damaged[0], damaged[2])
    smooth = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(2, 3, 64, 64).contiguous()
    as_is = damage(smooth, torch.tensor([95, 95]), torch.tensor([64, 64]))
    assert 0 < (as_is.int() - smooth.int()).abs().max() <= 12
    coarse = damage(x, torch.full((6,), 20), torch.full((6,), 32)).float()
    assert coarse.diff(dim=3).abs().mean() < .5 * x.float().diff(dim=3).abs().mean()


@pytest.mark.parametrize('name, model', [('modern_mobilenet_v2', 'mobilenet_v2'),
                                         ('modern_timm/convnext_atto', 'timm/convnext_atto')])
def test_a_modern_recipe_is_an_experiment_by_name(name, model):
    recipe = find_experiment(name, seed=3)
    assert (recipe.model, recipe.seed, recipe.size, recipe.lr) == (model, 3, 224, modern(model)['lr'])
    assert recipe.name == name.replace('/', '_')
    quick = find_experiment(name, quick=True)
    assert quick.size == 96 and quick.lr == recipe.lr and quick.start_size == 64
    with pytest.raises(ValueError, match='unknown experiment'): find_experiment('modern')
    with pytest.raises(ValueError, match="no model 'resnet19'"): find_experiment('modern_resnet19')
