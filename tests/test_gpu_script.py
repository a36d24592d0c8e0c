"benchmarks/gpu.py at toy size on the CPU: every stage, wrong calls, failures, time that runs out, and kills."
import importlib.util, json, os, random, signal, subprocess, sys, time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from recon_nb import selftest
from recon_nb.checkpoint import load_tensors
from recon_nb.core import read_jsonl
from recon_nb.data import SETS
from recon_nb.export import load_pretrained
from recon_nb.pixels import to_model
from recon_nb.run import GANRun
from recon_nb.shapes import draw_shapes
from test_fake_cuda import FakeAccelerator, an_encoder, device, make  # noqa: F401  (device is a fixture)
from versions import NO_FAKE_CUDA, OLD_TORCH

SCRIPT = Path(__file__).resolve().parents[1]/'benchmarks'/'gpu.py'
spec = importlib.util.spec_from_file_location('gpu_script', SCRIPT)
gpu = sys.modules['gpu_script'] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "The two folders that --data must hold, with drawn pictures."
    root = tmp_path_factory.mktemp('data')
    def write(folder, n, size, seed, kind, classes):
        for i,im in enumerate(draw_shapes(n, size=size, seed=seed)[0]):
            path = root/folder/(f'c{i%classes}' if classes else '')/f'{i:03d}.{kind}'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(im).save(path)
    write('voc2012_square240/train', 24, 48, 1, 'webp', 0)
    write('voc2012_square240/val', 8, 48, 2, 'webp', 0)
    write('cifar10/train', 40, 32, 3, 'jpg', 4)
    write('cifar10/test', 20, 32, 4, 'jpg', 4)
    return root


@pytest.fixture(autouse=True)
def sets(monkeypatch): monkeypatch.setitem(SETS, gpu.VOC, gpu.load_squares)        # the script registers it; not for the other tests


def words(data, out, *more):
    return ['--toy', '--device', 'cpu', '--minutes', '60', '--data', str(data), '--out', str(out), *more]      # however busy the machine is


def rows(out): return read_jsonl(out/'records.jsonl')
def names(out): return [(r['stage'], r['name']) for r in rows(out)]


def assert_whole(out):
    "Every item of every stage, each once, none failed; what the stages leave beside their records."
    found = {(r['stage'], r['name']): r for r in rows(out)}
    assert len(found) == len(rows(out)) and {r['status'] for r in found.values()} <= {'ok', 'not here'}
    count = {stage: sum(s == stage for s,_ in found) for stage in gpu.STAGES}
    assert count == dict(works=5, speed=12, paper=4, later=19)
    for preset in gpu.PAPER:
        r, file = found['paper', f'{preset}, 2 epochs'], out/f'{preset}-fp16.safetensors'
        assert (r['train'], r['held_out'], r['epochs_reached'], r['epochs'], r['n']) == (24, 8, 2, 2, 6)
        assert [m['epoch'] for m in r['metrics']] == [1, 2] and len(r['opinions']['d_real'][0]) == 6
        assert r['encoder'] == file.name and load_tensors(file)[1]['weights'] == 'float16'
    figure = next(r for r in found.values() if r['name'].startswith('figure'))
    assert figure['config'] == {p: 6 for p in gpu.PAPER} and figure['n'] == 6
    picture = Image.open(out/figure['says'].split(',')[0])
    assert picture.width > 300 and len((out/picture.filename).read_bytes()) < 200_000


def test_every_stage(data, tmp_path, capsys):
    "End to end; the second call finds nothing to do and writes nothing."
    assert gpu.main(words(data, tmp_path)) == 0
    said = capsys.readouterr().out
    assert_whole(tmp_path)
    for r in rows(tmp_path):
        assert {'n', 'config', 'seconds', 'says'} <= r.keys() and r['device'] == 'cpu' and r['machine']['torch']
        assert f"{r['name']}: {r['says']}" in said
    assert said.endswith('nothing is left to do\n')
    before = (tmp_path/'records.jsonl').read_bytes()
    assert gpu.main(words(data, tmp_path)) == 0 and (tmp_path/'records.jsonl').read_bytes() == before

    steps = {r['name']: r for r in rows(tmp_path) if r['stage'] == 'speed' and r['name'].startswith('step')}
    for name,r in steps.items():
        assert r['images_per_s'] > 0 and r['peak_gib'] is None and r['waits_for_host'] is None
        assert (r['images_per_s_with_fetch'] is None) == ('not channels-last' in name)
        assert r['share_of_product'] == pytest.approx(r['flops_per_image']*r['images_per_s']/r['product_flops_per_s'])
    assert len({r['flops_per_image'] for name,r in steps.items() if 'paper-sb' in name}) == 1
    p, run = load_pretrained(tmp_path/'paper-sb-fp16.safetensors'), GANRun.load(tmp_path/'runs'/'paper-sb')
    x = to_model(draw_shapes(4, size=32)[0])
    with torch.no_grad(): torch.testing.assert_close(p.encoder(x), run.encoder(x), atol=.02, rtol=.02)
    tensors = load_tensors(tmp_path/'paper-sb-fp16.safetensors')[0]
    assert {t.dtype for t in tensors.values()} == {torch.float16, torch.int64}


