"What `artinsight_export` leaves, and leaves alone: other people's folders and files, the run itself, pins."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module, metadata

import pytest
import torch
from torch import nn

from artinsight.use import export
from artinsight.use.commands import artinsight_export
from artinsight.use.export import Pixels, export_run, to_hub, to_torch
from artinsight.use.predict import MADE_BY, load_run
from artinsight.data import index
from machine import full_disk, one_line, scarce, theirs
from scripts import call


@pytest.fixture(scope='module')
def run(runs): return load_run(runs/'simple_cnn')


@pytest.fixture
def copied(runs, tmp_path): return load_run(shutil.copytree(runs/'simple_cnn', tmp_path/'run'))


def content(folder): return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_hub_folder_is_written_again_and_keeps_what_its_owner_added(copied, tmp_path):
    hub = tmp_path/'hub'
    (copied.path/'audit.json').write_text('{}')
    to_hub(copied, hub)
    subprocess.run(['git', 'init', '-q', hub], check=True)
    (hub/'notes.txt').write_text('mine')
    (hub/'README.md').write_text('from an older run')
    (copied.path/'audit.json').unlink()
    to_hub(copied, hub)
    assert (hub/'.git/HEAD').exists() and (hub/'notes.txt').read_text() == 'mine'
    assert 'license' in (hub/'README.md').read_text()
    assert not (hub/'audit.json').exists(), 'the audit of another run'
    assert load_run(hub).calibration == copied.calibration


@pytest.mark.parametrize('file', ['README.md', 'config.json', 'thesis.tex', '.git'])
def test_a_folder_of_somebody_else_is_refused_as_a_hub_folder(run, tmp_path, file):
    (tmp_path/file).write_text('{}')
    with pytest.raises(FileExistsError, match='not made by this artinsight'): to_hub(run, tmp_path)
    assert content(tmp_path) == {file: b'{}'}
    with pytest.raises(FileExistsError): to_hub(run, run.path)
    with pytest.raises(NotADirectoryError, match='is a file'): to_hub(run, tmp_path/file)


def test_a_hub_folder_is_never_half_of_two_runs(run, tmp_path, monkeypatch):
    to_hub(run, tmp_path/'hub')
    before = content(tmp_path/'hub')
    monkeypatch.setattr(export, 'HUB_APP', 'another')
    write, written = type(tmp_path).write_bytes, []
    def full(path, data):
        written.append(path)
        if len(written) == 5: raise OSError(28, 'No space left on device')
        return write(path, data)
    monkeypatch.setattr(type(tmp_path), 'write_bytes', full)
    with pytest.raises(OSError, match='No space'): to_hub(run, tmp_path/'hub')
    assert content(tmp_path/'hub') == before


def test_a_hub_folder_pins_what_it_was_written_with(run, tmp_path):
    "Read by huggingface_hub itself, which knows the keys of a Space; by packaging, which knows requirements"
    hub = pytest.importorskip('huggingface_hub', reason='comes with gradio')
    from packaging.requirements import Requirement
    pins = to_hub(run, tmp_path/'hub')
    told = hub.SpaceCard((tmp_path/'hub/README.md').read_text()).data
    assert told.sdk == 'gradio' and told.sdk_version == metadata.version('gradio') and told.app_file == 'app.py'
    assert told.license == 'apache-2.0'
    assert told.python_version == f'{sys.version_info[0]}.{sys.version_info[1]}'
    assert isinstance(told.sdk_version, str), 'no number: 3.10 is not 3.1'
    artinsight, gradio = map(Requirement, (tmp_path/'hub/requirements.txt').read_text().splitlines())
    assert str(gradio) == f"gradio=={metadata.version('gradio')}"
    assert artinsight.extras == {'app'} and artinsight.url.endswith(pins['artinsight'])
    assert re.fullmatch(r'git\+https://\S+@[0-9a-f]{7,40}', artinsight.url)


def test_the_program_of_a_hub_folder_imports_what_is_here():
    used = [node for node in ast.walk(ast.parse(export.HUB_APP)) if isinstance(node, ast.ImportFrom)]
    ours = {node.module: node.names for node in used if node.module.startswith('artinsight')}
    for module, names in ours.items(): assert all(hasattr(import_module(module), name.name) for name in names), module
    assert ours


def test_a_name_with_a_colon_is_still_a_title(run, tmp_path, monkeypatch):
    hub = pytest.importorskip('huggingface_hub', reason='comes with gradio')
    monkeypatch.setitem(run.record['experiment'], 'name', 'mine: "the best"\n---')
    to_hub(run, tmp_path/'hub')
    told = hub.SpaceCard((tmp_path/'hub/README.md').read_text()).data
    assert told.title.startswith('artinsight mine: "the best"') and told.sdk == 'gradio'


