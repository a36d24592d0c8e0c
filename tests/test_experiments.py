"Experiments under fire: killed anywhere, cut at any byte, asked wrongly; and the interval's mathematics against other people's."
import importlib.util, json, os, random, signal, time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn

from recon_nb import cli, experiments, protocols
from recon_nb.core import InputError, read_jsonl
from recon_nb.experiments import compare_encoders, estimate, _in_order, list_jobs, plan, run_jobs
from recon_nb.contenders import fingerprint, as_contender
from recon_nb.encoder import Encoder
from recon_nb.labelled import LabelledSet, development_images
from recon_nb.protocols import Block, Protocol, best_row
from recon_nb.shapes import SHAPES, draw_shapes
from recon_nb.intervals import crossed_interval, interval
from recon_nb.probing import _pack_bits
from recon_nb.tables import label_curve, summarize, table, tidy, to_markdown
from versions import OLD_TORCH, OTHER_WEIGHTS


class Few(nn.Module):
    "The smallest thing that is an encoder."
    channels = 2,
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 2, 4, 4)
    def features(self, x): return [self.conv(x)]


def make_set(name, n=200, size=32):
    (x, y), (tx, ty) = draw_shapes(n, size=size), draw_shapes(50, size=size, seed=1)
    return LabelledSet(name, x, y, tx, ty, SHAPES)


@pytest.fixture(scope='module')
def toy(): return make_set('toy')


@pytest.fixture
def arms(): return {'scratch': None, 'pixels': 'pixels', 'ours': [Few(1), Few(2)]}


HOW = dict(modes=('linear', 'finetune', 'paper-finetune'), labels=(3, 5), seeds=2, size=32)


# A probe that takes a moment and notes when it begins and ends.

def fake(trace, pause):
    def note(*words):
        with open(trace, 'a') as f: f.write(' '.join(map(str, words))+'\n')

    def slow_probe(arm, data, *, mode, labels_per_class, seeds, recipe, device, progress):
        what = json.dumps([data.name, mode, labels_per_class, fingerprint(arm), seeds])
        note('begin', what); time.sleep(pause); note('end', what)
        seed, = seeds
        acc = random.Random(what).random()
        row = dict(schema=1, arm=arm.name, source=arm.source, mode=mode, data=data.name, size=data.size, classes=10, labels_per_class=labels_per_class, n_train=10*(labels_per_class or 20), n_test=50,
                   seed=seed, test_accuracy=acc, train_accuracy=acc, chance=.1, per_class=[acc]*10, confusion=[], histogram=[], seconds=pause, macs=10, images_seen=5,
                   config=asdict(recipe) if recipe else {}, selected={}, machine={})
        return SimpleNamespace(records=lambda: [row])

    def slow_search(task, arm, data, *, mode, amount, recipe, device, tried):
        what = json.dumps([data.name, mode, amount, fingerprint(arm), 'search'])
        note('begin', what); time.sleep(pause); note('end', what)
        return replace(recipe, lr=random.Random(what).random(), selected=dict(on='development images', scores={'a': .5}))
    return slow_probe, slow_search


def use_fake(monkeypatch, trace, pause=0.):
    for name, f in zip(('probe', 'search_recipe'), fake(trace, pause)): monkeypatch.setattr(experiments, name, f)


