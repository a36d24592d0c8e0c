"Several processes: two on the CPU do what one does. Each test starts real processes with torchrun."
import json, os, re, signal, subprocess, sys, time
from datetime import datetime

import numpy as np
import pytest
import torch
from recon_nb.checkpoint import load_tensors
from recon_nb.core import read_jsonl

# A run on 40 drawn scenes, without batch norm and dropout if asked for: then two processes must give one process' numbers.
SCRIPT = '''
import sys
import numpy as np, torch
torch.set_num_threads(1)
from torch import nn
import recon_nb.state as state_page
from recon_nb.core import InputError
from recon_nb.training import train_gan
from recon_nb.shapes import draw_shapes
folder, norm, options = sys.argv[1], sys.argv[2] == 'norm', eval(sys.argv[3])
made = state_page.make_networks
def plain(*args, **kwargs):
    nets = made(*args, **kwargs)
    for net in filter(None, nets):
        for m in [*net.modules()]:
            for name,child in m.named_children():
                if isinstance(child, nn.BatchNorm2d): setattr(m, name, nn.Identity())
    return nets
import recon_nb.run as run_page
if not norm: state_page.make_networks = run_page.make_networks = plain
stop_at = options.pop('stop_at', None)
def stop_here(st): st.stop = st.stop or st.step == stop_at
def small_sets_count(st): print(f'hook {st.acc.process_index} {st.event}\\n', end='', flush=True) if st.event in ('begin','end') else None
try: run = train_gan(draw_shapes(45, size=64)[0], run_dir=folder, hooks=[small_sets_count, stop_here], **{**dict(width=4, width_d=4, bs=8, epochs=4, lambda_adv=0.1, dropout=0., schedule='constant'), **options})
except InputError as e: print('refused:', e, flush=True); sys.exit(2)
print(f'stopped {run.stopped or "no"} at {run.step}\\n', end='', flush=True)
'''


