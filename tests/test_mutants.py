"The seeded faults of `tests/mutants/` can still be put in, and the tests named for them exist. Whether they are found: `tests/mutants/run.py`."
import ast, importlib.util, json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('mutants', ROOT/'tests/mutants/run.py')
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
mutants = run.load()


def defined(path): return {n.name for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if isinstance(n, ast.FunctionDef)}


def test_there_are_forty_or_more():
    assert len(mutants) >= 40 and [m.name[:2] for m in mutants] == [f'{k:02d}' for k in range(1, len(mutants)+1)]


@pytest.mark.parametrize('m', mutants, ids=lambda m: m.name)
def test_each_still_goes_in_at_one_place(m):
    assert run.count(m) == (1, 1), 'the old text must stand once in the module and once in its page'
    module = (ROOT/f'recon_nb/{m.file}.py').read_text(encoding='utf-8')
    before, after = (ast.dump(ast.parse(t)) for t in (module, module.replace(m.old, m.new)))
    assert before != after and m.what and m.tests
    for t in m.tests:
        file, _, name = t.partition('::')
        assert (ROOT/file).is_file() and (file.endswith('.ipynb') or name.partition('[')[0] in defined(ROOT/file)), t


def test_the_last_results_are_of_these_and_none_survived():
    rows = json.loads((ROOT/'tests/mutants/results.json').read_text(encoding='utf-8'))
    assert [r['mutant'] for r in rows] == [m.name for m in mutants]
    for r,m in zip(rows, mutants): assert r['found_by'] in m.tests and r['what'] == m.what, r['mutant']


def test_a_mutant_that_does_not_fit_is_told(tmp_path):
    (tmp_path/'recon_nb').mkdir()
    (tmp_path/'nbs').mkdir()
    page = dict(cells=[dict(cell_type='code', source=['def f(x):\n', '    return x+1'])])
    for text,n in (('def f(x):\n    return x+1\n', 1), ('a = x+1; b = x+1\n', 2), ('\n', 0)):
        (tmp_path/'recon_nb/a.py').write_text(text)
        (tmp_path/'nbs/10_a.ipynb').write_text(json.dumps(page))
        m = run.Mutant('01_a', 'wrong', 'a', 'return x+1' if n < 2 else 'x+1', 'return x-1', [])
        assert run.count(m, tmp_path)[0] == n
        if n != 1:
            with pytest.raises(SystemExit, match='01_a'): run.put_in(m, tmp_path)
            continue
        put_back = run.put_in(m, tmp_path)
        assert 'x-1' in (tmp_path/'recon_nb/a.py').read_text() and 'x-1' in (tmp_path/'nbs/10_a.ipynb').read_text()
        put_back()
        assert (tmp_path/'recon_nb/a.py').read_text() == text and json.loads((tmp_path/'nbs/10_a.ipynb').read_text()) == page


def test_few_of_the_drawn_faults_survive_and_each_says_why():
    rows = [json.loads(x) for x in (ROOT/'tests/mutants/drawn.jsonl').read_text(encoding='utf-8').splitlines()]
    judged = [r for r in rows if r['by'] is not None]
    left = [r for r in judged if not r['by']]
    assert [r['n'] for r in rows] == list(range(200)) and len(judged) == 200
    assert len(left) <= len(judged)/10 and all(r['reason'] for r in left)
    for r in judged: assert not r['by'] or (ROOT/r['by']).is_file(), r['n']