def found(records): return [{k: v for k, v in r.items() if k not in ('seconds', 'machine')} for r in records]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')       # fork in a process with threads: the child only counts
def test_killed_at_random_moments(monkeypatch, tmp_path, toy, arms):
    "SIGKILL, again and again: nothing is lost but the run in progress, nothing is run twice."
    use_fake(monkeypatch, tmp_path/'straight.txt')
    jobs = list_jobs(arms, [toy, replace(toy, name='other')], **HOW)
    straight = run_jobs(jobs, out=tmp_path/'straight.jsonl', progress=False)
    assert len({j.key for j in jobs}) == len(jobs) == len(straight) > 50

    rng, out, sessions, kills = random.Random(0), tmp_path/'killed.jsonl', [], 0
    while True:
        trace = tmp_path/f'{len(sessions)}.txt'
        use_fake(monkeypatch, trace, .02)
        sessions.append(trace)
        before = read_jsonl(out)
        if pid := os.fork():
            time.sleep(rng.uniform(.02, .5))
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        else:
            try: run_jobs(jobs, out=out, progress=False)
            finally: os._exit(0)
        after = read_jsonl(out)
        assert after[:len(before)] == before                                    # what was there stays, in its place
        ended = trace.read_text().count('end ') if trace.exists() else 0
        assert len(after)-len(before) in (ended, ended-1)                       # killed between the end and the line, at worst
        if os.WIFEXITED(status): break
        kills += 1
    assert kills >= 3
    assert found(read_jsonl(out)) == found(straight)
    begun = [[line.split(' ', 1)[1] for line in t.read_text().splitlines() if line.startswith('begin')] if t.exists() else [] for t in sessions]
    for i, session in enumerate(begun):
        later = [w for other in begun[i+1:] for w in other]
        assert not set(session[:-1]) & set(later)                               # only the last one of a session may begin again
        assert len(set(session)) == len(session)


def test_a_file_cut_at_any_byte(monkeypatch, tmp_path, toy, arms):
    use_fake(monkeypatch, tmp_path/'t.txt')
    jobs = list_jobs(arms, toy, **{**HOW, 'modes': 'linear'})
    out = tmp_path/'a.jsonl'
    whole = run_jobs(jobs, out=out, progress=False)
    data = out.read_bytes()
    last = data[:-1].rfind(b'\n')+1
    for cut in [*range(last, len(data), 97), len(data)-1, len(data)]:
        out.write_bytes(data[:cut])
        (tmp_path/'t.txt').unlink(missing_ok=True)
        assert found(run_jobs(jobs, out=out, progress=False)) == found(whole)
        assert found(read_jsonl(out)) == found(whole)
        assert ((tmp_path/'t.txt').read_text().count('begin') if (tmp_path/'t.txt').exists() else 0) == (cut < len(data)-1)      # without its newline a line is whole


def test_a_second_process_is_told(monkeypatch, tmp_path, toy, arms):
    use_fake(monkeypatch, tmp_path/'t.txt')
    with experiments._locked_records(tmp_path/'a.jsonl'):
        with pytest.raises(InputError, match='in use'): compare_encoders(arms, toy, **HOW, out=tmp_path/'a.jsonl')
    compare_encoders(arms, toy, **HOW, out=tmp_path/'a.jsonl', progress=False)
    (tmp_path/'file').write_text('')
    with pytest.raises(InputError, match="can't be written"): compare_encoders(arms, toy, **HOW, out=tmp_path/'file/a.jsonl')


def test_what_is_the_same_run(monkeypatch, tmp_path, toy):
    "A moved folder is the same encoder; other weights, settings, images or labels are another run."
    use_fake(monkeypatch, tmp_path/'t.txt')
    keys = lambda encoder, data=toy, **how: {j.key for j in list_jobs({'ours': encoder}, data, **{**dict(modes=('linear', 'finetune'), labels=3, seeds=1, size=32), **how})}
    base = keys(Few(1))
    assert base == keys(Few(1)) and len(base) == 3
    assert not base & keys(Few(2)) and not base & keys(Few(1), size=48, data=make_set('toy', size=48)) and not base & keys(Few(1), labels=5)
    other = keys(Few(1), recipes={'toy': dict(steps=5)})
    assert len(base & other) == 1                                               # the linear one has no recipe
    assert keys(Few(1), recipes={'*': dict(steps=5)}) == other
    assert len(base & keys(Few(1), search=False)) == 1
    scratch = lambda seed, width: {j.key for j in list_jobs({'scratch': None}, toy, 'linear', 3, 1, size=32, like=Few(seed) if not width else Encoder(width))}
    assert scratch(1, 0) == scratch(2, 0) != scratch(1, 4)


