"""Other questions than the study's, and folders of one's own, with the same tools: from training to the page."""
import base64
import json
import os
import shutil
from dataclasses import asdict, replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artinsight import data
from artinsight.beyond import by_generator, class_report, confused, factored
from artinsight.data import CLASSES, TARGETS, coarser
from artinsight.evaluation import Predictions, bootstrap, compare, confusion, load, results_table
from artinsight.sample import painted_sample
from artinsight.study import find_experiment, run_experiment
from artinsight.trust.alarms import alarm, alarm_table, by_style, plot_alarms
from artinsight.trust.audit import audit
from artinsight.trust.calibration import calibration
from artinsight.training import read_record
from artinsight.use.card import card
from artinsight.use.export import describe_input, export_run, to_hub
from artinsight.use.page import Neighbours, answer_upload, batch_html
from artinsight.use.predict import load_run
from scripts import call

COLOURS = {'blue': (40, 60, 200), 'green <b>': (40, 180, 60), 'red_car': (200, 50, 40)}


def paint_own(folder, n=15, halves=('',)):
    "Three classes of small pictures, each of one colour with grain."
    draw = np.random.default_rng(0)
    for half in halves:
        for name, colour in COLOURS.items():
            (folder/half/name).mkdir(parents=True)
            for i in range(n):
                pixels = np.array(colour) + draw.normal(0, 60, (24, 24, 3))
                Image.fromarray(pixels.clip(0, 255).astype('uint8')).save(folder/half/name/f'{i}.png')
    return folder


def short(target='class', epochs=2, **changes):
    return replace(find_experiment('simple_cnn', quick=True, target=target), epochs=epochs, **changes)


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "A data set of one's own in one level, and a run on it."
    work = tmp_path_factory.mktemp('own')
    os.environ['ARTINSIGHT_CACHE'], before = str(work/'cache'), os.environ.get('ARTINSIGHT_CACHE')
    run_experiment(short(epochs=4, batch_size=16), data.index(paint_own(work/'pets')), work/'runs')
    if before is None: del os.environ['ARTINSIGHT_CACHE']
    else: os.environ['ARTINSIGHT_CACHE'] = before
    return work/'pets', work/'runs/simple_cnn'


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    "The five questions, asked of the same pictures by a short training each."
    frame, runs = data.index(painted_sample(16)), tmp_path_factory.mktemp('asked')
    for target in TARGETS: run_experiment(short(target), frame, runs)
    return {target: runs/short(target).name for target in TARGETS}


def test_questions_are_told_apart_by_name_and_record(asked):
    for target, run in asked.items():
        record = read_record(run)
        assert record['experiment']['target'] == target and record['classes'] == list(TARGETS[target])
        assert run.name == ('simple_cnn' if target == 'class' else f'simple_cnn-{target}')
        assert list(record['data']['counts']['test']) == record['classes']
        assert load(run).classes == TARGETS[target] and load(run).probs.shape[1] == len(TARGETS[target])


def test_figures_that_do_not_apply_are_left_out(asked):
    "And none of them comes as a number, or as None."
    has = {target: {name for name in read_record(run)['test'] if name.endswith('_accuracy')} - {'balanced_accuracy'}
           for target, run in asked.items()}
    assert has == {'class': {'top2_accuracy', 'origin_accuracy', 'style_accuracy'}, 'origin': {'origin_accuracy'},
                   'style': {'top2_accuracy', 'style_accuracy'}, 'generator': {'top2_accuracy', 'origin_accuracy'},
                   'generator_style': {'top2_accuracy', 'class_accuracy', 'generator_accuracy', 'origin_accuracy',
                                       'style_accuracy'}}
    table = results_table([read_record(asked['origin'])]).query('source == "this run"').iloc[0]
    assert np.isnan(table.style_accuracy) and table.origin_accuracy == table.accuracy