def launch(tmp_path, folder, *, processes, norm='plain', wait=True, **options):
    script = tmp_path/'script.py'
    script.write_text(SCRIPT)
    words = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(processes), '--standalone'] if processes > 1 else [sys.executable]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
    p = subprocess.Popen([*words, str(script), str(tmp_path/folder), norm, repr(options)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True)
    if not wait: return p
    out = p.communicate(timeout=300)[0]
    return p.returncode, out


def tensors(folder): return load_tensors(folder/'checkpoint.safetensors')[0]


def test_two_processes_equal_one(tmp_path):
    rc, said = launch(tmp_path, 'one', processes=1)
    assert rc == 0, said
    rc, said = launch(tmp_path, 'two', processes=2)
    assert rc == 0, said
    assert 'shared by 2 processes' in said and said.count('run folder:') == 1        # one voice
    assert re.findall(r'hook \d \w+', said) == ['hook 0 begin', 'hook 0 end']
    one, two = tensors(tmp_path/'one'), tensors(tmp_path/'two')
    assert one.keys() == two.keys()
    for k in one: torch.testing.assert_close(two[k], one[k], atol=1e-5, rtol=0)
    a, b = (read_jsonl(tmp_path/d/'history.jsonl') for d in ('one', 'two'))
    assert [r['step'] for r in a] == [r['step'] for r in b] == list(range(1, 21))     # each step once, written by one process
    for key in ('loss_g', 'loss_d', 'idt'): np.testing.assert_allclose([r[key] for r in b], [r[key] for r in a], atol=2e-5)
    info = json.loads((tmp_path/'two'/'run.json').read_text())
    assert (info['processes'], info['bs']) == (2, 8)
    rc, said = launch(tmp_path, 'parts', processes=2, accumulate=2, keep_every=2)     # each takes its four photos in two parts
    assert rc == 0, said
    assert 'shared by 2 processes, in 2 parts' in said and sorted(p.name for p in (tmp_path/'parts'/'weights').iterdir()) == ['epoch-0002.safetensors', 'epoch-0004.safetensors']
    parts = tensors(tmp_path/'parts')
    for k in one: torch.testing.assert_close(parts[k], one[k], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_two_processes_share_a_teacher(tmp_path):
    "One makes the codebook, both ask the same teacher. (Batch norm counts each process's own photos, so the pupils differ; the teachers may not.)"
    rc, said = launch(tmp_path, 'edges', processes=1, norm='norm', preset='improved', lambda_adv=0., width_d=0, epochs=1)
    assert rc == 0, said
    for folder, processes in (('one', 1), ('two', 2)):
        rc, said = launch(tmp_path, folder, processes=processes, norm='norm', preset='second-round', teacher=str(tmp_path/'edges'), lambda_adv=0., width_d=0, epochs=2)
        assert rc == 0, said
    one, two = (load_tensors(tmp_path/d/'teacher.safetensors')[0] for d in ('one', 'two'))
    assert one.keys() == two.keys()
    for k in one: torch.testing.assert_close(two[k], one[k], atol=1e-5, rtol=0)
    assert all(t.isfinite().all() for t in tensors(tmp_path/'two').values() if t.is_floating_point())


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(tmp_path):
    "With batch norm and dropout: each process normalises its own half, and each drops by its own numbers."
    rc, said = launch(tmp_path, 'straight', processes=2, norm='norm', dropout=0.5)
    assert rc == 0, said
    rc, said = launch(tmp_path, 'halves', processes=2, norm='norm', dropout=0.5, epochs=2)
    assert rc == 0, said
    rc, said = launch(tmp_path, 'halves', processes=2, norm='norm', epochs=4, resume=True, **dict.fromkeys(('width','width_d','bs','lambda_adv','dropout','schedule')))
    assert rc == 0 and 'resumed at step 10' in said, said
    a, b = tensors(tmp_path/'straight'), tensors(tmp_path/'halves')
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused_by_all(tmp_path):
    rc, said = launch(tmp_path, 'odd', processes=2, bs=7)
    assert rc != 0 and said.count('refused: a batch of 7') == 2 and 'bs=6' in said, said
    assert not (tmp_path/'odd').exists()


def test_a_refusal_of_the_first_process_reaches_all(tmp_path):
    (tmp_path/'taken').mkdir()
    (tmp_path/'taken'/'config.json').write_text('{}')
    rc, said = launch(tmp_path, 'taken', processes=2)
    assert rc != 0 and said.count('already holds a run') == 2, said


def test_all_processes_stop_for_the_same_reason(tmp_path):
    "Only the first one calls hooks, and all know that one has stopped the run."
    rc, said = launch(tmp_path, 'stopped', processes=2, epochs=40, stop_at=5)
    stops = re.findall(r'stopped (\w+) at (\d+)', said)
    assert rc == 0 and len(stops) == 2 and {*stops} == {('hook', '5')}, said


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_at_the_same_step(tmp_path):
    p = launch(tmp_path, 'stopped', processes=2, norm='norm', epochs=4000, wait=False)
    history = tmp_path/'stopped'/'history.jsonl'
    limit = time.monotonic() + 120
    while not history.exists() and time.monotonic() < limit and p.poll() is None: time.sleep(0.1)
    os.killpg(p.pid, signal.SIGINT)                            # as a terminal does
    said = p.communicate(timeout=300)[0]
    stops = re.findall(r'signal at (\d+)', said)                # the two may speak at the same time
    assert len(stops) == 2 and len({*stops}) == 1, said
    step = int(stops[0])
    assert [r['step'] for r in read_jsonl(history)] == list(range(1, step+1))


# What goes wrong in one of two processes, and the moment it does. Names are replaced in every page that imports them.
FAULTY = '''
import os, signal, sys, time
import torch
torch.set_num_threads(1)
from recon_nb import train_gan
from recon_nb.cli import train
folder, fault = sys.argv[1:3]
rank = int(os.environ['RANK'])
def fail(e):
    open(os.path.join(os.path.dirname(folder), 'failed'), 'w').write(str(time.time()))
    raise e
def replace(name, new):
    for m in [m for n,m in sys.modules.items() if n.startswith('recon_nb.')]:
        if hasattr(m, name): setattr(m, name, new)
def full(*args, **kwargs): fail(OSError(28, 'No space left on device', 'the-file'))
def hook(st):
    if st.event == 'step' and st.step == 2 and fault == 'hook': fail(ValueError('a fault'))
if fault == 'read in the first' and rank == 0: replace('load_photos', full)
if fault == 'read in the second' and rank == 1: replace('load_photos', full)
if fault == 'save': replace('save_checkpoint', full)
if fault == 'full disk at the end' and rank == 0:
    import recon_nb.core as core
    kept = core.write_atomic
    def write_atomic(path, data):
        if os.path.basename(str(path)).startswith('checkpoint') and os.path.exists(os.path.join(folder, 'checkpoint.safetensors')): full()
        return kept(path, data)
    replace('write_atomic', write_atomic)
if fault == 'step in the second' and rank == 1: replace('train_step', lambda st, batch: fail(ValueError('a fault')))
if fault == 'memory in the second' and rank == 1: replace('train_step', lambda st, batch: fail(MemoryError()))
def at_step(n, do):
    import recon_nb.trainer as page
    step = page.train_step
    def train_step(st, batch):
        if st.step == n: do()
        return step(st, batch)
    replace('train_step', train_step)
def killed():
    open(os.path.join(os.path.dirname(folder), 'failed'), 'w').write(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
if fault == f'killed {rank}': at_step(7, killed)
if fault == 'slow in the second' and rank == 1: at_step(3, lambda: time.sleep(12))
options, data = dict(width=4, width_d=4, bs=8, epochs=4), 'shapes'
if fault.split()[0] in ('none', 'killed', 'slow', 'full', 'resumed'):        # few photos: these runs come to their end
    from recon_nb.shapes import draw_shapes
    options, data = dict(options, size=32), draw_shapes(45, size=32)[0]
if fault == 'resumed': options = dict(resume=True)
if fault == 'memory in the second': sys.exit(train(['shapes', '--quiet', '--run-dir', folder, '--size', '32', '--bs', '8', '--width', '4']))
train_gan(data, run_dir=folder, hooks=hook, progress=False, **options)
'''


def launch_script(tmp_path, text, *argv):
    "Two processes: exit status, everything they and the launcher said, when they had ended."
    script = tmp_path/'faulty.py'
    script.write_text(text)
    words = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone', script, *argv]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1', 'GLOO_SOCKET_IFNAME': 'lo', 'RECON_NB_CACHE': str(tmp_path/'cache')}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=env, timeout=300)
    return done.returncode, done.stdout+done.stderr, time.time()