def test_recipes_reach_the_runs_that_need_them(monkeypatch, tmp_path, toy, arms):
    use_fake(monkeypatch, tmp_path/'t.txt')
    records = compare_encoders(arms, toy, **HOW, recipes={'toy': dict(flip=False)}, search=5, out=tmp_path/'a.jsonl', progress=False)
    recipes = {(r['job']['mode'], r['job']['arm']): r for r in records if r['kind'] == 'recipe'}
    assert len(recipes) == 4 and {r['job']['labels'] for r in recipes.values()} == {5}
    assert recipes['finetune', 'ours']['job']['weights'] == fingerprint(as_contender(Few(1), size=32))    # of the first encoder
    for r in records:
        if r['kind'] == 'probe' and r['mode'] != 'linear':
            assert r['config']['lr'] == recipes[r['mode'], r['job']['arm']]['recipe']['lr'] and r['config']['flip'] is False
            assert r['config']['bs'] == (32 if r['mode'] == 'paper-finetune' else 128)


def test_the_search_never_trains_on_the_images_that_judge(toy):
    most = int(np.bincount(toy.train_y).min())
    free = int(np.bincount(np.delete(toy.train_y, development_images(toy.train_y))).min())
    for labels, at in [(free, free), (free+1, None), (most, None), (None, None)]:
        assert [j.labels for j in list_jobs({'ours': Few(1)}, toy, 'finetune', labels, 1, size=32) if j.kind == 'recipe'] == [at]


def test_matched_seeds(toy, arms):
    pairs = [(j.arm, j.weights, j.seed) for j in list_jobs(arms, toy, 'finetune', 3, 2, size=32, matched=True) if j.kind == 'probe']
    assert [(a, s) for a,_,s in pairs] == [('scratch', 0), ('ours', 0), ('scratch', 1), ('ours', 1)] and len({w for _,w,_ in pairs}) == 3


def test_order(toy, arms):
    jobs = list_jobs(arms, [toy, replace(toy, name='other')], modes=('finetune', 'paper-frozen', 'knn'), labels=(None, 3), seeds=2, size=32)
    assert {j.key for j in jobs} == {j.key for j in _in_order(random.Random(0).sample(jobs, len(jobs)))}
    modes = [j.mode for j in jobs]
    assert modes == sorted(modes, key=['knn', 'paper-frozen', 'finetune'].index)
    trained = [j for j in jobs if j.mode == 'finetune' and j.kind == 'probe']
    assert [j.labels for j in trained] == [3]*12 + [None]*12 and [j.seed for j in trained[:12]] == [0]*6 + [1]*6
    assert _in_order(jobs+jobs) == jobs


def test_time_left(monkeypatch, tmp_path, toy, arms):
    jobs = list_jobs(arms, toy, modes=('knn', 'linear'), labels=3, seeds=2, size=32)
    assert np.isnan(estimate(jobs, jobs, {})).all()
    done = {j.key: dict(seconds=7.) for j in jobs if j.mode == 'knn'}
    left = estimate([j for j in jobs if j.mode == 'linear'], jobs, done)
    assert len(left) == 8 and min(left) > 0
    done |= {jobs[-1].key: dict(seconds=3.)}
    assert estimate(jobs[-3:-1], jobs, done) == [3., 3.]
    p = plan(arms, toy, ('knn', 'finetune'), 3, 1, size=32, out=tmp_path/'none.jsonl')
    assert not p.done.any() and (p.hours > 0).all() and not (tmp_path/'none.jsonl').exists()