def test_sums_are_the_right_arithmetic():
    "Thirty probabilities as twenty, ten, three and two, by hand."
    probs = np.random.default_rng(0).dirichlet(np.ones(30), 200)
    target = np.arange(200) % 30
    p, makers, styles = Predictions(target, probs, classes=TARGETS['generator_style']), target // 10, target % 10
    cube = p.probs.reshape(-1, 3, 10)  # human, LD, SD
    human, ai = cube[:, 0], cube[:, 1] + cube[:, 2]
    truth = {'class': (np.c_[ai, human], styles + 10 * (makers == 0)), 'style': (cube.sum(1), styles),
             'generator': (cube.sum(2), makers), 'origin': (np.c_[ai.sum(1), human.sum(1)], 1 * (makers == 0))}
    figures = bootstrap(p, resamples=10).value
    for name, (expected, true) in truth.items():
        assert np.allclose(p.summed(name).probs, expected) and (p.summed(name).target == true).all()
        assert figures[f'{name}_accuracy'] == pytest.approx((expected.argmax(1) == true).mean())
        twice = p.summed('class')
        if name != 'generator': assert np.allclose(twice.summed(name).probs, expected)
    assert (confusion(p, 'style').to_numpy() == confusion(p.summed('style')).to_numpy()).all()
    assert len(class_report(p)) == 30 and set(confused(p).true) <= set(TARGETS['generator_style'])


@pytest.mark.parametrize('one,other,classes', [('generator_style', 'class', 20), ('generator_style', 'style', 10),
                                               ('generator_style', 'generator', 3), ('class', 'origin', 2),
                                               ('class', 'generator', 2), ('origin', 'generator', 2)])
def test_runs_are_compared_on_what_both_answer(asked, one, other, classes):
    row = compare(asked[one], asked[other], resamples=50)
    shared = next(name for name, names in TARGETS.items() if len(names) == classes)
    right = [(run.summed(shared) if len(run.classes) != classes else run).right.mean()
             for run in (load(asked[one]), load(asked[other]))]
    assert row['classes'] == classes and [row['a'], row['b']] == pytest.approx(right)


def test_runs_without_a_common_question_are_not_compared(asked, own):
    for one, other in ((asked['style'], asked['origin']), (asked['class'], own[1])):
        with pytest.raises(ValueError, match='none in common'): compare(one, other)
    with pytest.raises(ValueError, match='does not tell the class'): factored(load(asked['origin']))
    assert len(by_generator(load(asked['origin'])).loc['LD']) == 2


@pytest.mark.slow
def test_thirty_classes_agree_with_twenty(sample, tmp_path):
    "Summed up to the twenty, a training on generator and style is as good as one on the twenty, within its interval."
    frame, sides = data.index(sample), []
    for target in ('class', 'generator_style'):  # three seeds: what one training does by chance is in the interval
        recipes = [find_experiment('simple_cnn', quick=True, target=target, seed=seed) for seed in range(3)]
        for recipe in recipes: run_experiment(recipe.fit_epochs(frame), frame, tmp_path/str(recipe.seed))
        sides.append([tmp_path/str(recipe.seed)/recipe.name for recipe in recipes])
    for figure in ('accuracy', 'origin_accuracy', 'style_accuracy'):
        row = compare(*sides, figure)
        assert row['classes'] == 20 and row['low'] <= 0 <= row['high'], row


