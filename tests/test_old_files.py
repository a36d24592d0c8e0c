"""Files of earlier versions open for ever: run folders of every preset, exported encoders, records.

`fixtures/<version>/` was written by that version at toy size (32 px, width 2), since 0.2.0 by `fixtures/make.py`: a run folder
a preset, each with `expected.npz`, what the run made of three photos when it was new. Rounding differs a little between processors."""
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from recon_nb import GANRun, load_pretrained, train_gan
from recon_nb.config import _SCHEMA, GANConfig, PRESETS, config_from_dict, field_docs
from recon_nb.core import InputError, read_jsonl
from recon_nb.identity import _pixel_ids
from recon_nb.shapes import draw_shapes
from recon_nb.tables import summarize, table

FIXTURES = Path(__file__).parent/'fixtures'
PHOTOS = draw_shapes(144, size=48, seed=5)[0]
RUNS = sorted(FIXTURES.glob('*/*.zip'))


@pytest.fixture(params=RUNS, ids=lambda p: f'{p.parent.name}-{p.stem}')
def old(request, tmp_path):
    with zipfile.ZipFile(request.param) as z: z.extractall(tmp_path)
    return tmp_path/request.param.stem


def close(a, b, most): return np.abs(a.astype(float)-b.astype(float)).max() <= most


def kept_configs():
    for p in RUNS:
        with zipfile.ZipFile(p) as z: yield json.loads(z.read(f'{p.stem}/config.json'))


def test_every_preset_is_kept(): assert {p.stem for p in RUNS} >= {*PRESETS}


def test_every_schema_and_every_field_is_kept():
    "A new field, or a new schema, needs a run folder that has it: see fixtures/make.py."
    configs = [*kept_configs()]
    assert {c['schema'] for c in configs} == {*range(1, _SCHEMA+1)}
    assert {k for c in configs for k in c} >= {*field_docs()}
    for c in configs: assert isinstance(config_from_dict(c), GANConfig)
    assert not {k for c in configs for k in c} - {*field_docs(), 'painter'}, 'a field that was written once has another name now: read the old one'


def test_an_old_run_opens(old):
    run, expected = GANRun.load(old, device='cpu'), np.load(old/'expected.npz')
    assert run.step == run.history[-1]['step'] == 16 and run.finished and run.metrics
    assert close(run.transform(PHOTOS[:3]), expected['features'], 1e-4)
    if 'painted' not in expected: return
    r = run.reconstruct(PHOTOS[:3])
    assert close(r.i_in, expected['i_in'], 0), 'what the generator sees of a photo has changed'
    assert close(r.painted, expected['painted'], 1) and close(r.composed, expected['composed'], 1)


def drawn_alike(old):
    "Whether this processor draws the photos of a run to the last bit: another one may round a pixel otherwise."
    path = old/'photos.npz'
    if not path.exists(): return True                                  # 0.1.0 kept none
    with np.load(path) as f: return {*np.concatenate([f['train'], f['held_out']])[:, 1]} == {*_pixel_ids(PHOTOS)}


def test_an_old_run_resumes(old):
    if not drawn_alike(old):
        with pytest.raises(InputError, match='the photos are not those of the run'): train_gan(PHOTOS, run_dir=old, resume=True, epochs=3, progress=False)
        return
    before = read_jsonl(old/'history.jsonl')
    run = train_gan(PHOTOS, run_dir=old, resume=True, epochs=3, progress=False)
    assert run.step == 24 and run.history[:16] == before, 'its past is kept, and it goes on'


@pytest.mark.parametrize('path', sorted(FIXTURES.glob('*/*.safetensors')), ids=lambda p: p.stem)
def test_an_old_export_opens(path, tmp_path):
    p = load_pretrained(path)
    with zipfile.ZipFile(path.parent/f"{path.stem.removeprefix('encoder-')}.zip") as z: z.extractall(tmp_path)
    expected = np.load(next(tmp_path.glob('*/expected.npz')))['features']
    assert close(p.encoder(p.preprocess([*PHOTOS[:3]])).mean((2,3)).detach().numpy(), expected, 1e-4)


@pytest.mark.parametrize('path', sorted(FIXTURES.glob('*/*.onnx')), ids=lambda p: p.stem)
def test_an_old_onnx_file_gives_its_features(path, tmp_path):
    ort = pytest.importorskip('onnxruntime')
    with zipfile.ZipFile(path.parent/f"{path.stem.removeprefix('encoder-')}.zip") as z: z.extractall(tmp_path)
    expected = np.load(next(tmp_path.glob('*/expected.npz')))['features']
    prepare = load_pretrained(path.with_suffix('.safetensors'), device='cpu').preprocess
    maps = ort.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'images': prepare([*PHOTOS[:3]]).numpy()})
    assert close(maps[-1].mean((2, 3)), expected, 1e-4)


@pytest.mark.parametrize('path', sorted(FIXTURES.glob('*/records.jsonl')), ids=lambda p: p.parent.name)
def test_old_records_make_a_table(path):
    rows = [r for r in read_jsonl(path) if r.get('kind', 'probe') == 'probe' and r.get('task', 'classification') == 'classification']
    s = summarize(rows)
    assert len(rows) > 1 and len(s) and s['mean'].between(0, 100).all()
    assert len(table(rows, rows[0]['mode']))


def test_records_of_each_schema_are_kept():
    records = [r for p in FIXTURES.glob('*/records.jsonl') for r in read_jsonl(p)]
    assert {r['schema'] for r in records if r.get('kind', 'probe') == 'probe'} == {1, 2}
    assert {r.get('kind', 'probe') for r in records} >= {'probe', 'pretraining'}