@pytest.mark.parametrize('wrong, says', [
    (dict(modes='knnn'), "Did you mean 'knn'"), (dict(labels=0), 'labels=0'), (dict(labels=(None, 'all')), 'different numbers'), (dict(labels=999), 'Ask for at most'), (dict(labels=()), 'labels='), (dict(labels=(3, 3)), 'different numbers'),
    (dict(seeds=0), 'seeds='), (dict(seeds=(1, 1)), 'seeds='), (dict(seeds=(-1,)), 'seeds='), (dict(search=0), 'search='), (dict(search=-1), 'search='),
    (dict(recipes={'toyy': {}}), "Did you mean 'toy'"), (dict(encoders={}), 'a dict'), (dict(encoders={'ours': []}), 'no encoder'),
    (dict(encoders={'scratch': None}), 'architecture'), (dict(encoders={'ours': [Few(1), Few(1)]}), 'same encoder twice'), (dict(encoders={'ours': Few(1)}, size=None), 'how large'),
    (dict(encoders={'ours': '/nowhere'}), 'nowhere'), (dict(datasets=[]), 'empty'), (dict(datasets='nowhere'), 'nowhere'), (dict(size=48), '48 px')])
def test_wrong_calls_end_before_any_run(wrong, says, toy, arms, tmp_path):
    with pytest.raises(InputError, match=says): compare_encoders(**{**dict(encoders=arms, datasets=toy, modes='finetune', labels=3, seeds=1, size=32, out=tmp_path/'a.jsonl'), **wrong})
    assert not (tmp_path/'a.jsonl').exists()


def test_two_sets_of_one_name(toy, arms):
    with pytest.raises(InputError, match='same name'): list_jobs(arms, [toy, toy], size=32)
    assert {j.data for j in list_jobs(arms, dict(a=toy, b=toy), 'knn', 3, 1, size=32)} == {'a', 'b'}


# Tables

def record(arm, acc, *, seed=0, run='', mode='finetune', data='toy', labels=25, **more):
    plain = arm in ('scratch', 'pixels')
    return dict(dict(arm=arm if plain else 'encoder', source={} if plain else dict(run=f'{arm}{run}'), mode=mode, data=data, size=32, classes=10, labels_per_class=labels, n_train=10*(labels or 500),
                     n_test=10**9, seed=seed, test_accuracy=acc/100, chance=.1, job=dict(arm=arm, weights=f'{arm}{run}', settings=[])), **more)


def cell(records, arm='ours', **where):
    s = summarize(records)
    return s[(s.arm == arm) & np.all([s[k] == v for k, v in where.items()], axis=0)].iloc[0]


@pytest.mark.parametrize('seed', range(5))
def test_intervals_are_scipys(seed):
    "With a thousand million test photos, whose luck is none."
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 8))
    x, y = rng.normal(50, 2, (2, n))
    want = stats.ttest_rel(x, y).confidence_interval(.95)
    c = cell([record('scratch', a, seed=s) for s, a in enumerate(y)] + [record('ours', a, seed=s) for s, a in enumerate(x)])
    assert np.allclose((c.low, c.high), want, rtol=1e-3) and c.covers == 'label subsets, test photos (at most)' and c.lacks == 'one pretraining: how others would vary is not included' and not c.star
    d = rng.normal(1, 2, (3, n))
    many = [record('scratch', a, seed=s) for s, a in enumerate(y)] + [record('ours', y[s]+d[p, s], seed=s, run=p) for p in range(3) for s in range(n)]
    c = cell(many)
    assert np.allclose((c.low, c.high), crossed_interval(d)[1:], atol=1e-2) and c.covers.startswith('pretrainings, label subsets') and c.n == f'3x{n}' and not c.lacks
    assert c['std'] == pytest.approx((y+d).mean(1).std(ddof=1)) and c.star == (c.low*c.high > 0)


def test_crossed_interval_is_symmetric_and_holds_its_limits():
    d = np.random.default_rng(0).normal(size=(4, 3))
    assert np.allclose(crossed_interval(d), crossed_interval(d.T)) and np.allclose(np.array(crossed_interval(d+5))-5, crossed_interval(d))
    rows = np.repeat([[1.], [2.], [4.]], 5, axis=1)                              # no luck in the seeds: as over the rows alone
    assert np.allclose(crossed_interval(rows), interval(rows[:, 0]))
    assert crossed_interval(np.ones((2, 2))) == (1., 1., 1.)


