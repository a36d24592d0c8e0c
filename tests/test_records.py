"A long history is read once: its rows are the file's, to the last digit, and a curve is drawn from columns."
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from recon_nb import records
from recon_nb.compare import _Records
from recon_nb.records import column, read_rows

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


def lines(rows): return ''.join(json.dumps(r)+'\n' for r in rows)


def history(n, n_critic=1):
    rng = np.random.default_rng(0)
    x = rng.random((n, 4)).round(6).tolist()
    for i, (a, b, c, d) in enumerate(x, 1):
        g = dict(loss_g=c, adv=d) if i % n_critic == 0 else {}
        yield dict(step=i, epoch=i//2000+1, seconds=round(i*.01, 2), loss_d=a, d_real=b, **g)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries(dict(step=st.integers(0, 2**40), loss=finite), optional=dict(adv=finite)), min_size=1, max_size=8), cut=st.integers(0, 8))
def test_rows_are_those_of_the_file_however_they_came(tmp_path_factory, rows, cut):
    path = tmp_path_factory.mktemp('h')/'history.jsonl'
    for large in (0, 10**9):                                           # by the reader of tables, and line by line
        records._LARGE = large
        try:
            path.write_text(lines(rows[:cut]))
            assert read_rows(path) == rows[:cut]
            with open(path, 'a') as f: f.write(lines(rows[cut:]))
            assert read_rows(path) == rows
            path.unlink()
            assert read_rows(path) == []
        finally: records._LARGE = 4_000_000


@pytest.mark.parametrize('n_critic', [1, 5])
def test_a_long_history_is_read_once_and_drawn_from_columns(n_critic, tmp_path, monkeypatch):
    rows = [*history(60_000, n_critic)]
    path = tmp_path/'history.jsonl'
    path.write_text(lines(rows))
    assert path.stat().st_size > records._LARGE
    found = read_rows(path)
    assert found.rows is None and found == rows and read_rows(path) is found
    with open(path, 'a') as f: f.write(lines([dict(rows[-1], step=60_001)]))
    monkeypatch.setattr(records, '_read_many', None)                   # what is new is small: nothing else is parsed
    assert read_rows(path)[-2:] == [rows[-1], dict(rows[-1], step=60_001)]
    long = _Records(read_rows(path), [], dict(train=128*2000, bs=128))
    start = time.process_time()
    curves = {k: long.curve(k) for k in ('loss_d', 'adv', 'd_real')}
    assert time.process_time()-start < .1                              # 0.1 s for a redraw of a million
    assert all(c.shape == (2, 100) for c in curves.values()) and len(long.curve('psnr')[0]) == 0
    np.testing.assert_allclose(curves['loss_d'][1].mean(), np.mean([r['loss_d'] for r in rows]), atol=2e-3)
    assert np.isnan(column(found, 'loss_g')).mean() == 1-1/n_critic


@pytest.mark.slow
def test_a_million_updates_open_in_a_second_or_two(tmp_path):
    path = tmp_path/'history.jsonl'
    path.write_text(lines(history(1_000_000)))
    import pandas                                                      # noqa: F401 (its import is not the reading)
    start = time.process_time()
    found = read_rows(path)
    assert time.process_time()-start < 3 and len(found) == 10**6       # 1 s where nobody else computes
    start = time.process_time()
    _Records(found, [], dict(train=128*2000, bs=128)).curve('loss_d')
    assert time.process_time()-start < .3
