"What some tests do not ask of the oldest PyTorch that is allowed (`.ci/lowest`), and why."
import torch

OLD_TORCH = tuple(map(int, torch.__version__.split('.')[:2])) < (2, 5)
NO_FAKE_CUDA = 'PyTorch 2.4 asks a driver even where only fake tensors are moved'
OTHER_WEIGHTS = 'PyTorch 2.4 draws other first weights from a seed'