def test_incomplete_cells():
    "A table in the middle of a night."
    base = [record('scratch', 50+s, seed=s) for s in range(5)]
    some = [record('ours', 53+s, seed=s, run=0) for s in range(5)] + [record('ours', 55+s, seed=s, run=1) for s in range(2)]
    c = cell(base+some)
    assert c.n == '2x2-5' and c['diff'] == pytest.approx(4) and c.lacks == 'two pretrainings: too few for a star'
    alone = cell([record('ours', 53)])
    assert np.isnan(alone['diff']) and np.isnan(alone['std'])
    assert table([record('ours', 53)]).loc['ours - scratch'].tolist() == ['-']
    one = cell([record('scratch', 50), record('ours', 53)])
    assert one['diff'] == pytest.approx(3) and one.covers == 'test photos (at most)' and one.lacks.endswith('one label subset: how others would vary is not included')
    other = cell([record('scratch', 50, seed=0), record('ours', 53, seed=1)])     # no seed in common: nothing to pair
    assert np.isnan(other['diff'])
    shared = cell(base[:1] + [record('ours', 53+p, run=p) for p in range(3)])     # one scratch run for all: its luck is unknown
    assert shared.low < 4 < shared.high and shared.lacks == 'one label subset: how others would vary is not included' and not shared.star
    matched = cell(base[:3] + [record('ours', 53+p, seed=p, run=p) for p in range(3)])
    assert matched['diff'] == pytest.approx(3) and not matched.lacks and matched.n == '3x1'


def answered(arm, right, *, seed=0, run='', test='cafe', **more):
    "A record of today: it knows its test photos and which were right."
    return record(arm, 100*np.mean(right), seed=seed, run=run, n_test=len(right), test_pixels=test, test_right=_pack_bits(right), **more)


def test_splits_of_one_name_are_not_paired():
    "Two folders called `photos` with other test photos: a column each, no difference between them, and a sentence."
    a = [answered('scratch', np.arange(90) % 2 == 0, seed=s, test='aaaa') for s in range(3)]
    b = [answered('ours', np.arange(90) % 3 > 0, seed=s, test='bbbb') for s in range(3)]
    s = summarize(a+b)
    assert s.data.unique().tolist() == ['toy, test aaaa', 'toy, test bbbb'] and s['diff'].isna().all()
    t = table(a+b)
    assert t.loc['ours - scratch'].tolist() == ['-', '-'] and '2 different sets of test photos' in t.notes[0] and '2 different sets' in to_markdown(t)
    old = summarize([record('scratch', 50, n_test=90), *b])                       # of before 0.2.0: by name, with a word
    assert old[old.arm == 'ours']['diff'].notna().all() and "paired by the set's name" in old.attrs['notes'][0]
    three = summarize([*a, *b, record('scratch', 50, seed=7, n_test=90)])
    assert 'toy' in set(three.data) and 'stand apart' in three.attrs['notes'][0]


def test_one_encoder_and_ninety_photos_have_no_star():
    "What was '+6.4 [+2.6, +10.3] *': equal answers from seed to seed leave the luck of ninety photos, and that of the pretraining."
    rng = np.random.default_rng(0)
    base = rng.random(90) < .5
    better = base.copy()
    better[rng.choice(np.flatnonzero(~base), 9, replace=False)] = True
    better[rng.choice(np.flatnonzero(base), 3, replace=False)] = False            # 9 won, 3 lost: 6.7 points
    few = lambda right: np.logical_xor(right, rng.random(90) < .02)
    rs = [answered(a, few(x), seed=s) for s in range(5) for a, x in (('scratch', base), ('ours', better))]
    c, d = cell(rs), [a['test_accuracy']-b['test_accuracy'] for a, b in zip(rs[1::2], rs[::2])]
    old = interval(d)
    assert old[1] > 0 and c.high-c.low > 200*(old[2]-old[1])/2*1.5 and not c.star
    assert c.lacks == 'one pretraining: how others would vary is not included' and c.covers == 'label subsets, test photos'
    assert 'one pretraining: how others would vary is not included' in '\n'.join(table(rs).notes) and '*' not in table(rs).loc['ours - scratch'].item()


