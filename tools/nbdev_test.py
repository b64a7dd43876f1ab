"""nbdev_test, with the same words, for less: its workers are forked when the package is imported, which takes seconds,
no figure is drawn at twice its size, as execnb wants it, what `make report` has just executed is left out, and where it
has trained nothing, shorter runs are looked at."""
import gc, os, sys
from functools import partial
from importlib import import_module

import nbdev.test
from execnb.shell import CaptureShell

import pages
sys.path.append(str(pages.ROOT/'tests'))
from quick_runs import quick_runs

def untested(path=None, nbglob=nbdev.test.nbglob, **words):
    "The notebooks to test; all but those that were executed with this package and these runs, if none is named."
    files = nbglob(path, **words)
    if path or '--flags' in sys.argv: return files
    os.environ['ARTINSIGHT_RUNS'] = runs = str(quick_runs())
    keys = pages.known_keys(pages.ROOT/'_executed/keys.json')
    def name(file): return file.absolute().relative_to(pages.ROOT/'nbs').as_posix()
    done = [file for file in files if name(file) in keys and keys[name(file)] == pages.key(file, runs)]
    if done: print('executed by make report:', *map(name, done))
    return files.filter(lambda file: file not in done)

nbdev.test.CaptureShell = partial(CaptureShell, mpl_format='png')
nbdev.test.nbglob = untested

if __name__ == '__main__':
    import_module('artinsight.all')
    gc.freeze()  # shared by the workers, and not looked through by any collection
    try: nbdev.test.nbdev_test()
    finally: gc.unfreeze()  # extensions complain at the end of what is left
