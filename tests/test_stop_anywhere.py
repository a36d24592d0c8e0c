"A run can be killed at any moment, and ends where it would have ended. Each run is a process of its own (see forks.py); every kill is SIGKILL."
import json, os, random, re, shutil, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from recon_nb.checkpoint import load_checkpoint, load_tensors, save_tensors
from recon_nb.core import InputError, read_jsonl
from recon_nb.shapes import draw_shapes

LONG = dict(bs=4, epochs=6)                                 # 41 photos to train: ten steps an epoch, 60 in all
SHORT = dict(bs=10, epochs=2)                               # eight steps
TICKS = dict(real_time=False, save_every=10)                # a checkpoint every four steps, however busy the machine is
SLOW = bool(os.environ.get('RECON_NB_SLOW'))
WATCHED = dict(hook_names=['disturb', 'probe', 'tensorboard'])

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='forks.py looks into /proc')


class Forks:
    "Starts jobs in forks.py's children."
    def __init__(self, tmp):
        self.tmp, self.n = tmp, 0
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1', 'RECON_NB_CACHE': str(tmp/'cache')}
        (x,y), (u,v) = draw_shapes(100, size=32, seed=1), draw_shapes(20, size=32, seed=2)
        np.savez(tmp/'scenes.npz', photos=draw_shapes(45, size=48)[0], train_x=x, train_y=y, test_x=u, test_y=v)
        self.p = subprocess.Popen([sys.executable, Path(__file__).with_name('forks.py'), tmp/'scenes.npz'], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1)
        self.ask()

    def ask(self, **job):
        if job: self.p.stdin.write(json.dumps(job, default=str)+'\n')
        line = self.p.stdout.readline()
        assert line, 'forks.py has died'
        return json.loads(line)

    def start(self, job, **options):
        self.n += 1
        said = self.tmp/f'{self.n}.txt'
        return SimpleNamespace(pid=self.ask(job=job, said=said, **options), said=said)

    def wait(self, p): return self.ask(wait=p.pid), p.said.read_text(errors='replace')

    def __call__(self, job, *, status=0, **options):
        "A job from start to end, what it said."
        found, said = self.wait(self.start(job, **options))
        assert found == status, f'{job} {options} ended with {found}:\n{said}'
        return said

    def train(self, run_dir, **options): return self('train', run_dir=run_dir, trace=f'{run_dir}.trace', **options)

    def close(self): self.p.stdin.close(); self.p.wait(20); self.p.stdout.close()


@pytest.fixture(scope='module')
def forks(tmp_path_factory):
    forks = Forks(tmp_path_factory.mktemp('forks'))
    yield forks
    forks.close()


@pytest.fixture(scope='module')
def straight(forks, tmp_path_factory):
    "Two runs that were never stopped, and the same two with hooks; `seconds` is how long the longer one took."
    d = tmp_path_factory.mktemp('straight')
    for name,options in dict(short=SHORT, long=LONG).items():
        forks.train(d/name, **options, **TICKS)
        begun = time.monotonic()
        forks.train(d/f'{name}-watched', **options, **TICKS, **WATCHED)
    assert [r['step'] for r in read_jsonl(d/'long'/'history.jsonl')] == [*range(1, 61)]
    return SimpleNamespace(long=d/'long', short=d/'short', seconds=time.monotonic()-begun)


def said_at(run_dir, event):
    "(step, time) of an event, as the run itself noted them in its last session."
    notes = [line.split() for line in Path(f'{run_dir}.trace').read_text().splitlines()]
    last = max((i for i,n in enumerate(notes) if n[0] == 'begin'), default=0)
    return [(int(step), float(t)) for e,step,t in notes[last:] if e == event]


def records(run_dir, name): return [{k: v for k,v in row.items() if k != 'seconds'} for row in read_jsonl(run_dir/name)]


def assert_equal_runs(a, b):
    "Every tensor, every record, every picture; and nothing half written is left."
    for name in ('checkpoint.safetensors', 'weights.safetensors'):
        (s,state), (t,other) = load_tensors(a/name), load_tensors(b/name)
        assert s.keys() == t.keys() and state['step'] == other['step']
        assert [k for k in s if not torch.equal(s[k], t[k])] == []
    for name in ('history.jsonl', 'metrics.jsonl'):
        assert records(a, name) == records(b, name)
        steps = [r['step'] for r in records(b, name)]
        assert steps == sorted(set(steps))
    pictures = {p.name: p.read_bytes() for p in (a/'samples').iterdir()}
    assert pictures == {p.name: p.read_bytes() for p in (b/'samples').iterdir()}
    assert [p for p in b.rglob('*.tmp')] == [] and not (b/'checkpoint-new.safetensors').exists()


