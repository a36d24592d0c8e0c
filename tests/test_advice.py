"Advice: refused before any work, kept when interrupted, nothing of the test part, and a command that the shell takes."
import json
import re
import shlex
import signal

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recon_nb import advice, cli
from recon_nb.advice import _FEWEST_UPDATES, _split, advise
from recon_nb.core import InputError, read_jsonl
from recon_nb.labelled import LabelledSet, load_labelled
from recon_nb.shapes import draw_shapes

TWO = 'gradients-two-scales', 'pixels'
TINY = dict(targets=TWO, updates=2, width=2, bs=16, device='cpu', progress=False)


@pytest.fixture(scope='module')
def shapes():
    x, y = draw_shapes(260, size=32)
    return x, y % 2


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(advice, '_DRAWS', 2)
    monkeypatch.setattr(advice, '_VIEWS', 1)


@pytest.fixture
def untrained(monkeypatch):
    "Nothing may be trained or judged."
    for name in ('train_gan', '_look', '_ask'): monkeypatch.setattr(advice, name, lambda *a, **k: pytest.fail(f'{name} was called'))


@pytest.mark.parametrize('change, says', [
    (dict(photos='few'), '100 photos are too few'),
    (dict(photos='nowhere'), 'nowhere'),
    (dict(minutes=0), 'minutes=0'),
    (dict(updates=0), 'updates=0'),
    (dict(targets='pixel'), "Did you mean 'pixels'?"),
    (dict(targets=()), 'list of different names'),
    (dict(targets=('pixels', 'pixels')), 'list of different names'),
    (dict(targets=('codes',)), 'needs a teacher'),
    (dict(sise=64), 'sise'),
    (dict(labels='one class'), '1 class'),
    (dict(labels='none'), 'labels are missing'),
    (dict(labels='small class'), 'has 9 labelled photos'),
])
def test_a_wrong_call_is_refused_before_any_work(untrained, shapes, tmp_path, change, says):
    x, y = shapes
    labels = {'one class': (x, [7]*len(x)), 'none': x, 'small class': (x, [0]*9 + [1]*(len(x)-9))}
    how = dict(TINY, out=tmp_path/'a') | change
    photos = how.pop('photos', x)
    if isinstance(photos, str) and photos == 'few': photos = x[:100]
    if how.get('labels') == 'small class':
        how['labels'] = LabelledSet('small', x, np.array([0]*9 + [1]*(len(x)-9)), x, y, (0, 1))
    elif how.get('labels'): how['labels'] = labels[how['labels']]
    with pytest.raises(InputError, match=re.escape(says)): advise(photos, **how)
    assert not (tmp_path/'a'/'runs').exists()


def test_too_little_time_is_said_before_any_work_with_the_minutes_that_would_do(untrained, monkeypatch, shapes, tmp_path):
    monkeypatch.setattr(advice, '_seconds_per_photo', lambda cfg, device: .01)
    how = dict(TINY, updates=None, minutes=1, out=tmp_path/'a')
    with pytest.raises(InputError, match=f'fewer than {_FEWEST_UPDATES}.*minutes=3') as e: advise(shapes[0], **how)
    assert 'each target would have 150 updates' in str(e.value)                    # 48 s, two targets, 16 photos, 0.01 s each
    assert not read_jsonl(tmp_path/'a'/'advice.jsonl')


