"""The gates of `.ci/gates.py` shown something bad: what ruff may find where, and a page whose saved outputs are stale."""
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


def cell(*outputs): return dict(id='one', cell_type='code', source=['f()'], outputs=[*outputs])
def printed(text): return dict(output_type='stream', name='stdout', text=text.splitlines(keepends=True))
def result(**data): return dict(output_type='execute_result', data={k.replace('_', '/'): [v] for k,v in data.items()})


def test_a_page_that_says_something_else_is_out_of_date():
    saved = [cell(printed('3 modules\n4 pages\n')), cell(result(text_plain='5'))]
    assert gates.differences(saved, json.loads(json.dumps(saved)), 'p.ipynb') == []
    for fresh in ([cell(printed('3 modules\n5 pages\n')), saved[1]], [saved[0], cell(result(text_plain='6'))],
                  [cell(), saved[1]], [saved[0], cell(result(text_plain='5'), printed('a'))]):
        first, last = gates.differences(saved, fresh, 'p.ipynb')
        assert first.startswith('p.ipynb, cell one:\n')
        assert last.startswith('to mend it: nbdev-test --save p.ipynb')
    assert '-4 pages\n+5 pages' in gates.differences(saved, [cell(printed('3 modules\n5 pages\n')), saved[1]], 'p.ipynb')[0]


def test_pictures_may_differ():
    a, b = (cell(result(image_png=x, text_plain=f'<Figure {x}>')) for x in ('abc', 'abd'))
    assert gates.differences([a], [b], 'p.ipynb') == []
