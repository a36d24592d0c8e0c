"benchmarks/run.py at toy size: complete records, a table built from them, nothing missed hidden."
import importlib.util, sys
from pathlib import Path

import numpy as np
import pytest
from recon_nb.core import append_jsonl, read_jsonl

SCRIPT = Path(__file__).resolve().parents[1]/'benchmarks'/'run.py'
spec = importlib.util.spec_from_file_location('speed_script', SCRIPT)
speed = sys.modules['speed_script'] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(speed)

FEW = 'step-16', 'flops-16', 'listing', 'history-open', 'probe-knn', 'probe-linear', 'fetch-share'


@pytest.fixture
def page(tmp_path):
    path = tmp_path/'page.md'
    path.write_text(f'before\n{speed.BEGIN}\nan older table\n{speed.END}\nafter\n')
    return path


def a_record(name, value, **more):
    "A record as `measure` makes it, with a value of one's own."
    row = speed.ROWS[name]._replace(measure=lambda s: dict(ours=1., theirs=2., value=value,
                                                           repeats=1, config={}, **more))
    return speed.measure(speed.Session(True, None, None), row)


def test_quick_rows_leave_whole_records(tmp_path, page, monkeypatch):
    monkeypatch.delenv('RECON_NB_DATA', raising=False)
    out = tmp_path/'speed.jsonl'
    words = ['--quick', '--rows', *FEW, '--out', str(out), '--write', '--readme', str(page)]
    assert speed.main(words) == 0
    records = read_jsonl(out)
    assert [r['row'] for r in records] == [*FEW]
    for r in records:
        assert r['quick'] and r['repeats'] >= 1 and r['config'] and r['device'] == 'cpu'
        assert r['ours'] > 0 and r['theirs'] > 0 and r['value'] > 0
        first, second = (r['ours'], r['theirs'])[::1 if r['less'] else -1]
        assert r['ratio'] == pytest.approx(first/second)
        assert {'torch', 'numpy', 'threads', 'python'} <= r['machine'].keys()
        assert (r['floor'], r['aim']) == speed.ROWS[r['row']][4:6]
        assert r['verdict'] == speed.judge(speed.ROWS[r['row']], r['value'])
    said = page.read_text()
    assert said.startswith('before\n') and said.endswith('after\n') and 'an older table' not in said
    assert speed.build_table(records) in said and 'they try the script' in said
    assert said.count('not run') == len(speed.ROWS)-len(FEW)


def test_goals():
    step, start = speed.ROWS['step-16'], speed.ROWS['start']
    assert [speed.judge(step, v) for v in (1.4, 1.35, 1.3)] == ['met', 'floor', 'missed']
    assert [speed.judge(start, v) for v in (.7, 1., 1.3)] == ['met', 'floor', 'missed']
    assert speed.judge(speed.ROWS['compile'], .5) == 'measured'


def test_what_misses_is_shown(monkeypatch):
    monkeypatch.setitem(speed.REASONS, 'step-16', 'the moon was full')
    older, newer = a_record('step-16', 1.5), a_record('step-16', 1.2)
    table = speed.build_table([older, newer]).splitlines()
    line, = (x for x in table if x.startswith('| `step-16`'))
    assert '| 1.20x | **missed**: the moon was full |' in line     # the newest counts
    assert 'moon' not in speed.build_table([newer, older])         # nothing to excuse
    short = speed.build_table([a_record('step-16', 1.35)])
    assert '| 1.35x | aim not reached: the moon was full |' in short
    monkeypatch.setitem(speed.REASONS, 'step-16', '')
    assert '**missed**' in speed.build_table([newer])


def test_rows_that_cannot_be_measured_here(page):
    row = speed.ROWS['memory-embed']._replace(measure=lambda s: dict(missing='a system with /proc'))
    r = speed.measure(speed.Session(True, None, None), row)
    assert r['verdict'] == 'not here' and 'needs a system with /proc' in speed.build_table([r])


def test_a_row_that_fails_stops_no_other(tmp_path, monkeypatch, capsys):
    def fail(s): raise RuntimeError('of no use')
    monkeypatch.setitem(speed.ROWS, 'start', speed.ROWS['start']._replace(measure=fail))
    out = tmp_path/'r.jsonl'
    assert speed.main(['--quick', '--rows', 'start', 'host', '--out', str(out)]) == 1
    assert [r['row'] for r in read_jsonl(out)] == ['host']
    assert 'start           failed: RuntimeError: of no use' in capsys.readouterr().out


def test_wrong_calls(tmp_path, page, capsys):
    assert speed.main(['--rows', 'speed']) == 2 and 'Accepted: start, ' in capsys.readouterr().err
    page.write_text('no marks\n')
    append_jsonl(tmp_path/'r.jsonl', a_record('start', 1.))
    assert speed.main(['--write', '--out', str(tmp_path/'r.jsonl'), '--readme', str(page)]) == 2
    assert page.read_text() == 'no marks\n'


def test_the_page_here_is_built_from_the_records():
    said = speed.README.read_text()
    assert speed.build_table(read_jsonl(speed.RECORDS)) in said
    assert set(speed.REASONS) <= set(speed.ROWS)


def test_tints_differ_in_tint_alone(tmp_path):
    from recon_nb.shapes import draw_shapes
    spec = importlib.util.spec_from_file_location('tints_script', SCRIPT.parent/'tints.py')
    tints = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tints)
    x = tints.tint(draw_shapes(8, size=32)[0]).astype(float)
    colours = x.mean((1, 2))/90
    wanted = np.array([*tints.TINTS.values()]*2)
    assert colours == pytest.approx(wanted, abs=.03)
    grey = (x/colours[:, None, None]).mean(3)
    assert abs(grey.mean((1, 2))-90).max() < 3 and grey.std((1, 2)).min() > 5