def test_what_is_left_of_the_time_is_shared_and_no_more_than_the_recipe_has(monkeypatch, shapes, tmp_path):
    monkeypatch.setattr(advice, '_seconds_per_photo', lambda cfg, device: .01)
    monkeypatch.setattr(advice, '_judge', lambda work, row, contender: 3.)
    monkeypatch.setattr(advice, '_pretrain', lambda work, target, updates: None)
    def planned(minutes): return advise(shapes[0], **TINY | dict(updates=None, minutes=minutes, out=tmp_path/f'{minutes}')).updates
    assert _FEWEST_UPDATES <= planned(3) <= .8*180/.32 and planned(60) == 60*(208//16)


def test_interrupted_anywhere_it_keeps_what_is_done_and_goes_on(monkeypatch, shapes, tmp_path):
    x, y = shapes
    calls, real = [], advice.train_gan
    def train(*args, **how):
        calls.append(how['run_dir'].name)
        if len(calls) == 2: signal.raise_signal(signal.SIGINT)
        return real(*args, **how)
    monkeypatch.setattr(advice, 'train_gan', train)
    how = dict(TINY, out=tmp_path/'a')
    first = advise(x, (x, y), **how)
    assert (first.stopped, first.target, first.sure) == ('interrupted', TWO[0], 'the only one')
    assert 'Not tried: pixels; the same call goes on' in first.sentence
    whole = advise(x, (x, y), **how)
    assert calls == [TWO[0], TWO[1], TWO[1]] and whole.stopped == '' and whole.table.index.tolist() == [*TWO, 'random weights', 'raw pixels']
    n = len(read_jsonl(tmp_path/'a'/'advice.jsonl'))
    again = advise(x, (x, y), **how)
    assert len(calls) == 3 and len(read_jsonl(tmp_path/'a'/'advice.jsonl')) == n and repr(again) == repr(whole)
    with pytest.raises(InputError, match='another question'): advise(x, (x, y), **how | dict(seed=1))
    with pytest.raises(InputError, match='2 updates, not 3'): advise(x, (x, y), **how | dict(updates=3))


def test_short_runs_are_cheap_and_what_is_recommended_is_not(shapes, tmp_path):
    how = {k: v for k, v in TINY.items() if k != 'bs'}
    said = advise(shapes[0], **how, out=tmp_path/'a')
    cfg = json.loads((tmp_path/'a'/'runs'/'pixels'/'config.json').read_text())
    assert (cfg['bs'], cfg['width_dec']) == (64, 16) and 'bs' not in said.command and 'width_dec' not in said.command
    assert f'Fewer than {_FEWEST_UPDATES} updates' in said.sentence and f'the preset makes {60*(208//128)}, of 128 photos each' in said.sentence
    own = advise(shapes[0], **TINY, width_dec=32, out=tmp_path/'b')
    assert 'bs=16, width_dec=32' in own.command and f'makes {60*(208//16)}, of 16 photos each' in own.sentence


def test_interrupted_within_a_training_it_goes_on_from_there(monkeypatch, shapes, tmp_path):
    real = advice.progress_bar
    def bar(*args, **how):
        b = real(*args, **how)
        update = b.update
        def stop(n):
            update(n)
            signal.raise_signal(signal.SIGINT)
        b.update = stop
        return b
    with monkeypatch.context() as m:
        m.setattr(advice, 'progress_bar', bar)
        first = advise(shapes[0], **TINY | dict(out=tmp_path/'a'))
    assert (first.stopped, first.target) == ('interrupted', '') and 'No pretraining was finished' in repr(first)
    assert advise(shapes[0], **TINY | dict(out=tmp_path/'a')).stopped == ''
    assert [r['step'] for r in read_jsonl(tmp_path/'a'/'runs'/TWO[0]/'history.jsonl')] == [1, 2]


def test_labels_that_come_later_need_no_training(monkeypatch, shapes, tmp_path):
    x, y = shapes
    plain = advise(x, **TINY | dict(out=tmp_path/'a'))
    assert plain.worth is None and 'cannot be told without labels' in plain.sentence
    monkeypatch.setattr(advice, 'train_gan', lambda *a, **k: pytest.fail('trained again'))
    said = advise(x, (x, y), **TINY | dict(out=tmp_path/'a', updates=None))
    assert 'Without labels' not in said.sentence and 'linear layer, 25 labels, %' in said.table
    assert advise(x, **TINY | dict(out=tmp_path/'a')).sentence == plain.sentence   # and records with labels change nothing without


def test_nothing_of_the_test_part_is_used(shapes):
    x, y = shapes
    whole = load_labelled((x, y), size=32, progress=False)
    used = _split(whole)
    assert len(used.train_y) + len(used.test_y) == len(whole.train_y) == len(x) - len(whole.test_y)
    assert not np.isin(np.r_[used.train_ids, used.test_ids], whole.test_ids).any() and not np.isin(used.train_ids, used.test_ids).any()


def test_the_shell_says_what_to_run_next(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    x, y = draw_shapes(250, size=40)
    for i, (p, k) in enumerate(zip(x, y % 2)):
        f = tmp_path/'my photos'/'ab'[k]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(p).save(f)
    words = ['my photos', '--updates', '1', '--width', '2', '--no-flip', '--targets', 'pixels', '--device', 'cpu']
    assert cli.advise([*words, '--labels', 'my photos']) == 0
    out = capfd.readouterr().out
    assert 'records and runs: advice-my photos' in out and 'finds itself' in out
    command = shlex.split(out.strip().splitlines()[-1])
    assert command[0] == 'recon-train'
    args = vars(cli._train_parser().parse_args(command[1:]))
    assert args['data'] == ['my photos'] and {k: args[k] for k in ('preset', 'target', 'size', 'width', 'flip')} == dict(
        preset='improved', target='pixels', size=32, width=2, flip=False)
    table = pd.DataFrame(dict(path=['a.png'], kind=['b']))
    table.to_csv('labels.csv')
    assert cli.advise(['nowhere']) == 2 and cli.advise([*words, '--labels', 'labels.csv']) == 2
    err = capfd.readouterr().err
    assert 'Traceback' not in err and 'label' in err
    monkeypatch.setattr(advice, '_judge', lambda *a: signal.raise_signal(signal.SIGINT))
    assert cli.advise([*words, '--out', 'other']) == 130 and 'No pretraining was finished' in capfd.readouterr().out