def assert_watched(forks, straight, run_dir):
    "What the hooks wrote: each step once, and the same as without a kill."
    found, history = json.loads(forks('events', folder=run_dir/'tensorboard').splitlines()[-1]), {r['step']: r for r in read_jsonl(run_dir/'history.jsonl')}
    for tag,points in found.items():
        steps = [step for step,_ in points]
        assert steps == sorted(set(steps)), tag
        if tag.startswith('train/'): assert all(abs(v-history[step][tag[6:]]) < 2e-6*max(1, abs(v)) for step,v in points), tag
    metrics = read_jsonl(run_dir/'metrics.jsonl')
    assert [step for step,_ in found['held_out/psnr']] == [m['step'] for m in metrics]
    assert found['train/loss_d'][-1][0] == metrics[-1]['step']
    assert records(run_dir, 'probe.jsonl') == records(straight.with_name(f'{straight.name}-watched'), 'probe.jsonl')


def test_hooks_change_nothing(forks, straight):
    for plain in (straight.short, straight.long):
        watched = plain.with_name(f'{plain.name}-watched')
        assert_equal_runs(plain, watched)
        assert_watched(forks, plain, watched)
        steps = [r['step'] for r in read_jsonl(watched/'metrics.jsonl')]
        assert [r['step'] for r in read_jsonl(watched/'probe.jsonl')] == [0, *steps]


def lost(run_dir):
    "(steps, seconds) that a killed run had done since its last checkpoint, which must be whole; and its longest step."
    step = load_checkpoint(run_dir)[1]['step']
    looks = said_at(run_dir, 'begin') + said_at(run_dir, 'step')
    if not looks: return 0, 0., 0.
    longest = max([b-a for (_,a),(_,b) in zip(looks, looks[1:])], default=0.)
    return looks[-1][0]-step, looks[-1][1]-dict(looks).get(step, looks[0][1]), longest


def kill_at_random(forks, straight, tmp_path, kills, *, seed, within, **how):
    "Kill, resume, kill again, until each run is through; returns at which steps the kills came (-1: before the first checkpoint)."
    rng, hits, runs = random.Random(seed), [], 0
    while len(hits) < kills:
        run_dir, status = tmp_path/f'run{(runs := runs+1)}', None
        while len(hits) < kills and status != 0:
            p = forks.start('train', run_dir=run_dir, trace=f'{run_dir}.trace', **LONG, **how, **WATCHED)
            time.sleep(rng.uniform(0, within*straight.seconds*rng.choice([.2, .5, 1])))
            os.kill(p.pid, signal.SIGKILL)
            status, said = forks.wait(p)
            if status == 0: continue                                        # it was quicker
            assert status == -signal.SIGKILL, said
            hits.append(load_checkpoint(run_dir)[1]['step'] if (run_dir/'checkpoint.safetensors').exists() else -1)
            if hits[-1] >= 0:
                steps, seconds, longest = lost(run_dir)
                if how['real_time']: assert seconds <= how['save_every']+2*longest, run_dir
                else: assert steps <= 4, run_dir
        if status: forks.train(run_dir, **LONG, **how, **WATCHED)
        assert_equal_runs(straight.long, run_dir)
        assert_watched(forks, straight.long, run_dir)
        shutil.rmtree(run_dir)
    print(*hits)
    return hits


@pytest.mark.filterwarnings('error')
def test_ten_random_kills(forks, straight, tmp_path):
    hits = kill_at_random(forks, straight, tmp_path, 10, seed=0, within=1, **TICKS)
    assert len(set(hits)) > 2, hits


@pytest.mark.slow
@pytest.mark.filterwarnings('error')
def test_a_hundred_random_kills(forks, straight, tmp_path):
    hits = kill_at_random(forks, straight, tmp_path, 100, seed=1, within=1.5, real_time=True, save_every=0.1)
    assert -1 in hits and len(set(hits)) > 15, hits


