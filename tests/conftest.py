import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # `cases` is a module beside the tests
torch.set_num_threads(1)  # tiny tensors gain nothing from more, and lose much on a busy machine
