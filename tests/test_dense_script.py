"""benchmarks/dense.py asks each question once, searches for pretraining 0 and the controls only, and pairs draws."""
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from recon_nb.core import read_jsonl

BENCHMARKS = Path(__file__).parents[1]/'benchmarks'


@pytest.fixture
def dense(monkeypatch, tmp_path):
    "The script with stand-ins for what takes long; `asked` lists the calls of the probes."
    monkeypatch.syspath_prepend(BENCHMARKS)
    import dense
    def probe_of(task):
        def probe(encoder, data, *, mode, photos, like, seeds, recipe, search, device, size, progress):
            asked.append(SimpleNamespace(task=task, encoder=encoder, mode=mode, photos=photos, like=like, seeds=seeds, lr=recipe.lr, steps=recipe.steps, search=search))
            rows = [dict(task=task, mode=mode, photos=photos, seed=s, test_map50=.5, test_miou=.5, config=dict(lr=.123 if search else recipe.lr)) for s in seeds]
            return SimpleNamespace(records=lambda: rows)
        return probe
    asked = []
    monkeypatch.setattr(dense, 'probe_detect', probe_of('detection'))
    monkeypatch.setattr(dense, 'probe_dense', probe_of('segmentation'))
    monkeypatch.setattr(dense, 'photos_of', lambda task, toy: task)
    monkeypatch.setattr(dense, 'pretrain', lambda a, p, seed, end: f'run {seed}')
    monkeypatch.setattr(dense, 'describe_pretraining', lambda folder, row: dict(kind='pretraining', row=row, seed=int(folder.name[-1])))
    def call(*words):
        asked.clear()
        monkeypatch.setattr(sys, 'argv', ['dense.py', '--runs', str(tmp_path/'runs'), *words])
        dense.main()
        return list(asked)
    return call


def test_each_question_once_with_its_draws_and_its_rate(dense, tmp_path, capsys):
    out = tmp_path/'all.jsonl'
    asked = dense('--out', str(out))
    assert Counter((q.task, q.encoder) for q in asked) == {
        **{('detection', e): n for e,n in {'pixels': 2, None: 5, 'run 0': 5, 'run 1': 5, 'run 2': 5}.items()},
        **{('segmentation', e): n for e,n in {'pixels': 2, None: 4, 'run 0': 4, 'run 1': 4, 'run 2': 4}.items()}}
    for q in asked:
        longer, trained = q.steps in (1200, 2000), q.mode == 'finetune'
        first = q.encoder not in ('run 1', 'run 2') and not longer
        assert q.search == first and (q.lr == .123) == (not first)
        assert not longer or trained and q.photos is None
        assert q.seeds == ([int(q.encoder[-1])] if trained and q.encoder else [0, 1, 2])
        assert (q.like is None) == (q.encoder is not None), 'random weights and scratch have the architecture of the pretraining'
    assert sum(q.steps in (1200, 2000) for q in asked) == 2*4, 'scratch and each pretraining, in both tasks'
    assert {q.like.width for q in asked if q.like} == {32} and {q.photos for q in asked} == {100, None}
    rows = read_jsonl(out)
    assert [r['seed'] for r in rows if r.get('kind') == 'pretraining'] == [0, 1, 2]
    rows = [r for r in rows if 'task' in r]
    assert len({(r['task'], r['name'], r['mode'], r['photos'], r['pretraining'], r['seed']) for r in rows}) == len(rows) == 4*(3*3 + 3*3+3) - (3+3) + 2*(3+3)
    assert dense('--out', str(out)) == [] and [r for r in read_jsonl(out) if 'task' in r] == rows, 'what is recorded is not asked again'
    dense('--out', str(out), '--list')
    assert 'to do' not in capsys.readouterr().out


def test_parts_for_several_processes(dense, tmp_path):
    files = [str(tmp_path/f'{n}.jsonl') for n in ('0', '1')]
    with pytest.raises(SystemExit, match='run --only 0 first'): dense('--only', '1', '--out', files[1])
    assert {q.encoder for q in dense('--only', '0', '--out', files[0])} == {'run 0'}
    assert {(q.encoder, q.lr) for q in dense('--only', '1', '--out', files[1], '--rates', files[0])} == {('run 1', .123)}
    assert {q.encoder for q in dense('--only', 'controls', '--out', str(tmp_path/'c.jsonl'))} == {None, 'pixels'}