def died_at(run_dir): return Path(f'{run_dir}.points').read_text().splitlines()[-1]


def die(forks, run_dir, **how):
    "Train until the point of `how`, where the process is killed; says which point that was."
    points = {k: how.pop(k) for k in ('at', 'label', 'nth') if k in how}
    forks.train(run_dir, status=-signal.SIGKILL, points=dict(notes=f'{run_dir}.points', **points), **how)
    return died_at(run_dir)


NAMED = [                                  # one after the other, each in the session that resumes from the one before
    ('open .config.json.tmp', 1),                              # the folder is there, and nothing in it
    ('open .run.json.tmp', 1),                                 # between two files
    ('half .checkpoint-new.safetensors.tmp', 1),               # of step 0
    ('open .weights.safetensors.tmp', 1),                      # the first checkpoint, without weights
    ('half history.jsonl', 1),
    ('half .checkpoint-new.safetensors.tmp', 1),               # from here on there is one before
    ('fsync .checkpoint-new.safetensors.tmp', 1),              # written, not yet renamed
    ('rename checkpoint-previous.safetensors', 1),             # three checkpoints
    ('renamed checkpoint-previous.safetensors', 1),            # none under its own name
    ('open .weights.safetensors.tmp', 1),                      # weights older than the checkpoint
    ('half metrics.jsonl', 1),
    ('half samples/.epoch-0003.png.tmp', 1),
    ('half samples/.epoch-0003.webp.tmp', 1),                  # a picture, without its snapshot
    ('half .history.jsonl.tmp', 1),                            # while the records are cut back
    ('rename metrics.jsonl', 1),
    ('renamed weights.safetensors', 3),
]


@pytest.mark.filterwarnings('error')
def test_killed_at_each_kind_of_point(forks, straight, tmp_path):
    run_dir = tmp_path/'run'
    for label,nth in NAMED:
        assert die(forks, run_dir, label=label, nth=nth, **LONG, **TICKS, **WATCHED) == label
        if label == 'renamed checkpoint-previous.safetensors': assert not (run_dir/'checkpoint.safetensors').exists()
        if label.startswith('half'): assert (run_dir/label[5:]).exists() or [*(run_dir/label[5:]).parent.glob('.*.tmp')]
    forks.train(run_dir, **LONG, **TICKS, **WATCHED)
    assert_equal_runs(straight.long, run_dir)
    assert_watched(forks, straight.long, run_dir)


def test_killed_after_an_epoch_without_a_checkpoint(forks, straight, tmp_path):
    "All is made again from step 0; what was logged of it must not be there twice."
    run_dir = tmp_path/'run'
    die(forks, run_dir, label='half metrics.jsonl', nth=2, **{**SHORT, **TICKS, 'save_every': 1e9}, **WATCHED)
    forks.train(run_dir, **SHORT, **TICKS, **WATCHED)
    assert_equal_runs(straight.short, run_dir)
    assert_watched(forks, straight.short, run_dir)


@pytest.mark.slow
@pytest.mark.filterwarnings('error')
def test_killed_at_every_point(forks, straight, tmp_path):
    every = tmp_path/'every'
    forks.train(every, points=dict(notes=f'{every}.points'), **SHORT, **TICKS, **WATCHED)
    labels = Path(f'{every}.points').read_text().splitlines()
    assert len(labels) > 120
    for k,label in enumerate(labels):
        run_dir = tmp_path/str(k)
        assert die(forks, run_dir, at=k+1, **SHORT, **TICKS, **WATCHED) == label
        forks.train(run_dir, **SHORT, **TICKS, **WATCHED)
        assert_equal_runs(straight.short, run_dir)
        assert_watched(forks, straight.short, run_dir)
        shutil.rmtree(run_dir)


def save_photos(folder, n=45):
    folder.mkdir()
    for i,photo in enumerate(draw_shapes(45, size=48)[0][:n]): Image.fromarray(photo).save(folder/f'{i:02d}.png')
    return folder


