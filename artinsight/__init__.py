__version__ = "0.1.0"

import os, threading, warnings
warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)  # fastai's own layers use it

def _few_threads():
    "Whether a limit (ulimit -u, a container's) leaves too few threads for numpy, scipy and torch, which then die."
    done = threading.Event()
    try:
        for _ in range(4*(os.cpu_count() or 1)): threading.Thread(target=done.wait, daemon=True).start()
    except RuntimeError: return True
    finally: done.set()
    return False

if _few_threads(): os.environ.update(OPENBLAS_NUM_THREADS='1', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