def test_an_origin_run_at_work(asked, tmp_path):
    "Predictions, heat maps, card and page tell the origin, and no style anywhere."
    run, frame = load_run(asked['origin']), data.index(painted_sample(16))
    picture = f"{frame.attrs['root']}/{frame.path.iloc[-1]}"
    row = run.predict(picture).iloc[0]
    assert list(row.index) == ['path', 'class', 'probability', 'origin', 'AI', 'unsure', 'classes', 'problem']
    assert row['class'] == row['origin'] and set(row['classes']) == {'AI', 'human'}
    answer = run.explain(torch.zeros(1, 3, run.size, run.size, dtype=torch.uint8), 'origin')[0]
    assert 'style' not in answer and set(answer['origin']) == {'AI', 'human'} and len(answer['top']) == 2
    with pytest.raises(ValueError, match='does not tell the style'):
        run.explain(torch.zeros(1, 3, run.size, run.size, dtype=torch.uint8), 'style')
    told, heat, _, plain = answer_upload(run, None, picture, 'origin')
    assert 'made by' in told and 'All 2 classes' in told and 'Likeliest styles' not in told and 'style' not in plain
    assert not any(style.replace('_', ' ') in told for style in data.STYLES)
    text = card(run)
    assert 'Tells whether' in text and 'human or AI: 2 classes' not in text and '`style_accuracy`' not in text
    assert 'right class of 2' in text and 'It cannot be audited' in text and 'ten styles' not in text
    with pytest.raises(ValueError, match='does not tell style and origin'): audit(asked['origin'], frame.attrs['root'])
    assert calibration(load(run.path, 'validation'), load(run.path))['ece_after'] >= 0


def test_an_origin_run_states_false_alarms_and_is_asked_again(asked):
    "As a run of all classes does: table, card and page; what flips is the origin alone"
    run, frame = load_run(asked['origin']), data.index(painted_sample())
    pictures = [f"{frame.attrs['root']}/{path}" for path in frame.path[frame.split == 'test'][::20]]
    table = run.predict(pictures, steady=True, false_alarms=.05)
    assert table.called_AI.tolist() == (table.AI > run.alarm(.05)['limit']).tolist()
    assert (table.steady == (table.because == '')).all() and (table.unsure | table.steady).all()
    words = {part.split(': ')[1] for because in table.because if because for part in because.split('; ')}
    assert words <= {'human', 'AI'}
    validation, test = (load(run.path, part).soften(run.calibration['temperature']) for part in ('validation', 'test'))
    assert run.alarm(.05) == alarm(validation, .05) and alarm_table(validation, test).test_pictures.iloc[0] > 0
    assert len(by_style(test, run.alarm(.05)['limit'])) == len(data.STYLES)
    told = answer_upload(run, None, pictures[0])[0]
    assert 'May a human be called AI?' in told and 'Asked again' in told and 'False alarms, from' in card(run)


@pytest.mark.parametrize('which', ['own', 'style'])
def test_a_run_that_knows_no_origin_is_asked_again_but_states_no_rate(asked, own, which):
    "Rates are left out of card and page, and refused in a line where they are asked for"
    folder, path = own if which == 'own' else (painted_sample()/'test', asked['style'])
    run, picture = load_run(path), next(Path(folder).rglob('*.png' if which == 'own' else '*.jpg'))
    row = run.predict(picture, steady=True).iloc[0]
    assert row.spread[0] <= row.probability <= row.spread[1] + 1e-6 and row.steady == (row.because == '')
    assert run.alarms() == [] and 'AI' not in row and 'called_AI' not in row
    validation = load(path, 'validation')
    assert alarm_table(validation).empty
    for ask in (lambda: alarm(validation), lambda: run.alarm(.01), lambda: plot_alarms(validation, load(path))):
        with pytest.raises(ValueError, match='does not tell|do not tell'): ask()
    told = answer_upload(run, None, picture)[0]
    assert 'May a human' not in told and 'Asked again' in told and 'False alarms' not in card(run)
    assert '(unsure' in printed('artinsight_predict', path, picture, '--steady').stdout or row.steady
    refused = call('artinsight_predict', path, picture, '--false_alarms', '.01')
    assert refused.returncode == 2 and refused.stdout == '' and refused.stderr.count('\n') == 1
    assert 'does not tell human from AI' in refused.stderr


