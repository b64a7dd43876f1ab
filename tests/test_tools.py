"What the tools spare themselves is what has just been done, and nothing else."
import importlib.util
import json
import os
from pathlib import Path

import nbdev.test
import nbformat
import pypandoc
import pytest
from fastcore.foundation import L
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent


def write_notebooks(folder, **sources):
    "A project with such notebooks, of a code cell each."
    for name in ('nbs', 'artinsight', '_executed'): (folder/name).mkdir(parents=True, exist_ok=True)
    (folder/'settings.ini').touch()
    for name, source in sources.items():
        nbformat.write(new_notebook(cells=[new_code_cell(source, id='a')]), folder/'nbs'/f'{name}.ipynb')


@pytest.fixture
def tool(monkeypatch):
    "tools/nbdev_test.py as a module; what it changes of nbdev is as before afterwards."
    for name in ('nbglob', 'CaptureShell'): monkeypatch.setattr(nbdev.test, name, getattr(nbdev.test, name))
    monkeypatch.syspath_prepend(ROOT/'tools')
    spec = importlib.util.spec_from_file_location('notebook_tests', ROOT/'tools/nbdev_test.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notebooks_that_make_report_has_just_executed_are_left_out(tool, tmp_path, monkeypatch):
    "Not one that has changed since, none that is named, and none where slow cells are wanted."
    write_notebooks(tmp_path, done='1', changed='2', other='3')
    monkeypatch.setattr(tool.pages, 'ROOT', tmp_path)
    files = [tmp_path/'nbs'/f'{name}.ipynb' for name in ('changed', 'done', 'other')]
    monkeypatch.setattr(tool, 'quick_runs', lambda: tmp_path/'runs')
    monkeypatch.setenv('ARTINSIGHT_RUNS', 'any other')
    keys = {file.name: tool.pages.key(file, tmp_path/'runs') for file in files[:2]}
    (tmp_path/'_executed/keys.json').write_text(json.dumps(keys))
    write_notebooks(tmp_path, changed='2 + 2')
    def untested(path=None): return [file.stem for file in tool.untested(path, lambda path: L(files))]
    assert untested() == ['changed', 'other'] and untested('nbs') == ['changed', 'done', 'other']
    with monkeypatch.context() as patch:
        patch.setattr('sys.argv', ['nbdev_test.py', '--flags', 'slow'])
        assert untested() == ['changed', 'done', 'other']
    (tmp_path/'artinsight/data.py').write_text('changed = True')
    assert untested() == ['changed', 'done', 'other']


def test_what_make_report_has_processed_is_taken_over_where_it_is_the_same(builder, tmp_path):
    here, copy = tmp_path/'here', tmp_path/'copy'
    write_notebooks(here, same='1', executed='2')
    write_notebooks(copy, same='1', executed='2 + 2')
    (copy/'_proc').mkdir()
    for name in ('same', 'executed'): (copy/f'_proc/{name}.ipynb').write_text(name)
    os.utime(copy/'_proc', (0, 0))
    builder.take_over(here, copy)
    assert not (here/'_proc').exists(), 'the settings are younger'
    os.utime(copy/'_proc')
    builder.take_over(here, copy)
    assert [path.name for path in (here/'_proc').iterdir()] == ['same.ipynb']


def test_nbdev_is_not_called_where_it_would_find_nothing_to_do(builder, tmp_path, monkeypatch):
    write_notebooks(tmp_path, one='1', two='2')
    calls = []
    def process(module, call, project):
        calls.append(call)
        for file in (project/'nbs').iterdir():
            (project/'_proc').mkdir(exist_ok=True)
            (project/'_proc'/file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(builder, 'nbdev', process)
    def again():
        calls.clear()
        assert builder.process(tmp_path) == tmp_path/'_proc'
        return len(calls)
    assert [again(), again()] == [1, 0]
    later = (tmp_path/'_proc').stat().st_mtime + 10
    os.utime(tmp_path/'nbs/one.ipynb', (later, later))
    assert again() == 1
    os.utime(tmp_path/'nbs/one.ipynb', (0, 0))
    assert again() == 0
    (tmp_path/'nbs/styles.css').touch()
    os.utime(tmp_path/'nbs/styles.css', (0, 0))
    assert again() == 1, 'it is not there yet'
    (tmp_path/'artinsight/data.py').touch()
    os.utime(tmp_path/'artinsight/data.py', (later, later))
    assert again() == 1 and 'force=True' in calls[0]


def test_pandoc_makes_a_page_once_and_keeps_its_pictures(builder, tmp_path, monkeypatch):
    "Once for each text and name of a file, whatever its pictures are."
    made, convert = [], pypandoc.convert_text
    monkeypatch.setattr(builder, 'ROOT', tmp_path)
    monkeypatch.setattr(pypandoc, 'convert_text', lambda text, *words, **more: made.append(text) or
                        convert(text, *words, **more))
    def page(name, letter, words='look'):
        picture = letter * 5000
        markdown = f'{words}\n\n~~~{{=html}}\n<img src="data:image/png;base64,{picture}" alt="a">\n~~~\n'
        builder.render(markdown, tmp_path/name, {'site': {}})
        assert f'base64,{picture}"' in (tmp_path/name).read_text()
    for letter in 'AAB': page('a.html', letter)
    assert len(made) == 1 and len(made[0]) < 1000
    page('b.html', 'A')
    page('a.html', 'A', 'look again')
    assert len(made) == 3
    for kept in (tmp_path/'_executed/pages').iterdir(): os.utime(kept, (0, 0))
    page('a.html', 'A')
    builder.forget_pages()
    assert len(made) == 3 and len(list((tmp_path/'_executed/pages').iterdir())) == 1, 'the one that was wanted again'