def test_what_is_not_known_is_not_pinned_and_said(runs, run, tmp_path, monkeypatch, capsys):
    def version(name):
        if name == 'gradio': raise metadata.PackageNotFoundError(name)
        return '0'
    monkeypatch.setattr(export.metadata, 'version', version)
    monkeypatch.setattr(export, 'git_commit', lambda: None)
    record = json.loads((runs/'simple_cnn/record.json').read_text())
    copy = shutil.copytree(runs/'simple_cnn', tmp_path/'run')
    (copy/'record.json').write_text(json.dumps({**record, 'git': None}))
    artinsight_export(str(copy), to='hub', out=str(tmp_path/'hub'))
    said = capsys.readouterr()
    assert said.out == f"{tmp_path/'hub'}\n"
    assert 'which gradio to pin' in said.err and 'which artinsight to pin' in said.err
    assert (tmp_path/'hub/requirements.txt').read_text().count('@') == 1
    assert 'sdk_version' not in (tmp_path/'hub/README.md').read_text()
    artinsight_export(str(copy), to='hub')
    (copy/'record.json').write_text(json.dumps({**record, 'git': 'abc1234+'}))
    assert to_hub(load_run(copy), tmp_path/'hub')['artinsight'] == 'abc1234', 'the commit that the run was trained with'


def test_an_export_leaves_the_run_where_it_is(run, tmp_path, monkeypatch):
    "On a GPU its weights would move to the CPU: every module that is moved must be a copy's"
    moved, cpu = [], nn.Module.cpu
    monkeypatch.setattr(nn.Module, 'cpu', lambda self: moved.extend(self.modules()) or cpu(self))
    mine = {id(module) for module in run.model.modules()}
    to_torch(run, tmp_path/'model.pt2')
    assert moved and not mine & set(map(id, moved))
    graph = Pixels(run)
    weights = {weight.data_ptr() for weight in run.model.parameters()}
    assert not weights & {weight.data_ptr() for weight in graph.parameters()}
    assert torch.equal(next(graph.parameters()), next(run.model.parameters()))


OURS = [('torch', 'model.pt2'), ('onnx', 'model-int8.onnx'), ('torch', 'export-torch.json'), ('torch', 'model_card.md')]


@pytest.mark.parametrize('to, name', OURS)
def test_an_export_replaces_nothing_of_others(run, sample, tmp_path, to, name):
    (tmp_path/name).write_text('mine')
    with pytest.raises(FileExistsError, match='move it away'): export_run(run, to, index(sample), tmp_path)
    assert content(tmp_path) == {name: b'mine'}


def test_an_export_replaces_its_own_and_not_through_a_link(run, sample, tmp_path):
    (tmp_path/'out').mkdir()
    for _ in range(2): export_run(run, 'torch', index(sample), tmp_path/'out')
    assert sorted(content(tmp_path/'out')) == ['export-torch.json', 'model.pt2', 'model_card.md']
    assert all(MADE_BY.encode() in data for data in content(tmp_path/'out').values())
    (tmp_path/'out/model.pt2').rename(tmp_path/'elsewhere.pt2')
    (tmp_path/'out/model.pt2').symlink_to(tmp_path/'elsewhere.pt2')
    with pytest.raises(FileExistsError): export_run(run, 'torch', index(sample), tmp_path/'out')


@pytest.fixture
def read_only(copied):
    "Somebody else's run, who let nobody write."
    for path in (copied.path, *copied.path.iterdir()): path.chmod(0o555)
    return copied.path


@pytest.mark.slow  # test_explain.py does without a home, too
def test_a_read_only_run_without_a_home_can_be_exported_elsewhere(read_only, sample, tmp_path):
    "The caches of matplotlib, Hugging Face and ours have no place."
    (out := tmp_path/'out').mkdir()
    theirs(out)
    done = scarce('artinsight_export', read_only, '--to', 'torch', '--data', sample, '--out', out/'new')
    assert done.returncode == 0, done.stderr
    assert sorted(content(out/'new')) == ['export-torch.json', 'model.pt2', 'model_card.md']


def test_nothing_is_exported_into_a_read_only_run(read_only, tiny, nobody):
    done = call('artinsight_export', read_only, '--to', 'torch', '--data', tiny)
    assert 'ermission denied' in one_line(done, 'artinsight_export')


@pytest.mark.parametrize('to', ['torch', pytest.param('onnx', marks=pytest.mark.slow)])
def test_an_export_onto_a_full_disk(runs, sample, tmp_path, to):
    if to == 'onnx':
        for module in ('onnx', 'onnxruntime', 'onnxscript'):
            pytest.importorskip(module, reason='ONNX needs the extra export')
    words = runs/'simple_cnn', '--to', to, '--data', sample, '--out', tmp_path
    with full_disk(20_000): done = call('artinsight_export', *words)
    one_line(done, 'artinsight_export')
    assert not [name for name in os.listdir(tmp_path) if name.startswith('model.') or name.endswith('.part')]
