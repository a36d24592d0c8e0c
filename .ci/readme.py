"""README.md from nbs/index.ipynb and CONTRIBUTING.md from nbs/contributing.ipynb, without Quarto and without dependencies.

    python .ci/readme.py                  write them
    python .ci/readme.py --check          say what is out of date, exit 1 if anything is
    python .ci/readme.py --test-command   print README's test command, which CI runs as it stands

Pictures come from the saved outputs, as nbs/figures/NAME-N.png, and need a `#| fig-alt:` line in their cell. Links relative to
the notebook become relative to the repository. `#| hide` drops a cell, `#| echo: false` its code, `#| output: false` its output,
`#| code-fold: true` folds the code."""
import argparse, base64, json, posixpath, re, sys
from pathlib import Path

PAGES = {'README.md': 'nbs/index.ipynb', 'CONTRIBUTING.md': 'nbs/contributing.ipynb'}
FIGURES = 'nbs/figures'

def directives(source):
    "The `#| key: value` lines on top of a cell, as a dict, and the source without any of them."
    found = dict(re.findall(r'^#\|[ \t]*([\w-]+)[ \t]*:?[ \t]*(.*)$', source, re.M))
    return found, '\n'.join(l for l in source.splitlines() if not l.startswith('#|')).strip('\n')

def fence(text, lang): return f'```{lang}\n{text.rstrip()}\n```'

def relink(target, folder):
    "`target` as seen from the repository's root; addresses and anchors stay."
    if re.match(r'[a-z][\w+.-]*:|#|/', target): return target
    return posixpath.normpath(posixpath.join(folder, target))

def prose(text, folder):
    "A markdown cell with links seen from the root and Quarto's callouts as GitHub's; code is left alone."
    def callout(m): return f'> [!{m[1].upper()}]\n' + '\n'.join(f'> {l}'.rstrip() for l in m[2].strip().splitlines())
    parts = re.split(r'(^```.*?^```|`[^`\n]+`)', text, flags=re.M|re.S)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r'(\]\()([^)\s]+)', lambda m: m[1]+relink(m[2], folder), parts[i])
        parts[i] = re.sub(r'\b((?:src|href)=")([^"]+)', lambda m: m[1]+relink(m[2], folder), parts[i])
    return re.sub(r'^::: ?\{\.callout-(\w+)[^}]*\}\n(.*?)\n:::$', callout, ''.join(parts), flags=re.M|re.S)

def as_text(value): return value if isinstance(value, str) else ''.join(value)

class Page:
    "One notebook on its way to markdown: the text blocks and the pictures it needs."
    def __init__(self, root, nb):
        self.folder, self.stem, self.figures = posixpath.dirname(nb), Path(nb).stem, {}
        self.blocks = [f'<!-- Made from {nb} by .ci/readme.py: edit the notebook, not this file. -->']
        for cell in json.loads((root/nb).read_text(encoding='utf-8'))['cells']: self.add(cell, as_text(cell['source']))

    def add(self, cell, source):
        if cell['cell_type'] == 'markdown': self.blocks.append(prose(directives(source)[1], self.folder))
        if cell['cell_type'] != 'code': return
        d, source = directives(source)
        if 'hide' in d or d.get('include') == 'false': return
        if source and d.get('echo') != 'false':
            code = fence(source, 'python')
            summary = d.get('code-summary', 'The code').strip('"')
            if d.get('code-fold') == 'true': code = f'<details><summary>{summary}</summary>\n\n{code}\n\n</details>'
            self.blocks.append(code)
        if d.get('output') != 'false':
            for out in cell['outputs']: self.blocks += self.output(out, d)

    def output(self, out, d):
        "The markdown of one saved output, as a list of no or one block."
        if out['output_type'] == 'error': raise ValueError(f"{self.stem}.ipynb has a saved error output: {out['ename']}")
        if out['output_type'] == 'stream': return [fence(as_text(out['text']), 'text')] if out['name'] == 'stdout' else []
        data = {k: as_text(v) for k,v in out['data'].items() if isinstance(v, (str, list))}
        if 'image/png' in data: return [self.picture(data['image/png'], d)]
        if 'text/markdown' in data: return [prose(data['text/markdown'], self.folder)]
        html, plain = data.get('text/html', ''), data.get('text/plain', '')
        if '<table' in html and '<script' not in html: return [re.sub(r'<style.*?</style>', '', html, flags=re.S).strip()]
        return [] if not plain or plain.startswith('<') else [fence(plain, 'text')]

    def picture(self, data, d):
        alt = (d.get('fig-alt') or d.get('fig-cap') or '').strip('"\' ')
        if not alt: raise ValueError(f"{self.stem}.ipynb: the cell of picture {len(self.figures)+1} has no `#| fig-alt:` line")
        name = f'{FIGURES}/{self.stem}-{len(self.figures)+1}.png'
        self.figures[name] = base64.b64decode(data)
        return f'![{alt}]({name})'

