"`artinsight_predict` and `artinsight_explain` as a user meets them: good input, odd input, no input."
import io
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from artinsight.data import CLASSES
from artinsight.gradcam import GradCAM, layers
from artinsight.engine.augment import normalise
from artinsight.engine.inference import soften
from artinsight.resnet18 import load_model
from artinsight.use import explain
from artinsight.use.explain import explain_files
from artinsight.use.predict import load_run, read_some
from scripts import call


@pytest.fixture(scope='module')
def folder(runs): return runs/'simple_cnn'


@pytest.fixture(scope='module')
def run(folder): return load_run(folder)


@pytest.fixture(scope='module')
def pictures(sample): return sorted((sample/'test').glob('*/*.jpg'))




def painting(width=90, height=60):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width * 3, height * 3))


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "Odd files, and for each whether it can be read."
    at = tmp_path_factory.mktemp('odd')
    picture, good, bad = painting(), [], []
    def keep(name, image, **options):
        image.save(at/name, **options)
        good.append(at/name)
    keep('plain.png', picture)
    keep('dot.png', Image.new('RGB', (1, 1), 'red'))
    keep('film.gif', picture.convert('P'), save_all=True, append_images=[Image.new('P', picture.size, 3)] * 4)
    keep('cmyk.jpg', picture.convert('CMYK'))
    keep('deep.png', Image.fromarray(np.asarray(picture.convert('L')).astype(np.uint16) * 257))
    keep('alpha.png', picture.convert('RGBA'))
    exif = Image.Exif()
    exif[0x0112] = 6
    keep('turned.jpg', picture.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=97)
    keep('upright.jpg', picture, quality=97)
    contents = {'text.jpg': b'hello', 'empty.jpg': b'', 'cut.jpg': (at/'upright.jpg').read_bytes()[:900]}
    for name, content in contents.items():
        (at/name).write_bytes(content)
        bad.append(at/name)
    Image.new('1', (20_000, 20_000)).save(at/'huge.png')
    (at/'hollow').mkdir()
    return good, [*bad, at/'huge.png', at/'hollow', at/'missing.png']


