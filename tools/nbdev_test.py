"""nbdev_test, with the same words, for less: its workers are forked when the package is imported, which takes seconds,
and no figure is drawn at twice its size, as execnb wants it."""
import gc
from functools import partial
from importlib import import_module

import nbdev.test
from execnb.shell import CaptureShell

nbdev.test.CaptureShell = partial(CaptureShell, mpl_format='png')

if __name__ == '__main__':
    import_module('artinsight.all')
    gc.freeze()  # shared by the workers, and not looked through by any collection
    nbdev.test.nbdev_test()
