"The attempt at 90 %, which needs a GPU and hours: its lines are understood, its recipe and its network can be built."
import re
import shlex
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch

from artinsight.engine.backbones import find_head, training_memory
from artinsight.engine.console import _script_parser
from artinsight.engine.recipes import modern
from artinsight.resnet18 import build_model
from artinsight.study import find_experiment
from artinsight.use import commands

ROOT = Path(__file__).resolve().parent.parent
CELLS = nbformat.read(ROOT/'nbs/09_beyond.ipynb', 4).cells
COLAB = '\n'.join(cell.source for cell in CELLS if cell.source.startswith('#| eval: false'))
PROSE = '\n'.join(cell.source for cell in CELLS if cell.cell_type == 'markdown')


def asked(words):
    "Commands with what their own parsers understand of their lines; a line that they refuse ends the test."
    for script, line in re.findall(r'^!?(artinsight_(?:train|evaluate)) ([^\n#]*)', words, re.M):
        parser = _script_parser(getattr(commands, script).__wrapped__)
        yield script, vars(parser.parse_args(shlex.split(line.replace('{data[-1]}', 'DIR'))))


def test_the_cells_for_colab_train_evaluate_and_keep_their_run_on_drive():
    given = dict(asked(COLAB))
    train, evaluate = given['artinsight_train'], given['artinsight_evaluate']
    assert train['data'] == 'DIR' and 'data = !artinsight_download' in COLAB
    runs = Path(train['runs'])
    assert runs.is_relative_to('/content/drive/MyDrive') and "drive.mount('/content/drive')" in COLAB
    assert Path(evaluate['run']) == runs/find_experiment(train['name']).name


def test_the_same_experiment_on_the_console_and_in_the_readme():
    blocks = re.findall(r'^```sh\n(.*?)^```', (ROOT/'README.md').read_text(encoding='utf-8'), re.M | re.S)
    name = dict(asked(COLAB))['artinsight_train']['name']
    for words in (PROSE, '\n'.join(blocks)):
        assert name in {given['name'] for script, given in asked(words) if script == 'artinsight_train'}


def test_its_recipe_is_the_modern_one_and_its_network_can_be_built():
    recipe = find_experiment(dict(asked(COLAB))['artinsight_train']['name'])
    assert not recipe.quick and recipe.per_style == 5000 and recipe.target == 'class'
    assert all(getattr(recipe, field) == value for field, value in modern(recipe.model).items())
    model = build_model(replace(recipe, size=64), 'none').eval()
    assert model.get_submodule(find_head(model)).out_features == 20
    with torch.no_grad(): assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 20)


@pytest.mark.parametrize('name', ['resnet18', 'convnext_tiny'])
def test_memory_grows_with_the_batch_as_it_says(name):
    model = build_model(find_experiment(f'modern_{name}'), 'none')
    (each, always), weights = training_memory(model, 64), sum(weight.numel() * 4 for weight in model.parameters())
    kept = {}
    def keep(x): return kept.setdefault(x.untyped_storage().data_ptr(), x)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast('cpu', torch.bfloat16):
        model.eval()(torch.zeros(8, 3, 64, 64))
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    measured = sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in own)
    assert measured == pytest.approx(8 * each + always - 5 * weights, rel=.02)
