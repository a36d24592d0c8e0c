"Each fault is injected by faults.py, which shares no code with the guards, and must be named. Sound pipelines must pass, seed after seed."
import numpy as np
import pytest
import torch

from faults import CODE, DATA, Pipeline, changed, rows, sound_set
from recon_nb.core import InputError
from recon_nb.guards import PipelineReport, _chance_bar, check_data, check_pipeline


def first(report): return next(iter(report.faults.items()), ('none', ''))


@pytest.fixture(scope='module')
def data(): return sound_set(tint=(1., .8, .5))


@pytest.mark.parametrize('what', DATA)
def test_fault_in_the_data(what, data):
    wrong, name, word = DATA[what]
    got = first(check_data(wrong(data)))
    assert got[0] == name and word in got[1], got


@pytest.mark.parametrize('what', CODE)
def test_fault_in_the_code(what, data):
    how, give_losses, name, word = CODE[what]
    p = Pipeline(**how)
    got = first(check_pipeline(data, p.fit, p.predict, losses=(lambda net: net.seen) if give_losses else None))
    assert got[0] in (name, 'over-fit 32'*(word == 'dropout is still on')) and word in got[1], got


def test_answers_that_change_are_named_before_any_remedy_is_tried(data):
    "So much dropout that 32 images are not known either: no range of pixels is to blame."
    p = Pipeline(training=True, dropout=.9, batch_norm=False, passes=30)
    name, said = first(check_pipeline(data, p.fit, p.predict))
    assert name == 'over-fit 32' and 'dropout is still on' in said


def test_a_label_fault_stops_before_any_fit(data):
    def fit(x, y): raise AssertionError('fit was called')
    report = check_pipeline(changed(data, train_y=data.train_y+1), fit, None)
    assert [c.verdict for c in report.checks].count('not run') == 13 and list(report.faults) == ['labels']
    with pytest.raises(InputError, match='count from 1'): report.raise_if_broken()


def test_two_shapes_stop_before_any_fit(data):
    def fit(x, y): raise AssertionError('fit was called')
    report = check_pipeline(changed(data, test_x=data.test_x[:, :20, :20]), fit, None, evaluate=fit)
    assert list(report.faults) == ['pixels'] and len(report.checks) == 14 and [c.verdict for c in report.checks].count('not run') == 10
    with pytest.raises(InputError, match='differ in shape'): report.raise_if_broken()


def test_fit_that_reads_a_global(data):
    p = Pipeline(bad_fit='other labels', noise=torch.as_tensor(data.train_y))
    assert 'does not use the labels' in check_pipeline(data, p.fit, p.predict)['shuffled labels'].fault


def test_sorted_files_without_a_shuffle(data):
    p, order = Pipeline(shuffle=False), np.argsort(data.train_y, kind='stable')
    d = rows(data, 'train', order)
    report = check_pipeline(d, p.fit, p.predict)
    assert list(report.faults) == ['order'] and 'sorted by class' in report.faults['order'], report
    p = Pipeline()
    assert check_pipeline(d, p.fit, p.predict).raise_if_broken()['order'].reading < .1


def evaluate(data, pick=max, **how):
    "Trains, looks at the test accuracy after each pass, and reports one of them."
    p, seen = Pipeline(**how), []
    p.fit(data.train_x, data.train_y, lambda net: seen.append(float((p.predict(net, data.test_x) == data.test_y).mean())))
    return pick(seen)


def test_picking_on_test(data):
    p = Pipeline()
    report = check_pipeline(data, p.fit, p.predict, evaluate=evaluate, decoys=30)
    assert list(report.faults) == ['picking on test'] and 'chosen on the test set' in report.faults['picking on test']


def test_train_accuracy_reported_as_test(data):
    p = Pipeline()
    def wrong(d): return (p.predict(p.fit(d.train_x, d.train_y), d.train_x) == d.train_y).mean()
    assert not check_pipeline(data, p.fit, p.predict, evaluate=wrong, decoys=3)['picking on test'].ok


def healthy(seed, decoys=40, **how):
    p = Pipeline(**how)
    return check_pipeline(sound_set(seed), p.fit, p.predict, seed=seed, evaluate=lambda d: evaluate(d, pick=lambda seen: seen[-1], **how), decoys=decoys)


@pytest.mark.parametrize('seed', range(3))
def test_a_sound_pipeline_passes(seed):
    report = healthy(seed, decoys=10)
    assert all(c.ok for c in report.checks), report


@pytest.mark.slow
def test_false_alarms():
    "None in twenty sets, twenty seeds."
    broken = [r for r in (healthy(seed) for seed in range(20)) if not r.ok]
    assert not broken, broken


def test_the_order_of_a_sorted_set_is_no_fault():
    "A row lost in a sorted list moves one label a class: that harms nobody, and is not called a fault."
    d = sound_set(3)
    d = rows(rows(d, 'train', np.argsort(d.train_y, kind='stable')), 'test', np.argsort(d.test_y, kind='stable'))
    assert check_data(changed(d, test_x=np.roll(d.test_x, 1, 0))).ok


def test_two_classes_and_few_images():
    d = sound_set(n=400, m=250)
    for split in ('train', 'test'): d = rows(d, split, np.flatnonzero(getattr(d, f'{split}_y') >= 8))
    d = changed(d, train_y=d.train_y-8, test_y=d.test_y-8, classes=d.classes[8:])
    p = Pipeline()
    assert check_pipeline(d, p.fit, p.predict).ok
    assert first(check_data(changed(d, test_y=1-d.test_y)))[0] in ('train to test',)
    with pytest.raises(InputError, match='at least 30 images'): check_data(rows(d, 'test', slice(0, 12)))
    with pytest.raises(InputError, match='a tuple has no train_x'): check_data((d.train_x, d.train_y))


def test_answers_of_the_wrong_form(data):
    p = Pipeline()
    for predict in (lambda net, x: np.zeros((len(x), 10)), lambda net, x: np.full(len(x), .5), lambda net, x: np.zeros(3)):
        with pytest.raises(InputError, match='predict returned'): check_pipeline(data, p.fit, predict)
    with pytest.raises(InputError, match='evaluate returned'): check_pipeline(data, p.fit, p.predict, evaluate=lambda d: 55.)


def test_the_bar_is_exact():
    rng = np.random.default_rng(0)
    assert (rng.binomial(500, .1, 200_000)/500 > _chance_bar(500, .1, alpha=.01)).mean() == pytest.approx(.01, abs=.004)
    assert isinstance(PipelineReport([]).faults, dict) and PipelineReport([]).ok
