"Shapes and types written in signatures are checked while the tests run: the notebooks state them, this file shows that stating has teeth."
import numpy as np
import pytest
import torch

losses = pytest.importorskip('recon_nb.losses')
pixels = pytest.importorskip('recon_nb.pixels')
masks = pytest.importorskip('recon_nb.masks')


def images(*shape): return torch.zeros(*shape)

def hidden(n=2, side=32): return torch.ones(n, 1, side, side, dtype=torch.bool)


def test_right_shapes_pass():
    assert losses.bce_disc(torch.zeros(4), torch.zeros(4)).shape == ()
    assert losses.reconstruction_loss(images(2,3,32,32), images(2,3,32,32), hidden()) == 0

@pytest.mark.parametrize('real,fake', [
    (torch.zeros(4), torch.zeros(3)),                                 # two batches of different sizes
    (torch.zeros(4,1), torch.zeros(4,1)),                             # logits with an axis too many
    (torch.zeros(4, dtype=torch.long), torch.zeros(4)),               # whole numbers
    (np.zeros(4), np.zeros(4))], ids=['sizes', 'axes', 'dtype', 'numpy'])
def test_wrong_logits_raise(real, fake):
    with pytest.raises(TypeError): losses.bce_disc(real, fake)

@pytest.mark.parametrize('out,target,where', [
    (images(2,3,32,32), images(2,3,48,48), None),                     # two sides
    (images(3,32,32), images(3,32,32), None),                         # no batch axis
    (images(2,3,32,32), images(2,3,32,32), hidden().float()),         # a mask of numbers: 1 = hidden or 1 = visible?
    (images(2,3,32,32), images(2,3,32,32), hidden(side=16))], ids=['sides', 'batch', 'mask-dtype', 'mask-side'])
def test_wrong_pictures_raise(out, target, where):
    with pytest.raises(TypeError): losses.reconstruction_loss(out, target, where)

def test_plain_types_are_checked_too():
    with pytest.raises(TypeError): masks.window_slice(80., 1/3)                      # would slip through: 80. works as a number
