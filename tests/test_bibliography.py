"Citations end at an entry, entries are cited, and the BibTeX file is what the bibliography page says."
import json, posixpath, re
from collections import Counter
from pathlib import Path

NBS = Path(__file__).parents[1]/'nbs'
PAGE = 'explanations/bibliography.ipynb'


def prose(path):
    "The Markdown of a notebook."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')

def citations(text, folder):
    "Anchors of the bibliography that `text`, a page in `folder` (relative to nbs), links to."
    links = re.findall(r'\]\(([^)#\s]+)#([\w-]+)\)', text)
    return [anchor for to,anchor in links if posixpath.normpath(posixpath.join(folder, to)) == PAGE]

def anchors(text): return re.findall(r'^- <a id="([\w-]+)"></a>', text, re.M)

def faults(pages, entries):
    "`pages`: name -> (text, folder). What is cited and has no entry, and the reverse."
    cited = {a for text,folder in pages.values() for a in citations(text, folder)}
    wrong = [f'{name} cites {a}, which has no entry' for name,(text,folder) in pages.items() for a in citations(text, folder) if a not in entries]
    return wrong + [f'nobody cites {a}' for a in entries if a not in cited] + [f'{a} stands there twice' for a,n in Counter(entries).items() if n > 1]


def test_faults_are_found():
    page = {'a': ('[x](../explanations/bibliography.ipynb#one2000)', 'tutorials')}
    assert faults(page, ['one2000']) == []
    assert len(faults(page, ['two2000'])) == 2 and len(faults(page, ['one2000', 'one2000'])) == 1
    assert citations('[x](bibliography.ipynb#one2000)', 'explanations') == ['one2000'] and citations('[x](bibliography.ipynb#one2000)', '.') == []

def test_citations():
    paths = [p for p in sorted(NBS.rglob('*.ipynb')) if not re.search(r'/[._]', p.relative_to(NBS).as_posix())]
    pages = {p.relative_to(NBS).as_posix(): (prose(p), p.relative_to(NBS).parent.as_posix()) for p in paths}
    found = faults(pages, anchors(pages[PAGE][0]))
    assert not found, '\n'.join(found)

def test_bibtex():
    keys = re.findall(r'^@\w+\{([\w-]+),$', (NBS/'references.bib').read_text(encoding='utf-8'), re.M)
    assert keys == anchors(prose(NBS/PAGE)), 'run nbs/explanations/bibliography.ipynb: it writes nbs/references.bib'
