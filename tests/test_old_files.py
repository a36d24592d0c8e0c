"""Files of earlier versions open for ever: run folders of every preset, exported encoders, records.

`fixtures/<version>/` was written by that version at toy size (32 px, width 2): a run folder a preset, each with
`expected.npz`, what the run made of three photos when it was new. Rounding differs a little between processors."""
import zipfile
from pathlib import Path

import numpy as np
import pytest

from recon_nb import GANRun, load_pretrained, train_gan
from recon_nb.config import PRESETS
from recon_nb.core import read_jsonl
from recon_nb.shapes import draw_shapes

FIXTURES = Path(__file__).parent/'fixtures'
PHOTOS = draw_shapes(144, size=48, seed=5)[0]
RUNS = sorted(FIXTURES.glob('*/*.zip'))


@pytest.fixture(params=RUNS, ids=lambda p: f'{p.parent.name}-{p.stem}')
def old(request, tmp_path):
    with zipfile.ZipFile(request.param) as z: z.extractall(tmp_path)
    return tmp_path/request.param.stem


def close(a, b, most): return np.abs(a.astype(float)-b.astype(float)).max() <= most


def test_every_preset_is_kept(): assert {p.stem for p in RUNS} >= {*PRESETS}


def test_an_old_run_opens(old):
    run, expected = GANRun.load(old, device='cpu'), np.load(old/'expected.npz')
    assert run.step == run.history[-1]['step'] == 16 and run.finished and run.metrics
    assert close(run.transform(PHOTOS[:3]), expected['features'], 1e-4)
    if 'painted' not in expected: return
    r = run.reconstruct(PHOTOS[:3])
    assert close(r.i_in, expected['i_in'], 0), 'what the generator sees of a photo has changed'
    assert close(r.painted, expected['painted'], 1) and close(r.composed, expected['composed'], 1)


def test_an_old_run_resumes(old):
    before = read_jsonl(old/'history.jsonl')
    run = train_gan(PHOTOS, run_dir=old, resume=True, epochs=3, progress=False)
    assert run.step == 24 and run.history[:16] == before, 'its past is kept, and it goes on'


@pytest.mark.parametrize('path', sorted(FIXTURES.glob('*/*.safetensors')), ids=lambda p: p.stem)
def test_an_old_export_opens(path, tmp_path):
    p = load_pretrained(path)
    with zipfile.ZipFile(path.parent/f"{path.stem.removeprefix('encoder-')}.zip") as z: z.extractall(tmp_path)
    expected = np.load(next(tmp_path.glob('*/expected.npz')))['features']
    assert close(p.encoder(p.preprocess([*PHOTOS[:3]])).mean((2,3)).detach().numpy(), expected, 1e-4)
