"One call for 'does it help?': fair pairs whenever it ends, nothing lost, the cost before the work, and a sentence that claims no more than there is."
import json, shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from recon_nb import classification, cli, experiments, probing
from recon_nb.answer import _choose_labels, does_it_help
from recon_nb.classification import probe
from recon_nb.core import InputError, read_jsonl
from recon_nb.labelled import LabelledSet
from recon_nb.probing import _pack_bits
from recon_nb.shapes import SHAPES, draw_shapes


class Few(nn.Module):
    "The smallest thing that is an encoder."
    channels = 2,
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 2, 4, 4)
    def features(self, x): return [self.conv(x)]


@pytest.fixture(scope='module')
def toy():
    (x, y), (tx, ty) = draw_shapes(200, size=32), draw_shapes(100, size=32, seed=1)
    return LabelledSet('toy', x, y, tx, ty, SHAPES)


REAL = experiments.probe


class Counted:
    "Probes and searches that take no time; the n-th call is interrupted."
    def __init__(self, monkeypatch, stop=None, better=.5):
        self.calls, self.stop, self.better = 0, stop, better
        real = REAL
        def quick(arm, data, *, mode, seeds, recipe, **how):
            self.tick()
            ours = arm.pretrained
            right = np.random.default_rng([*seeds, len(mode), ours]).random(len(data.test_y)) < (self.better if ours else .5)
            res = real(arm, data, mode='knn', seeds=seeds, **{k: v for k, v in how.items() if k != 'recipe'})
            for r in res.rows: r |= dict(mode=mode, test_right=_pack_bits(right), test_accuracy=float(right.mean()), selected=dict(scores={}) if recipe else {})
            return res
        def search(task, net, data, *, mode, amount, recipe, device, tried):
            self.tick()
            return replace(recipe, selected=dict(scores={'lr=0.001': .5}))
        monkeypatch.setattr(experiments, 'probe', quick)
        monkeypatch.setattr(experiments, 'search_recipe', search)
    def tick(self):
        self.calls += 1
        if self.calls == self.stop: raise KeyboardInterrupt


HOW = dict(size=32, seeds=2, labels=(3,), progress=False, minutes=None)


def pairs(answer):
    "Which rows each comparison has."
    out = {}
    for r in answer.records:
        if r['kind'] == 'probe': out.setdefault((r['mode'], r['labels_per_class'], r['seed']), set()).add(r['job']['arm'])
    return out


def test_interrupted_at_any_moment_the_pairs_are_whole_and_nothing_is_lost(monkeypatch, tmp_path, toy):
    whole = Counted(monkeypatch)
    want = does_it_help(Few(1), toy, out=tmp_path/'whole.jsonl', **HOW)
    n = whole.calls
    assert want.stopped == want.left == '' and n == 2*2*3 + 2 + 2*2
    for stop in (2, 14, n):                                                       # in a step of frozen probes, after a search, in the last pair
        out = tmp_path/f'{stop}.jsonl'
        with monkeypatch.context() as m:
            Counted(m, stop)
            a = does_it_help(Few(1), toy, out=out, **HOW)
        assert a.stopped == 'interrupted' and len(read_jsonl(out)) == stop-1 and a.left.startswith('Not run: ')
        for (mode, *_), rows in pairs(a).items(): assert rows == ({'Few', 'scratch'} if mode == 'finetune' else {'Few', 'scratch', 'raw pixels'})
        with monkeypatch.context() as m:
            rest = Counted(m)
            b = does_it_help(Few(1), toy, out=out, **HOW)
        assert rest.calls == n-stop+1 and b.table.equals(want.table) and b.text == want.text