@pytest.mark.parametrize('n, star', [(1, False), (2, False), (3, True)])
def test_a_star_takes_three_pretrainings(n, star):
    right = np.arange(4000) % 10 < 5
    rs = [answered('scratch', right, seed=s) for s in range(3)] + [answered('ours', np.arange(4000) % 10 < 8, seed=s, run=p) for p in range(n) for s in range(3)]
    c = cell(rs)
    assert c.low > 25 and c.star == star and bool(c.lacks) != star


def test_label_subsets_are_known_by_their_photos():
    rs = [answered('scratch', np.arange(90) % 2 == 0, subset_photos='x'), answered('ours', np.arange(90) % 3 > 0, subset_photos='y')]
    assert np.isnan(cell(rs)['diff'])                                             # one seed, other photos
    assert not np.isnan(cell([rs[0], dict(rs[1], subset_photos='x')])['diff'])
    assert not np.isnan(cell([rs[0], {k: v for k, v in rs[1].items() if k != 'subset_photos'}])['diff'])


def test_the_photos_luck_is_a_bootstraps():
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 300)) < .6, rng.random((3, 300)) < .5
    c = cell([answered('scratch', b[0]), answered('ours', a[0])])
    d = a[0]*1. - b[0]
    drawn = [d[rng.integers(0, 300, 300)].mean() for _ in range(3000)]
    assert (c.high-c.low)/2 == pytest.approx(100*1.968*np.std(drawn), rel=.05)


@pytest.mark.slow
@pytest.mark.parametrize('luck', [dict(sp=.03, ss=.05, noise=.3), dict(sp=.1, ss=.05, noise=1.)])
@pytest.mark.parametrize('shape', [(3, 5, 90), (3, 3, 300)])
def test_intervals_hold_the_truth(shape, luck):
    spec = importlib.util.spec_from_file_location('coverage_worlds', Path(__file__).parents[1]/'benchmarks/coverage.py')
    worlds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worlds)
    assert worlds.cell(shape, luck, worlds=1000, seed=1)['held'] > .93


def test_frozen_scratch_is_random_and_controls_are_always_there():
    records = [record('scratch', 30, mode='linear'), record('pixels', 25, mode='linear'), record('ours', 35, mode='linear'), record('scratch', 38), record('ours', 40), record('ours', 28, mode='knn')]
    for mode, rows in [('linear', ['chance', 'raw pixels (linear)', 'random weights', 'scratch (finetune)', 'ours', 'ours - random weights']), ('finetune', ['chance', 'raw pixels (linear)', 'random weights (linear)', 'scratch', 'ours', 'ours - scratch'])]:
        assert table(records, mode).index.tolist() == rows
    t = table(records, 'knn', labels=(25, None), sets=['toy', 'never'], arms=['ours', 'theirs'])
    assert t['toy', 25].tolist() == ['10.0', '25.0 (1)', '-', '38.0 (1)', '28.0 (1)', '-', '-', '-'] and (t['never'] == '-').all(axis=None) and (t['toy', 'all'][1:] == '-').all()
    assert t.notes[-1] == 'never, theirs: no record has this name.'
    assert to_markdown(t).split('\n\n')[0].count('\n') == len(t)+1


def test_order_of_records_does_not_matter():
    rng = np.random.default_rng(0)
    records = [record(a, rng.uniform(20, 60), seed=s, run=p, labels=l) for a in ('scratch', 'ours', 'theirs') for s in range(3) for p in range(1 if a == 'scratch' else 2) for l in (25, None)]
    mixed = [records[i] for i in rng.permutation(len(records))]
    assert table(mixed, arms=['ours', 'theirs']).equals(table(records, arms=['ours', 'theirs']))
    assert table(records + records[:5]).equals(table(records))


