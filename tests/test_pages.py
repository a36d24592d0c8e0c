"A page's shown cells, copied from top to bottom into an empty notebook, need nothing that a hidden cell holds."
import ast, builtins, json, re
from pathlib import Path

import pytest

NBS = Path(__file__).parents[1]/'nbs'
PAGES = sorted(p for p in NBS.rglob('*.ipynb') if not any(x.startswith(('.', '_')) for x in p.relative_to(NBS).parts))
HIDDEN = re.compile(r'^#\|\s*(hide|echo:\s*false|include:\s*false)\b', re.M)


def bound(tree):
    "Every name that is made somewhere in a cell."
    found = set()
    for n in ast.walk(tree):
        if isinstance(n, (ast.Import, ast.ImportFrom)): found |= {(a.asname or a.name).split('.')[0] for a in n.names}
        elif isinstance(n, (ast.FunctionDef, ast.ClassDef)): found.add(n.name)
        elif isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store): found.add(n.id)
        elif isinstance(n, ast.arg): found.add(n.arg)
        elif isinstance(n, ast.ExceptHandler) and n.name: found.add(n.name)
    return found


def needed_from_hidden(cells):
    "Names that shown cells use and only hidden cells make."
    shown, hidden, used = set(), set(), set()
    for source in cells:
        tree = ast.parse(re.sub(r'^(\s*)[%!].*', r'\1pass', source, flags=re.M))
        if HIDDEN.search(source):
            hidden |= bound(tree)
            continue
        shown |= bound(tree)
        used |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return sorted((used & hidden) - shown - {*dir(builtins)})


def test_the_check_finds_what_is_hidden():
    cells = ['#| hide\nimport os\nhome = os.getcwd()\ndef f(): pass', 'import numpy as np\nn = 3\n%matplotlib inline', 'for i in range(n): print(np.zeros(i), home, f)']
    assert needed_from_hidden(cells) == ['f', 'home']
    assert needed_from_hidden([cells[0].replace('#| hide\n', ''), *cells[1:]]) == []


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.relative_to(NBS).as_posix())
def test_shown_cells_stand_alone(page):
    cells = [''.join(c['source']) for c in json.loads(page.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    assert needed_from_hidden(cells) == []
