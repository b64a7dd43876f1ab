"What axe-core finds in a page. It comes from npm, one pinned version, and is kept in the cache."
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from artinsight.engine.files import cache_folder
from artinsight.use.web import integrity

VERSION = '4.14.1'
HASH = 'sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=='
RUN = '''async () => (await axe.run(document, {resultTypes: ['violations']})).violations
  .filter(found => ['serious', 'critical'].includes(found.impact))
  .flatMap(found => found.nodes.map(node => ({rule: found.id, at: node.target.join(' '), html: node.html,
                                              why: node.failureSummary})))'''


def packed():
    "What npm publishes, as a file in the cache; skips the test where npm or its registry is not there."
    kept = cache_folder()/f'axe-core-{VERSION}.tgz'
    if kept.is_file() and integrity(kept.read_bytes(), 'sha512') == HASH: return kept
    if not shutil.which('npm'): pytest.skip('no npm here to fetch axe-core')
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        command = ['npm', 'pack', f'axe-core@{VERSION}', '--pack-destination', scratch]
        try: done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired: pytest.skip('npm does not answer: no axe-core')
        if done.returncode: pytest.skip(f'npm has no axe-core for us: {done.stderr[-200:]}')
        [file] = Path(scratch).iterdir()
        if integrity(file.read_bytes(), 'sha512') != HASH: pytest.fail('this is not the axe-core that npm published')
        os.replace(file, kept)
    return kept


def faults(page, allowed=()):
    """Serious and critical faults of an open page: rule, element and reason of each. `allowed` are pairs of a rule and
    a piece of the element's HTML that we cannot change."""
    fading = 'document.getAnimations().some(one => one instanceof CSSTransition)'  # half a colour has half a contrast
    page.wait_for_function(f'!{fading}', timeout=10_000)
    with tarfile.open(packed()) as archive: script = archive.extractfile('package/axe.min.js').read().decode()
    page.evaluate(script)  # where a page allows no script of others, as ours does not, a script element would fail
    found = page.evaluate(RUN)
    return [one for one in found if not any(one['rule'] == rule and part in one['html'] for rule, part in allowed)]