@pytest.mark.parametrize('more, says', [
    ([record('ours', 1)], 'disagree'), ([dict(record('ours', 53, seed=1), size=48)], 'size 32 and 48'), ([dict(record('ours', 53, seed=1), n_test=9)], 'n_test'),
    ([dict(record('ours', 53, seed=1), job=dict(arm='ours', weights='ours', settings=[['steps', 3]]))], 'different ways')])
def test_what_does_not_belong_together(more, says):
    with pytest.raises(InputError, match=says): tidy([record('ours', 53), *more])


def test_tables_of_nothing():
    for f in (tidy, summarize, table, label_curve):
        with pytest.raises(InputError, match='no record'): f([])
        with pytest.raises(InputError, match='no record'): f([dict(kind='recipe')])
    with pytest.raises(InputError, match='Accepted: finetune'): table([record('ours', 53)], 'fine-tune')
    with pytest.raises(InputError, match='Accepted: toy'): label_curve([record('ours', 53)], data='tow')


def test_the_best_row_is_chosen_on_development_images():
    r = lambda arm, score, labels, mode='finetune', data='toy': dict(kind='recipe', source=dict(seed=0) if arm != 'scratch' else {}, score=score, job=dict(arm=arm, labels=labels, mode=mode, data=data))
    records = [r('a', .9, 25), r('a', .5, 500), r('b', .6, 500), r('scratch', .99, 500), r('c', .9, 500, data='other'), r('d', .9, 500, mode='paper-finetune'), dict(kind='probe')]
    assert best_row(records, 'toy') == 'b' and best_row([*records, r('a', .4, None)], 'toy') == 'a'


# Protocols

TINY = Protocol('tiny', width=4, sizes=dict(toy=32), bs=8, updates=8, recipes={'*': dict(steps=4, epochs=1, bs=16)}, blocks=(
    Block(('knn',), (4, None), 1), Block(('finetune',), (4,), 1), Block(('finetune',), (None,), 1, arms='best', search=4)))


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Photos to pretrain on, and a labelled set."
    home = tmp_path_factory.mktemp('home')
    for folder, n, seed in (('photos', 24, 2), ('toy/train', 100, 0), ('toy/test', 50, 1)):
        for i, (x, y) in enumerate(zip(*draw_shapes(n, size=40, seed=seed))):
            (home/folder/str(y)).mkdir(parents=True, exist_ok=True); Image.fromarray(x).save(home/folder/str(y)/f'{i}.png')
    return home


def test_the_shell_makes_a_whole_table(monkeypatch, home, tmp_path, capsys):
    "From photos to a table; a pretraining that was stopped is resumed, and a second call runs nothing."
    monkeypatch.setitem(protocols.PROTOCOLS, 'tiny', replace(TINY, photos=str(home/'photos')))
    monkeypatch.setitem(protocols._COUNTS, str(home/'photos'), (24,)); monkeypatch.setitem(protocols._COUNTS, 'toy', (100, 50))
    argv = ['--scale', 'tiny', '--runs', str(tmp_path/'runs'), '--out', str(tmp_path/'a.jsonl'), '--root', str(home), '--device', 'cpu']
    assert cli.table(argv) == 0
    said = capsys.readouterr().out
    assert 'Nothing was run' in said and 'pretraining at 32 px' in said and not any(tmp_path.iterdir())

    half = protocols.run_folder(TINY, tmp_path/'runs', 'baseline + L1', data='toy', seed=0)
    assert protocols.train_gan(home/'photos', 'paper-l1', run_dir=half, seed=0, size=32, width=4, bs=8, epochs=4, max_minutes=1e-9).step == 1
    assert cli.table([*argv, '--yes']) == 0
    said = capsys.readouterr().out
    assert 'resumed at step 1' in said and '## knn' in said and '## finetune' in said and '| baseline + s&b - scratch' in said
    assert {protocols.GANRun.load(f).step for f in (tmp_path/'runs').iterdir()} == {8}
    records = (tmp_path/'a.jsonl').read_bytes()

    def never(*args, **kwargs): raise AssertionError('everything was done')
    for name in ('probe', 'search_recipe'): monkeypatch.setattr(experiments, name, never)
    monkeypatch.setattr(protocols, 'train_gan', never)
    assert cli.table([*argv, '--yes']) == 0 and (tmp_path/'a.jsonl').read_bytes() == records
    again = capsys.readouterr().out
    assert again[again.index('##'):] == said[said.index('##'):]
    assert cli.table(['--records', str(tmp_path/'a.jsonl')]) == 0 and capsys.readouterr().out == said[said.index('##'):]
    assert cli.table([*argv, '--yes', '--modes', 'linear']) == 2 and "'tiny' has no linear" in capsys.readouterr().err
    monkeypatch.setitem(protocols.PROTOCOLS, 'tiny', replace(TINY, width=8))
    assert cli.table([*argv, '--yes']) == 2 and 'width 4, not 8' in capsys.readouterr().err


