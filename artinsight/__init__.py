__version__ = "0.1.0"

import warnings
warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)  # fastai's own layers use it