def test_thirty_classes_at_work(asked):
    "They tell style, origin and generator; an audit sums them up."
    run, root = load_run(asked['generator_style']), data.index(painted_sample(16)).attrs['root']
    row = run.predict(f'{root}/test/AI_SD_baroque').iloc[0]
    assert {'style', 'origin', 'generator', 'AI', 'styles'} <= set(row.index)
    told = answer_upload(run, None, row.path)[0]
    assert 'All 30 classes' in told and all(f'>{maker}</th>' in told for maker in TARGETS['generator'])
    result = audit(asked['generator_style'], root, robustness=False, sample=20)
    assert result['classes'] == 30
    assert result['duplicates']['with']['accuracy'] == pytest.approx(read_record(run.path)['test']['class_accuracy'])


def test_a_folder_of_ones_own(own, capsys):
    "Classes come from the folders; a fifth is held back; the record says so."
    folder, run = own
    frame, record = data.index(folder), read_record(run)
    assert 'a fifth of each class' in capsys.readouterr().err
    assert record['classes'] == sorted(COLOURS) and record['data']['read_as'] == frame.attrs['read_as']
    assert set(frame.groupby('class').split.value_counts().xs('test', level='split')) == {3}
    assert not {'style', 'origin', 'generator'} & set(frame)
    assert record['test']['accuracy'] == 1 and not {'origin_accuracy', 'style_accuracy'} & set(record['test'])
    ids = set(load(run).table.path)
    assert ids == set(frame.path[frame.split == 'test']) and load(run).table.group.is_unique


def test_a_class_without_a_readable_picture(tmp_path):
    "It stays a class, counted as none, and the record can be read."
    folder = paint_own(tmp_path/'pets')
    for file in (folder/'blue').iterdir(): file.write_bytes(b'no picture')
    record = run_experiment(short(epochs=1, batch_size=16), data.index(folder), tmp_path/'runs')
    assert record['classes'] == sorted(COLOURS) and record['data']['counts']['train']['blue'] == 0
    assert len(record['data']['excluded']) == 15


def test_ones_own_at_work(own):
    "Predict, explain, page and card know the folders' names, and spell out what HTML would take for a sign."
    folder, path = own
    run = load_run(path)
    table = run.predict(folder)
    assert (table['class'] == [Path(name).parent.name for name in table.path]).mean() > .95
    answer = run.explain(torch.zeros(1, 3, run.size, run.size, dtype=torch.uint8), 'red_car')[0]
    assert answer['asked'] == 'red_car' and not {'style', 'origin'} & set(answer)
    with pytest.raises(ValueError, match='no class'):
        run.explain(torch.zeros(1, 3, run.size, run.size, dtype=torch.uint8), 'car')
    picture = str(folder/'green <b>/1.png')
    told, heat, near, plain = answer_upload(run, Neighbours(run, folder), picture)
    assert plain['class'] == 'green <b>' and 'This looks like' in told and 'made by' not in told
    for part in (told, heat, near, card(run)): assert 'green <b>' not in part and 'green <b>' in unescape(part)
    sheet = batch_html(run, [picture]).partition('base64,')[2].partition('"')[0]
    assert base64.b64decode(sheet).decode().splitlines()[0] == 'path,class,probability,unsure,problem'
    assert 'a fifth of each class' in card(run) and 'AI-ArtBench come' not in card(run)


def test_ones_own_exported(own, tmp_path):
    folder, path = own
    run = load_run(path)
    assert json.loads(describe_input(run)['labels']) == sorted(COLOURS)
    result = export_run(run, 'torch', data.index(folder), tmp_path/'torch')
    assert result['same_top_class'] == 1 and result['pictures'] == 9
    to_hub(run, tmp_path/'hub')
    assert json.loads((tmp_path/'hub/config.json').read_text())['num_classes'] == 3
    (tmp_path/'hub/predictions.npz').unlink(missing_ok=True)
    assert load_run(tmp_path/'hub').classes == tuple(sorted(COLOURS))