def test_killed_while_photos_are_cut(forks, tmp_path):
    "At every point: the next call gives the same bytes, and what was left behind goes when it is a day old."
    folder, notes, n = save_photos(tmp_path/'photos', 3), tmp_path/'notes', 0
    whole, status, seen = forks('cut', folder=folder, cache=tmp_path/'whole'), -signal.SIGKILL, set()
    def age(paths): [os.utime(p, (time.time()-2*86400,)*2) for f in paths for p in (*f.iterdir(), f)]
    while status == -signal.SIGKILL:
        cache = tmp_path/f'cache{(n := n+1)}'
        status, _ = forks.wait(forks.start('cut', folder=folder, cache=cache, points=dict(notes=notes, at=n)))
        seen.add(re.sub('[0-9a-f]{32}', 'entry', notes.read_text().splitlines()[-1]))
        left = [*(cache/'photos').glob('.*.tmp')]
        if n%2: age(left)
        assert forks('cut', folder=folder, cache=cache) == whole
        there = [*(cache/'photos').glob('.*.tmp')]
        assert there == ([] if n%2 else left)                               # a young one may belong to a process at work
        if there and n < 8: age(there); assert forks('cut', folder=folder, cache=cache) == whole
        if there and n < 8: assert not there[0].exists()                    # swept, though nothing had to be cut
    assert status == 0 and n > 15 and {'half photos/.entry.tmp/i_r.npy', 'open photos/.entry.tmp/.meta.json.tmp', 'rename photos/entry', 'renamed photos/entry'} <= seen, seen


@pytest.fixture(scope='module')
def stopped(forks, tmp_path_factory):
    "The short run, killed when it is done but for its last checkpoint: there are those of step 4 and of step 0."
    run_dir = tmp_path_factory.mktemp('stopped')/'run'
    die(forks, run_dir, label='open .checkpoint-new.safetensors.tmp', nth=3, **SHORT, **TICKS, **WATCHED)
    assert [load_tensors(run_dir/f'{name}.safetensors')[1]['step'] for name in ('checkpoint', 'checkpoint-previous')] == [4, 0]
    return run_dir


def flip(b, i, bit=0): return b[:i] + bytes([b[i]^(1<<bit)]) + b[i+1:]


