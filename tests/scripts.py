"The console scripts as settings.ini declares them: the Python that runs one, and a call in this process."
import io
import sys
from configparser import ConfigParser
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

SETTINGS = Path(__file__).resolve().parent.parent/'settings.ini'


def module_of(script):
    "The module that holds a console script's function, which has the script's name."
    settings = ConfigParser(delimiters=['='])
    settings.read(SETTINGS, encoding='utf-8')
    declared = dict(line.split('=') for line in settings['DEFAULT']['console_scripts'].split())
    return declared[script].split(':')[0]


def python(script, *words):
    "A console script as a command of this Python."
    run = f'import sys; from {module_of(script)} import {script}; sys.argv[0] = {script!r}; {script}()'
    return [sys.executable, '-c', run, *map(str, words)]


def call(script, *words):
    "A console script in this process, which saves its imports: its exit code and what it wrote."
    function = getattr(import_module(module_of(script)), script)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, 'argv', [script, *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
        try: function()
        except SystemExit as end: code = end.code or 0
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
