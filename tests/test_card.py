"A release: the files give the run's own answers, the card's lines run, its head can be read, and nothing else is written over."
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

from recon_nb import load_pretrained, train_gan
from recon_nb.card import TERMS, model_card, write_release
from recon_nb.checkpoint import load_tensors, save_tensors
from recon_nb.cli import release
from recon_nb.core import InputError, append_jsonl
from recon_nb.experiments import compare_encoders
from recon_nb.labelled import LabelledSet
from recon_nb.run import GANRun
from recon_nb.shapes import SHAPES, draw_shapes
from recon_nb.show import _save_png


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    photos, _ = draw_shapes(20, size=40)
    return train_gan(photos, run_dir=tmp_path_factory.mktemp('card')/'private-place'/'run', width=4, bs=8, epochs=2)


@pytest.fixture(scope='module')
def records(run, tmp_path_factory):
    (x, y), (tx, ty) = draw_shapes(200, size=32, seed=0), draw_shapes(60, size=32, seed=1)
    out = tmp_path_factory.mktemp('records')/'records.jsonl'
    return out, compare_encoders({'scratch': None, 'mine': run}, LabelledSet('toy', x, y, tx, ty, SHAPES), ['knn'], [4], 2, out=out, progress=False)


def test_round_trip(run, records, tmp_path):
    folder = write_release(run, tmp_path/'release', records=records[1])
    assert sorted(p.name for p in folder.iterdir()) == ['README.md', 'encoder.safetensors', 'generator.safetensors']
    whole, alone = (load_pretrained(folder/f'{n}.safetensors') for n in ('generator', 'encoder'))
    x = whole.preprocess(draw_shapes(3, size=50, seed=4)[0])
    with torch.no_grad():
        for a, b in zip(run.encoder.features(x), whole.encoder.features(x)): assert torch.equal(a, b)
        assert torch.equal(whole.decoder(whole.encoder(x)), run.generator(x)[0]) and torch.equal(alone.encoder(x), run.encoder(x))
    assert torch.equal(load_pretrained(folder).decoder(whole.encoder(x)), run.generator(x)[0])       # the folder itself
    assert alone.decoder is None and whole.preprocess == alone.preprocess
    for p in folder.iterdir(): assert b'private-place' not in p.read_bytes() and str(tmp_path).encode() not in p.read_bytes()
    assert write_release(run, folder) == folder and 'Not measured.' in (text := (folder/'README.md').read_text())
    assert 'what it is worth on any was not measured' in text and 'sets above' not in text


def test_card_can_be_read_and_its_lines_run(run, records, tmp_path, monkeypatch):
    folder = write_release(run, tmp_path/'release', records=records[1])
    _, head, text = (folder/'README.md').read_text().split('---\n', 2)
    meta = yaml.safe_load(head)
    assert 'license' not in meta and 'no licence is stated' in text and 'datasets' not in meta and 'of the sets above' in text and 'quick' in meta['tags']
    assert 'photos of your own' in text and '| toy | 4 | knn |' in text
    acc = 100*np.array([r['test_accuracy'] for r in records[1] if r['job']['arm'] == 'mine'])
    assert f'| {acc.mean():.1f} ± {acc.std(ddof=1):.1f} (2) |' in text
    monkeypatch.chdir(folder)
    _save_png(draw_shapes(1, size=64, seed=9)[0][0], 'photo.jpg.png')
    code, = re.findall(r'```python\n(.*?)```', text, re.S)
    names = {}
    exec(code.replace('photo.jpg', 'photo.jpg.png'), names)
    assert [f.shape[1] for f in names['features']] == list(run.encoder.channels)


def test_licence(run, tmp_path):
    folder = write_release(run, tmp_path/'release', licence='CC-BY-4.0')
    _, head, text = (folder/'README.md').read_text().split('---\n', 2)
    assert yaml.safe_load(head)['license'] == 'cc-by-4.0' and 'The weights: CC-BY-4.0.' in text
    with pytest.raises(InputError, match='SPDX name'): write_release(run, tmp_path/'other', licence='mine:\n all')
    assert not (tmp_path/'other').exists()


def test_records_of_a_probe_serve_as_well(run, records, tmp_path):
    from recon_nb.classification import probe
    (x, y), (tx, ty) = draw_shapes(200, size=32, seed=0), draw_shapes(60, size=32, seed=1)
    toy = LabelledSet('toy', x, y, tx, ty, SHAPES)
    own, scratch = (probe(e, toy, mode='knn', labels_per_class=4, seeds=2, like=None if e else run, progress=False).records() for e in (run, None))
    text, of_compare = model_card(run, records=own+scratch), model_card(run, records=records[1])
    row = lambda t: next(line for line in t.splitlines() if '| toy | 4 | knn |' in line)
    assert row(text) == row(of_compare)
    with pytest.raises(InputError, match='no record was made with the weights'): model_card(run, records=scratch)


def test_weights_that_are_not_finite(run, tmp_path):
    shutil.copytree(run.dir, tmp_path/'run')
    tensors, state = load_tensors(run.dir/'weights.safetensors')
    name = next(k for k in tensors if k.startswith('dec.') and tensors[k].is_floating_point())
    tensors[name] = torch.full_like(tensors[name], float('nan'))
    save_tensors(tmp_path/'run'/'weights.safetensors', tensors, state)
    with pytest.raises(InputError, match='not finite'): write_release(tmp_path/'run', tmp_path/'new')
    assert not (tmp_path/'new').exists()


@pytest.mark.parametrize('name', ['README.md', 'encoder.safetensors'])
def test_what_is_no_release_is_left_alone(run, tmp_path, name):
    (tmp_path/name).write_text('mine')
    with pytest.raises(InputError, match='contains other files'): write_release(run, tmp_path)
    with pytest.raises(InputError, match='is a file'): write_release(run, tmp_path/name)
    assert (tmp_path/name).read_text() == 'mine'


def test_refusals(run, records, tmp_path, capsys):
    (tmp_path/'full').mkdir(); (tmp_path/'full'/'thesis.txt').write_text('mine')
    with pytest.raises(InputError, match='contains other files'): write_release(run, tmp_path/'full')
    assert (tmp_path/'full'/'thesis.txt').read_text() == 'mine'
    wrong = [dict(r, job={**r['job'], 'weights': '0'*12}) for r in records[1]]
    with pytest.raises(InputError, match='no record was made with the weights of this run'): write_release(run, tmp_path/'new', records=wrong)
    assert not (tmp_path/'new').exists()
    assert release([str(tmp_path/'nowhere')]) == 2 and 'there is no folder' in capsys.readouterr().err
    assert release([str(run.dir), '-o', str(tmp_path/'new'), '--records', str(tmp_path/'none.jsonl')]) == 2 and 'is no file of records' in capsys.readouterr().err
    assert not (tmp_path/'new').exists()


def test_shell(run, records, tmp_path, capsys):
    append_jsonl(more := tmp_path/'more.jsonl', *records[1])
    assert release([str(run.dir), '-o', str(tmp_path/'new'), '--records', str(more)]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r': [\d.]+ [kM]B\n', out)) == 3 and '0.0' not in out and 'README.md: 0' not in out
    assert 'random' in (tmp_path/'new'/'README.md').read_text()


def test_each_set_has_terms():
    from recon_nb.data import SETS
    assert all(any(name.split('-')[0] == t for t in TERMS) for name in SETS), set(SETS) - set(TERMS)
    assert all(link.startswith('http') for _, link in TERMS.values())


def test_model_card_of_a_folder(run): assert model_card(run.dir) == model_card(GANRun.load.__func__(GANRun, run.dir))
