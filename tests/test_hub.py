"Models of the Hugging Face Hub: opened from its own cache layout and from a stand-in of it on this machine; what can't be had is said in a sentence."
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData, constants, file_download, utils

from recon_nb import load_pretrained, train_gan
from recon_nb.card import write_release
from recon_nb.cli import embed, release
from recon_nb.contenders import as_contender
from recon_nb.core import InputError
from recon_nb.shapes import draw_shapes
from recon_nb.show import _save_png

COMMIT, OLD = '1'*40, '2'*40


@pytest.fixture(scope='module')
def run(tmp_path_factory): return train_gan(draw_shapes(20, size=40)[0], run_dir=tmp_path_factory.mktemp('hub')/'run', width=4, bs=8, epochs=1, size=32, progress=False)


@pytest.fixture(scope='module')
def given(run, tmp_path_factory): return write_release(run, tmp_path_factory.mktemp('hub')/'release', licence='cc-by-4.0')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "The Hub's cache, empty, and no network."
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.chdir(tmp_path)
    def keep(name, files, commit=COMMIT, refs=('main',)):
        home = tmp_path/'hub'/f"models--{name.replace('/', '--')}"
        (home/'snapshots'/commit).mkdir(parents=True)
        (home/'refs').mkdir(exist_ok=True)
        for r in refs: (home/'refs'/r).write_text(commit)
        for f in files: shutil.copy(f, home/'snapshots'/commit)
        return home/'snapshots'/commit
    return keep


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_releases_exports_and_runs_open_by_name(cache, run, given, tmp_path):
    cache('anna/whole', given.iterdir())
    cache('anna/alone', [given/'encoder.safetensors'])
    cache('anna/run', [run.dir/'weights.safetensors', run.dir/'run.json'])
    opened = {n: load_pretrained(f'anna/{n}') for n in ('whole', 'alone', 'run')}
    assert all(same(p.encoder, run.encoder) for p in opened.values())
    assert {n: p.decoder is not None for n, p in opened.items()} == dict(whole=True, alone=False, run=True)
    assert as_contender('anna/alone').size == 32                         # whatever opens an encoder knows these names
    (tmp_path/'photos').mkdir()
    _save_png(draw_shapes(1, size=40)[0][0], tmp_path/'photos'/'a.png')
    assert embed(['anna/whole', str(tmp_path/'photos'), '-o', str(tmp_path/'f.npy')]) == 0


def test_a_revision_is_what_it_was(cache, run, given, tmp_path):
    other = train_gan(draw_shapes(20, size=40)[0], run_dir=tmp_path/'other', width=4, bs=8, epochs=1, size=32, seed=5, progress=False)
    cache('anna/edges', [other.dir/'weights.safetensors'], OLD, refs=('v1',))
    cache('anna/edges', given.iterdir())
    for r in (None, 'main', COMMIT): assert same(load_pretrained('anna/edges', revision=r).encoder, run.encoder)
    for r in ('v1', OLD): assert same(load_pretrained('anna/edges', revision=r).encoder, other.encoder)


def test_a_folder_here_wins(cache, run, given, tmp_path):
    cache('anna/edges', [])
    shutil.copytree(given, tmp_path/'anna'/'edges')
    assert same(load_pretrained('anna/edges').encoder, run.encoder)
    with pytest.raises(InputError, match="revision='v1' has no effect: anna/edges lies here"): load_pretrained('anna/edges', revision='v1')
    with pytest.raises(InputError, match="revision='v1' has no effect"): load_pretrained(given/'encoder.safetensors', revision='v1')


@pytest.mark.parametrize('name', ['runs/none', 'anna/none'])
def test_not_here_and_not_in_the_cache(name, cache, capsys):
    with pytest.raises(InputError, match=f'^{name} is no folder here, .*not in the cache yet, and the Hub was not reached') as e: load_pretrained(name)
    assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='is no folder here'): as_contender(name)
    assert embed([name, '.']) == 2 and capsys.readouterr().err.count('\n') == 1


def test_a_model_of_somebody_elses_tool(cache, tmp_path):
    (tmp_path/'config.json').write_text('{}')
    cache('google/vit', [tmp_path/'config.json'])
    with pytest.raises(InputError, match='google/vit holds none of generator.safetensors, encoder.safetensors, weights.safetensors: it is no model of recon_nb'): load_pretrained('google/vit')


@pytest.mark.parametrize('name', ['nowhere', './none/none', 'a/b/c', 'none/encoder.safetensors', '/none/none', 'none/model.onnx'])
def test_a_path_is_no_name_of_the_hub(name, cache):
    with pytest.raises(InputError) as e: load_pretrained(name)
    assert 'Hugging Face' not in str(e.value)


def test_a_mistyped_run_is_not_asked_for_at_the_hub(cache, tmp_path):
    (tmp_path/'runs').mkdir()
    with pytest.raises(InputError) as e: load_pretrained('runs/mnie')
    assert 'Hugging Face' not in str(e.value)


def set_offline(monkeypatch, offline):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', offline)
    getattr(utils, 'reset_sessions', lambda: None)()       # before version 1 a session stays what it was made as


