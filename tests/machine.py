"""Machines that lack something, the real ones: a user who may not write, no threads, a full disk, no home folder.

Each stands for itself: the kernel's own limits are set (setpriv, RLIMIT_NPROC, RLIMIT_FSIZE), nothing is replaced by a
function of ours.
The root user is above the first two limits, so the command becomes user 65534, who keeps the right to read (the Python
of a virtual environment may stand in a folder that only root may enter) and nothing else.
"""
import os
import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from scripts import python

NOBODY = 65534
ALONE = Path('/tmp/artinsight-nobody.lock')  # RLIMIT_NPROC counts all processes of the user, whoever tests


def scarce(*command, threads=None, timeout=300, **environment):
    "Run a console script or Python as a user without any rights but reading, without a home, under limits."
    def limit():
        if threads is not None: resource.setrlimit(resource.RLIMIT_NPROC, (threads, threads))
    command = python(*command)
    if os.geteuid() == 0:
        if not shutil.which('setpriv'): pytest.skip('setpriv is needed to become another user')
        rights = '-all,+dac_read_search'
        command = ['setpriv', f'--reuid={NOBODY}', f'--regid={NOBODY}', '--clear-groups', '--inh-caps', rights,
                   '--ambient-caps', rights, *command]
    given = {name: value for name, value in os.environ.items() if not name.endswith('_NUM_THREADS')}
    given |= {'HOME': '/proc/nowhere', 'PYTHONDONTWRITEBYTECODE': '1', **environment}
    with FileLock(ALONE):
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, preexec_fn=limit, env=given)


@contextmanager
def full_disk(file_bytes):
    "In this process, root's too, no file grows beyond so many bytes: writing fails as on a full disk."
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, most))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def theirs(folder):
    "Give a folder to that user."
    if os.geteuid() == 0: os.chown(folder, NOBODY, NOBODY)
    for parent in folder.parents:  # pytest's own temporary folders are for their owner alone
        mode = parent.stat().st_mode
        if parent.stat().st_uid == os.geteuid() and not mode & 0o001: parent.chmod(mode | 0o055)
    return folder


def one_line(done, script):
    "A refusal as users should see it: exit code 2 and, at the end, one line of the script."
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and 'Traceback' not in done.stderr and lines[-1].startswith(f'{script}: '), done.stderr
    return lines[-1]
