"What leaves the house, under faults: damaged files, names and places that won't do, missing extras, a reader without this package."
import json, zlib
import os
import subprocess
import sys
from unittest import mock

import jaxtyping
import numpy as np
import pytest
import torch
from packaging.version import Version
from safetensors import safe_open
from safetensors.torch import save_file

from recon_nb import GANRun, compare_runs, export_encoder, load_pretrained, train_gan
from recon_nb.cli import export
from recon_nb.core import InputError
from recon_nb.shapes import draw_shapes


@pytest.fixture(scope='module', autouse=True)
def load_takes_a_class():
    "The type hook reads the annotation of a class method's `cls` as if it were an instance's; so `GANRun.load` is called unchecked."
    load = GANRun.load.__func__
    with mock.patch.object(GANRun, 'load', classmethod(getattr(load, '__wrapped__', load))): yield


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    photos, _ = draw_shapes(20, size=40)
    return train_gan(photos, run_dir=tmp_path_factory.mktemp('export')/'private-place'/'run', width=4, bs=8, epochs=2)


@pytest.fixture(scope='module')
def exported(run): return export_encoder(run, run.dir.parent/'encoder.safetensors')


def refused(call, *args):
    with pytest.raises(InputError) as e: call(*args)
    return ' '.join(str(e.value).split())


def test_every_damaged_byte_is_noticed(exported, tmp_path):
    whole = exported.read_bytes()
    start = 8 + int.from_bytes(whole[:8], 'little')
    for at in np.linspace(start, len(whole)-1, 20).astype(int):
        (tmp_path/'bad.safetensors').write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at+1:])
        assert 'damaged' in refused(load_pretrained, tmp_path/'bad.safetensors'), at
    for n in (0, 7, 100, start, len(whole)-1):
        (tmp_path/'bad.safetensors').write_bytes(whole[:n])
        assert 'damaged' in refused(load_pretrained, tmp_path/'bad.safetensors'), n


# An old type hook prints the encoder that it refuses, before there is one; without the hook there is a plain error.
wide = pytest.param({'architecture': {'width': 'wide', 'ni': 3, 'dropout': 0.}},
                    marks=pytest.mark.skipif(Version(jaxtyping.__version__) < Version('0.3'), reason='jaxtyping is older'))

@pytest.mark.parametrize('state', [{}, {'architecture': {}}, wide, {'config': {}}, [], 3, None,
                                   {'architecture': {'width': 8, 'ni': 3, 'dropout': 0.}}])
def test_foreign_files_are_refused(state, exported, tmp_path):
    path = tmp_path/'foreign.safetensors'
    text = json.dumps(state)
    with safe_open(exported, 'pt') as f:
        crc = {**json.loads(f.metadata()['crc']), '': zlib.crc32(text.encode())}         # whole, but with something else in it
        save_file({k: f.get_tensor(k) for k in f.keys()}, path, {'crc': json.dumps(crc), 'state': text})
    assert 'Export it again' in refused(load_pretrained, path) or 'schema' in refused(load_pretrained, path)


def test_a_file_that_torch_saved_is_refused(tmp_path):
    torch.save({'a': torch.zeros(2)}, tmp_path/'weights.pt')
    assert 'not written by recon_nb' in refused(load_pretrained, tmp_path/'weights.pt')


def test_names_and_places_that_wont_do(run, tmp_path):
    for name in ('encoder', 'encoder.pt', 'encoder.safetensors.zip'):
        assert '.safetensors or .onnx' in refused(export_encoder, run, tmp_path/name)
    (tmp_path/'file').write_text('')
    (tmp_path/'folder.safetensors').mkdir()
    for path in (tmp_path/'file'/'encoder.safetensors', tmp_path/'folder.safetensors'):
        assert "can't be written" in refused(export_encoder, run, path)
    assert sorted(os.listdir(tmp_path)) == ['file', 'folder.safetensors']         # nothing half written is left
    assert 'weights.safetensors' in refused(export_encoder, tmp_path, tmp_path/'x.safetensors')
    assert 'weights.safetensors' in refused(load_pretrained, run.dir/'checkpoint.safetensors')