def test_an_interrupted_search_goes_on_where_it_was(monkeypatch, tmp_path, toy):
    how, real, calls = dict(HOW, labels=(3,), seeds=1, recipe=dict(steps=2, epochs=1, bs=8)), probing._fit_finite, []
    def fit(fit_, setup, *args):
        calls.append(setup.recipe)
        if len(calls) == stop: raise KeyboardInterrupt
        return real(fit_, setup, *args)
    monkeypatch.setattr(probing, '_fit_finite', fit)
    monkeypatch.setattr(classification, '_fit_finite', fit)
    stop = None
    want = does_it_help(Few(1), toy, out=tmp_path/'a.jsonl', **how)
    n = len(calls)
    calls.clear(); stop = 4                                                       # the fourth training of the first search
    assert does_it_help(Few(1), toy, out=tmp_path/'b.jsonl', **how).stopped == 'interrupted'
    kept = [r for r in read_jsonl(tmp_path/'b.jsonl') if r['kind'] == 'trial']
    assert len(kept) == 3 and all(r['seconds'] >= 0 for r in kept)
    calls.clear(); stop = None
    got = does_it_help(Few(1), toy, out=tmp_path/'b.jsonl', **how)
    assert len(calls) == n-3 and got.table.equals(want.table)
    found = lambda a: [r['recipe'] for r in a.records if r['kind'] == 'recipe']
    assert found(got) == found(want)


def test_without_time_nothing_is_begun_and_a_word_on_the_rest(monkeypatch, tmp_path, toy):
    c = Counted(monkeypatch)
    a = does_it_help(Few(1), toy, out=tmp_path/'a.jsonl', **{**HOW, 'minutes': 1e-6})
    assert a.stopped == 'time' and c.calls == 0 and 'nearest neighbours, 3 labels a class (about' in a.left and a.sentence == 'Nothing was finished.'
    for minutes in (0, -1):
        with pytest.raises(InputError, match='must be a number above 0'): does_it_help(Few(1), toy, out=tmp_path/'a.jsonl', **{**HOW, 'minutes': minutes})
    assert c.calls == 0


def clocked(monkeypatch, counted, seconds):
    "A clock on which each run takes so many seconds, and nothing else takes any; runs are thought to take none."
    from types import SimpleNamespace
    from recon_nb import answer
    clock = SimpleNamespace(monotonic=lambda: 1000. + seconds*counted.calls)
    for m in (answer, experiments): monkeypatch.setattr(m, 'time', clock)
    monkeypatch.setattr(answer, '_measure_speed', lambda *a, **k: 1e15)


def test_a_step_that_takes_longer_than_thought_is_left_when_the_time_is_up(monkeypatch, tmp_path, toy):
    whole = Counted(monkeypatch)
    want, n = does_it_help(Few(1), toy, out=tmp_path/'whole.jsonl', **HOW), whole.calls
    with monkeypatch.context() as m:
        c = Counted(m)
        clocked(m, c, 60)
        a = does_it_help(Few(1), toy, out=tmp_path/'a.jsonl', **{**HOW, 'minutes': 2.5})
        assert a.stopped == 'time' and c.calls == 3 and a.sentence == 'Nothing was finished.' and 'nearest neighbours' in a.left      # no pair is whole
        b = does_it_help(Few(1), toy, out=tmp_path/'a.jsonl', **{**HOW, 'minutes': 2.5})
        assert b.stopped == 'time' and c.calls == 6 and b.left.startswith('Not run: a linear layer') and len(b.table)
    rest = Counted(monkeypatch)
    got = does_it_help(Few(1), toy, out=tmp_path/'a.jsonl', **HOW)
    assert rest.calls == n-6 and got.table.equals(want.table) and got.text == want.text


def test_a_search_is_left_between_two_trainings(monkeypatch, tmp_path, toy):
    how, trials = dict(HOW, seeds=1, recipe=dict(steps=2, epochs=1, bs=8)), []
    real = experiments._Trials.__setitem__
    def count(self, recipe, score):
        trials.append(recipe)
        if len(trials) == 3 and stop: self.until = -1.
        real(self, recipe, score)
    monkeypatch.setattr(experiments._Trials, '__setitem__', count)
    stop = True
    a = does_it_help(Few(1), toy, out=tmp_path/'a.jsonl', **how)
    assert a.stopped == 'time' and len([r for r in read_jsonl(tmp_path/'a.jsonl') if r['kind'] == 'trial']) == 3
    stop = False
    b = does_it_help(Few(1), toy, out=tmp_path/'a.jsonl', **how)
    assert b.stopped == '' and len(set(trials)) == len([r for r in read_jsonl(tmp_path/'a.jsonl') if r['kind'] == 'trial' and r['trial_of']['arm'] == 'Few'])