@pytest.mark.parametrize('more,says', [
    (['--stages', 'speed,wroks'], "unknown stage 'wroks'. Did you mean 'works'?"),
    (['--stages', '5'], "unknown stage '5'"),
    (['--stages', ','], 'names no stage'),
    (['--minutes', '0'], 'it must be above 0'),
    (['--minutes', 'ten'], 'invalid float value'),
    (['--epochs', '0'], 'it must be 1 or more'),
    (['--precision', 'fp16'], 'needs a GPU'),
    (['--device', 'tpu'], 'invalid choice'),
    (['--data', 'nowhere'], 'nowhere/voc2012_square240/train, which is not there'),
    (['--fast'], 'unrecognized arguments'),
])
def test_wrong_calls(data, tmp_path, capsys, more, says):
    "One sentence, exit status 2, and nothing is written."
    with pytest.raises(SystemExit) as e: sys.exit(gpu.main(words(data, tmp_path/'out', *more)))
    said = capsys.readouterr()
    assert e.value.code == 2 and says in said.err and said.err.count('\n') == 1 and not said.out
    assert not (tmp_path/'out').exists()


def test_more_wrong_calls(data, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv('RECON_NB_DATA', raising=False)
    assert gpu.main(['--device', 'cpu', '--out', str(tmp_path)]) == 2 and 'add --toy' in capsys.readouterr().err
    assert gpu.main(['--toy', '--device', 'cpu', '--out', str(tmp_path), '--stages', '3']) == 2
    assert 'stage paper needs photos: give --data' in capsys.readouterr().err
    (tmp_path/'records.jsonl').write_text(json.dumps(dict(toy=False, device='cuda 13.0: H200'))+'\n')
    assert gpu.main(words(data, tmp_path, '--stages', 'works')) == 2 and 'records of another kind (cuda)' in capsys.readouterr().err


def test_a_stage_that_needs_no_photos_asks_for_none():
    args = Namespace(device='cpu', data=None, toy=True, minutes=1., epochs=None, precision=None, again=False, out=Path('nowhere'))
    assert gpu.choose_stages(['2', 'works']) == ['works', 'speed']
    assert gpu.open_session(args, ['works', 'speed']).data is None


def test_a_failure_is_recorded_and_the_others_go_on(data, tmp_path, capsys, monkeypatch):
    def check_that_breaks(where, folder): raise RuntimeError('a broken\nkernel')
    def check_that_holds(where, folder): return f'fine on {where}'
    checks = dict(run=check_that_holds, resume=check_that_breaks, fp16=gpu.CHECKS['fp16'], bf16=check_that_holds)
    for module in (gpu, selftest): monkeypatch.setattr(module, 'CHECKS', checks)
    how = words(data, tmp_path, '--stages', '1')
    assert gpu.main(how) == 1
    found = {r['name']: r for r in rows(tmp_path)}
    assert {n: (r['status'], r['says'].split(' [')[0]) for n,r in found.items()} == dict(
        run=('ok', 'fine on cpu'), resume=('failed', 'RuntimeError: a broken kernel'), bf16=('ok', 'fine on cpu'),
        fp16=('not here', 'fp16 needs CUDA'))
    assert 'resume: RuntimeError: a broken kernel' in capsys.readouterr().out
    assert gpu.main(how) == 1 and len(rows(tmp_path)) == 4                  # not tried again by itself
    checks['resume'] = check_that_holds
    assert gpu.main([*how, '--again']) == 0 and names(tmp_path)[4:] == [('works', 'resume')]
    assert gpu.main([*how, '--again']) == 0 and len(rows(tmp_path)) == 5


def test_ctrl_c_ends_the_call_and_the_next_one_goes_on(data, tmp_path, monkeypatch):
    def interrupt(seconds): return lambda st: os.kill(os.getpid(), signal.SIGINT) if (st.event, st.step) == ('step', 2) else None
    how = words(data, tmp_path, '--stages', 'paper')
    with monkeypatch.context() as m:
        m.setattr(gpu, 'save_each', interrupt)
        assert gpu.main(how) == 130
    assert [(r['status'], r['n'], r['epochs_reached']) for r in rows(tmp_path)] == [('part', 2, 2/3)]
    assert gpu.main(how) == 0
    assert [(r['status'], r['n']) for r in rows(tmp_path)[1:4]] == [('ok', 6)]*3 and len(rows(tmp_path)) == 5


def test_a_stage_whose_items_cannot_be_listed(data, tmp_path, monkeypatch):
    def list_nothing(s): raise OSError('the disk is gone'); yield
    def list_one(s): yield gpu.Item('quick', 0, {}, lambda: dict(says='done'))
    monkeypatch.setattr(gpu, 'STAGES', dict(works=list_nothing, speed=list_one))
    for n in (1, 2):
        assert gpu.main(words(data, tmp_path, '--stages', '1', '2')) == 1
        assert names(tmp_path).count(('works', gpu.LISTING)) == n and names(tmp_path).count(('speed', 'quick')) == 1
    assert 'the disk is gone' in rows(tmp_path)[0]['traceback']


def test_time_that_runs_out(data, tmp_path, capsys, monkeypatch):
    "Nothing is begun that does not fit; a run is stopped, and goes on at the next call."
    assert gpu.main(words(data, tmp_path, '--minutes', '0.001')) == 0 and rows(tmp_path) == []
    assert 'later: not looked at, no time was left' in capsys.readouterr().out
    monkeypatch.setattr(gpu, 'PAPER', ('paper-sb',))
    how = words(data, tmp_path, '--epochs', '20000', '--stages')
    for call in (1, 2):
        assert gpu.main([*how, 'paper', '--minutes', '0.06']) == 0
        assert names(tmp_path).count(('paper', 'paper-sb, 20000 epochs')) == call
        assert 'paper: paper-sb, 20000 epochs (so far ' in capsys.readouterr().out.split('left to do')[1]
    parts = [r for r in rows(tmp_path) if 'epochs' in r['name']]
    assert 0 < parts[0]['epochs_reached'] < parts[1]['epochs_reached'] < 20000 and {r['status'] for r in parts} == {'part'}
    assert parts[1]['training_seconds'] > parts[0]['training_seconds'] > 0
    assert gpu.main([*how, '4']) == 0 and {stage for stage,_ in names(tmp_path)} == {'paper'}
    assert 'later: waits for paper-sb of stage paper' in capsys.readouterr().out


@pytest.mark.parametrize('seconds,shares', [(300, [3, 2, 1]), (90, [2, 2, 1]), (41, [1, 1, 1])])
def test_the_runs_share_the_time(tmp_path, monkeypatch, seconds, shares):
    "Into no more parts than are worth beginning; the run that is least far comes first."
    def record(preset, reached, status): return dict(stage='paper', name=f'{preset}, 1000 epochs', status=status, epochs_reached=reached)
    monkeypatch.setattr(gpu, 'train_paper', lambda s, share, preset, epochs: (preset, share))
    records = [record('paper-sb', 90, 'part'), record('paper-l1', 20, 'part')]
    s = gpu.Session(tmp_path, None, 'cuda', False, time.monotonic()+seconds, None, None, False, records)
    assert [item.work() for item in gpu.list_paper(s)] == [*zip(('paper-baseline', 'paper-l1', 'paper-sb'), shares)]
    s.records.append(record('paper-baseline', 1000, 'ok'))
    assert [item.work()[0] for item in gpu.list_paper(s)] == ['paper-l1', 'paper-sb']


def test_an_item_that_does_not_fit_is_not_begun(tmp_path):
    done = []
    s = gpu.Session(tmp_path, None, 'cpu', True, time.monotonic()+60, None, None, False, [])
    def items(s):
        for need in (50, 70, 10): yield gpu.Item(f'{need}', need, {}, lambda: done.append(need) or dict(says=''))
    with pytest.MonkeyPatch.context() as m:
        m.setitem(gpu.STAGES, 'works', items); m.setitem(gpu.LIMITS, 'works', 40)
        gpu.run_stage(s, 'works')
    assert done == [10] and s.todo == ['works: 50 (may take 50 s)', 'works: 70 (may take 70 s)']


def test_precision_follows_the_records():
    def session(works, full, half, gap=0.):
        step = dict(stage='speed', status='ok')
        losses = [dict(loss_g=.7, loss_d=1.4), dict(loss_g=.7, loss_d=1.4+gap)]
        records = [dict(stage='works', name='bf16', status=works)]
        records += [dict(step, name=f'step paper-sb 80 px, {kind}', images_per_s=rate, losses=l)
                    for kind,rate,l in zip(('float32 with TF32', 'bf16'), (full, half), losses) if rate]
        return gpu.Session(Path(), None, 'cuda', False, 0., None, None, False, records)
    assert gpu.choose_precision(session('ok', 100, 150)) == 'bf16'
    others = dict(works='failed'), dict(full=200), dict(gap=.2), dict(half=0), dict(full=0)
    for changes in others: assert gpu.choose_precision(s := session(**{**dict(works='ok', full=100, half=150), **changes})) == 'no'
    s.precision = 'fp16'
    assert gpu.choose_precision(s) == 'fp16'


def test_busy_time_of_a_device():
    "What overlaps counts once; what the host does, and labels over kernels, not at all."
    kinds = torch.autograd.DeviceType
    def event(start, end, kind=kinds.CUDA, **more):
        return SimpleNamespace(device_type=kind, time_range=SimpleNamespace(start=start, end=end), **more)
    events = [event(0, 1e6), event(5e5, 2e6, is_user_annotation=False), event(3e6, 4e6), event(3.2e6, 3.5e6),
              event(0, 9e6, kinds.CPU), event(0, 9e6, is_user_annotation=True)]
    assert gpu.sum_busy(events) == pytest.approx(3.) and gpu.sum_busy([]) == 0


@pytest.mark.skipif(OLD_TORCH, reason=NO_FAKE_CUDA)
@pytest.mark.parametrize('changes', [
    {}, dict(precision='bf16', benchmark=True), dict(channels_last=False), dict(preset='improved', size=48)])
def test_the_device_paths_of_the_measurements(device, monkeypatch, changes, tmp_path):  # noqa: F811
    "On fake CUDA tensors: what is timed reaches the device."
    s = gpu.Session(tmp_path, None, 'cuda', True, 0., None, None, False, [])
    monkeypatch.setattr(gpu, 'open_accelerator', lambda s, precision: FakeAccelerator(precision))
    monkeypatch.setattr(gpu, 'count_once', lambda cfg: 1e6)
    monkeypatch.setattr(gpu, 'open_probe', lambda size, width, n: (an_encoder(), draw_shapes(n, size=size)[0]))
    monkeypatch.setattr(gpu, 'profile_busy', lambda s, step: step() or 1e-9)
    for name,value in dict(synchronize=None, reset_peak_memory_stats=None, max_memory_allocated=2**31).items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    was = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    config = dict(preset='paper-sb', size=32, width=8, bs=16, precision='no')
    config |= dict(tf32=False, channels_last=True, compile=False, benchmark=False)
    found = gpu.time_training(s, **{**config, **changes})
    assert found['peak_gib'] == 2. and (found['waits_for_host'] is None) == ('channels_last' in changes)
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == was
    assert gpu.time_encoding(s, size=32, width=8, n=40)['images_per_s'] > 0
    before = device.backwards
    assert gpu.time_tuning(s, size=32, width=8, n=64, precision=config['precision'])['n'] == 3 and device.backwards == before+8


@pytest.mark.skipif(OLD_TORCH, reason=NO_FAKE_CUDA)
def test_copies_are_measured_on_the_device(device, tmp_path):  # noqa: F811
    st = make('paper-baseline')
    run = GANRun(tmp_path, st.cfg, st.gen_net, st.disc_net)
    assert gpu.measure_copies(run, st.photos)['photos'] == 4


def start(data, out, cache):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'RECON_NB_CACHE': str(cache)}
    command = [sys.executable, str(SCRIPT), *words(data, out)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_killed_in_each_stage(data, tmp_path):
    "SIGKILL soon after each stage's first record, and once before any; the last call completes what is there."
    out, rng = tmp_path/'out', random.Random(0)
    for stage in (None, *gpu.STAGES):
        p = start(data, out, tmp_path/'cache')
        while p.poll() is None and not (out/'records.jsonl').exists(): time.sleep(.02)
        while p.poll() is None and stage and stage not in {s for s,_ in names(out)}: time.sleep(.02)
        time.sleep(rng.random()*.3)
        assert p.poll() is None, p.stdout.read()
        p.send_signal(signal.SIGKILL); p.wait(20); p.stdout.close()
        assert stage is None or stage in {s for s,_ in names(out)}
        assert len(names(out)) == len(set(names(out)))
    p = start(data, out, tmp_path/'cache')
    said = p.communicate(timeout=600)[0]
    assert p.returncode == 0 and said.endswith('nothing is left to do\n'), said
    assert_whole(out)


@pytest.mark.slow
def test_two_calls_do_not_share_a_folder(data, tmp_path):
    p = start(data, tmp_path/'out', tmp_path/'cache')
    while p.poll() is None and not (tmp_path/'out'/'records.jsonl').exists(): time.sleep(.02)
    assert gpu.main(words(data, tmp_path/'out')) == 2 and p.poll() is None
    p.kill(); p.wait(20); p.stdout.close()