def test_predict_prints_a_line_a_picture(folder, pictures):
    done = subprocess.run(['artinsight_predict', str(folder), *map(str, pictures[:3])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(': ')[0] for line in lines] == [str(path) for path in pictures[:3]]
    assert all(any(kind in line for kind in CLASSES) and '%' in line for line in lines)


def test_predict_json_names_bad_files_and_does_the_rest(folder, odd):
    good, bad = odd
    done = call('artinsight_predict', folder, *good, *bad, '--json')
    assert done.returncode == 0, done.stderr
    rows = {row['path']: row for row in json.loads(done.stdout)}
    assert list(rows) == [str(path) for path in [*good, *bad]]
    for path in good:
        row = rows[str(path)]
        assert row['class'] in CLASSES and 0 < row['probability'] <= 1 and not row['problem']
        assert abs(sum(row['styles'].values())) <= 1.001
    for path in bad:
        assert rows[str(path)]['problem'] and 'class' not in rows[str(path)]
        assert sum(line.startswith(f'{path}: ') for line in done.stderr.splitlines()) == 1
    assert 'Traceback' not in done.stderr


def test_predict_without_anything_readable_is_exit_2(folder, odd):
    done = call('artinsight_predict', folder, *odd[1])
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.splitlines()[-1] == f'artinsight_predict: none of the {len(odd[1])} pictures could be read'


def test_predict_refuses_what_is_no_run(tmp_path, folder, pictures):
    for run in (tmp_path/'nowhere', tmp_path):
        done = call('artinsight_predict', run, pictures[0])
        assert done.returncode == 2 and done.stderr.count('\n') == 1
    record = json.loads((folder/'record.json').read_text())
    for change in ({'classes': ['cat', 'dog']}, {'experiment': {}}, {'data': None}, {'format': 99}):
        (tmp_path/'record.json').write_text(json.dumps({**record, **change}))
        (tmp_path/'model.safetensors').write_bytes((folder/'model.safetensors').read_bytes())
        with pytest.raises((ValueError, FileNotFoundError)): load_run(tmp_path)
    (tmp_path/'record.json').write_text(json.dumps(record))
    (tmp_path/'model.safetensors').write_bytes(b'\x80\x04cos\nsystem\n(S"touch /tmp/harm"\ntR.')
    with pytest.raises(ValueError, match='damaged'): load_run(tmp_path)


def test_folders_globs_and_order(run, sample, pictures):
    baroque = sorted((sample/'test'/'baroque').glob('*.jpg'))
    frame = run.predict([f'{sample}/test/bar*/*.jpg', sample/'test'/'realism', pictures[0]])
    assert list(frame.path[:len(baroque)]) == [str(path) for path in baroque]
    assert frame.path.iloc[-1] == str(pictures[0])
    alone = run.predict(pictures[0])
    assert alone['class'][0] == frame['class'].iloc[-1]
    assert abs(alone.probability[0] - frame.probability.iloc[-1]) < 1e-5


def test_batches_do_not_change_answers(run, pictures):
    one, many = run.predict(pictures[:50], batch_size=1), run.predict(pictures[:50], batch_size=17)
    assert (one['class'] == many['class']).all() and np.abs(one.probability - many.probability).max() < 1e-5


def let_through(model, layer, x):
    "Which units the ReLUs after `layer` let through: (pictures, units)."
    seen = []
    def keep(module, inputs, output): seen.append((output > 0).flatten(1))
    relus = [module for module in model.modules() if isinstance(module, torch.nn.ReLU)]
    hooks = [module.register_forward_hook(keep) for module in relus]
    hooks.append(model.get_submodule(layer).register_forward_hook(lambda *_: seen.clear()))
    with torch.no_grad(): model(x)
    for hook in hooks: hook.remove()
    return torch.cat(seen or [torch.ones(len(x), 1)], 1)


@pytest.mark.parametrize('name', ['simple_cnn', 'resnet18_base',
                                  pytest.param('resnet18_best', marks=pytest.mark.slow)])
def test_the_leaner_model_answers_and_looks_as_the_trained_one(runs, pictures, name):
    run = load_run(runs/name)
    trained, pixels = load_model(runs/name), read_some(pictures[::12], run.size)[0]
    soften(trained, run.calibration['temperature'])
    with torch.no_grad(): probs = trained(normalise(pixels)).softmax(1).numpy()
    assert np.abs(run.probs(pixels) - probs).max() < 1e-5
    layer = GradCAM(trained).at((run.size, run.size))
    maps, leaner = (GradCAM(model)(normalise(pixels)) for model in (trained, run.model))
    # A unit whose sum is zero but for rounding may be let through by one model alone: its picture's gradient is then
    # another, rightly.
    same = (let_through(trained, layer, normalise(pixels)) == let_through(run.model, layer, normalise(pixels))).all(1)
    assert same.float().mean() >= .9
    assert (maps - leaner)[same].abs().max() < 1e-5
    sizes = ['layer', 'layout', 'channels', 'height', 'width']
    assert layers(run.model, run.size)[sizes].equals(layers(trained, run.size)[sizes])
    if name != 'simple_cnn':
        assert not [layer for layer in run.model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


def test_pil_arrays_and_files_agree(run, pictures):
    image = Image.open(pictures[3])
    frame = run.predict([pictures[3], image, np.asarray(image.convert('RGB'))])
    assert frame.probability.round(5).nunique() == 1 and not frame.problem.any()


def test_exif_turns_the_picture(run, odd):
    named = {path.name: path for path in odd[0]}
    frame = run.predict([named['turned.jpg'], named['upright.jpg']])
    assert abs(frame.AI[0] - frame.AI[1]) < .02 and frame['class'].nunique() == 1


def test_explain_leaves_a_png_and_a_json_for_each_good_file(folder, odd, tmp_path):
    good, bad = odd
    done = call('artinsight_explain', folder, *good, *bad, '--out', tmp_path/'maps', '--target', 'origin')
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr
    names = sorted(path.name for path in (tmp_path/'maps').iterdir())
    assert names == sorted(f'{path.stem}.{kind}' for path in good for kind in ('png', 'json'))
    for path in bad: assert sum(line.startswith(f'{path}: ') for line in done.stderr.splitlines()) == 1
    for path in good:
        told = json.loads((tmp_path/'maps'/f'{path.stem}.json').read_text())
        assert told['path'] == str(path) and told['asked'] == 'AI' and len(told['map']) == told['map_size'][0] >= 4
        assert Image.open(tmp_path/'maps'/f'{path.stem}.png').size[0] > 500


class Terminal(io.StringIO):
    def isatty(self): return True


def test_progress_is_told_where_it_is_wanted(run, folder, pictures, monkeypatch):
    "Of a folder and of a generator, on a terminal, in several batches; a table comes as ever"
    many, shown = pictures[:300], Terminal()
    silent = run.predict(many)
    monkeypatch.setattr(sys, 'stderr', shown)
    again = run.predict((path for path in many), progress=True)
    pd.testing.assert_frame_equal(again, silent)
    assert shown.getvalue().split('\r')[-1].startswith('asked: 300/300 pictures, ') and shown.getvalue()[-1] == '\n'
    told = len(shown.getvalue())
    run.predict(many)
    run.predict(many[:9], progress=True)
    assert len(shown.getvalue()) == told, 'told unasked, or about a few'


@pytest.mark.parametrize('terminal', [False, True])
def test_the_console_tells_progress_to_terminals_alone(folder, pictures, monkeypatch, capsys, terminal):
    from artinsight.use.commands import artinsight_predict
    shown = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, 'stderr', shown)
    artinsight_predict(str(folder), list(map(str, pictures[:300])), json=True)
    assert len(json.loads(capsys.readouterr().out)) == 300
    assert ('asked: 300/300 pictures' in shown.getvalue()) == terminal and bool(shown.getvalue()) == terminal


@pytest.mark.parametrize('words, why', [(('--layer', 'nothing'), 'no layer'), (('--target', 'cubism'), 'cubism')])
def test_explain_refuses_bad_questions_in_one_line(folder, pictures, tmp_path, words, why):
    done = call('artinsight_explain', folder, pictures[0], '--out', tmp_path/'maps', *words)
    assert done.returncode == 2 and why in done.stderr.splitlines()[-1] and not (tmp_path/'maps').exists()


def test_a_1x1_layer_is_refused_with_one_that_works(runs, pictures, tmp_path):
    done = call('artinsight_explain', runs/'resnet18_base', pictures[0], '--out', tmp_path/'maps', '--layer', 'layer4')
    assert done.returncode == 2 and '1x1' in done.stderr and "try 'layer2'" in done.stderr


def test_same_names_do_not_overwrite(run, pictures, tmp_path):
    for place in 'ab':
        (tmp_path/place).mkdir()
        Image.open(pictures[0]).save(tmp_path/place/'same.png')
    frame = explain_files(run, [tmp_path/'a', tmp_path/'b'], tmp_path/'out')
    assert list(frame.name) == ['same', 'same-2'] and len(list((tmp_path/'out').iterdir())) == 4


def test_explanations_of_odd_files_are_those_of_the_picture_itself(run, odd, tmp_path):
    "A turned one is put upright, of a film the first frame is read, CMYK, 16 bits and alpha become plain colours"
    files = {path.name: path for path in odd[0]}
    explain_files(run, list(files.values()), tmp_path/'out', target='origin')
    told = {name: json.loads((tmp_path/'out'/f'{path.stem}.json').read_text()) for name, path in files.items()}
    near = lambda a, b, field: np.abs(np.array(told[a][field]) - np.array(told[b][field])).max()
    alike = [('turned.jpg', 'upright.jpg'), ('alpha.png', 'plain.png'), ('film.gif', 'plain.png'),
             ('cmyk.jpg', 'plain.png')]
    for one, other in alike:
        assert abs(told[one]['origin']['AI'] - told[other]['origin']['AI']) < .1, (one, other)
        assert near(one, other, 'map') < .5, (one, other)
    assert told['alpha.png']['map'] == told['plain.png']['map'] and near('turned.jpg', 'upright.jpg', 'map') < .1
    drawn = {name: np.asarray(Image.open(tmp_path/'out'/f'{path.stem}.png')).astype(int)[60:300, 20:260]
             for name, path in files.items()}
    most_apart = [('turned.jpg', 'upright.jpg', 12), ('film.gif', 'plain.png', 25), ('cmyk.jpg', 'plain.png', 12)]
    for one, other, most in most_apart:
        assert np.abs(drawn[one] - drawn[other]).mean() < most, (one, other)
    assert np.ptp(drawn['deep.png'], axis=2).max() == 0, 'grey'
    assert drawn['deep.png'].std() > 10, 'and neither black nor white'


@pytest.mark.parametrize('count', [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_many_files_with_bad_ones_among_them(run, pictures, tmp_path, monkeypatch, count):
    "Everything but the painting, which takes most of the time"
    monkeypatch.setattr(explain, 'explanation_picture', lambda picture, answer: Image.new('L', (1, 1)))
    (tmp_path/'text.jpg').write_text('hello')
    many, each = [pictures[i % len(pictures)] for i in range(count)], count // 8
    for i in range(0, count, 2 * each): many[i], many[i + each] = tmp_path/f'missing{i}.jpg', tmp_path/'text.jpg'
    frame = explain_files(run, many, tmp_path/'out')
    assert frame.path.tolist() == list(map(str, many))
    assert ((frame.problem != '') == [i % each == 0 for i in range(count)]).all()
    assert frame.name[frame.problem == ''].is_unique and len(list((tmp_path/'out').iterdir())) == 2 * (count - 8)


@pytest.mark.slow
def test_two_thousand_files(run, pictures, tmp_path):
    many = [pictures[i % len(pictures)] for i in range(1999)] + [tmp_path/'missing.jpg']
    said = run.predict(many)
    assert len(said) == 2000 and list(said.path) == list(map(str, many)) and (said.problem != '').sum() == 1
    frame = explain_files(run, many, tmp_path/'out')
    assert (frame.problem != '').sum() == 1 and len(list((tmp_path/'out').iterdir())) == 2 * 1999