def build(root):
    "All files that the pages need: path from the root -> bytes."
    files = {}
    for md, nb in PAGES.items():
        if not (root/nb).exists(): continue
        page = Page(root, nb)
        files |= {md: ('\n\n'.join(b for b in page.blocks if b)+'\n').encode()} | page.figures
    return files

def stale(root, files):
    "Figures on disk that no page shows any more."
    stems = '|'.join(Path(nb).stem for nb in PAGES.values())
    return [p for p in sorted((root/FIGURES).glob('*.png'))
            if re.fullmatch(rf'(?:{stems})-\d+\.png', p.name) and f'{FIGURES}/{p.name}' not in files]

def check(root):
    "What is missing or out of date, as sentences."
    try: files = build(root)
    except ValueError as e: return [str(e)]
    faults = [f'{nb} is missing, so {md} cannot be made' for md,nb in PAGES.items() if not (root/nb).exists()]
    faults += [f'{f} is {"out of date" if (root/f).exists() else "missing"}: run python .ci/readme.py' for f,b in files.items()
               if not (root/f).exists() or (root/f).read_bytes() != b]
    faults += [f'{f}: a line of code has more than {COLUMNS} columns: {l}' for f,b in files.items() if f in PAGES for l in wide(b.decode())]
    return faults + [f'{FIGURES}/{p.name} is shown nowhere: run python .ci/readme.py' for p in stale(root, files)]

COLUMNS = 84                            # of code: no more fit on GitHub, and in the site's column at 1400 px

def wide(text):
    "Lines in fenced blocks that a reader would see cut."
    return [l for block in re.findall(r'^ *(?:```|~~~)[^\n]*\n(.*?)^ *(?:```|~~~)', text, re.M|re.S)
            for l in block.splitlines() if len(l) > COLUMNS]

def write(root):
    files = build(root)
    for p in stale(root, files): p.unlink()
    for f,b in files.items():
        (root/f).parent.mkdir(parents=True, exist_ok=True)
        (root/f).write_bytes(b)
    return files

def test_command(text):
    "The first fenced block below a heading that has the word test in it."
    m = re.search(r'^#+[^\n]*\btests?\b[^\n]*\n(?:(?!^#).)*?^```[^\n]*\n(.*?)^```', text, re.M|re.S|re.I)
    if not m: raise ValueError('README.md has no heading with the word test and a fenced block below it')
    missing = [w for w in ('pip install', 'nbdev-test --n-workers 2', 'pytest') if w not in m[1]]
    if missing: raise ValueError(f"README's test command lacks {', '.join(missing)}: {m[1].strip()!r}")
    return m[1].strip()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true', help='write nothing, say what is out of date')
    p.add_argument('--test-command', action='store_true', help="print README's test command")
    p.add_argument('--root', type=Path, default=Path(__file__).resolve().parents[1], help='the repository')
    a = p.parse_args()
    try:
        if a.test_command: lines, faults = [test_command((a.root/'README.md').read_text(encoding='utf-8'))], []
        elif a.check: lines = faults = check(a.root)
        else: lines, faults = write(a.root), []
    except (ValueError, OSError) as e:
        print(e, file=sys.stderr)
        return 1
    for line in lines: print(line)
    return bool(faults)

if __name__ == '__main__': sys.exit(main())
