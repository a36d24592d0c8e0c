"""The gates of `.ci/gates.py` shown something bad: what ruff may find where."""
import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'.ci'))
import gates                                                            # noqa: E402


@pytest.fixture
def house(tmp_path):
    "A repository with this one's settings for ruff; `put` writes a file of it."
    shutil.copy(ROOT/'pyproject.toml', tmp_path)
    (tmp_path/'.ci').mkdir()
    shutil.copy(ROOT/'.ci/ruff.toml', tmp_path/'.ci')
    def put(name, text):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text(text)
        return {f.split(': ')[1].split()[0] for f in gates.ruff_faults(tmp_path, [Path(name).parts[0]])}
    return put


WIDE, WIDER = "x = '" + 'a b '*24 + "'\n", "x = '" + 'a b '*34 + "'\n"       # 102 and 142 columns


def test_the_library_has_100_columns_one_statement_a_line_and_no_bugbear(house):
    assert house('recon_nb/a.py', WIDE[:-4] + "'\n") == set()
    assert house('recon_nb/a.py', WIDE) == {'E501'}
    assert house('recon_nb/a.py', 'x = 1; y = 2\n') == {'E702'}
    assert house('recon_nb/a.py', 'fs = [lambda: x for x in range(3)]\nassert False\n') == {'B023', 'B011'}
    assert house('recon_nb/a.py', 'def f(a, b): return list(zip(a, b))\n') == set()


def test_lines_that_nbdev_writes_may_be_longer(house):
    names = [f'name_{i}' for i in range(16)]
    code = ''.join(f'{n} = 1\n' for n in names)
    assert house('recon_nb/a.py', f'__all__ = {names}\n{code}') == set()
    assert house('recon_nb/a.py', f'__all__ = {names[:8]}\n{code}other = {names}\n') == {'E501'}


def test_pages_and_tests_may_be_wider_and_the_gates_themselves_a_little(house):
    for folder in ('tests', 'nbs'):
        assert house(f'{folder}/a.py', WIDER + 'x = 1; y = 2\n') == set()
        assert house(f'{folder}/a.py', 'def f(x=[]): return x\n') == {'B006'}
    assert house('.ci/a.py', WIDE) == set()
    assert house('.ci/a.py', WIDER + 'x = 1; y = 2\n') == {'E501', 'E702'}


def test_code_in_readme_that_a_reader_would_see_cut_is_found(tmp_path):
    (tmp_path/'nbs').mkdir()
    for name,wide in (('index', '1'*90), ('contributing', '1'*80)):
        text = f'# {name}\n\n{"2"*90}\n\n```sh\nshort\n{wide}\n```\n\n- in a list:\n\n  ~~~\n  {wide}\n  ~~~\n'
        (tmp_path/f'nbs/{name}.ipynb').write_text(json.dumps(dict(cells=[dict(id='a', cell_type='markdown', metadata={}, source=text)], metadata={})))
    gates.readme.write(tmp_path)
    assert gates.readme.check(tmp_path) == [f'README.md: a line of code has more than 84 columns: {x}{"1"*90}' for x in ('', '  ')]


def test_at_the_end_it_is_said_which_pages_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gates, 'GATES', {})
    monkeypatch.setattr(gates.pages, 'notebooks', lambda root: (['nbs/a.ipynb', 'nbs/b.ipynb', 'nbs/c.ipynb'], []))
    for log,said,failed in [('Tests Failed On The Following Notebooks:\n=====\n\tb.ipynb\n\noutputs differ: nbs/a.ipynb\n', 'page failed: b.ipynb\noutputs differ: nbs/a.ipynb\n', 2),
                            ('...', 'nbdev-test did not come to its end: every page counts as failed\n', 3)]:
        (tmp_path/'log').write_text(log)
        (tmp_path/'junit').write_text('<a><testcase/></a>')
        monkeypatch.setattr(sys, 'argv', ['gates.py', '--log', str(tmp_path/'log'), '--junit', str(tmp_path/'junit')])
        assert gates.main()
        out = capsys.readouterr().out
        assert said in out and f'notebooks: {3-failed} passed, {failed} failed' in out


def test_a_text_that_pandas_has_cut_is_found():
    import pandas as pd
    long = 'pretrainings, label subsets, test photos (at most as many)'
    frame = pd.DataFrame({'n': [3], 'covers': [long]})
    def saved(x): return dict(data={'text/plain': repr(x)} | ({'text/html': x._repr_html_()} if isinstance(x, pd.DataFrame) else {}))
    with pd.option_context('display.max_colwidth', 50): cut = [gates.cut_texts(saved(x)) for x in (frame, frame.iloc[0])]
    assert [len(c) for c in cut] == [1, 1], cut
    assert all(long.startswith(c[0][:-3].strip()) for c in cut)
    with pd.option_context('display.max_colwidth', None): assert not any(gates.cut_texts(saved(x)) for x in (frame, frame.iloc[0]))