@pytest.fixture
def hub(tmp_path, monkeypatch, given):
    "A stand-in of the Hub: one model, one that needs permission; all else is not there."
    files = {f.name: f.read_bytes() for f in given.iterdir()}
    class Answer(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def say(self, status, body=b'', **headers):
            self.send_response(status)
            for k, v in {'Content-Length': str(len(body)), **headers}.items(): self.send_header(k.replace('_', '-'), v)
            self.end_headers()
            if self.command == 'GET': self.wfile.write(body)
        def do_GET(self):
            path = self.path.split('?')[0]
            asked.append(path)
            if path == '/api/models/anna/closed/revision/main': return self.say(403, X_Error_Code='GatedRepo')
            if path.startswith('/api/models/anna/edges/revision/') and not path.endswith('/main'): return self.say(404, X_Error_Code='RevisionNotFound')
            if path == '/api/models/anna/edges/revision/main': return self.say(200, json.dumps(dict(id='anna/edges', sha=COMMIT, siblings=[dict(rfilename=f) for f in files])).encode())
            if path.startswith('/api/models/anna/edges/tree/'):
                return self.say(200, json.dumps([dict(type='file', oid=f'{i:040x}', size=len(b), path=f) for i, (f, b) in enumerate(files.items())]).encode(), Content_Type='application/json')
            name = path.removeprefix(f'/anna/edges/resolve/{COMMIT}/')
            if name in files: return self.say(200, files[name], ETag=f'"{name}"', X_Repo_Commit=COMMIT)
            self.say(404, X_Error_Code='RepoNotFound')
        do_HEAD = do_GET
    asked = []
    server = ThreadingHTTPServer(('127.0.0.1', 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, 'ENDPOINT', at := f'http://127.0.0.1:{server.server_port}')
    for m in (constants, file_download):                   # which has a copy of its own before version 1
        monkeypatch.setattr(m, 'HUGGINGFACE_CO_URL_TEMPLATE', at+'/{repo_id}/resolve/{revision}/{filename}', raising=False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    set_offline(monkeypatch, False)
    monkeypatch.chdir(tmp_path)
    yield asked
    server.shutdown()


def test_what_the_hub_refuses_is_a_sentence(hub):
    for name, revision, says in (('anna/none', None, 'there is no model of this name, or it is private'), ('anna/closed', None, 'its owner must let you in'),
                                 ('anna/edges', 'v9', 'the model has no such branch, tag or commit')):
        with pytest.raises(InputError, match=says) as e: load_pretrained(name, revision=revision)
        assert '\n' not in str(e.value)


def test_it_is_fetched_once_and_only_our_files(hub, run, monkeypatch):
    assert same(load_pretrained('anna/edges').encoder, run.encoder)
    assert {p.split('/')[-1] for p in hub if '/resolve/' in p} == {'generator.safetensors', 'encoder.safetensors'}
    set_offline(monkeypatch, True)
    before = len(hub)
    assert same(load_pretrained('anna/edges').encoder, run.encoder) and len(hub) == before


# --- what goes up

def test_a_card_is_what_the_hub_reads(given, run, tmp_path):
    card = ModelCard.load(given/'README.md')
    data = card.data.to_dict()
    assert (data['license'], data['library_name'], data['pipeline_tag']) == ('cc-by-4.0', 'recon_nb', 'image-feature-extraction')
    assert {'self-supervised', 'quick'} <= {*data['tags']}
    assert ModelCardData(**data).to_dict() == data                       # every field is one of theirs
    card.save(tmp_path/'again.md')
    again = ModelCard.load(tmp_path/'again.md')
    assert again.data.to_dict() == data and again.text.strip() == card.text.strip()


@pytest.mark.parametrize('licence, head', [('MIT', dict(license='mit')), ('CC0-1.0', dict(license='cc0-1.0')), ('MPL-2.0', dict(license='mpl-2.0')), ('GPL-3.0-or-later', dict(license='gpl-3.0')),
                                           ('Beerware', dict(license='other', license_name='beerware'))])
def test_a_licence_that_the_hub_does_not_list_is_another(licence, head, run, tmp_path):
    data = ModelCard.load(write_release(run, tmp_path/'r', licence=licence)/'README.md').data.to_dict()
    assert {k: v for k, v in data.items() if k.startswith('license')} == head


def test_no_pickle_leaves_the_house(given):
    for f in given.iterdir():
        start = f.read_bytes()[:9]
        assert f.suffix in ('.safetensors', '.md') and start[:2] not in (b'PK', b'\x80\x02', b'\x80\x04')
        if f.suffix == '.safetensors': assert start[8:] == b'{'          # eight bytes of length, then JSON


def test_the_command_that_uploads_it(run, tmp_path, capsys):
    assert release([str(run.dir), '-o', str(tmp_path/'my release')]) == 0
    out = capsys.readouterr().out
    line = next(l for l in out.splitlines() if 'hf upload' in l)
    assert line.endswith(f"hf upload USER/NAME '{tmp_path}/my release'")
    hf = pytest.importorskip('huggingface_hub.cli.hf')                   # the command itself, as it is installed
    said = subprocess.run([sys.executable, '-m', hf.__name__, 'upload', '--help'], capture_output=True, text=True, env={**os.environ, 'HF_HUB_OFFLINE': '1'}).stdout
    assert 'REPO_ID [LOCAL_PATH]' in said.upper()