def test_ones_own_page(own):
    pytest.importorskip('gradio')
    from artinsight.use.app import build_app
    words = json.dumps(build_app(load_run(own[1])).get_config_file())
    assert 'Which class?' in words and 'human or AI' not in words.replace('human or AI right', '')


def printed(script, *words):
    done = call(script, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_ones_own_from_the_console(tmp_path):
    "Train, evaluate, predict and explain a folder with halves, spelled as people do."
    folder = paint_own(tmp_path/'mine', 12, ('Train', 'test'))
    (folder/'Train/.hidden').mkdir()
    (folder/'Train/Thumbs.db').write_bytes(b'')
    done = printed('artinsight_train', 'simple_cnn', '--data', folder, '--runs', tmp_path/'runs', '--quick', '--json')
    record, = json.loads(done.stdout)
    assert record['classes'] == sorted(COLOURS) and 'each picture is a group of its own' in done.stderr
    run = tmp_path/'runs/simple_cnn'
    assert 'top2_accuracy' in printed('artinsight_evaluate', run).stdout
    assert 'blue' in printed('artinsight_predict', run, folder/'test/blue/0.png').stdout
    printed('artinsight_explain', run, folder/'test/blue/0.png', '--out', tmp_path/'out')
    assert json.loads((tmp_path/'out/0.json').read_text())['top'][0]['class'] in COLOURS


def test_questions_that_cannot_be_asked(own, tmp_path):
    frame = data.index(own[0])
    with pytest.raises(ValueError, match='tell the class alone'): run_experiment(short('origin'), frame, tmp_path)
    with pytest.raises(ValueError, match='a target is one of'): find_experiment('simple_cnn', target='artist')
    with pytest.raises(ValueError, match='does not tell style and origin'): audit(own[1], own[0])


@pytest.mark.parametrize('extra,match', [('cubism', "unknown folder 'cubism'"), ('AI_SD_ukiyo_e', 'unknown folder')])
def test_a_misspelt_folder_is_no_class(tmp_path, extra, match):
    for name in ('baroque', extra):
        (tmp_path/'train'/name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path/'train'/name/'a_b.jpg')
    with pytest.raises(ValueError, match=match): data.index(tmp_path)


def test_folders_that_are_no_data_set(tmp_path):
    "One folder alone, classes that stand in the test half alone, known folders without halves."
    paint_own(tmp_path/'halves', 3, ('train', 'test'))
    shutil.rmtree(tmp_path/'halves/train/blue')
    with pytest.raises(ValueError, match="'blue'.*no training picture"): data.index(tmp_path/'halves')
    (tmp_path/'bare/baroque').mkdir(parents=True)
    (tmp_path/'bare/realism').mkdir()
    for name in ('baroque', 'realism'): Image.new('RGB', (8, 8)).save(tmp_path/'bare'/name/'a_b.jpg')
    with pytest.raises(FileNotFoundError, match='no train or test folder'): data.index(tmp_path/'bare')


def test_older_records_are_read(asked):
    "Records of before had no question; theirs was the study's."
    file = asked['class']/'record.json'
    text = file.read_text()
    record = json.loads(text)
    del record['experiment']['target']
    try:
        file.write_text(json.dumps(record))
        assert read_record(file.parent)['experiment'] == json.loads(json.dumps(asdict(short())))
        file.write_text(json.dumps({**record, 'format': 1, 'init': 'none'}))
        assert read_record(file.parent)['weights'] == 'none'
        file.write_text(json.dumps({**record, 'classes': list(TARGETS['style'])}))
        with pytest.raises(ValueError, match='other classes'): read_record(file.parent)
    finally: file.write_text(text)


def test_every_question_lies_in_the_thirty():
    for target, names in TARGETS.items():
        inside = coarser(TARGETS['generator_style'], target)
        assert sorted(set(inside)) == list(range(len(names)))
    assert coarser(CLASSES, 'generator') is None and coarser(['blue'], 'class') is None
