"""benchmarks/together.py hands out what is ready, in its order, and records each thing once; animals.py cuts by boxes."""
import json, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from recon_nb.core import InputError, read_jsonl
from recon_nb.protocols import Block, Protocol

BENCHMARKS = Path(__file__).parents[1]/'benchmarks'


@pytest.fixture
def together(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import together
    monkeypatch.setattr(together, 'ProcessPoolExecutor', lambda n, context, initializer, initargs: ThreadPoolExecutor(n))
    monkeypatch.setattr(together, 'quietly', lambda f, log, *args: f(*args))
    return together


def plan(name, photos='own', **sizes):
    return Protocol(name, width=8, sizes=sizes, blocks=(Block(('knn',), (5,), 1),), photos=photos, pretrainings=2,
                    arms={'a': 'improved', 'b': 'improved-edges'})


@pytest.fixture
def play(together, monkeypatch, tmp_path):
    "Run plans with stand-ins for the work itself; returns what was done, in its order."
    def train(p, runs, data, row, seed, root):
        done.append(('train', p.name, data, row, seed))
        return dict(kind='pretraining', row=row, seed=seed, **(dict(data=data) if p.photos == 'own' else {}))
    def keys(p, runs, data, root, seeds):
        jobs = {k: dict(data=data, job=k) for k in ('frozen', 'search', 'tuned')}
        key = {k: json.dumps(v, sort_keys=True) for k,v in jobs.items()}
        return [(key['frozen'], None, 'probe', 'frozen'), (key['search'], None, 'recipe', 'search'), (key['tuned'], key['search'], 'probe', 'tuned')]
    def probe(p, runs, data, root, seeds, key, found):
        job = json.loads(key)
        if job['job'] in fails: raise ValueError('no')
        done.append((job['job'], p.name, data, found and found['job']['job']))
        return dict(kind='probe', job=job)
    done, fails = [], set()
    for name,f in dict(run_training=train, list_keys=keys, run_probe=probe).items(): monkeypatch.setattr(together, name, f)
    def go(*plans, fail=()):
        done.clear(); fails.clear(); fails.update(fail)
        desk = together.Desk({p.name: p for p in plans}, tmp_path/'runs', tmp_path, tmp_path)
        return together.work(desk, 'cpu', 1, time.monotonic()+30), list(done)
    return go


def test_each_thing_once_and_in_its_order(play, tmp_path):
    first, second = plan('first', x=32), plan('second', photos='somewhere', x=32, y=32)
    status, done = play(first, second)
    assert status == 0
    assert [d[:2] for d in done[:7]] == [('train', 'first')]*4 + [('search', 'first'), ('frozen', 'first'), ('tuned', 'first')]
    assert ('tuned', 'first', 'x', 'search') in done, 'a fine-tuning is given what its search found'
    assert sum(d[:2] == ('train', 'second') for d in done) == 4, 'one pretraining for both sets'
    assert {d[2] for d in done if d[:2] == ('tuned', 'second')} == {'x', 'y'}
    records = {n: read_jsonl(tmp_path/f'{n}.jsonl') for n in ('first', 'second')}
    assert {n: len(r) for n,r in records.items()} == dict(first=4+3, second=4+6)
    status, again = play(first, second)                                # pretrainings are opened again, and found done
    assert status == 0 and {d[0] for d in again} == {'train'}
    assert records == {n: read_jsonl(tmp_path/f'{n}.jsonl') for n in records}, 'nothing is recorded twice'


def test_what_fails_is_said_and_leaves_the_rest(play, tmp_path, capsys):
    status, done = play(plan('first', x=32), fail=['search'])
    assert status == 1 and [d[0] for d in done[4:]] == ['frozen']
    said = capsys.readouterr().out
    assert 'search failed: ValueError: no' in said and '1 waiting for a search' in said
    status, done = play(plan('first', x=32))
    assert status == 0 and [d[0] for d in done[4:]] == ['search', 'tuned']


@pytest.mark.parametrize('words,sets', [('--plans four-sets', []), ('--plans advice', ['cifar10', 'svhn', 'imagenette', 'flowers128', 'animals', 'shapes', 'tints']),
                                        ('--plans four-sets advice --sets svhn shapes', ['svhn', 'shapes']), ('--plans advice --toy', [])])
def test_advice_is_asked_for_by_its_name(together, monkeypatch, tmp_path, words, sets):
    met = {}
    monkeypatch.setattr(together, 'find_labelled', lambda *args, **how: None)
    monkeypatch.setattr(together, 'work', lambda desk, *how: met.update(names=[t.name for t in sorted(desk.ready)]) or 0)
    assert together.main(['--data', str(tmp_path), '--out', str(tmp_path/'out'), *words.split()]) == 0
    assert [n for n in met['names'] if n.startswith('advice')] == [f'advice {n} {k}' for k in (900, 450) for n in sets]
    assert any(n.startswith('pretraining') for n in met['names']) == ('four-sets' in words)


def test_some_pretrainings_now_and_the_others_another_day(together, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(together, 'open_set', lambda name, size, root: name)
    monkeypatch.setattr(together, '_set_fingerprint', lambda s: s)
    monkeypatch.setattr(together, '_jobs', lambda p, block, of, sets: asked.extend(of['a', 'x']) or [])
    monkeypatch.setattr(together, 'MET', {})
    p = plan('first', x=32)
    desk = together.Desk({'first': p}, tmp_path/'runs', tmp_path, tmp_path, seeds=[1])
    assert sorted(t.name for t in desk.ready) == ['pretraining x a 1', 'pretraining x b 1']
    together.find_jobs.cache_clear()
    together.list_keys(p, tmp_path/'runs', 'x', tmp_path, [1])
    assert asked == [together.folder_of(p, tmp_path/'runs', 'x', 'a', 1)]
    with pytest.raises(together.InputError, match='0 to 1, not 2'): together.check_seeds(p, [2])
    with pytest.raises(together.InputError, match='run whole'): together.check_seeds(together.PLANS['four-sets'], [0])


def test_half_precision_is_of_pretraining_and_of_fine_tuning(together, monkeypatch, tmp_path):
    met = {}
    monkeypatch.setattr(together, 'find_labelled', lambda *args, **how: None)
    monkeypatch.setattr(together, 'work', lambda desk, *how: met.update(desk.plans) or 0)
    words = ['--data', str(tmp_path), '--out', str(tmp_path/'out'), '--plans', 'four-sets', '--sets', 'svhn', '--modes', 'finetune']
    for more, precision, settings in (([], 'no', dict(bs=64)), (['--precision', 'bf16'], 'bf16', dict(bs=64, precision='bf16'))):
        assert together.main(words + more) == 0
        p = met['four-sets']
        assert together._config(p, 'improved', 'svhn', 0).precision == precision
        assert p.recipes['*'] == settings and p.recipes['svhn'] == dict(flip=False)
    with pytest.raises(SystemExit): together.main(words + ['--precision', 'half'])


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_a_process_does_not_outlive_the_one_that_began_it(tmp_path):
    "The grandchild would train on, and hold its run folder against the next call."
    child = (f"import sys, time; sys.path.insert(0, {str(BENCHMARKS)!r}); import together; together.begin('cpu'); "
             "print('begun', flush=True); time.sleep(60)")
    parent = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); print(p.pid, flush=True); p.wait()"
    p = subprocess.Popen([sys.executable, '-c', parent], stdout=subprocess.PIPE, text=True)
    pid = int(p.stdout.readline())
    assert p.stdout.readline() == 'begun\n'
    p.kill()
    end = time.monotonic()+20
    while Path(f'/proc/{pid}').exists() and time.monotonic() < end and 'Z' not in Path(f'/proc/{pid}/stat').read_text().split(')')[1]: time.sleep(.2)
    assert time.monotonic() < end, 'it goes on without its parent'


def test_every_plan_can_be_made(together):
    for toy in (False, True):
        for p in together.PLANS.values():
            p = together.resolve(p, Path('photos'), toy)
            folders = {together.run_folder(p, 'runs', row, data=data, seed=s) for row in p.arms for data in p.sizes for s in range(p.pretrainings)}
            assert len(folders) == len(p.arms)*p.pretrainings*(len(p.sizes) if p.photos == 'own' else 1), 'no two runs share a folder'
            for row in p.arms: assert together._config(p, row, list(p.sizes)[0], 0).width == p.width


def test_a_few_of_the_targets_own_are_mixed_in(monkeypatch, tmp_path, capsys):
    "The share is of the target's photos; the one per cent are among the ten; a second call replaces the folder."
    monkeypatch.syspath_prepend(BENCHMARKS)
    import mixed
    for folder, n in (('others', 7), ('own/cat', 120), ('own/dog', 80)):
        (tmp_path/folder).mkdir(parents=True)
        for i in range(n): Image.new('RGB', (4, 4), (i, 0, 0)).save(tmp_path/folder/f'{i}.png')
    for _ in range(2): assert mixed.main([*map(str, (tmp_path/'others', tmp_path/'own', tmp_path/'out'))]) == 0
    made = {share: {p.name for p in (tmp_path/'out'/f'mixed-{share}'/'own').iterdir()} for share in (1, 10)}
    assert {k: len(v) for k, v in made.items()} == {1: 2, 10: 20} and made[1] < made[10]
    assert {n.split('-')[0] for n in made[10]} == {'cat', 'dog'} and len([*(tmp_path/'out'/'mixed-1'/'others').iterdir()]) == 7
    name = sorted(made[1])[0]
    assert (tmp_path/'out'/'mixed-1'/'own'/name).read_bytes() == (tmp_path/'own'/name.replace('-', '/')).read_bytes()
    with pytest.raises(SystemExit): mixed.main([str(tmp_path/'none'), str(tmp_path/'own'), str(tmp_path)])


def test_animals_are_cut_by_their_boxes(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import animals
    voc = tmp_path/'VOC2012'
    for d in ('JPEGImages', 'Annotations', 'ImageSets/Main'): (voc/d).mkdir(parents=True)
    box = '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
    notes = dict(a=box.format('cat', 20, 20, 60, 80) + box.format('sofa', 0, 0, 100, 100) + box.format('dog', 100, 40, 130, 70),
                 b=box.format('sheep', 10, 10, 20, 90), c=box.format('cow', 0, 0, 90, 60))
    for name,note in notes.items():
        im = Image.new('RGB', (160,100), 'blue')
        im.paste((255,0,0), (16,14,64,86))
        im.save(voc/'JPEGImages'/f'{name}.png')
        (voc/'Annotations'/f'{name}.xml').write_text(f'<annotation>{note}</annotation>')
    (voc/'ImageSets'/'Main'/'train.txt').write_text('a\nb\n'); (voc/'ImageSets'/'Main'/'val.txt').write_text('c\n')
    assert animals.main([str(voc), str(tmp_path/'out')]) == 0
    made = sorted(p.relative_to(tmp_path/'out').as_posix() for p in (tmp_path/'out').rglob('*.jpg'))
    assert made == ['animals/test/cow/c_0.jpg', 'animals/train/cat/a_0.jpg', 'animals/train/dog/a_1.jpg', 'instances/a.jpg', 'scenes/a.jpg']
    with Image.open(tmp_path/'out'/'instances'/'a.jpg') as im:         # the cat, with a tenth around it: all of it is red
        assert im.size == (64,96) and im.convert('RGB').resize((1,1), Image.Resampling.BOX).getpixel((0,0))[0] > 240
    with Image.open(tmp_path/'out'/'scenes'/'a.jpg') as im: assert im.size == (64,64)
    assert 'train: 2 animals in 1 photos' in capsys.readouterr().out
    with pytest.raises(SystemExit): animals.main([str(tmp_path), str(tmp_path)])


def test_runs_of_another_plan_are_not_taken_for_ones_own(together, tmp_path):
    "Two plans may differ in their photos alone, as `instances` and `scenes` do."
    from recon_nb.core import InputError
    from recon_nb.protocols import _config, _is_done
    rng = np.random.default_rng(0)
    for name in ('scenes', 'instances'):
        (tmp_path/name).mkdir()
        for i in range(8): Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path/name/f'{i}.png')
    p, q = (replace(plan(name, photos=str(tmp_path/name), cifar10=32), width=4, updates=1) for name in ('instances', 'scenes'))
    where = [together.folder_of(x, tmp_path/'runs', 'cifar10', 'a', 0) for x in (p, q)]
    assert where[0] != where[1]
    together.MET['device'] = 'cpu'
    record = together.run_training(p, tmp_path/'runs', 'cifar10', 'a', 0, tmp_path)
    assert record['updates'] >= 1 and where[0].is_dir() and not where[1].exists()
    assert _is_done(p, where[0], _config(p, 'a', 'cifar10', 0))
    with pytest.raises(InputError, match='was trained on the folder instances, not scenes'):
        _is_done(q, where[0], _config(q, 'a', 'cifar10', 0))


def test_a_stopped_search_goes_on_with_the_trials_it_has(together, monkeypatch, tmp_path):
    "Another process takes it up: the file of its trials has its name, not the process's."
    from types import SimpleNamespace
    jobs = {k: SimpleNamespace(search=None, known=k) for k in ('one', 'another')}
    together.MET['device'] = 'cpu'
    monkeypatch.setattr(together, 'find_jobs', lambda *args: (jobs, 'images'))
    def search(job, done, device, tried):
        scores = tried()
        met.append(dict(scores))
        scores['lr=1'] = .5
        return dict(kind='recipe')
    monkeypatch.setattr(together, '_run_job', search)
    for pid,key in enumerate(('one', 'one', 'another')):
        met = []
        monkeypatch.setattr(together.os, 'getpid', lambda: pid)
        together.run_probe(plan('p', x=32), tmp_path, 'x', None, (0,), key, None)
        assert met == [{'lr=1': .5} if pid == 1 else {}]


def test_some_rows_sets_and_modes_of_the_plans_that_have_them(together):
    plans = {n: together.PLANS[n] for n in ('four-sets', 'transfer', 'larger-inputs')}
    def only(**asked): return together.only_some(plans, SimpleNamespace(**dict(dict(sets=None, rows=None, modes=None, plans=[*plans]), **asked)))
    found = only(rows=['edges', 'improved'])
    assert {n: [*p.arms] for n,p in found.items()} == {'four-sets': ['improved'], 'transfer': ['edges']}
    assert [*only(rows=['hues'])] == ['transfer'] and [*only(modes=['finetune'])] == ['four-sets', 'transfer']
    assert {n: [*p.sizes] for n,p in only(sets=['flowers128', 'svhn']).items()} == {'four-sets': ['svhn', 'flowers128'], 'transfer': ['svhn']}
    for asked in (dict(rows=['hues', 'edge']), dict(sets=['cifar']), dict(modes=['fine-tune'])):
        with pytest.raises(InputError, match=f"unknown {[*asked][0][:-1]} of these plans '{[*asked.values()][0][-1]}'"): only(**asked)
    with pytest.raises(InputError, match='set of these plans'): only(sets=['tints'])
    assert only(sets=['tints'], plans=['advice']) == {}


def test_a_set_with_a_held_out_part_is_told_of_no_other(together, monkeypatch, tmp_path):
    met = {}
    monkeypatch.setattr(together, '_train', lambda p, folder, cfg, photos, *how: met.update({photos: p.fields}))
    monkeypatch.setattr(together, 'describe_pretraining', lambda *args: {})
    monkeypatch.setattr(together, 'MET', dict(device='cpu'))
    for data in ('shapes', 'svhn'): together.run_training(together.FULL, tmp_path, data, 'pixels', 0, tmp_path)
    assert {k: 'valid' in v for k, v in met.items()} == dict(shapes=False, svhn=True)
