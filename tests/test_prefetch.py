"Batches that a thread makes ahead: nothing changes but the time, and the thread ends with the loop, however that ends."
import signal, threading, time

import numpy as np
import pytest
import torch
from recon_nb.batches import prefetch_batches
from recon_nb.config import PRESETS
from recon_nb.core import InputError
from recon_nb.features import encode
from recon_nb.finetune import Recipe, classify, finetune
from recon_nb.encoder import Encoder
from recon_nb.machine import prefetch
from recon_nb.shapes import draw_shapes
from recon_nb.state import toy_state
from recon_nb.trainer import fit, restore
from recon_nb.checkpoint import load_checkpoint

WITHOUT_TEACHER = [p for p in PRESETS if p != 'second-round']


def threads(): return [t for t in threading.enumerate() if t.name.startswith('prefetch')]


@pytest.fixture(autouse=True)
def no_thread_survives():
    yield
    assert not threads()


def everything(folder):
    tensors, state = load_checkpoint(folder)
    return {k: v for k,v in tensors.items()}, {k: v for k,v in state.items() if k != 'seconds'}


@pytest.mark.parametrize('preset', WITHOUT_TEACHER)
def test_bit_for_bit_with_a_thread_and_without(tmp_path, preset):
    how = dict(flip=True, light=.5, negative=.2) | ({} if PRESETS[preset].view == 'zoom' else dict(scale=.5))
    for depth in (0, 1, 3): fit(toy_state(preset, run_dir=tmp_path/str(depth), **how), prefetch=depth, progress=False)
    tensors, state = everything(tmp_path/'0')
    for depth in (1, 3):
        other, its = everything(tmp_path/str(depth))
        assert its == state and other.keys() == tensors.keys() and all(torch.equal(other[k], v) for k,v in tensors.items())


def test_stopped_with_a_thread_and_resumed_without(tmp_path):
    def stop_at_7(st): st.stop = st.stop or st.step == 7                              # in the middle of an epoch
    fit(toy_state('improved-gan', run_dir=tmp_path/'whole'), prefetch=0, progress=False)
    for a,b in ((0, 2), (2, 0)):
        fit(toy_state('improved-gan', run_dir=tmp_path/f'{a}'), [stop_at_7], prefetch=a, progress=False)
        again = toy_state('improved-gan', run_dir=tmp_path/f'{a}')
        restore(again)
        assert again.step == 7
        fit(again, prefetch=b, progress=False)
        (x, s), (y, t) = everything(tmp_path/'whole'), everything(tmp_path/f'{a}')
        assert s == t and all(torch.equal(x[k], y[k]) for k in x)


def hook(what):
    "Does something after the third step, while the thread is there."
    def do(st):
        if st.event == 'step' and st.step == 3:
            assert len(threads()) == 1
            what(st)
    return do


def fault(st): raise KeyError('a hook')
def interrupt(st): raise KeyboardInterrupt
def stop(st): st.stop = True
def signalled(st): signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize('what,error', [(fault, KeyError), (interrupt, KeyboardInterrupt), (stop, None), (signalled, None)])
def test_the_thread_ends_with_the_loop(what, error):
    st, held = toy_state(), None
    try: fit(st, [hook(what)], prefetch=3, progress=False)
    except (KeyError, KeyboardInterrupt) as e: held = e                                  # with its frames
    assert type(held) is (error or type(None)) and st.step == 3 and not threads()


def test_the_thread_ends_when_time_is_up():
    assert fit(toy_state(), max_minutes=1e-9, progress=False).step == 1 and not threads()


class Broken:
    "Photos of which some can't be had any more."
    def __init__(self, photos, error, good): self.photos, self.error, self.good = photos, error, good
    def take(self, index):
        self.good -= 1
        if self.good < 0: raise self.error
        return self.photos.take(index)


@pytest.mark.parametrize('error,raised,says', [
    (FileNotFoundError(2, 'No such file or directory', 'photos.npy'), FileNotFoundError, 'photos.npy'),
    (MemoryError('Unable to allocate 77 MiB'), InputError, 'out of memory: a batch of 8 at 32 px'),
    (InputError('the cache is damaged'), InputError, '^the cache is damaged$')])
@pytest.mark.parametrize('depth', [0, 1, 4])
def test_what_fails_in_the_thread_is_said_at_its_step(error, raised, says, depth):
    st = toy_state()
    st.photos = Broken(st.photos, error, good=4)
    with pytest.raises(raised, match=says): fit(st, prefetch=depth, progress=False)
    assert st.step == 4                                                                  # the four good ones were trained on


def test_no_more_is_made_than_asked_for():
    made = []
    with prefetch(made.append, range(100), depth=2) as coming:
        for _ in range(5): next(coming)
    assert 5 <= len(made) <= 7 and made == [*range(len(made))]


def test_leaving_waits_for_what_is_being_made():
    "Nothing of a run goes on behind its back."
    begun, done = threading.Event(), []
    def slow(i):
        begun.set()
        time.sleep(.2*bool(i))
        done.append(i)
    with prefetch(slow, range(9), depth=4) as coming: next(coming)
    assert done[0] == 0 and len(done) <= 2 and not threads()


def test_the_callers_random_numbers_and_the_threads():
    "A batch draws no random numbers of PyTorch's or NumPy's."
    torch.manual_seed(5); np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1]
    with prefetch_batches(toy_state('second-round', negative=.5, flip=True)) as coming:
        torch.manual_seed(5)
        with pytest.raises(InputError, match='needs a teacher'): next(coming)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()


def test_probes_leave_no_thread():
    photos, y = draw_shapes(40, size=32)
    enc = Encoder(4)
    f = encode(enc, photos, bs=7, remember=False, device='cpu')
    assert torch.equal(f[14:21], encode(enc, photos[14:21], bs=7, remember=False, device='cpu'))
    with pytest.raises(KeyboardInterrupt):
        def tick(_): raise KeyboardInterrupt
        finetune(enc, photos, y, Recipe(steps=5, epochs=1, bs=8), classes=10, seed=0, device='cpu', tick=tick)
    assert not threads()
    model = finetune(enc, photos, y, Recipe(steps=5, epochs=1, bs=8), classes=10, seed=0, device='cpu')
    assert classify(model, photos, bs=7).shape == (40,) and not threads()
