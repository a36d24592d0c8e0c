"""A file from somebody else opens, or is refused in one sentence: it is never run, nothing is written elsewhere, and no more memory is taken than ten times
the file and 64 MB. Pictures have limits of their own. The cases are those of strangers.py: a subject, and a number that chooses the mutation."""
import json, os, subprocess, sys, zipfile
from pathlib import Path

import pytest

from recon_nb import GANRun, load_pretrained
from recon_nb.checkpoint import load_tensors, save_tensors
from recon_nb.core import InputError, _as_path
from recon_nb.run import load_encoder
from mutations import JUNK, changed, memory, places, watching

HERE = Path(__file__).parent
EACH = 220                                                              # cases of each subject in the slow suite: 5,060 in all


def opened(first, last, *subjects):
    "What the script says of some cases; without the types' checks, as people open files."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1', 'MPLBACKEND': 'Agg'}
    done = subprocess.run([sys.executable, HERE/'strangers.py', str(first), str(last), *subjects], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def said(faults): return '; '.join(f'{s} {n}: {f}' for s, its in faults.items() for n, f in [*its.items()][:5])


def test_files_open_or_are_refused_in_a_sentence():
    found = opened(0, 7)
    assert found['cases'] == 161 and not found['faults'], said(found['faults'])


@pytest.mark.slow
def test_many_files_open_or_are_refused_in_a_sentence():
    found = opened(7, 7+EACH)
    assert found['cases'] >= 5000 and not found['faults'], said(found['faults'])


# --- the guard sees what it is there for

def test_the_guard_sees_what_a_file_does(tmp_path):
    with watching() as seen:
        (tmp_path/'a').write_text('x')
        (tmp_path/'a').rename(tmp_path/'b')
        subprocess.run([sys.executable, '-c', ''])
    assert {e for e, _ in seen} >= {'write', 'os.rename', 'subprocess.Popen'} and ('write', str(tmp_path/'a')) in seen
    with watching() as seen: (tmp_path/'b').read_text()
    assert not seen


@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='the system does not say how much memory was taken')
def test_the_guard_sees_memory():
    with memory() as took: len(b'x'*50_000_000)
    assert 40e6 < took[0] < 80e6
    with memory() as took: pass
    assert took[0] < 5e6


def test_a_change_of_a_tree_changes_one_place():
    tree = {'a': [1, {'b': 2}], 'c': None}
    assert {*places(tree)} == {(), ('a',), ('a', 0), ('a', 1), ('a', 1, 'b'), ('c',)}
    assert changed(tree, ('a', 1, 'b'), lambda x: x+1) == {'a': [1, {'b': 3}], 'c': None} and len(JUNK) > 30


# --- faults that were found, each with its case

@pytest.fixture(scope='module')
def old(tmp_path_factory):
    "A run folder, small and quick to open."
    with zipfile.ZipFile(HERE/'fixtures/0.2.0/quick-today.zip') as z: z.extractall(d := tmp_path_factory.mktemp('old'))
    return d/'quick-today'


def with_config(run, d, **fields):
    "The same weights with another config, whose checksum is right."
    state = load_tensors(run/'weights.safetensors')
    state[1]['config'].update(fields)
    d.mkdir()
    save_tensors(d/'weights.safetensors', *state)
    return d


@pytest.mark.parametrize('field', ['width', 'width_d', 'size'])
def test_a_config_that_asks_for_gigabytes_gets_none(old, tmp_path, field):
    "It is compared with the weights before a network is made."
    d = with_config(old, tmp_path/'run', **{field: 4096})
    load_pretrained(old, device='cpu')                                  # whatever is imported late
    for open_it in (GANRun.load.__func__, load_encoder):
        with memory() as took:
            try: open_it(GANRun, d) if open_it is not load_encoder else open_it(d)
            except InputError as e: assert 'network that its config names' in str(e)
            else: assert field != 'width'                               # an encoder alone has neither a critic nor a size
        assert took[0] < 64*2**20


@pytest.mark.parametrize('info', [[], 3, {'steps': 'x'}, {'plugins': [{}]}, {'plugins': 3}, {'trivial': {'a': []}}, {'bs': 0}, {'train': -1}, {'photos': None}])
def test_a_damaged_run_json_is_named(old, tmp_path, info):
    d = with_config(old, tmp_path/'run')
    (d/'run.json').write_text(json.dumps(info))
    with pytest.raises(InputError, match='run.json'): GANRun.load.__func__(GANRun, d)


@pytest.mark.parametrize('line', ['[]', '3', 'null', '{"loss_g": 1}', '{"step": -1}', '{"step": 1, "loss_g": "x"}', '{"step": 1, "loss_g": []}', '{"step": 1e3}', '{"step": 1, "x": 1'+'0'*400+'}'])
def test_records_that_are_no_numbers_are_named(old, tmp_path, line):
    d = with_config(old, tmp_path/'run')
    run = GANRun.load.__func__(GANRun, d)
    for name in ('history', 'metrics'):
        (d/f'{name}.jsonl').write_text(line+'\n')
        with pytest.raises(InputError, match=f'{name}.jsonl'): getattr(run, name)


@pytest.mark.parametrize('given', [3, None, b'x', '~nobody-of-this-name/x', 'a\0b', 'é'*200, '\ud800'])
def test_what_is_no_path(given):
    with pytest.raises(InputError): _as_path(given)


def test_a_deeply_nested_record_is_refused(tmp_path):
    from recon_nb.core import _read_object, read_jsonl
    from recon_nb.records import read_rows
    path = tmp_path/'history.jsonl'
    path.write_text('['*100_000+'\n')
    for read in (read_jsonl, read_rows, _read_object):
        with pytest.raises(InputError, match='history.jsonl'): read(path)


def test_no_file_is_a_checkpoint_by_its_name(tmp_path):
    (tmp_path/'checkpoint.safetensors').write_bytes(b'\x80\x04.')
    with pytest.raises(InputError, match='damaged'): load_tensors(tmp_path/'checkpoint.safetensors')