def assert_one_ends_both(tmp_path, fault, message):
    rc, said, end = launch_script(tmp_path, FAULTY, tmp_path/'run', fault)
    assert rc != 0 and said.count(message) == 1, said
    # no second report: the launcher's own traceback comes after ours
    ours = said[:said.index('torch/distributed/elastic')]
    assert message in ours and ours.count('Traceback') == (0 if fault.startswith('memory') else 1), said
    assert end-float((tmp_path/'failed').read_text()) < 30
    return said


@pytest.mark.parametrize('fault, message', [('read in the first', "OSError: [Errno 28] No space left on device: 'the-file'"),
                                            ('hook', 'ValueError: a fault')])
def test_a_fault_in_one_process_ends_both(fault, message, tmp_path): assert_one_ends_both(tmp_path, fault, message)


@pytest.mark.slow
@pytest.mark.parametrize('fault, message', [('step in the second', 'ValueError: a fault'),
                                            ('read in the second', "OSError: [Errno 28] No space left on device: 'the-file'"),
                                            ('save', "OSError: [Errno 28] No space left on device: 'the-file'")])
def test_a_fault_anywhere_else_ends_both(fault, message, tmp_path): assert_one_ends_both(tmp_path, fault, message)


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_a_killed_process_ends_the_other_and_the_folder_resumes(rank, tmp_path):
    rc, said, _ = launch_script(tmp_path, FAULTY, tmp_path/'run', f'killed {rank}')
    assert rc != 0 and ended(said)-float((tmp_path/'failed').read_text()) < 30, said
    assert re.search(rf'Root Cause.*rank +: {rank} .*exitcode +: -9 ', said, re.S), said            # the launcher's one report, with a traceback of its own
    assert said.count('Traceback (most recent call last)') <= 2, said                            # the other process may notice that the line is cut before it is ended
    resumes(tmp_path)


