"""The gates of `.ci/gates.py` shown something bad: what ruff may find where."""
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