def test_a_stopped_pretraining_stops_the_table(monkeypatch, home, tmp_path):
    monkeypatch.setattr(protocols, 'train_gan', lambda *args, **kwargs: SimpleNamespace(stopped='signal'))
    with pytest.raises(KeyboardInterrupt): protocols.pretrain(replace(TINY, photos=str(home/'photos')), tmp_path)


def test_the_shells_probe(home, tmp_path, capsys):
    out = str(tmp_path/'p.jsonl')
    for encoder in (['scratch', '--width', '4'], ['pixels']): assert cli.probe([*encoder, str(home/'toy'), '--mode', 'knn', '--labels', '4', '--seeds', '2', '--size', '32', '--device', 'cpu', '--out', out]) == 0
    assert [(r['arm'], r['seed'], r['data']) for r in read_jsonl(out)] == [('scratch', 0, 'toy'), ('scratch', 1, 'toy'), ('pixels', 0, 'toy'), ('pixels', 1, 'toy')]
    assert capsys.readouterr().out.count('knn on toy, 4 labels a class') == 2
    assert cli.probe(['pixels', str(home/'toy'), '--mode', 'knn', '--search', '--size', '32']) == 2
    assert cli.probe(['pixels', str(home/'toy'), '--size', '32', '--labels', 'all', '--device', 'cpu']) == 2       # nothing to train


def test_true_names(toy, home, tmp_path):
    (tmp_path/'train'/'a').mkdir(parents=True); (tmp_path/'train'/'a'/'1.JPEG').touch()
    many = lambda n, m: SimpleNamespace(train_y=range(n), test_y=range(m))
    assert protocols._true_name('cifar10', many(50_000, 10_000), tmp_path) == 'cifar10 (jpeg)' and protocols._true_name('cifar10', many(50_000, 10_000)) == 'cifar10'
    assert protocols._true_name('svhn', many(8001, 1999)) == 'svhn (10k split)' and protocols._true_name('imagenette', many(5, 3), tmp_path) == 'imagenette'


@pytest.mark.skipif(OLD_TORCH, reason=OTHER_WEIGHTS)
def test_records_of_an_earlier_version_and_of_today_make_one_table(toy):
    "Schema 1 has neither task nor test_right; a contender from scratch and raw pixels have the fingerprints they had, so nothing is run again."
    from pathlib import Path
    from recon_nb.classification import probe
    from recon_nb.config import get_preset
    old = [r for r in read_jsonl(Path(__file__).parent/'fixtures/0.1.0/records.jsonl') if r.get('kind', 'probe') == 'probe' and 'task' not in r]       # those of segmentation apart
    assert old and all(r['schema'] == 1 for r in old)
    today = probe(Few(1), toy, mode='knn', labels_per_class=3, seeds=2, size=32, progress=False).records()
    assert len(tidy(old + today)) == len(tidy(old)) + 2
    known = {r['job']['weights'] for r in old if r.get('job', {}).get('arm') == 'scratch'}
    assert known == {fingerprint(as_contender(None, like=get_preset(p, width=32), size=32)) for p in ('paper-sb', 'improved')}
    assert fingerprint(as_contender('pixels', size=32)) == '768d114d318b'