def ended(said):
    "When the last of the processes had ended, by the launcher's report; on a busy machine the launcher itself takes longer."
    return max(datetime.strptime(t, '%Y-%m-%d_%H:%M:%S').timestamp() for t in re.findall(r'time +: (\S+)', said))


def resumes(tmp_path):
    "The folder goes on, with two processes, and ends as if nothing had been."
    rc, said, _ = launch_script(tmp_path, FAULTY, tmp_path/'run', 'resumed')
    assert rc == 0, said
    steps = [r['step'] for r in read_jsonl(tmp_path/'run'/'history.jsonl')]
    assert steps == list(range(1, len(steps)+1)) and load_tensors(tmp_path/'run'/'checkpoint.safetensors')[1]['step'] == steps[-1]
    return steps[-1]


@pytest.mark.slow
def test_a_slow_process_is_waited_for(tmp_path):
    rc, said, _ = launch_script(tmp_path, FAULTY, tmp_path/'slow', 'slow in the second')
    assert rc == 0 and 'Traceback' not in said, said
    rc, said, _ = launch_script(tmp_path, FAULTY, tmp_path/'run', 'none')
    assert rc == 0, said
    a, b = tensors(tmp_path/'slow'), tensors(tmp_path/'run')
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_a_full_disk_in_the_first_ends_both_and_the_folder_resumes(tmp_path):
    rc, said, _ = launch_script(tmp_path, FAULTY, tmp_path/'run', 'full disk at the end')
    assert rc != 0 and ended(said)-float((tmp_path/'failed').read_text()) < 30, said
    assert said[:said.index('torch/distributed/elastic')].count('Traceback') == 1 and said.count("OSError: [Errno 28] No space left on device: 'the-file'") == 1, said
    resumes(tmp_path)


def test_a_refusal_in_the_second_process_is_one_line_in_the_shell(tmp_path):
    said = assert_one_ends_both(tmp_path, 'memory in the second', 'recon-train: out of memory: a batch of 8')
    assert re.search(r'rank +: 1 .*\n +exitcode +: 2', said), said              # the launcher names the one that failed, and its status


@pytest.mark.parametrize('argv, message', [(['--preset', 'papersb'], 'recon-train: unknown preset'),
                                           pytest.param(['--bs', 'many'], "invalid int value: 'many'", marks=pytest.mark.slow),
                                           pytest.param(['shapes', '--size', '32', '--bs', '7'], "a batch of 7 photos can't be shared", marks=pytest.mark.slow)])
def test_a_wrong_call_is_answered_once(argv, message, tmp_path):
    rc, said, _ = launch_script(tmp_path, 'import sys; from recon_nb.cli import train; sys.exit(train())', *argv, '--run-dir', tmp_path/'run')
    assert rc != 0 and said.count(message) == 1 and not (tmp_path/'run').exists(), said
    assert 'Traceback' not in said[:said.index('torch/distributed/elastic')], said
