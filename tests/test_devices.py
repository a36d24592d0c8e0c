"""One rule says where everything computes. The device that is pretended to be there is PyTorch's `meta`: tensors with a shape and no numbers.
Whatever reads a number from it fails, so a call that fails there would have computed there."""
import contextlib, io
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from recon_nb import cli
from recon_nb.classification import probe
from recon_nb.core import InputError
from recon_nb.devices import make_accelerator
from recon_nb.experiments import list_jobs, run_jobs
from recon_nb.export import export_encoder, load_pretrained
from recon_nb.features import encode
from recon_nb.figures import draw_neighbours
from recon_nb.finetune import Recipe, finetune
from recon_nb.labelled import LabelledSet
from recon_nb.machine import check_device
from recon_nb.run import GANRun
from recon_nb.segmentation import dense_recipe, fit_segmenter
from recon_nb.shapes import draw_shapes
from recon_nb.state import toy_state
from recon_nb.trainer import save
from recon_nb.training import train_gan

PHOTOS, Y = draw_shapes(40, size=32)
Y = Y.astype(np.int64)
SET = LabelledSet('toy', PHOTOS[:30], Y[:30] % 2, PHOTOS[30:], Y[30:] % 2, ('a', 'b'))


@pytest.fixture
def run_dir(tmp_path):
    save(toy_state('improved', run_dir=tmp_path/'run', width_dec=4))
    return tmp_path/'run'


@pytest.fixture
def pretended(monkeypatch, run_dir):
    "From here on the best device is one without numbers; as Accelerate's environment says it."
    monkeypatch.setenv('ACCELERATE_TORCH_DEVICE', 'meta')
    monkeypatch.delenv('ACCELERATE_USE_CPU', raising=False)
    for state in (PartialState, AcceleratorState): monkeypatch.setattr(state, '_shared_state', {})


def an_encoder(run_dir): return GANRun.load(run_dir, device='cpu').encoder


def test_opening_takes_the_best_device(run_dir, pretended):
    run, p = GANRun.load(run_dir), load_pretrained(run_dir)
    assert run.device.type == p.preprocess(PHOTOS[:2]).device.type == 'meta'
    assert {w.device.type for w in [*run.generator.parameters(), *p.encoder.parameters()]} == {'meta'}
    assert p.encoder.features(p.preprocess(PHOTOS[:2]))[-1].device.type == 'meta'
    assert make_accelerator().device.type == check_device().type == 'meta'


def test_moving(run_dir):
    run, p = GANRun.load(run_dir, device='cpu'), load_pretrained(run_dir, device='cpu')
    want = p.encoder.features(p.preprocess(PHOTOS[:2]))[-1]
    assert run.to('meta') is run and run.device.type == next(run.generator.parameters()).device.type == 'meta'
    assert load_pretrained(GANRun.load(run_dir, device='meta')).preprocess.device == 'meta'
    assert load_pretrained(p) is p and torch.equal(p.to('cpu').encoder.features(p.preprocess(PHOTOS[:2]))[-1], want)
    assert p.to('meta').preprocess(PHOTOS[:2]).device.type == 'meta'


COMPUTE = dict(
    transform=lambda d: GANRun.load(d).transform(PHOTOS[:2]),
    encode=lambda d: encode(an_encoder(d), PHOTOS, remember=False),
    probe=lambda d: probe(d, SET, mode='linear', seeds=1, progress=False),
    finetune=lambda d: finetune(an_encoder(d), PHOTOS, Y, Recipe(steps=1, epochs=1, bs=8), classes=10, seed=0).cpu(),
    segmentation=lambda d: fit_segmenter(an_encoder(d), PHOTOS, np.zeros((40,32,32), np.uint8), dense_recipe(steps=1, epochs=1, bs=8),
                                         mode='linear', classes=2, seed=0, remember=False),
    neighbours=lambda d: draw_neighbours(an_encoder(d), PHOTOS, query=0, k=2),
    experiments=lambda d: run_jobs(list_jobs({'run': [d]}, [SET], modes=('linear',), labels=(2,), seeds=1), out=d/'r.jsonl', progress=False),
    train=lambda d: train_gan(PHOTOS, size=32, width=4, bs=8, epochs=1, run_dir=d.parent/'new', progress=False))

@pytest.mark.parametrize('what', COMPUTE)
def test_computing_takes_the_best_device(what, run_dir, pretended):
    with pytest.raises((NotImplementedError, RuntimeError), match='[Mm]eta'): COMPUTE[what](run_dir)


def test_export_and_classifying_need_no_best_device(run_dir, pretended, tmp_path):
    "A file is written on the CPU; a model is asked where it is."
    from recon_nb.finetune import classify
    assert export_encoder(run_dir, tmp_path/'enc.safetensors').exists()
    enc = an_encoder(run_dir)
    model = finetune(enc, PHOTOS, Y, Recipe(steps=1, epochs=1, bs=8), classes=10, seed=0, device='cpu')
    assert classify(model, PHOTOS[:3]).shape == (3,)


def test_training_on_a_named_device(run_dir):
    "The name holds for one run; the next one finds its own, and the first one's Accelerator keeps its device."
    first = make_accelerator(device='meta')
    run = train_gan(PHOTOS, size=32, width=4, bs=8, epochs=1, run_dir=run_dir.parent/'named', device='cpu', progress=False)
    assert run.info['device'] == 'cpu' and first.device.type == 'meta' and make_accelerator().device.type != 'meta'
    with pytest.raises(InputError, match='Give one of the two'):
        train_gan(PHOTOS, size=32, width=4, device='cpu', accelerator=make_accelerator(device='cpu'))
    with pytest.raises(InputError, match="device='cuda:77' is not there"): train_gan(PHOTOS, size=32, width=4, device='cuda:77')


@pytest.mark.parametrize('words', [['train', '--run-dir', 'x'], ['reconstruct', 'RUN', 'x.png'], ['embed', 'RUN', '.'], ['probe', 'RUN', '.'], ['table']],
                         ids=lambda w: w[0])
def test_a_device_that_is_not_there(words, run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, *argv = [w.replace('RUN', str(run_dir)) for w in words]
    err = io.StringIO()
    with contextlib.redirect_stderr(err): status = getattr(cli, command)([*argv, '--device', 'cuda:77'])
    assert status == 2 and '--device cuda:77 is not there' in err.getvalue() and len(err.getvalue().splitlines()) == 1


@pytest.mark.parametrize('asked, said', [('accelerate launch --cpu --num_processes 2 recon-train', True),
                                         ('accelerate launch --num-processes=4 recon-train', True),
                                         ('accelerate launch --num_processes 1 recon-train', False), ('bash', False)])
def test_one_process_where_several_were_asked_for(asked, said, recwarn):
    with mock.patch('recon_nb.devices._launched_as', lambda: asked.split()): make_accelerator()
    assert said == any('and started one' in str(w.message) for w in recwarn)


@pytest.mark.parametrize('given, meant', [('gpu', 'cuda'), ('GPU', 'cuda'), ('cdua', 'cuda'), ('metal', 'mps'), ('tpu', None)])
def test_a_device_by_another_name_is_told_its_own(given, meant):
    from recon_nb.machine import check_device
    with pytest.raises(InputError) as e: check_device(given)
    assert (f'Did you mean {meant!r}?' in str(e.value)) if meant else 'Did you mean' not in str(e.value)