@pytest.mark.parametrize('n, few', [(4, True), (29, True), (30, False)])
def test_few_test_photos_are_said_and_no_interval_is_impossible(monkeypatch, tmp_path, n, few):
    "0 of 4 right is not 0.0 [0.0, 0.0]: nothing was seen to vary, and little was seen."
    import re
    (x, y), (tx, ty) = draw_shapes(100, size=32), draw_shapes(240, size=32, seed=1)
    keep, test = y < 2, np.flatnonzero(ty < 2)[:n]
    small = LabelledSet('small', x[keep], y[keep], tx[test], ty[test], SHAPES[:2])
    for better in (0., .5, 1.):
        Counted(monkeypatch, better=better)
        a = does_it_help(Few(1), small, out=tmp_path/f'{better}.jsonl', **HOW)
        assert a.sentence.startswith(f'{n} test photos are too few to answer this: one photo is {100/n:.1f} points.') == few
        shown = re.findall(r'([-+]?[\d.]+) \[([-+]?[\d.]+), ([-+]?[\d.]+)\]', f'{a.table.to_string()} {a.text}')
        assert len(shown) > 10
        for mean, low, high in shown:
            least = -100 if mean[0] in '+-' else 0
            assert least <= float(low) <= float(mean) <= float(high) <= 100 and float(low) < float(high), (better, mean, low, high)


@pytest.mark.parametrize('better, says', [(.95, 'it helps'), (.5, 'no difference is shown'), (.05, 'it does harm')])
def test_the_sentence_says_what_the_interval_says(monkeypatch, tmp_path, toy, better, says):
    Counted(monkeypatch, better=better)
    a = does_it_help(Few(1), toy, out=tmp_path/'a.jsonl', **{**HOW, 'seeds': 4})
    assert a.sentence.startswith('Fine-tuned from Few instead of from scratch: ') and says in a.sentence
    assert 'One pretraining: how others would vary is not included.' in a.sentence and '*' not in a.table.to_string()
    three = does_it_help([Few(1), Few(2), Few(3)], toy, out=tmp_path/'b.jsonl', **{**HOW, 'seeds': 4})
    assert 'vary' not in three.sentence and ('*' in three.table.to_string()) == (better != .5) and says in three.sentence


def test_labels_by_what_there_is():
    y = lambda *counts: np.repeat(np.arange(len(counts)), counts)
    assert [_choose_labels(y(n, 900)) for n in (200, 150, 100, 38, 37, 8, 7)] == [[25, 100, None], [25, 100, None], [25, None], [25, None], [5, None], [5, None], [None]]


@pytest.mark.parametrize('run, how, says', [
    (None, {}, 'stand beside it anyway'), ('pixels', {}, 'stand beside it anyway'), ([], {}, 'what may help'), (Few(1), dict(labels=999), 'Ask for at most'), (Few(1), dict(seeds=0), 'seeds='),
    (Few(1), dict(recipe=dict(step=1)), "Did you mean 'steps'")])
def test_wrong_calls_end_before_any_work(run, how, says, toy, tmp_path):
    with pytest.raises(InputError, match=says): does_it_help(run, toy, out=tmp_path/'a.jsonl', **{**HOW, **how})
    assert not (tmp_path/'a.jsonl').exists()


def test_a_recipe_that_nobody_searched_is_said(toy):
    from recon_nb.finetune import Recipe
    said = repr(probe(Few(1), toy, size=32, labels_per_class=3, seeds=1, recipe=Recipe(steps=2, epochs=1), progress=False))
    assert said.endswith('recipe not searched')


