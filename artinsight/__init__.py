__version__ = "0.1.0"

import os, threading, warnings
warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)  # fastai's own layers use it

def _threads_for_all_cores():
    "Whether as many threads can be started as NumPy's and PyTorch's own libraries will start; they end the process where they can't."
    over = threading.Event()
    try:
        for _ in range(os.cpu_count() or 1): threading.Thread(target=over.wait).start()
    except RuntimeError: return False
    finally: over.set()
    return True

if not _threads_for_all_cores():
    os.environ.update({name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")})