DAMAGES = {
    'a bit of a weight': lambda b: flip(b, len(b)//2),
    'a bit of the step': lambda b: flip(b, b.index(b'step\\": 4')+8),
    'cut off': lambda b: b[:len(b)//3],
    'empty': lambda b: b'',
    'zeros': lambda b: bytes(len(b)),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(forks, straight, stopped, tmp_path, damage):
    run_dir, watched = shutil.copytree(stopped, tmp_path/'run'), WATCHED if damage == 'empty' else {}
    f = run_dir/'checkpoint.safetensors'
    f.write_bytes(DAMAGES[damage](f.read_bytes()))
    said = forks.train(run_dir, **TICKS, **watched)
    assert 'checkpoint.safetensors is damaged' in said and 'The one before it is used: step 0.' in said and 'resumed at step 0' in said, said
    assert_equal_runs(straight.short, run_dir)
    if watched: assert_watched(forks, straight.short, run_dir)


def test_any_flipped_bit_is_noticed(tmp_path):
    "Two of each byte's eight; all if slow tests run."
    f, state = tmp_path/'x.safetensors', dict(step=7, lr=0.25)
    t = {'a': torch.randn(2, 3)}
    whole = save_tensors(f, t, state).read_bytes()
    for i in range(len(whole)):
        for bit in range(8) if SLOW else ((3*i)%8, (3*i+5)%8):
            f.write_bytes(flip(whole, i, bit))
            try: back, found = load_tensors(f)
            except InputError: continue
            assert found == state and back.keys() == t.keys() and all(back[k].dtype == t[k].dtype and torch.equal(back[k], t[k]) for k in t), (i, bit)


def test_both_checkpoints_damaged_is_an_error(forks, stopped, tmp_path):
    run_dir = shutil.copytree(stopped, tmp_path/'run')
    for name in ('checkpoint', 'checkpoint-previous'): (run_dir/f'{name}.safetensors').write_bytes(b'')
    before = {p: p.read_bytes() for p in run_dir.iterdir() if p.is_file()}
    said = forks.train(run_dir, status=70, **TICKS)
    assert 'InputError: no checkpoint to resume from' in said
    assert {p: p.read_bytes() for p in run_dir.iterdir() if p.is_file()} == before


def test_a_run_without_its_checkpoints_is_not_begun_again(forks, stopped, tmp_path):
    run_dir = shutil.copytree(stopped, tmp_path/'run')
    for p in run_dir.glob('checkpoint*'): p.unlink()
    said = forks.train(run_dir, status=70, **TICKS)
    assert 'InputError: no checkpoint to resume from' in said
    assert len(read_jsonl(run_dir/'history.jsonl')) == 8


def test_a_run_moves_without_its_photos(forks, straight, tmp_path):
    photos = save_photos(tmp_path/'photos')
    die(forks, tmp_path/'here', label='open .checkpoint-new.safetensors.tmp', nth=3, data=photos, **SHORT, **TICKS, **WATCHED)
    painted = forks('reconstruct', run_dir=tmp_path/'here')
    there = tmp_path/'another'/'place'
    there.parent.mkdir(); shutil.move(tmp_path/'here', there)
    assert forks('reconstruct', run_dir=there) == painted                   # photos there or not
    shutil.move(photos, tmp_path/'moved'); shutil.rmtree(forks.tmp/'cache', ignore_errors=True)
    assert forks('reconstruct', run_dir=there) == painted
    said = forks('command', status=2, argv=['--resume', '--run-dir', str(there)])
    assert f'recon-train: the photos of the run were in {photos}' in said and 'DATA' in said and len(said.splitlines()) == 1, said
    said = forks('command', status=2, argv=[str(there/'samples'), '--resume', '--run-dir', str(there)])
    assert 'the photos are not those of the run' in said and 'Traceback' not in said, said
    forks.train(there, data=tmp_path/'moved', **TICKS, **WATCHED)
    assert_equal_runs(straight.short, there)
    assert_watched(forks, straight.short, there)


def test_the_second_run_in_a_folder_is_refused(forks, tmp_path):
    photos, run_dir = save_photos(tmp_path/'photos'), tmp_path/'run'
    begin = [str(photos), '--run-dir', str(run_dir), '--size', '32', '--width', '4', '--bs', '8', '--epochs', '5000']
    p = forks.start('command', argv=begin)
    while not (run_dir/'history.jsonl').exists(): time.sleep(.05)
    for argv,why in ((['--resume', '--run-dir', str(run_dir)], 'is in use: another process trains in it'), (begin, 'is in use: another process trains in it')):
        said = forks('command', status=2, argv=argv)
        assert why in said and 'resumed at' not in said and len(said.splitlines()) == 1, said
    steps = len(read_jsonl(run_dir/'history.jsonl'))
    while len(read_jsonl(run_dir/'history.jsonl')) == steps: time.sleep(.05)                  # the first one goes on
    os.kill(p.pid, signal.SIGKILL)
    assert forks.wait(p)[0] == -signal.SIGKILL
    said = forks('command', argv=['--resume', '--run-dir', str(run_dir), '--max-minutes', '0.0001'])
    assert 'resumed at step' in said and 'stopped at step' in said, said
    steps = [r['step'] for r in read_jsonl(run_dir/'history.jsonl')]
    assert steps == [*range(1, len(steps)+1)]


@pytest.mark.parametrize('label', ['half .checkpoint-new.safetensors.tmp', 'fsync .weights.safetensors.tmp', 'half history.jsonl', 'open .run.json.tmp'])
def test_a_full_disk(forks, straight, tmp_path, label):
    photos, run_dir = save_photos(tmp_path/'photos'), tmp_path/'run'
    argv = [str(photos), '--run-dir', str(run_dir)] + '--size 32 --width 4 --dropout 0.5 --bs 10 --epochs 2'.split()
    points = dict(notes=f'{run_dir}.points', label=label, nth=1 if 'run.json' in label else 2, how='full')
    said = forks('command', status=1, argv=argv, save_every=0., points=points, root=run_dir)
    file = label.split()[-1].removeprefix('.').removesuffix('.tmp')
    assert 'Traceback' not in said and f"{file} can't be read or written: No space left on device" in said.splitlines()[-1], said
    assert [*run_dir.rglob('*.tmp')] == []
    if 'run.json' not in label: assert load_checkpoint(run_dir)[1]['step'] == (0 if 'checkpoint' in label else 1)
    forks.train(run_dir, data=photos, **TICKS)
    assert_equal_runs(straight.short, run_dir)