def test_missing_extras_are_named_before_anything_is_done(run, tmp_path, monkeypatch):
    from recon_nb.tensorboard import TensorBoardHook
    for module in ('onnx', 'onnxscript'):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, module, None)
            assert "pip install 'recon_nb[onnx]'" in refused(export_encoder, run, tmp_path/'x.onnx')
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    assert "pip install 'recon_nb[tensorboard]'" in refused(TensorBoardHook)
    assert not list(tmp_path.iterdir())


def test_onnx_agrees_and_names_no_path(run):
    ort = pytest.importorskip('onnxruntime')
    path = export_encoder(run, run.dir.parent/'encoder.onnx')
    for word in (b'private-place', b'site-packages', b'.py"', os.fsencode(os.getcwd())): assert word not in path.read_bytes()
    session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()} == load_pretrained(run).config
    for shape in [(1, 3, 32, 32), (9, 3, 32, 32), (2, 3, 17, 50)]:
        x = torch.rand(shape)*2-1
        with torch.no_grad(): want = run.encoder.features(x)
        for a, b in zip(session.run(None, {'images': x.numpy()}), want, strict=True): np.testing.assert_allclose(a, b.numpy(), atol=1e-4)


def test_an_encoder_can_be_read_without_this_package(exported):
    code = ("import sys; sys.modules['recon_nb'] = None\nimport json, torch\nfrom safetensors import safe_open\n"
            "with safe_open(sys.argv[1], 'pt') as f: about, w = json.loads(f.metadata()['state']), {k: f.get_tensor(k) for k in f.keys()}\n"
            "x = torch.linspace(-1, 1, 3*32*32).reshape(1,3,32,32)\n"
            "for i in range(1, len(about['channels'])+1):\n"
            "    x = torch.conv2d(torch.conv2d(x, w[f'conv{i}.0.weight'], stride=2, padding=1), w[f'conv{i}.1.weight'], padding=1)\n"
            "    bn = [w[f'conv{i}.2.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias')]\n"
            "    x = torch.nn.functional.leaky_relu(torch.nn.functional.batch_norm(x, *bn), 0.2)\n"
            "print(json.dumps(x.flatten().tolist()))")
    out = subprocess.run([sys.executable, '-c', code, exported], capture_output=True, text=True, check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    with torch.no_grad(): want = load_pretrained(exported).encoder(torch.linspace(-1, 1, 3*32*32).reshape(1,3,32,32))
    assert json.loads(out.stdout) == want.flatten().tolist()


def test_the_shell_says_it_in_one_line(run, tmp_path, capsys):
    assert export([str(run.dir), '-o', str(tmp_path/'enc.safetensors')]) == 0
    assert torch.equal(load_pretrained(tmp_path/'enc.safetensors').encoder.conv1[0].weight, run.encoder.conv1[0].weight)
    capsys.readouterr()
    for argv in ([str(tmp_path)], [str(tmp_path/'enc.safetensors'), '-o', 'x.bin'], [str(run.dir/'history.jsonl')], [str(run.dir), '-o', str(tmp_path/'enc.safetensors'/'x.safetensors')]):
        assert export(argv) == 2
        out, err = capsys.readouterr()
        assert not out and len(err.splitlines()) == 1 and err.startswith('recon-export: '), err


def test_comparing_what_cant_be_compared(run, tmp_path):
    import shutil
    copy = shutil.copytree(run.dir, tmp_path/'copy')
    assert compare_runs(run, copy).config == {}
    assert 'two or more' in refused(compare_runs, run)
    (copy/'history.jsonl').unlink()
    assert 'history.jsonl' in refused(compare_runs, run, copy)
    (copy/'history.jsonl').write_text('nonsense\n{}\n')
    assert 'line 1' in refused(compare_runs, copy, run)


def test_compare_a_painter_with_a_run_that_predicts_no_pictures(run, tmp_path):
    photos, _ = draw_shapes(20, size=40)
    other = train_gan(photos, 'improved', run_dir=tmp_path/'other', size=32, width=4, width_dec=4, bs=8, epochs=1)
    row = compare_runs(run, other).rows()[-1]
    assert row[0] == 'held-out score' and row[1].endswith(' dB') and row[2].endswith('% explained')