def test_photos_where_they_should_not_be_are_counted_and_named(monkeypatch, tmp_path, capsys):
    "Test photos among those to learn from, and test photos that the pretraining has seen."
    from recon_nb.training import train_gan
    for part, seed in (('train', 0), ('test', 1)):
        for i, (x, k) in enumerate(zip(*draw_shapes(40, size=32, seed=seed))):
            f = tmp_path/'photos'/part/'ab'[k % 2]
            f.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x).save(f/f'{part}{i}.png')
    for p in sorted((tmp_path/'photos/test/a').iterdir())[:2]: shutil.copy(p, tmp_path/f'photos/train/a/copy-{p.name}')
    run = train_gan(str(tmp_path/'photos'), 'improved', size=32, width=4, epochs=1, run_dir=tmp_path/'mine', progress=False)
    Counted(monkeypatch)
    with pytest.warns(UserWarning, match='among those to learn from'):
        a = does_it_help(run, str(tmp_path/'photos'), out=tmp_path/'a.jsonl', labels=5, seeds=1, minutes=None)
    said = capsys.readouterr().out
    for notes in (said, '\n'.join(a.table.notes)):
        assert 'test photos are among those to learn from, such as' in notes and 'test photos were trained on, such as test: ' in notes and 'No label was used in that' in notes
    with pytest.warns(UserWarning) as w:
        r, = probe(run, str(tmp_path/'photos'), mode='knn', labels_per_class=5, seeds=1, progress=False).records()
    assert any('test photos were trained on' in str(x.message) for x in w) and r['test_seen'] >= 30
    clean = train_gan(str(tmp_path/'photos/train'), 'improved', size=32, width=4, epochs=1, run_dir=tmp_path/'clean', progress=False)
    for p in (tmp_path/'photos/train/a').glob('copy*'): p.unlink()
    assert probe(clean, str(tmp_path/'photos'), mode='knn', labels_per_class=5, seeds=1, progress=False).records()[0]['test_seen'] <= 2


def test_the_shell_says_its_cost_first_and_ends_in_a_sentence(monkeypatch, tmp_path, capsys):
    from recon_nb.training import train_gan
    for part, seed in (('train', 0), ('test', 1)):
        for i, (x, k) in enumerate(zip(*draw_shapes(80, size=32, seed=seed))):
            f = tmp_path/'photos'/part/'ab'[k % 2]
            f.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x).save(f/f'{i}.png')
    run = train_gan(str(tmp_path/'photos/train'), 'improved', size=32, width=4, epochs=1, run_dir=tmp_path/'mine', progress=False)
    monkeypatch.chdir(tmp_path)
    call, counted = [str(run.dir), 'photos', '--labels', '5', '--seeds', '2', '--device', 'cpu'], Counted(monkeypatch)
    assert cli.probe([*call, '--minutes', '0']) == 2 and '--minutes 0; it must be a number above 0' in capsys.readouterr().err
    assert cli.probe([*call, '--minutes', '1e-6']) == 0
    out = capsys.readouterr().out
    assert '1e-06 min may be spent' in out and 'Not run: nearest neighbours' in out and counted.calls == 0
    assert cli.probe(call) == 0
    out = capsys.readouterr().out
    assert out.index('fine-tuning, 5 labels a class: 4 runs and 2 searches') < out.index('nearest neighbours, 5 labels a class: about')
    assert 'Fine-tuned from mine instead of from scratch: ' in out and out.rstrip().endswith('One pretraining: how others would vary is not included.')
    kept, = tmp_path.glob('probe-photos-*.jsonl')
    assert counted.calls == len(read_jsonl(kept)) == 2*2*3 + 2 + 4
    assert all(json.loads(line)['test_pixels'] for line in kept.read_text().splitlines() if 'test_pixels' in line)
    with monkeypatch.context() as m:
        Counted(m, stop=2)
        assert cli.probe([*call, '--out', 'other.jsonl']) == 130 and 'Nothing was finished' in capsys.readouterr().out
    assert cli.probe([*call, '--search']) == 2 and '--search goes with --mode' in capsys.readouterr().err
    assert cli.probe([*call, '--mode', 'knn', '--minutes', '1']) == 2 and '--minutes goes with a run and without --mode' in capsys.readouterr().err


@pytest.mark.parametrize('low,mode,arm,said', [(27., 'finetune', 'scratch', True), (33.3, 'finetune', 'scratch', True), (33.4, 'finetune', 'scratch', False),
                                               (27., 'linear', 'scratch', False), (27., 'finetune', 'mine', False)])
def test_a_scratch_at_chance_is_told(low, mode, arm, said):
    "A gain over a scratch that has learned nothing is a head start."
    from recon_nb.answer import _say_untrained
    from recon_nb.shell import _called_as
    s = pd.DataFrame([dict(arm=arm, mode=mode, labels=25, mean=36.5, mean_low=low, chance=33.3)])
    assert bool(_say_untrained(s)) == said
    if said:
        assert 'With 25 labels a class scratch is not shown to be above chance (36.5 %, always one class 33.3)' in _say_untrained(s) and 'recipe=dict(steps=' in _say_untrained(s)
        with _called_as('recon-probe'): assert '(--updates)' in _say_untrained(s)
