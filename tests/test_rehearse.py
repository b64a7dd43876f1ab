"""The rehearsal of the whole path: every step done, in bounded memory, names and splits quickly.

At 1 % of AI-ArtBench by default; `ARTINSIGHT_REHEARSE=100 pytest --slow tests/test_rehearse.py` rehearses all 185,015
pictures (25 GB of disk, an hour).
"""
import json, os, subprocess, sys
from pathlib import Path

import pytest

import rehearse, replica

PERCENT = float(os.environ.get('ARTINSIGHT_REHEARSE') or 1)

@pytest.mark.slow
def test_every_step(tmp_path):
    script, record = Path(rehearse.__file__), tmp_path/'record.json'
    command = [sys.executable, script, f'{PERCENT:g}', '--place', tmp_path/'place', '--out', record]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(record.read_text())
    steps = {row['step']: row for row in told['steps']}
    assert list(steps) == list(rehearse.STEPS) and all(row['ok'] for row in steps.values())
    assert told['peak_memory_mb'] == max(row['memory_mb'] for row in told['steps']) < 4000
    pictures, names = int(replica.counts(PERCENT).images.sum()), steps['index, choice, split']
    assert steps['paint']['pictures'] == names['indexed'] == pictures and steps['download']['resumed']
    assert names['index_warm_seconds'] < 10 and names['choice_seconds'] + names['split_seconds'] < 2
    assert steps['store']['stored'] == names['train'] + names['validation'] + names['test']
    assert steps['store']['left out'] == 0
    tested = {name: row['tested'] for name, row in steps.items() if 'tested' in row}
    assert len(tested) == 5 and set(tested.values()) == {names['test']}
    assert steps['evaluation']['predictions'] == 30_000
